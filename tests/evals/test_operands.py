"""The identity margin of vectors that were made of few tokens, on models made by hand and in the plainest way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import handmade
from tvjax.evals import operands
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model
from tvjax.tasks import LAYOUTS, Linear, TokenOffset
from tvjax.vectors import tvp

K, V, OFFSETS = 4, 5, (0, 1, 3)
TASK = TokenOffset(V, offsets=OFFSETS, held_out_offsets=(2,), held_out_pairs=0)
LAYOUT = LAYOUTS["xzy"]
PLACES = LAYOUT.length(K + 1)
EVERY = TASK.every_task()
ANSWERS = (np.arange(V)[None] + np.array(OFFSETS)[:, None]) % V


def measured(model, task=TASK, pools=(4, 2)):
    batched = jax.tree.map(lambda p: p[None], model)
    return operands.measure(batched, task, LAYOUT, K, edit="replace", seed=0, pools=pools)[0]


@pytest.mark.parametrize("pool", ["4", "2"])
def test_a_vector_that_is_the_task_has_a_margin_near_1_whatever_it_was_made_of(pool):
    entry = measured(handmade.token_offset(TASK, PLACES))[pool]
    for kind in ("", "single_"):
        assert entry[f"{kind}margin_by_layer"][2] > 0.9 and entry[f"{kind}accuracy_by_layer"][2] == 1
        assert entry[f"{kind}accuracy_outside_by_layer"][2] == 1
    assert entry["split_half_by_layer"][2] > 0.99
    low, high = entry["margin_by_layer_ci"][2]
    assert low <= entry["margin_by_layer"][2] <= high


def test_a_vector_that_is_not_read_has_no_margin():
    entry = measured(handmade.token_offset(TASK, PLACES, theta_is_read=False))["4"]
    assert abs(entry["margin_by_layer"][2]) < 0.1 and entry["accuracy_by_layer"][2] < 0.5
    assert entry["split_half_by_layer"][2] > 0.99, "the vector is as steady as one that works"


def test_the_vector_of_another_task_has_a_margin_near_minus_1():
    model = handmade.token_offset(TASK, PLACES)
    pools = jnp.broadcast_to(jnp.arange(V), (3, V))
    theta = operands.vectors(model, TASK, LAYOUT, EVERY, pools, jax.random.key(0), K)
    for shift, sign in ((0, 1), (1, -1)):
        moved = jnp.roll(theta.mean(2), shift, axis=1)
        margin, right = operands.margins(model, TASK, LAYOUT, moved, jnp.asarray(ANSWERS), "replace")
        assert (sign * margin[2] > 0.9).all() and (right[2] == (shift == 0)).all()


@pytest.fixture(scope="module")
def random_model():
    config = DecoderConfig(2, 8, 2, positions="rotary", max_positions=32, **TASK.decoder_inputs())
    inputs = TASK.sample(jax.random.key(0), 1, K, LAYOUT).inputs
    params = Decoder(config).init(jax.random.key(1), inputs)["params"]
    return Model(jax.tree.map(lambda p: p + 0.5 * jax.random.normal(jax.random.key(p.size), p.shape), params), config)


def test_margins_are_differences_of_probabilities(random_model):
    """One vector, one x at a time."""
    theta = jax.random.normal(jax.random.key(3), (3, 3, 8))
    margin, right = operands.margins(random_model, TASK, LAYOUT, theta, jnp.asarray(ANSWERS), "replace")
    for layer in range(3):
        for task in range(3):
            for x in range(V):
                out = tvp.prompt_with(random_model, TASK, LAYOUT, theta[layer, task][None], layer, jnp.array([x]))[0]
                said = np.exp(out) / np.exp(out).sum()
                others = [said[ANSWERS[o, x]] for o in range(3) if o != task]
                np.testing.assert_allclose(margin[layer, task, x], said[ANSWERS[task, x]] - max(others), atol=1e-5)
                assert bool(right[layer, task, x]) == (int(out.argmax()) == ANSWERS[task, x])


def test_prompts_draw_from_the_pool_alone(random_model):
    """Of a single token all prompts are one, which is that prompt as it is run alone."""
    pool = jnp.array([[1], [4], [2]])
    theta = operands.vectors(random_model, TASK, LAYOUT, EVERY, pool, jax.random.key(0), K)
    x = jnp.repeat(pool, K + 1, axis=1)
    y = (x + jnp.array(OFFSETS)[:, None]) % V
    _, alone = tvp.run_prompt(random_model, TASK.prompt(LAYOUT, EVERY, x, y))
    np.testing.assert_allclose(theta, jnp.repeat(alone[:, :, -1:], operands.PROMPTS, axis=2), atol=1e-5)


def test_pools_are_of_different_tokens_that_the_task_is_shown_with():
    task = TokenOffset(12, offsets=(1, 5), held_out_offsets=(), held_out_pairs=3)
    allowed = operands.tokens_of(task, task.every_task(), jax.random.key(0), 12)
    np.testing.assert_array_equal(allowed, task.shown()[[1, 5]])
    pools = operands.draw_pools(np.random.default_rng(0), allowed, 6)
    assert pools.shape == (operands.REPEATS, 2, 6)
    for pool in pools:
        assert all(len(set(row)) == 6 and allowed[i][row].all() for i, row in enumerate(pool))
    assert len({tuple(sorted(pool[0])) for pool in pools}) > 1


def test_pools_that_a_task_has_not_and_families_that_cannot_be_listed_have_no_entry():
    model = handmade.token_offset(TASK, PLACES)
    assert set(measured(model, pools=(9, 5, 4))) == {"5", "4"}
    task = Linear(2)
    config = DecoderConfig(2, 8, 2, positions="rotary", max_positions=32, **task.decoder_inputs())
    params = Decoder(config).init(jax.random.key(1), task.sample(jax.random.key(0), 1, K, LAYOUT).inputs)["params"]
    assert measured(Model(params, config), task) == {}
