"""What an emergence study is asked to do: a base run, a grid of conditions around it, and the populations they make."""

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tvjax.errors import UserError, within
from tvjax.experiments.base import Experiment, named
from tvjax.settings import Settings, build, groups, setting

FIELDS = {
    "layout": ("prompt", "layout"),
    "positions": ("model", "positions"),
    "num_layers": ("model", "num_layers"),
    "width": ("model", "width"),
    "demonstrations": ("prompt", "demonstrations"),
}
"""Where the base config holds each factor of the grid."""
Condition = dict[str, Any]
Member = tuple[float, int, int]
"""TVP weight, prescribed layer, seed."""


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """Values of each factor beside the base's."""

    layout: tuple[str, ...] = setting((), "of base.prompt.layout")
    positions: tuple[str, ...] = setting((), "of base.model.positions")
    num_layers: tuple[int, ...] = setting((), "of base.model.num_layers")
    width: tuple[int, ...] = setting((), "of base.model.width")
    demonstrations: tuple[int, ...] = setting((), "of base.prompt.demonstrations")
    cross: bool = setting(False, "all combinations; otherwise one factor at a time")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """The members of each condition."""

    seeds: tuple[int, ...] = setting(about="of every member", least=0, entries=1, distinct=True)
    tvp_weights: tuple[float, ...] = setting((1.0,), "lambda of the members with TVP-loss", above=0, entries=1)
    prescribed_layers: tuple[int, ...] = setting((), "l*; (): 1..L-1, each")
    tvp_everywhere: bool = setting(False, "TVP-loss under every condition; otherwise under the base alone")
    control: bool = setting(True, "also ICL loss with the extra queries of the TVP-loss, answered from demonstrations")
    most_members: int = setting(12, "members that train at once: what bounds the memory", least=1)


@dataclasses.dataclass(frozen=True)
class Population:
    """Members of equal shape that train together: a TVP run of its own, in the folder `name`.

    arm: "icl" (the ICL loss alone), "tvp", or "control" (the same extra queries, answered from the demonstrations).
    """

    name: str
    condition: Condition
    arm: str
    config: dict[str, Any]

    @property
    def query_replaced(self) -> bool:
        """Whether a vector takes the place of the query itself, so that TVP fails by construction."""
        return self.condition["layout"] == "xy" and self.config["tvp"].get("edit", "replace") == "replace"


@dataclasses.dataclass(frozen=True)
class EmergenceSettings(Settings):
    """The whole study, checked: every population's config is one that the experiment `tvp` accepts."""

    base: Condition
    conditions: tuple[Condition, ...]
    study: StudyConfig
    populations: tuple[Population, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the fields, of which the populations follow from config.base and the grid."""
        groups(config, ("base", "grid", "study"))
        try:
            settings = populations_run().settings(config["base"])
        except UserError as error:
            raise within("config.base", error) from None
        grid = build(GridConfig, config["grid"], "config.grid")
        study = build(StudyConfig, config["study"], "config.study")
        held = {"prompt": settings.prompt, "model": settings.decoder}
        base = {name: getattr(held[part], field) for name, (part, field) in FIELDS.items()}
        conditions = tuple(_conditions(base, grid))
        populations = [
            population
            for condition in conditions
            for population in _populations(config["base"], base, condition, study)
        ]
        for population in populations:
            try:
                populations_run().settings(population.config)
            except UserError as error:
                raise within(f"config.grid: population {population.name}", error) from None
        return {"base": base, "conditions": conditions, "study": study, "populations": tuple(populations)}


def populations_run() -> Experiment:
    """What a population is a run of."""
    return named("tvp")


def _conditions(base: Condition, grid: GridConfig) -> list[Condition]:
    """The base, then what the grid adds to it; none twice."""
    values = {name: [v for v in dict.fromkeys(getattr(grid, name)) if v != base[name]] for name in FIELDS}
    if grid.cross:
        choices = itertools.product(*([base[name], *values[name]] for name in FIELDS))
        return [dict(zip(FIELDS, choice, strict=True)) for choice in choices]
    return [base, *({**base, name: value} for name in FIELDS for value in values[name])]


def differences(base: Condition, condition: Condition) -> Condition:
    """The factors in which a condition is not the base."""
    return {name: value for name, value in condition.items() if value != base[name]}


def _populations(
    config: Mapping[str, Any], base: Condition, condition: Condition, study: StudyConfig
) -> Iterator[Population]:
    """The populations of one condition, each with at most so many members."""
    changed = differences(base, condition)
    about = ".".join(f"{name}-{value}" for name, value in changed.items()) or "base"
    inner = study.prescribed_layers or tuple(range(1, condition["num_layers"]))
    middle = condition["num_layers"] // 2
    arms = {"icl": [(0.0, middle)]}
    if study.tvp_everywhere or not changed:
        arms["tvp"] = [(weight, layer) for layer in inner for weight in study.tvp_weights]
        if study.control:
            arms["control"] = [(weight, middle) for weight in study.tvp_weights]
    for arm, settings in arms.items():
        members = [(weight, layer, seed) for weight, layer in settings for seed in study.seeds]
        parts = [members[i : i + study.most_members] for i in range(0, len(members), study.most_members)]
        for number, part in enumerate(parts, start=1):
            name = f"{about}.{arm}" + (f".{number}" if len(parts) > 1 else "")
            compared = study.tvp_everywhere or not changed
            yield Population(name, condition, arm, _config(config, condition, arm, part, shifts=compared))


def _config(
    base: Mapping[str, Any], condition: Condition, arm: str, members: Sequence[Member], *, shifts: bool
) -> dict[str, Any]:
    """The TVP config of a population; shifts: whether its prompts are also shifted, if the base's are."""
    config = copy.deepcopy(dict(base))
    for name, (part, field) in FIELDS.items():
        config[part][field] = condition[name]
    weights, layers, seeds = zip(*members, strict=True)
    names = {
        "icl": "icl-seed{seed}",
        "tvp": "tvp-layer{layer}-weight{weight:g}-seed{seed}",
        "control": "control-weight{weight:g}-seed{seed}",
    }
    config["population"] |= {
        "name": tuple(names[arm].format(weight=w, layer=layer, seed=seed) for w, layer, seed in members),
        "seed": seeds,
        "tvp_weight": weights,
        "prescribed_layer": layers,
    }
    config["tvp"]["answered_from"] = "demonstrations" if arm == "control" else "vector"
    config["evaluation"]["shifts"] = shifts and config["evaluation"].get("shifts", True)
    return config
