"""The TVP experiment: a population is trained on a synthetic task, with and without the TVP-loss, and measured."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from tvjax.experiments import rundir
from tvjax.experiments.base import Config, Experiment, PlanConfig, one_step
from tvjax.experiments.tvp.measures import write
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import make_trainer
from tvjax.parallel import processes
from tvjax.train.loop import Trainer


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train (or with mode "eval" only load) what `config` asks for in `folder`, measure it, and return the summary.

    Of several processes the first alone measures, and has a summary to return.
    Raises `UserError` for a config or a folder that does not fit, `RunError` if the run cannot go on.
    """
    settings = TVPSettings.from_config(config)
    trainer = make_trainer(settings)
    rundir.prepare(folder, config, new=mode == "train")
    state = rundir.trained_state(trainer, folder, mode, say)
    say("evaluating")
    with jax.set_mesh(processes.own(trainer.mesh)):
        summary: dict[str, Any] = {}
        processes.on_first(lambda: summary.update(write(settings, state.params, folder)))
    rundir.say_twins(summary.get("identical_members", []), say)
    return summary


def planned(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """What a plan compiles."""
    return make_trainer(TVPSettings.from_config(one_step(config)), mesh)


EXPERIMENT = Experiment(name="tvp", run=run, settings=TVPSettings.from_config, trainer=planned)
