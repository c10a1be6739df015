"""What an experiment is: one record, for the command line, plans and tests."""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvjax.errors import UserError, one_of, reject
from tvjax.settings import setting

if TYPE_CHECKING:  # a report imports this and needs no jax
    from jax.sharding import Mesh

    from tvjax.nn.model import Model
    from tvjax.report.page import Page
    from tvjax.train.loop import Trainer

    Loader = Callable[[Path, Mapping[str, Any], str | None], Model]

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """For what to compile: the fields of config.plan."""

    devices: int = setting(0, "how many; 0: as many as config.mesh has", least=0)
    hardware: str = setting("cpu", "a row of `hardware.CHIPS`")
    query_tokens: int = setting(64, "of text, as long as the longest query in its template", least=1)
    answer_tokens: int = setting(8, "of text, as long as the longest answer", least=1)


def one_step(config: Config) -> Config:
    """`config` with a single step in a dispatch."""
    return {**config, "train": {**config["train"], "log_every": 1}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment.

    name: in config.experiment.
    run: ``run(config, folder, mode)`` writes eval/summary.json, and returns it; mode is "train" or "eval".
    settings: checks a config, and raises `UserError` for the first thing that is wrong.
    trainer: the programs of one training step on a mesh, for a plan, from shapes alone; None: nothing can be planned.
    load: ``load(folder, config, member)`` gives a member of a run as a model, for an experiment outside this package;
        None: its runs are no models.
    page: how its runs are shown, for an experiment outside this package; None: by the numbers of their summaries.
    """

    name: str
    run: Callable[..., Any]
    settings: Callable[[Config], Any]
    trainer: "Callable[[Config, PlanConfig, Mesh], Trainer] | None" = None
    load: "Loader | None" = None
    page: "Page | None" = None


BUILT_IN = ("tvp", "text_model", "task_vectors", "formats", "atv", "atv_tvp", "emergence", "tvp_language", "sweep")
"""Experiments of this package, each a package of its name here, whose modules are imported on use.

`run` has the record, `report` the page and, if its runs are models, `load` what makes one.
"""
_REGISTERED: dict[str, Experiment] = {}


def names() -> list[str]:
    """The names of all experiments."""
    return [*BUILT_IN, *_REGISTERED]


def register(*experiments: Experiment) -> None:
    """Make experiments known; a later experiment replaces one of the same name.

    Raises `UserError` for a built-in name.
    """
    for one in experiments:
        if one.name in BUILT_IN:
            raise UserError(f"experiment {one.name}: given a name of this package; accepted: another one")
        _REGISTERED[one.name] = one


def registered(name: str) -> Experiment | None:
    """The registered experiment of this name, from outside this package; None: there is none."""
    return _REGISTERED.get(name)


def named(name: str) -> Experiment:
    """The experiment of this name, which must exist."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    experiment: Experiment = importlib.import_module(f"{__package__}.{name}.run").EXPERIMENT
    return experiment


def experiment_of(config: Config) -> Experiment:
    """The experiment that `config` names. Raises `UserError` for an unknown name."""
    return named(_name(config))


def loader_of(config: Config) -> "Loader | None":
    """What makes a model of a run with `config`; None: runs of its experiment are no models.

    Nothing that trains is imported. Raises `UserError` for an unknown name.
    """
    name = _name(config)
    if name in _REGISTERED:
        return _REGISTERED[name].load
    place = f"{__package__}.{name}.load"
    if importlib.util.find_spec(place) is None:
        return None
    load: Loader = importlib.import_module(place).load
    return load


def _name(config: Config) -> str:
    name = config.get("experiment")
    if not isinstance(name, str) or name not in names():
        raise reject("config.experiment", name, one_of(names()))
    return name
