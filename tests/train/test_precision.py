"""Activations in bfloat16, masters in float32: parameters and moments keep what small steps add up to."""

import jax
import numpy as np
import pytest

from tests.conftest import TINY, changed
from tests.parallel.test_sharding import atv_trainer
from tvjax.experiments import tvp
from tvjax.experiments.tvp_settings import TVPSettings


def tvp_trainer(dtype):
    train = {"batch": 8, "steps": 20, "log_every": 5, "evaluate_every": 20, "checkpoint_every": 20}
    return tvp.make_trainer(TVPSettings.from_config(changed(TINY, train=train, model__dtype=dtype)))


def trained(trainer):
    """The state and the loss after five steps, at the learning rate of a warm-up: steps that bfloat16 cannot say."""
    with jax.set_mesh(trainer.mesh):
        state = trainer.init(trainer.hyper, trainer.data)
        first = jax.device_get(state.params)
        hyper = trainer.hyper | {"learning_rate": 1e-4 * trainer.hyper["learning_rate"]}
        state, metrics = trainer.dispatch(state, trainer.data, hyper)
    return first, jax.device_get(state), np.asarray(metrics["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("make", [tvp_trainer, lambda dtype: atv_trainer({}, dtype=dtype)], ids=["tvp", "atv"])
def test_masters_and_moments_stay_in_float32(make):
    first, state, loss = trained(make("bfloat16"))
    _, _, expected = trained(make("float32"))
    for tree in (state.params, state.opt_state):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree) if leaf.dtype.kind != "i"} == {np.dtype("float32")}
    np.testing.assert_allclose(loss, expected, rtol=0.03)
    assert (loss != expected).all(), "nothing was computed in bfloat16"
    moved = [
        np.abs(a - b).max() / (np.abs(a).max() or np.inf)
        for a, b in zip(*map(jax.tree.leaves, (first, state.params)), strict=True)
    ]
    assert 0 < np.median(moved) < 2**-9, "steps that bfloat16 would round away are kept"
