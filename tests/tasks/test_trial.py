"""A family is tried before anything is trained: shapes that `Task` does not say are refused, in one line."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tests.tasks.test_families import SETTINGS
from tvjax import tasks
from tvjax.errors import UserError
from tvjax.evals.measure import Measure
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.nn.model import Model
from tvjax.tasks import GINC, LAYOUTS, NO_SHIFT, Linear, Sinusoid, TokenOffset, draw, shifts_for
from tvjax.tasks.trial import check_oracle, try_family

K = 3  # so that B = 5 and N = 4


def attempt(task, layout="xzy"):
    try_family("mine", task, LAYOUTS[layout].wide(task.x_tokens), K, shifts_for(task, K))


def mine(base, **methods):
    """A family like `base`, with other methods."""
    return dataclasses.dataclass(frozen=True)(type("Mine", (base,), methods))()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("task", SETTINGS, ids=str)
def test_every_family_of_the_package_passes(task, layout):
    attempt(task, layout)


def real(change):
    """An oracle of real answers, changed."""
    return lambda self, x, y, queries, *, noise=0.0, held_out=False: change(jnp.zeros(y.shape), noise, held_out)


WRONG = {
    "oracle without its last axis": (
        (Linear, {"oracle": real(lambda y, noise, held_out: y[..., 0])}),
        r"oracle: given float32 of shape \(5, 4\); accepted: \[B, N, O\], here \(5, 4, 1\)",
    ),
    "oracle where labels are noisy": (
        (Linear, {"oracle": real(lambda y, noise, held_out: y[:, 1:] if noise else y)}),
        r"oracle: given float32 of shape \(5, 3, 1\)",
    ),
    "oracle of held-out tasks": (
        (Sinusoid, {"oracle": real(lambda y, noise, held_out: y[:1] if held_out else y)}),
        r"oracle: given float32 of shape \(1, 4, 1\)",
    ),
    "oracle that forgets its return": (
        (Linear, {"oracle": real(lambda y, noise, held_out: None)}),
        "oracle: given NoneType; accepted",
    ),
    "one task for all prompts": (
        (Linear, {"parameters": lambda self, key, batch, *, held_out=False: {"w": jnp.ones((1, 4))}}),
        r"parameters: w: given float32 of shape \(1, 4\); accepted: \[B, \.\.\.\], here \(5,\)",
    ),
    "parameters without a name": (
        (Linear, {"parameters": lambda self, key, batch, *, held_out=False: jnp.ones((batch, 4))}),
        r"parameters: given float32 of shape \(5, 4\); accepted: a dict of arrays \[B, \.\.\.\]",
    ),
    "a query too few": (
        (Linear, {"inputs": lambda self, key, parameters, pairs: jnp.ones((len(parameters["w"]), pairs - 1, 4))}),
        r"inputs: given float32 of shape \(5, 3, 4\); accepted: \[B, N, X\], here \(5, 4, 4\)",
    ),
    "answers without their last axis": (
        (Linear, {"answers": lambda self, key, parameters, x: x.sum(-1)}),
        r"answers: given float32 of shape \(5, 4\); accepted: \[B, N, Y\], here \(5, 4, 1\)",
    ),
    "answers that are no tokens": (
        (TokenOffset, {"answers": lambda self, key, parameters, x: x + 0.5}),
        r"answers: given float32 of shape \(5, 4\); accepted: whole numbers \[B, N\], here \(5, 4\)",
    ),
    "one score a prompt": (
        (Linear, {"scores": lambda self, predictions, targets: {"risk": ((predictions - targets) ** 2).mean((1, 2))}}),
        r"scores: risk: given float32 of shape \(5,\); accepted: \[B, N\], here \(5, 4\)",
    ),
    "no risk": (
        (Linear, {"scores": lambda self, predictions, targets: {"loss": predictions[..., 0]}}),
        "scores: given loss; accepted: risk among them",
    ),
    "an encoding of another length": (
        (TokenOffset, {"encode": lambda self, layout, x, y: jnp.concatenate([x, y], 1)}),
        r"encode: given int32 of shape \(5, 8\); accepted: whole numbers \[B, T\], here \(5, 11\)",
    ),
    "held-out tasks that nobody measures": (
        (
            Linear,
            {
                "parameters": lambda self, key, batch, *, held_out=False: {
                    "w": jax.random.normal(key, (batch, 4)) * (2 if held_out else 1)
                }
            },
        ),
        "has_held_out: given False, although `parameters` draws other tasks where `held_out` is true; accepted: True",
    ),
    "held-out tasks of a table of the same size": (
        (GINC, {"has_held_out": False}),
        "has_held_out: given False",
    ),
}


@pytest.mark.parametrize(("family", "line"), WRONG.values(), ids=list(WRONG))
def test_what_does_not_fit_is_refused_with_the_method_and_both_shapes(family, line):
    base, methods = family
    with pytest.raises(UserError, match=f"^task family mine: {line}"):
        attempt(mine(base, **methods))


def test_a_family_that_refuses_held_out_tasks_has_none():
    def parameters(self, key, batch, *, held_out=False):
        assert not held_out
        return {"w": jax.random.normal(key, (batch, 4))}

    attempt(mine(Linear, parameters=parameters))


def test_a_key_of_its_own_is_a_constant_like_others():
    own = jax.random.key(7)

    def parameters(self, key, batch, *, held_out=False):
        return {"w": jax.random.normal(key, (batch, 4)) + jax.random.normal(own, (4,))[None]}

    attempt(mine(Linear, parameters=parameters))


def tokens(of):
    """An oracle of tokens whose probabilities are uniform, or what `of` makes of their logarithms."""

    def oracle(self, x, y, queries, *, noise=0.0, held_out=False, held_out_queries=False):
        return of(jnp.full((*y.shape, self.vocab_size), -jnp.log(float(self.vocab_size))))

    return oracle


@pytest.mark.parametrize(
    ("base", "oracle", "line"),
    [
        (TokenOffset, tokens(jnp.exp), r"given values whose exp sums to 21\.03; accepted: log-probabilities"),
        (TokenOffset, tokens(lambda log: log + 1000.0), "given values whose exp sums to inf; accepted: log"),
        (TokenOffset, tokens(lambda log: log + jnp.nan), "given values whose exp sums to nan; accepted: log"),
        (Linear, real(lambda y, noise, held_out: y / 0.0), "given values that are not finite; accepted: finite"),
    ],
)
def test_what_no_oracle_can_answer_is_refused_where_it_is_scored(base, oracle, line):
    task = mine(base, oracle=oracle)
    measured = Measure(Model({}, None), task, LAYOUTS["xzy"], K, edit="replace", prompts=4, seed=0)
    drawn = draw(NO_SHIFT, task, LAYOUTS["xzy"], jax.random.key(0), 4, K)
    with pytest.raises(UserError, match=f"^task family Mine: oracle: {line}"):
        measured._references(NO_SHIFT, drawn)


def test_a_token_that_an_oracle_excludes_may_be_of_probability_0():
    log = jnp.log(jnp.array([[[0.25, 0.75, 0.0]]]))
    check_oracle(TokenOffset(), log)


@pytest.fixture
def broken():
    """A family known as `mine` whose oracle fails."""

    def oracle(self, x, y, queries, *, noise=0.0, held_out=False):
        return {}["nothing"]

    tasks.register("mine", type(mine(Linear, oracle=oracle)))
    yield
    tasks._REGISTERED.pop("mine")


def test_what_it_raises_itself_comes_as_it_is_when_a_config_is_read(broken, small):
    small["task"] = {"name": "mine"}
    with pytest.raises(KeyError, match="nothing"):
        TVPSettings.from_config(small)
