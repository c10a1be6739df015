"""ATV's mathematics against PyTorch's, from golden files; and what batches, masks and micro-batches may not change."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.nn.golden import GOLDEN, needs_torch
from tests.vectors.golden_atv import make
from tvjax.methods.atv import ATV
from tvjax.nn.answers import Questions, risk
from tvjax.nn.decoder import PADDING, DecoderConfig
from tvjax.nn.model import Model, forward
from tvjax.nn.pretrained import load_model
from tvjax.nn.pretrained.weights import abstract_params
from tvjax.nn.tokens import pad
from tvjax.text.adapting import AdapterExperiment, ExampleConfig, over_prompts
from tvjax.text.examples import Examples
from tvjax.train.state import OptimizerConfig, TrainState, make_step, optimizer, schedule
from tvjax.vectors.adapters import Change
from tvjax.vectors.atv import dropped

FILES = Path(make.__file__).parent
COUNT = len(make.EXAMPLES)
OPTIMIZER = OptimizerConfig(decay="constant", l2=make.L2)
SETTLED = 5e-6
"""Adam's first step is about lr * sign(g): of gradients below this, rounding may choose the sign."""
TABLES = ("generator/front/embedding", "generator/positions")


@functools.cache
def golden(name):
    return load_model(GOLDEN / name, unroll=1)


def from_file(target, positions):
    return safetensors.numpy.load_file(FILES / f"{target}_{positions}.safetensors")


def expansion_of(weight, bias):
    """PyTorch's linear layer as ours."""
    return {"up": {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}}


def tree_of(said, kind, folder):
    """The tensors `kind.*` of a golden file in the layout of ATV's parameters.

    Those of the generator pass through a folder: the generator's, with these numbers in the place of its weights.
    """
    part = lambda prefix: {n.removeprefix(prefix): a for n, a in said.items() if n.startswith(prefix)}
    (folder / kind).mkdir()
    (folder / kind / "config.json").write_text((GOLDEN / make.GENERATOR / "config.json").read_text())
    safetensors.numpy.save_file(part(f"{kind}.generator."), folder / kind / "model.safetensors")
    generator = load_model(folder / kind, unroll=1).params
    return {"generator": generator, "expansion": expansion_of(**part(f"{kind}.expansion."))}


def atv(target, positions, **options):
    c = golden(target).config
    return ATV(c, golden(make.GENERATOR).config, tuple(range(1, c.num_layers + 1)), positions, **options)


def examples(rows):
    """Rows like those of `make.EXAMPLES` as a run holds them, padded on the right to a common length."""
    asked = [prompt for _, prompts in rows for prompt in prompts]
    whole = pad([prompt + answer for prompt, answer in asked], side="right")
    answers = pad([answer for _, answer in asked], side="right")
    last_B = jnp.array([len(prompt) - 1 for prompt, _ in asked])
    flat = Questions(whole, last_B, answers.ids_BT, answers.valid_BT)
    split = lambda a: a.reshape(len(rows), -1, *a.shape[1:])
    readings = jax.tree.map(lambda a: a[:, None], pad([reading for reading, _ in rows], side="right"))
    number_I = jnp.arange(len(rows))
    return Examples(readings, jax.tree.map(split, flat), jnp.zeros_like(number_I), number_I)


def batch(rows=make.EXAMPLES):
    """The queries of all rows, and their prompts, ``[P, B]``."""
    return examples(rows).rows(jnp.arange(len(rows)))


def start(target, positions):
    """The parameters that PyTorch starts from, and what is given."""
    said = from_file(target, positions)
    expansion = expansion_of(said["start.weight"], said["start.bias"])
    return {"generator": golden(make.GENERATOR).params, "expansion": expansion}, {"target": golden(target).bare}


compiled_risk = jax.jit(risk)


def loss(params, adapter, given, queries, q_PB, scale_L):
    return over_prompts(adapter, compiled_risk, params, given, queries, q_PB, scale_L).mean()


loss_and_gradient = jax.value_and_grad(loss)  # without jit around it all, cases share what is compiled


@jax.jit
def answer_logits(model, q, edits=None, past=None):
    """A score for `over_prompts`: the logits that the answers' tokens are read from, ``[B, A, V]``."""
    ids_BT, positions_BT = q.tokens.ids_BT, q.tokens.positions_BT
    at_BA = q.last_B[:, None] + jnp.arange(q.answers_BA.shape[1])[None]
    logits_BTV, _ = forward(model, ids_BT, edits=edits, positions_BT=positions_BT, past=past)
    return jnp.take_along_axis(logits_BTV, at_BA[..., None], axis=1, mode="clip")


@jax.jit
def adam(gradient, state, params):
    """One step as `make_step` takes it, of one member."""
    direction, state = optimizer(OPTIMIZER).update(gradient, state, params)
    return jax.tree.map(lambda p, d: p - make.LEARNING_RATE * d, params, direction), state


def leaves(*trees):
    """The leaves of several trees side by side, as numpy arrays, with their names."""
    named = jax.tree_util.tree_leaves_with_path(trees[0])
    columns = ([np.asarray(leaf) for leaf in jax.tree.leaves(tree)] for tree in trees)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named]
    return list(zip(names, *columns, strict=True))


def assert_close(gradient, expected, tolerance):
    """No gap is larger than `tolerance` of the largest entry that is expected in all of the tree."""
    largest = max(np.abs(b).max() for _, b in leaves(expected))
    for name, ours, theirs in leaves(gradient, expected):
        np.testing.assert_allclose(ours, theirs, atol=tolerance * largest, rtol=0, err_msg=name)


class Case:
    """One golden file, and what tvjax makes of the same, as a padded batch."""

    def __init__(self, target, positions, folder):
        self.said = from_file(target, positions)
        self.gradient, self.change = (tree_of(self.said, kind, folder) for kind in ("gradient", "change"))
        self.adapter = atv(target, positions)
        self.params, self.given = start(target, positions)
        self.rest = (self.given, *batch(), jnp.array(make.SCALES))

    @functools.cached_property
    def steps(self):
        """Loss, gradient and new parameters of each of the first steps."""
        params, found = self.params, []
        state = optimizer(OPTIMIZER).init(params)
        for _ in range(make.STEPS):
            value, gradient = loss_and_gradient(params, self.adapter, *self.rest)
            params, state = adam(gradient, state, params)
            found.append((value, gradient, params))
        return found


class TestAgainstPyTorch:
    """PyTorch takes prompts and templates one at a time, unpadded; here they are one padded batch."""

    @pytest.fixture(scope="class", params=make.CASES, ids="-".join)
    def case(self, request, tmp_path_factory):
        return Case(*request.param, tmp_path_factory.mktemp("case"))

    def test_logits_of_the_answers(self, case):
        given, *rest = case.rest
        logits_PBAV = over_prompts(case.adapter, answer_logits, case.params, given, *rest)
        for i, (_, prompts) in enumerate(make.EXAMPLES):
            for p, (_, answer) in enumerate(prompts):
                ours, expected = logits_PBAV[p, i, : len(answer)], case.said[f"logits.{i}.{p}"]
                np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=0)

    def test_losses_of_the_first_steps(self, case):
        np.testing.assert_allclose([value for value, _, _ in case.steps], case.said["losses"], atol=1e-5, rtol=0)
        assert (np.diff(case.said["losses"]) < -5e-3).all(), "the steps say nothing"

    def test_gradients(self, case):
        """Of generator and expansion; those of the keys' biases are zero but for rounding, softmax sees no shift."""
        _, gradient, _ = case.steps[0]
        assert_close(gradient, case.gradient, 1e-5)
        for name, ours, theirs in leaves(gradient, case.gradient):
            if name.endswith("key/bias"):
                assert max(np.abs(ours).max(), np.abs(theirs).max()) < 1e-7
            else:
                np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0, err_msg=name)

    def test_the_first_step(self, case):
        check_step(case, case.steps[0][2])


def check_step(case, new):
    """The new parameters are PyTorch's, to 1e-3 of a step, wherever the step is more than the sign of a rounding."""
    settled = size = by_l2 = 0
    for name, after, before, change, gradient in leaves(new, case.params, case.change, case.gradient):
        steps, expected = ((a / make.LEARNING_RATE) for a in (after - before, change))
        unread = (gradient == 0) if name in TABLES else np.zeros(gradient.shape, bool)
        here = unread | (np.abs(gradient + make.L2 * before) > SETTLED)
        np.testing.assert_allclose(steps[here], expected[here], atol=1e-3, rtol=0, err_msg=name)
        assert np.abs(steps).max() < 1.001
        settled, size = settled + here.sum(), size + here.size
        by_l2 += (unread & (np.abs(expected) > 0.5)).sum()
    assert settled / size > 0.99
    assert by_l2 > 1000, "L2 in the gradient moves embeddings that no token reads; AdamW's decay hardly does"


@pytest.mark.slow
def test_the_step_of_a_run_in_micro_batches(tmp_path):
    """`make_step` and `AdapterExperiment`: loss, gradient (from Adam's first moment) and parameters, in two parts."""
    case = Case("gpt2_untied", "last", tmp_path)
    config, asked = ExampleConfig(batch=COUNT, micro_batches=2, shuffled=False), examples(make.EXAMPLES)
    run = AdapterExperiment(config, case.adapter, case.given, asked, asked, COUNT)
    tx = optimizer(OPTIMIZER)
    step = jax.jit(make_step(run, tx, schedule(OPTIMIZER, make.STEPS)))
    params_M = jax.tree.map(lambda p: p[None], case.params)
    state = TrainState(jnp.zeros((), jnp.int32), params_M, jax.vmap(tx.init)(params_M))
    hyper = {"seed": [0], "learning_rate": [make.LEARNING_RATE], "scale": [make.SCALES], "examples": [COUNT]}
    hyper = {name: jnp.array(value) for name, value in hyper.items()}
    losses = []
    for number in range(make.STEPS):
        state, metrics = step(state, run.data(), hyper)
        losses.append(metrics["loss"][0])
        if number == 0:
            new = jax.tree.map(lambda p: p[0], state.params)
            moments = next(s.mu for s in state.opt_state if hasattr(s, "mu"))
    np.testing.assert_allclose(losses, case.said["losses"], atol=1e-5, rtol=0)
    gradient = jax.tree.map(lambda m, p: m[0] / (1 - OPTIMIZER.b1) - make.L2 * p, moments, case.params)
    assert_close(gradient, case.gradient, 1e-5)
    check_step(case, new)


@pytest.mark.slow
def test_a_batch_is_its_examples_one_by_one():
    """The gradient of a padded batch is the mean of its examples', each alone and without padding."""
    rows = (
        ([5, 9, 13, 2, 60], (([40, 33, 7, 61, 22, 3], [18, 4]), ([8, 3, 50, 19, 1, 30], [18, 27]))),
        ([31, 30], (([44, 12, 6], [51]), ([63, 44, 9], [51]))),
    )
    adapter = atv("gpt2_untied", "last")
    params, given = start("gpt2_untied", "last")
    compiled = jax.jit(loss_and_gradient, static_argnums=1)
    ask = lambda rows: compiled(params, adapter, given, *batch(rows), jnp.array(make.SCALES))
    alone = []
    for row in rows:
        queries, q_PB = batch([row])
        assert (queries.positions_BT < PADDING).all() and q_PB.tokens.valid_BT.all() and q_PB.real_BA.all()
        alone.append(ask([row]))
    value, gradient = jax.tree.map(lambda *a: sum(a) / len(a), *alone)
    whole, whole_gradient = ask(rows)
    np.testing.assert_allclose(whole, value, rtol=1e-6)
    assert_close(whole_gradient, gradient, 1e-5)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """An adapter that changes nothing: the target by itself. from_last: as of `Adapter`."""

    from_last: bool

    def read(self, params, frozen, queries, scale_L, key):
        return None

    def change(self, params, frozen, reading, q):
        return Change(frozen["target"])


@pytest.mark.parametrize(("target", "positions"), make.CASES)
def test_without_lambda_the_target_says_what_it_says_bit_for_bit(target, positions):
    adapter = atv(target, positions)
    params, given = start(target, positions)
    queries, q_PB = batch()
    real = np.asarray(q_PB.real_BA)
    ask = lambda adapter, scales: np.asarray(
        over_prompts(adapter, answer_logits, params, given, queries, q_PB, jnp.array(scales))
    )[real]
    none = [0.0] * len(make.SCALES)
    frozen = ask(Frozen(adapter.from_last), none)
    np.testing.assert_array_equal(ask(adapter, none), frozen)
    np.testing.assert_allclose(ask(Frozen(False), none), frozen, atol=2e-5, rtol=0)
    assert np.abs(ask(adapter, make.SCALES) - frozen).max() > 0.1, "the vectors do nothing"


@pytest.mark.slow
def test_no_memory_is_spent_on_gradients_of_the_target():
    """The compiled program has no room for them; that of the same loss, differentiated by the target too, has.

    Blocks are computed again on the way back: otherwise copies of attention's kernels are kept for it.
    """
    sizes = {"inputs": "tokens", "max_positions": 16, "unroll": 1}
    large = DecoderConfig(16, 128, 2, 2048, vocab_size=2048, remat="full", **sizes)
    small = DecoderConfig(1, 8, 2, 64, vocab_size=64, **sizes)
    adapter = ATV(large, small, tuple(range(1, large.num_layers + 1)), "all")
    target = abstract_params(large)
    params = jax.eval_shape(adapter.init, jax.random.key(0), {})
    rest = (*batch(make.EXAMPLES[:1]), jnp.ones(large.num_layers))

    def memory(by):
        program = lambda params, target: loss(params, adapter, {"target": Model(target, large)}, *rest)
        found = jax.jit(jax.grad(program, argnums=by)).lower(params, target).compile().memory_analysis()
        return found.temp_size_in_bytes + found.output_size_in_bytes

    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(target))
    assert memory(0) < size / 10
    assert memory((0, 1)) > size


class TestDropout:
    RATE = 0.25

    def test_the_mean_over_masks_is_the_embedding(self):
        """Each number is either zero or 1 / (1 - rate) times itself, and their mean over 4000 masks is as it was."""
        model, count = golden(make.GENERATOR), 4000
        ids_BT = batch()[0].inputs
        noise = lambda key: {"embed": dropped(key, model.config, self.RATE, *ids_BT.shape)["embed"]}
        embed = lambda tree: forward(model, ids_BT, edits=tree, addresses=("embed",))[1]["embed"]
        plain, keys = np.asarray(embed(None)), jax.random.split(jax.random.key(0), count)
        masked = np.asarray(jax.jit(jax.vmap(lambda key: noise(key)["embed"](jnp.asarray(plain))))(keys))
        np.testing.assert_array_equal(embed(noise(keys[0])), masked[0])
        kept = masked != 0
        assert (kept[:, 0] != kept[:, 1]).any(), "each example has a mask of its own"
        np.testing.assert_allclose(masked, np.where(kept, plain / (1 - self.RATE), 0), rtol=1e-6)
        np.testing.assert_allclose(kept.mean(), 1 - self.RATE, atol=1e-3)
        deviation = np.abs(plain) * (self.RATE / (1 - self.RATE) / count) ** 0.5
        assert (np.abs(masked.mean(0) - plain) < 5 * deviation).all()

    def test_no_key_is_no_dropout(self):
        params, given = start("llama3", "all")
        queries, _ = batch()
        with_it, without = (atv("llama3", "all", dropout=rate) for rate in (self.RATE, 0.0))
        read = lambda adapter, key: np.asarray(adapter.read(params, given, queries, jnp.array(make.SCALES), key))
        keys = jax.random.split(jax.random.key(1))
        plain = read(without, None)
        np.testing.assert_array_equal(read(with_it, None), plain)
        np.testing.assert_array_equal(read(without, keys[0]), plain)
        first, second = (read(with_it, key) for key in keys)
        for one, other in ((first, plain), (second, plain), (first, second)):
            assert (one != other).any((1, 2)).all()


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize(("target", "positions"), make.CASES)
def test_made_now(target, positions):
    """What PyTorch says today is what the files hold."""
    now, kept = make.train(target, positions), from_file(target, positions)
    assert now.keys() == kept.keys()
    largest = max(np.abs(a).max() for name, a in kept.items() if name.startswith("gradient."))
    for name, a in kept.items():
        kind, _, rest = name.partition(".")
        if kind != "change":
            np.testing.assert_allclose(now[name], a, atol=1e-5 * (largest if kind == "gradient" else 1), rtol=0)
            continue
        steps, expected = now[name] / make.LEARNING_RATE, a / make.LEARNING_RATE
        clear = np.abs(kept[f"gradient.{rest}"]) > 2 * SETTLED
        np.testing.assert_allclose(steps[clear], expected[clear], atol=1e-3, rtol=0, err_msg=name)
