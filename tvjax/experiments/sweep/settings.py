"""What a sweep is asked to do: a base run, the values of its fields, and the runs that all combinations make."""

import copy
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tvjax.errors import UserError, reject, within
from tvjax.experiments.base import experiment_of
from tvjax.settings import Settings, build, group, groups, setting

MEMBERS = ("tvp_weight", "prescribed_layer", "learning_rate", "seed")
"""Fields of a population in which its members may differ, in the order of their names."""
POPULATION = "population."
Point = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CutConfig:
    """How the combinations are cut into runs."""

    most_members: int = setting(64, "members that train at once, as one program: what bounds the memory", least=1)


@dataclasses.dataclass(frozen=True)
class Part:
    """A run of its own, in the folder `name`.

    values: of the swept fields that all of its members share.
    """

    name: str
    values: Point
    config: dict[str, Any]

    @property
    def members(self) -> int:
        """How many members it trains."""
        return len(self.config.get("population", {}).get("name", ("",)))


@dataclasses.dataclass(frozen=True)
class SweepSettings(Settings):
    """The whole sweep, checked: the config of every part is one that its experiment accepts.

    swept: the experiment of the base.
    axes: by field of the base, its values.
    """

    swept: str
    axes: dict[str, tuple[Any, ...]]
    cut: CutConfig
    parts: tuple[Part, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the fields, of which the parts follow from config.base and config.sweep."""
        groups(config, ("base", "sweep", "cut"))
        base = config["base"]
        experiment = experiment_of(base)
        if experiment.name == "sweep":
            raise reject("config.base.experiment", "sweep", "the experiment of a single run")
        try:
            experiment.settings(base)
        except UserError as error:
            raise within("config.base", error) from None
        cut = build(CutConfig, config["cut"], "config.cut")
        axes = dict(_axes(config["sweep"], base))
        if not axes:
            raise reject("config.sweep", {}, "fields of the base with values, e.g. --sweep.population.seed=0:4")
        parts = tuple(_parts(base, axes, cut.most_members))
        names = [part.name for part in parts]
        if len(set(names)) < len(names):
            raise reject("config.sweep", config["sweep"], "values that differ in letters, digits and _ . + -")
        for part in parts:
            try:
                experiment.settings(part.config)
            except UserError as error:
                raise within(f"config.sweep: {part.name}", error) from None
        return {"swept": experiment.name, "axes": axes, "cut": cut, "parts": parts}


def _axes(sweep: Mapping[str, Any], base: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Each swept field with its values. Raises `UserError` for a field that the base lacks, and for repeated values."""
    for name, value in sweep.items():
        field = f"{path}{name}"
        if name not in base:
            parent = f"config.base.{path}".rstrip(".")
            raise reject(f"config.sweep.{field}", value, f"no such field; the fields of {parent} are {', '.join(base)}")
        if isinstance(base[name], Mapping):
            yield from _axes(group(value, f"config.sweep.{field}"), base[name], f"{field}.")
            continue
        values = tuple(value) if isinstance(value, tuple | list) else (value,)
        if not values or any(value in values[:i] for i, value in enumerate(values)):
            raise reject(f"config.sweep.{field}", value, "different values, at least one")
        if field == f"{POPULATION}name":
            raise reject(f"config.sweep.{field}", value, f"one of {', '.join(MEMBERS)}: a sweep names its members")
        yield field, values


def _parts(base: Mapping[str, Any], axes: Mapping[str, Sequence[Any]], most: int) -> Iterator[Part]:
    """A run for each combination of the fields that members share, its members cut into so many at a time."""
    shared = {field: values for field, values in axes.items() if not field.startswith(POPULATION)}
    own = {field.removeprefix(POPULATION): values for field, values in axes.items() if field not in shared}
    ends = [field.rpartition(".")[2] for field in shared]
    short = {field: end if ends.count(end) == 1 else field for field, end in zip(shared, ends, strict=True)}
    for values in itertools.product(*shared.values()):
        point = dict(zip(shared, values, strict=True))
        about = ".".join(f"{short[field]}-{_word(value)}" for field, value in point.items()) or "base"
        config = copy.deepcopy(dict(base))
        for field, value in point.items():
            *path, last = field.split(".")
            inner = config
            for name in path:
                inner = inner[name]
            inner[last] = value
        if "population" not in base:
            yield Part(about, point, config)
            continue
        members = _members(base["population"], own)
        cuts = [members[i : i + most] for i in range(0, len(members), most)]
        for number, cut in enumerate(cuts, start=1):
            name = about + (f".{number}" if len(cuts) > 1 else "")
            fields = {field: tuple(member[field] for member in cut) for field in (*MEMBERS, "name")}
            population = {**config["population"], **fields}
            yield Part(name, point, {**config, "population": population})


def _members(population: Mapping[str, Any], own: Mapping[str, Sequence[Any]]) -> list[Point]:
    """The members of a population: those of the base, with each combination of the swept fields; none twice.

    The prescribed layer of a member without TVP-loss changes nothing in its training: of those that differ in it alone,
    the first one is kept.
    """
    size = len(population["name"])
    columns = {field: list(population[field]) * (size if len(population[field]) == 1 else 1) for field in MEMBERS}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    members: dict[tuple[Any, ...], Point] = {}
    for row in rows:
        for values in itertools.product(*own.values()):
            member = {**row, **dict(zip(own, values, strict=True))}
            trained = {**member, "prescribed_layer": member["prescribed_layer"] if member["tvp_weight"] else 0}
            members.setdefault(tuple(trained.values()), member)
    rates = {member["learning_rate"] for member in members.values()}
    return [{**member, "name": _name(member, with_rate=len(rates) > 1)} for member in members.values()]


def _name(member: Point, *, with_rate: bool) -> str:
    weight = member["tvp_weight"]
    arm = f"tvp{weight:g}-layer{member['prescribed_layer']}" if weight else "icl"
    rate = f"-rate{member['learning_rate']:g}" if with_rate else ""
    return f"{arm}{rate}-seed{member['seed']}"


def _word(value: Any) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-.") or "none"
