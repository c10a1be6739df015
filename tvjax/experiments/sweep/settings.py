"""What a sweep is asked to do: a base run, the values of its fields, and the runs that all combinations make."""

import copy
import dataclasses
import functools
import itertools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tvjax.errors import UserError, reject, within
from tvjax.experiments.base import experiment_of
from tvjax.report.results import OF_LOSS
from tvjax.settings import Settings, build, group, groups, setting

MEMBERS = ("tvp_weight", "prescribed_layer", "learning_rate", "seed")
"""Fields of a population in which its members may differ, in the order of their names."""
POPULATION = "population."
Point = dict[str, Any]
Fields = tuple[tuple[str, Any], ...]
"""The same, to be looked up."""


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
    axes: by field of the base, its values, of all combinations together.
    """

    swept: str
    axes: dict[str, tuple[Any, ...]]
    cut: CutConfig
    parts: tuple[Part, ...]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the fields, of which the parts follow from config.base and config.sweep."""
        groups(config, ("base", "sweep", "cut"), also=("also",))
        base, more = config["base"], group(config.get("also", {}), "config.also")
        experiment = experiment_of(base)
        if experiment.name == "sweep":
            raise reject("config.base.experiment", "sweep", "the experiment of a single run")
        try:
            experiment.settings(base)
        except UserError as error:
            raise within("config.base", error) from None
        cut = build(CutConfig, config["cut"], "config.cut")
        paths = {"config.sweep": config["sweep"], **{f"config.also.{name}": values for name, values in more.items()}}
        swept = [dict(_axes(group(values, path), base, path)) for path, values in paths.items()]
        for path, axes in zip(paths, swept, strict=True):
            if not axes:
                raise reject(path, {}, "fields of the base with values, e.g. --sweep.population.seed=0:4")
        parts = tuple(_parts(base, swept, cut.most_members))
        names = [part.name for part in parts]
        if len(set(names)) < len(names):
            raise reject("config.sweep", config["sweep"], "values that differ in letters, digits and _ . + -")
        for part in parts:
            try:
                experiment.settings(part.config)
            except UserError as error:
                raise within(f"config.sweep: {part.name}", error) from None
        axes = {field: _all_values(field, swept) for field in dict.fromkeys(itertools.chain(*swept))}
        return {"swept": experiment.name, "axes": axes, "cut": cut, "parts": parts}


def _axes(
    sweep: Mapping[str, Any], base: Mapping[str, Any], where: str, path: str = ""
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Each swept field with its values. Raises `UserError` for a field that the base lacks, and for repeated values.

    where: the group that `sweep` is the value of.
    """
    for name, value in sweep.items():
        field = f"{path}{name}"
        if name not in base:
            parent = f"config.base.{path}".rstrip(".")
            raise reject(f"{where}.{field}", value, f"no such field; the fields of {parent} are {', '.join(base)}")
        if isinstance(base[name], Mapping):
            yield from _axes(group(value, f"{where}.{field}"), base[name], where, f"{field}.")
            continue
        values = tuple(value) if isinstance(value, tuple | list) else (value,)
        if not values or any(value in values[:i] for i, value in enumerate(values)):
            raise reject(f"{where}.{field}", value, "different values, at least one")
        if field == f"{POPULATION}name":
            raise reject(f"{where}.{field}", value, f"one of {', '.join(MEMBERS)}: a sweep names its members")
        yield field, values


def _all_values(field: str, swept: Sequence[Mapping[str, Sequence[Any]]]) -> tuple[Any, ...]:
    """The values of a field in any of the combinations, each once."""
    values: list[Any] = []
    for axes in swept:
        values += [value for value in axes.get(field, ()) if value not in values]
    return tuple(values)


def _inside(config: Any, names: Sequence[str]) -> Any:
    """What stands in groups within groups of these names."""
    return functools.reduce(operator.getitem, names, config)


def _parts(base: Mapping[str, Any], swept: Sequence[Mapping[str, Sequence[Any]]], most: int) -> Iterator[Part]:
    """A run for each combination of the fields that members share, its members cut into so many at a time.

    swept: the combinations are those of each of these together; a field that one of them lacks is as in the base.
    Nothing is trained twice: a member that differs from another in nothing that its training reads is left out.
    """
    shared = [field for field in dict.fromkeys(itertools.chain(*swept)) if not field.startswith(POPULATION)]
    points: dict[Fields, tuple[Point, list[Point]]] = {}
    known: set[Fields] = set()
    for axes in swept:
        own = {f.removeprefix(POPULATION): values for f, values in axes.items() if f.startswith(POPULATION)}
        members = _members(base["population"], own) if "population" in base else [{}]
        for values in itertools.product(*(axes.get(field) or (_inside(base, field.split(".")),) for field in shared)):
            point = dict(zip(shared, values, strict=True))
            for member in members:
                trained = _trained(base, point, member)
                if trained not in known:
                    known.add(trained)
                    points.setdefault(_fields(point), (point, []))[1].append(member)
    ends = [field.rpartition(".")[2] for field in shared]
    short = {field: end if ends.count(end) == 1 else field for field, end in zip(shared, ends, strict=True)}
    for point, members in points.values():
        about = ".".join(f"{short[field]}-{_word(value)}" for field, value in point.items()) or "base"
        config = copy.deepcopy(dict(base))
        for field, value in point.items():
            *path, last = field.split(".")
            _inside(config, path)[last] = value
        if "population" not in base:
            yield Part(about, point, config)
            continue
        rates = {member["learning_rate"] for member in members}
        named = [{**member, "name": _name(member, with_rate=len(rates) > 1)} for member in members]
        cuts = [named[i : i + most] for i in range(0, len(named), most)]
        for number, cut in enumerate(cuts, start=1):
            name = about + (f".{number}" if len(cuts) > 1 else "")
            fields = {field: tuple(member[field] for member in cut) for field in (*MEMBERS, "name")}
            population = {**config["population"], **fields}
            yield Part(name, point, {**config, "population": population})


def _fields(point: Point) -> Fields:
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in point.items())


def _trained(base: Mapping[str, Any], point: Point, member: Point) -> Fields:
    """What the training of a member reads, or of a run that has no members.

    Without TVP-loss it reads neither the prescribed layer nor what `OF_LOSS` names. The control of its compute, which
    is answered from the demonstrations, reads no layer.
    """
    left: set[str] = set()
    if not member.get("tvp_weight", 1):
        left = {"prescribed_layer", *OF_LOSS}
    elif point.get("tvp.answered_from", base.get("tvp", {}).get("answered_from")) == "demonstrations":
        left = {"prescribed_layer", "tvp.gradient"}
    return _fields({name: value for name, value in {**point, **member}.items() if name not in left})


def _members(population: Mapping[str, Any], own: Mapping[str, Sequence[Any]]) -> list[Point]:
    """The members of a population: those of the base, with each combination of the swept fields."""
    size = len(population["name"])
    columns = {field: list(population[field]) * (size if len(population[field]) == 1 else 1) for field in MEMBERS}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [
        {**row, **dict(zip(own, values, strict=True))} for row in rows for values in itertools.product(*own.values())
    ]


def _name(member: Point, *, with_rate: bool) -> str:
    weight = member["tvp_weight"]
    arm = f"tvp{weight:g}-layer{member['prescribed_layer']}" if weight else "icl"
    rate = f"-rate{member['learning_rate']:g}" if with_rate else ""
    return f"{arm}{rate}-seed{member['seed']}"


def _word(value: Any) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", str(value)).strip("-.") or "none"
