"""In-context routing: by loops in numpy on a golden model, on a model made by hand, and that it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tvjax
from tests.experiments.test_atv import model_folder
from tests.handmade import FIRM, Weights
from tests.nn.golden import GOLDEN, make
from tests.nn.test_attention_addresses import Plain
from tvjax import methods
from tvjax.errors import UserError
from tvjax.methods.in_context_routing import ADDRESSES, METHOD, Router, Routing, _last, principal
from tvjax.nn.answers import Questions, risk
from tvjax.nn.model import forward
from tvjax.nn.pretrained import load_model
from tvjax.nn.tokens import pad
from tvjax.tasks import TokenOffset
from tvjax.tasks.suite import suite
from tvjax.tasks.text import Template
from tvjax.text.bench import Bench, VectorConfig
from tvjax.vectors.adapters import Queries

TOKENS = pad(make.PROMPTS, side="right")
LAST = [len(prompt) - 1 for prompt in make.PROMPTS]


def queries_of(rows):
    tokens = pad(rows, side="right")
    return Queries(tokens.ids_BT, tokens.positions_BT, tokens.last_B, jnp.zeros(len(rows), int))


def routed(adapter, params, frozen, queries, tokens):
    """The logits of prompts under the change."""
    reading = adapter.read(params, frozen, queries, jnp.ones(1), None)
    blank = jnp.zeros((len(tokens.ids_BT), 1), int)
    change = adapter.change(params, frozen, reading, Questions(tokens, tokens.last_B, blank, blank > 0))
    return forward(change.model, tokens.ids_BT, edits=change.edits, positions_BT=tokens.positions_BT)[0]


def directions_of(model, rank):
    found = {name: np.asarray(a) for name, a in _last(model.bare, TOKENS).items()}
    return {
        part: jnp.asarray(principal(found[name], rank))
        for part, name in zip(("queries", "keys"), ADDRESSES, strict=True)
    }


@pytest.fixture(scope="module")
def golden():
    return load_model(GOLDEN / "gpt2", unroll=1)


def test_directions_are_the_principal_ones_of_last_tokens(golden):
    """By eigenvectors of covariances, from numbers of the plain model; a direction has two signs."""
    plain, found = Plain(GOLDEN / "gpt2"), directions_of(golden, 2)
    seen = {"queries": [], "keys": []}
    for ids in make.PROMPTS:
        plain(ids, {})
        for part, kept in seen.items():
            kept.append([getattr(plain, part)[layer][-1].reshape(-1) for layer in (1, 2, 3)])
    for part, kept in seen.items():
        for layer in range(3):
            values, vectors = np.linalg.eigh(np.cov(np.array(kept)[:, layer].T))
            ours = np.asarray(found[part][layer]).reshape(2, -1)
            np.testing.assert_allclose(np.abs(ours @ vectors[:, ::-1][:, :2]), np.eye(2), atol=1e-3)
            assert values[-2] > 10 * abs(values[-3])


def test_a_direction_that_is_there_is_found_whatever_the_mean():
    random = np.random.default_rng(0)
    true = random.normal(size=(2, 3, 4))  # of two layers
    states = random.normal(size=(50, 1, 1, 1)) * true[None] + 100
    found = principal(states.astype(np.float32), 1)[:, 0]
    unit = true / np.linalg.norm(true.reshape(2, -1), axis=1)[:, None, None]
    np.testing.assert_allclose(np.abs((found * unit).sum((1, 2))), 1, atol=1e-4)


def test_logits_are_those_of_the_plainest_computation(golden):
    """Each prompt alone, without padding: the router, the directions' shares and what they add, by loops in float64."""
    plain, adapter = Plain(GOLDEN / "gpt2"), Routing(golden.config, None, rank=2, hidden=5, below=2)
    frozen = {"target": golden.bare, "directions": directions_of(golden, 2)}
    params = jax.tree.map(
        lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), adapter.init(jax.random.key(0), frozen)
    )
    found = np.asarray(routed(adapter, params, frozen, queries_of(make.PROMPTS), TOKENS))
    w = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    u, v = (np.asarray(frozen["directions"][part], np.float64) for part in ("queries", "keys"))
    for b, ids in enumerate(make.PROMPTS):
        untouched = plain(ids, {})
        x = plain.norm(plain.states[2][-1], "ln_f") @ w["hidden"]["kernel"] + w["hidden"]["bias"]
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        alpha = (x @ w["alpha"]["kernel"] + w["alpha"]["bias"]).reshape(3, 2)
        gate = 1 / (1 + np.exp(-(x @ w["gate"]["kernel"] + w["gate"]["bias"]).reshape(3, 4)))
        added = np.zeros((4, len(ids), 4, len(ids)))
        for layer in (1, 2, 3):
            for t, h, s, r in np.ndindex(len(ids), 4, len(ids), 2):
                share = (plain.queries[layer][t] * u[layer - 1, r]).sum() * (
                    plain.keys[layer][s] * v[layer - 1, r]
                ).sum()
                added[layer, t, h, s] += gate[layer - 1, h] * alpha[layer - 1, r] * share / 2
        expected = plain(ids, {"blocks/attn_logits": lambda a, layer, added=added: a + added[layer]})
        np.testing.assert_allclose(found[b, : len(ids)], expected, atol=2e-3)
        assert np.abs(expected - untouched)[1:].max() > 0.1


def test_it_begins_by_changing_nothing(golden):
    adapter = Routing(golden.config, None, rank=2, hidden=5)
    frozen = {"target": golden.bare, "directions": directions_of(golden, 2)}
    params = adapter.init(jax.random.key(0), frozen)
    found = routed(adapter, params, frozen, queries_of(make.PROMPTS), TOKENS)
    bare = forward(golden, TOKENS.ids_BT, positions_BT=TOKENS.positions_BT)[0]
    real = np.asarray(TOKENS.valid_BT)
    np.testing.assert_allclose(np.asarray(found)[real], np.asarray(bare)[real], atol=1e-4)


def by_hand():
    """One block; its last place looks at all four evenly, and says what it sees.

    Its query stands in channel 0 of head 0, and the key of place 1 in channel 1: alone they do not meet.
    """
    size = 5
    channels = {"word": size, "asks": 1, "told": 1, "seen": size}
    task = TokenOffset(vocab_size=size, offsets=(1,), held_out_offsets=())
    w = Weights(task, channels, layers=1, head_width=size, hidden=1, places=4)
    w.front[np.arange(size), w.at["word"]] = 1
    w.positions[3, w.at["asks"]] = w.positions[1, w.at["told"]] = 1
    w.look(1, 0, {"asks": 1}, {}, slot=0)
    w.look(1, 0, {}, {"told": 1}, slot=1)
    w.copy(1, 0, "word", "seen")
    w.readout[w.at["seen"], np.arange(size)] = 30.0
    return w.model()


def test_by_hand_a_direction_leads_a_head_to_the_token_it_was_blind_to():
    model = by_hand()
    directions = {
        part: jnp.zeros((1, 1, 2, 5)).at[0, 0, 0, slot].set(1.0) for part, slot in (("queries", 0), ("keys", 1))
    }
    adapter, frozen = Routing(model.config, None, rank=1, hidden=1), {"target": model.bare, "directions": directions}
    rows = [[4, 2, 0, 1], [0, 3, 3, 1]]
    for alpha, expected in ((0.0, [[7.5, 7.5, 7.5, 0, 7.5], [7.5, 7.5, 0, 15, 0]]), (2 * FIRM, 30 * np.eye(5)[[2, 3]])):
        params = adapter.init(jax.random.key(0), frozen)
        params = jax.tree.map(jnp.zeros_like, params) | {
            "alpha": {"kernel": jnp.zeros((1, 1)), "bias": jnp.array([alpha])}
        }
        said = routed(adapter, params, frozen, queries_of(rows), pad(rows, side="right"))
        np.testing.assert_allclose(said[:, -1], expected, atol=0.01)
    # The other way round: the token is out of its sight.
    params["alpha"]["bias"] = jnp.array([-2 * FIRM])
    said = routed(adapter, params, frozen, queries_of(rows), pad(rows, side="right"))
    np.testing.assert_allclose(said[:, -1], [[10, 10, 0, 0, 10], [10, 10, 0, 10, 0]], atol=0.01)


def test_a_router_learns_where_to_look():
    """On the model made by hand, with directions of random sign: the risk falls to next to nothing."""
    model = by_hand()
    directions = {
        part: jnp.zeros((1, 1, 2, 5)).at[0, 0, 0, slot].set(-1.0) for part, slot in (("queries", 0), ("keys", 1))
    }
    adapter, frozen = Routing(model.config, None, rank=1, hidden=4), {"target": model.bare, "directions": directions}
    rows = jax.random.randint(jax.random.key(0), (8, 4), 0, 5).tolist()
    tokens, queries = pad(rows, side="right"), queries_of(rows)
    answers = jnp.array([[row[1]] for row in rows])
    q = Questions(tokens, tokens.last_B, answers, jnp.ones((8, 1), bool))

    def loss(params):
        change = adapter.change(params, frozen, adapter.read(params, frozen, queries, jnp.ones(1), None), q)
        return risk(change.model, q, change.edits).mean()

    params, optimizer = adapter.init(jax.random.key(1), frozen), optax.adam(0.1)
    state, step, losses = optimizer.init(params), jax.jit(jax.value_and_grad(loss)), []
    for _ in range(40):
        value, slope = step(params)
        updates, state = optimizer.update(slope, state)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    assert losses[0] > 0.5 and losses[-1] < 0.02 * losses[0]


def test_the_router_has_the_shapes_that_it_says():
    router = Router(layers=3, heads=4, rank=2, hidden=5)
    params = router.init(jax.random.key(0), jnp.zeros((1, 7)))
    alpha, gate = router.apply(params, jnp.ones((6, 7)))
    assert (alpha.shape, gate.shape) == ((6, 3, 2), (6, 3, 4))
    np.testing.assert_array_equal(alpha, 0)
    np.testing.assert_array_equal(gate, 0.5)


def test_too_many_directions_are_refused(tmp_path):
    model = tvjax.load(model_folder(tmp_path / "target", 32, 2, 0))
    own = lambda rank: methods.own_settings({"in_context_routing": {"rank": rank}})["in_context_routing"]
    with pytest.raises(UserError, match=r"config.in_context_routing.rank: given 33; accepted: at most 32"):
        METHOD.check(own(33), model.config)
    METHOD.check(own(32), model.config)
    tasks = {name: suite()[name] for name in ("opposite", "capital")}
    bench = Bench(model, VectorConfig(demonstrations=2, prompts=3, questions=6), Template("", " ->", "\n", "\n"), tasks)
    context = type("Context", (), {"benches": [bench], "trained": ("opposite", "capital")})
    with pytest.raises(UserError, match="given 6; accepted: at most 5: directions are of 6 prompts"):
        METHOD.frozen(context, own(6))
    found = METHOD.frozen(context, own(5))["directions"]
    assert {part: a.shape for part, a in found.items()} == dict.fromkeys(("queries", "keys"), (2, 5, 2, 16))
    prompts = [p for name in tasks for p in bench.few_shot(name, bench.queries(name, 3))]
    seen = [
        tvjax.capture(model, [p], ADDRESSES[1], layers=2, positions="last")[ADDRESSES[1]].reshape(-1) for p in prompts
    ]
    top = np.linalg.svd(np.stack(seen) - np.mean(seen, 0))[2][0]
    assert abs(found["keys"][1, 0].reshape(-1) @ top) > 0.999
