"""The parts of the step that only some experiments use: L2 in the gradient, the best parameters, idle ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax.train.state import OptimizerConfig, init_state, keep_best, make_step, optimizer, schedule, unreached


class Line:
    """One parameter, and a loss whose gradient is 3; evaluated as its own score."""

    def init(self, key, data):
        return {"kernel": data["start"]}

    def loss(self, params, data, key, step, hyper):
        return 3.0 * params["kernel"].sum(), {}


def test_l2_is_added_to_the_gradient_before_the_moments():
    """Against Adam's formula, by hand: AdamW would take it off the parameter instead."""
    config = OptimizerConfig(decay="constant", l2=0.5)
    tx, hyper = optimizer(config), {"seed": jnp.array([0]), "learning_rate": jnp.array([0.1])}
    data = {"start": jnp.array([2.0, -4.0])}
    state = init_state(Line(), tx, hyper, data)
    step = make_step(Line(), tx, schedule(config, 10))
    w, m, v = np.array([2.0, -4.0]), np.zeros(2), np.zeros(2)
    for t in range(1, 4):
        state, _ = step(state, data, hyper)
        g = 3.0 + 0.5 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(state.params["kernel"][0], w, rtol=1e-5)


class Idle:
    """Two factors, the first of which begins at 0 as LoRA's do, and a kernel that the loss does not read."""

    def init(self, key, data):
        return {"up": jnp.zeros(2), "down": jnp.ones(2), "idle": {"kernel": jnp.ones(2)}}

    def loss(self, params, data, key, step, hyper):
        return ((params["up"] * params["down"]).sum() - 1.0) ** 2, {}


@pytest.mark.parametrize(("decay", "clip"), [(0.0, 0.0), (0.5, 0.1)])
def test_a_parameter_that_no_gradient_reaches_is_known_though_it_decays(decay, clip):
    config = OptimizerConfig(decay="constant", weight_decay=decay, clip_norm=clip)
    tx, hyper = optimizer(config), {"seed": jnp.arange(2), "learning_rate": jnp.full(2, 0.1)}
    state = init_state(Idle(), tx, hyper, {})
    step = make_step(Idle(), tx, schedule(config, 10))
    for _ in range(3):
        state, _ = step(state, {}, hyper)
        assert unreached(state) == ([] if state.step < 2 else ["idle/kernel"])
    assert (np.asarray(state.params["idle"]["kernel"] == 1.0) == (decay == 0)).all()
    assert unreached(state.replace(opt_state=None)) == []


def test_weight_decay_is_for_kernels_and_parameters_without_names_go_without():
    tx = optimizer(OptimizerConfig(weight_decay=0.5))
    for params, decayed in (
        (jnp.ones(2), 0.0),
        ([jnp.ones(2)], 0.0),
        ({"bias": jnp.ones(2)}, 0.0),
        ({"kernel": jnp.ones(2)}, 0.5),
    ):
        zeros = jax.tree.map(jnp.zeros_like, params)
        direction, _ = tx.update(zeros, tx.init(params), params)
        np.testing.assert_array_equal(jax.tree.leaves(direction)[0], jnp.full(2, decayed))


def test_the_best_of_each_member_is_kept_and_a_tie_keeps_the_earlier():
    hyper = {"seed": jnp.arange(3), "learning_rate": jnp.ones(3)}
    state = init_state(Line(), optimizer(OptimizerConfig()), hyper, {"start": jnp.zeros(2)}, best=True)
    for step, score in ((5, [0.5, 0.2, 0.9]), (10, [0.6, 0.2, 0.1]), (15, [0.4, 0.3, 0.9])):
        state = state.__class__(
            jnp.asarray(step), {"kernel": jnp.full((3, 2), float(step))}, state.opt_state, state.best
        )
        state = keep_best(state, jnp.array(score))
    np.testing.assert_array_equal(state.best.step, [10, 15, 5])
    np.testing.assert_array_equal(state.chosen["kernel"][:, 0], [10.0, 15.0, 5.0])
    np.testing.assert_array_equal(state.best.score, jnp.array([0.6, 0.3, 0.9]))
    np.testing.assert_array_equal(state.params["kernel"][:, 0], [15.0] * 3)


def test_before_any_evaluation_the_last_are_used():
    hyper = {"seed": jnp.arange(2), "learning_rate": jnp.ones(2)}
    state = init_state(Line(), optimizer(OptimizerConfig()), hyper, {"start": jnp.ones(2)}, best=True)
    np.testing.assert_array_equal(state.chosen["kernel"], jnp.ones((2, 2)))


def test_without_the_best_the_last_are_used():
    hyper = {"seed": jnp.arange(1), "learning_rate": jnp.ones(1)}
    state = init_state(Line(), optimizer(OptimizerConfig()), hyper, {"start": jnp.ones(2)})
    assert state.best is None
    assert state.chosen is state.params
