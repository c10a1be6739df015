"""The first steps of the configs at published scale: their own programs, on as little data as can be."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("ml_collections")

from tvjax.cli import read_flags
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import make_trainer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LEAST = {"batch": 1, "steps": 2, "log_every": 1, "evaluate_every": 2, "checkpoint_every": 2}


@pytest.mark.parametrize(
    ("source", "tokens"),
    [
        pytest.param("tvp_ginc.py:published", 50, marks=pytest.mark.exhaustive),
        pytest.param("tvp_regbench.py:published", 20, marks=pytest.mark.slow),
    ],
)
def test_the_first_steps_at_published_scale(source, tokens):
    """Before its first step a model knows as little as a guess, on one prompt; two steps change every kernel."""
    flags = [f"--config.train.{name}={value}" for name, value in LEAST.items()]
    flags += ["--config.optimizer.warmup_steps=0", "--config.population.tvp_weight=(1.0,)"]
    flags += ["--config.population.name=('tvp',)"]
    settings = TVPSettings.from_config(read_flags(["main", f"--config={CONFIGS / source}", *flags])[0])
    assert settings.decoder.num_layers == 12 and settings.decoder.dtype == "bfloat16"
    # bfloat16 is emulated on a CPU, where it takes many minutes more.
    trainer = make_trainer(
        dataclasses.replace(settings, decoder=dataclasses.replace(settings.decoder, dtype="float32"))
    )
    with jax.set_mesh(trainer.mesh):
        before = trainer.init(trainer.hyper, {})
        kernels = jax.device_get(before.params["blocks"])
        after, first = trainer.dispatch(before, {}, trainer.hyper)
        after, second = trainer.dispatch(after, {}, trainer.hyper)
    for metrics in (first, second):
        assert np.isfinite(list(metrics.values())).all(), metrics
    assert abs(float(first["icl_loss"][0]) - np.log(tokens)) < 2
    assert abs(float(first["tvp_loss"][0]) - np.log(tokens)) < 2
    assert int(after.step) == 2
    moved = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), kernels, after.params["blocks"])
    assert min(jax.tree.leaves(moved)) > 0
