"""From a config to frozen dataclasses: a user's values are read and checked here.

A dataclass describes its own fields (`setting`): what each is, and which values it takes. The values of a config file,
the checks and the one-line errors come from that description.
"""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, Self, TypeVar

from tvjax.errors import reject

T = TypeVar("T")
INT, FLOAT = 2**31 - 1, 3.4e38
"""The largest numbers that arrays of int32 and float32 hold."""
LEAST = 1.2e-38
"""The smallest number above 0 of float32 that is not rounded to it."""
SEED = {"least": 0, "most": INT}
"""The bounds of a seed."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Which values a field takes, or each entry of a tuple.

    least: the least value.
    above: a bound below all values.
    below: a bound above all values.
    most: the greatest value.
    entries: the least number of entries of a tuple.
    distinct: whether the entries of a tuple must differ.
    """

    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None
    entries: int = 0
    distinct: bool = False

    def accepts(self, value: float) -> bool:
        """Whether a number is within the bounds."""
        return not (
            (self.least is not None and value < self.least)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
            or (self.most is not None and value > self.most)
        )

    def check(self, value: Any, path: str) -> None:
        """Raise `UserError` for a value that the field at `path` does not take."""
        if not isinstance(value, tuple):
            if not self.accepts(value):
                raise reject(path, value, self._numbers())
        elif (
            len(value) < self.entries
            or (self.distinct and len(set(value)) < len(value))
            or not all(map(self.accepts, value))
        ):
            raise reject(path, value, self._entries())

    def _numbers(self) -> str:
        most = "2^31 - 1" if self.most == INT else self.most
        if self.least is not None and self.below is not None:
            return f"{self.least} up to, not including, {self.below}"
        if self.least is not None:
            return f"{self.least} to {most}" if most is not None else f"{self.least} or more"
        ends = {"more than": self.above, "less than": self.below, "at most": most}
        return ", ".join(f"{word} {end}" for word, end in ends.items() if end is not None)

    def _entries(self) -> str:
        bounded = {self.least, self.above, self.below, self.most} != {None}
        each = ["different" if self.distinct else "", f"numbers, each {self._numbers()}" if bounded else "entries"]
        return " ".join(filter(None, each)) + (
            f", at least {'one' if self.entries == 1 else self.entries}" if self.entries else ""
        )


class Checked:
    """A dataclass of settings with rules beyond the bounds of each field."""

    def check(self, path: str) -> None:
        """Raise `UserError` for values that do not fit each other.

        path: the path of the group, such as config.train.
        """


class Settings(Checked):
    """All settings of an experiment, one field a group of its config. `check` has the rules of several groups."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, trained: bool = False) -> Self:
        """Read a config. Raises `UserError` with one line for the first thing that is wrong.

        trained: whether a run has been trained with it, so that `trial` has passed.
        """
        settings = cls(**cls.read(config))
        settings.check("config")
        if not trained:
            settings.trial()
        return settings

    def trial(self) -> None:
        """Try what costs more than a check. Raises `UserError`."""

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the fields: the groups of the same names.

        A subclass adds fields that are read in another way.
        """
        return parts(cls, config)


def setting(default: Any = dataclasses.MISSING, about: str = "", **bounds: Any) -> Any:
    """A field of a dataclass of settings: what it is, and the `Bounds` of its values."""
    return dataclasses.field(default=default, metadata={"about": about, "bounds": Bounds(**bounds)})


def defaults(kind: Any, **values: Any) -> dict[str, Any]:
    """The fields of a dataclass of settings as a config has them: from `values`, or else the defaults.

    Raises TypeError for a value of a field that is not there.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    if not values.keys() <= fields.keys():
        raise TypeError(f"{kind.__name__} has no {', '.join(values.keys() - fields.keys())}, but {', '.join(fields)}")
    own = {
        name: field.default_factory() if callable(field.default_factory) else field.default
        for name, field in fields.items()
    }
    own = {name: value for name, value in own.items() if value is not dataclasses.MISSING} | values
    return {name: defaults(value) if dataclasses.is_dataclass(value) else value for name, value in own.items()}


def described(kind: Any) -> list[tuple[str, Any, str]]:
    """The name, the default and the meaning of each field of a dataclass of settings, with fields of inner groups."""
    rows: list[tuple[str, Any, str]] = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            rows += [(f"{field.name}.{name}", *rest) for name, *rest in described(hints[field.name])]
        elif field.init:
            rows.append((field.name, field.default, field.metadata.get("about", "")))
    return rows


def group(values: Any, path: str) -> Mapping[str, Any]:
    """`values`, checked to be a group of fields. Raises `UserError` if it is not."""
    if not isinstance(values, Mapping):
        raise reject(path, values, "a group of fields")
    return values


def groups(config: Mapping[str, Any], names: Collection[str], also: Collection[str] = ()) -> None:
    """Check that `config` has the groups `names`, and otherwise only `experiment` and the fields `also`."""
    for name in config:
        if name not in ("experiment", *names, *also):
            raise reject(
                f"config.{name}", config[name], f"no such field; the fields are experiment, {', '.join(names)}"
            )
    for name in names:
        group(config.get(name), f"config.{name}")


def parts(
    kind: Any,
    config: Mapping[str, Any],
    also: Collection[str] = (),
    apart: Collection[str] = (),
    **settled: Mapping[str, Any],
) -> dict[str, Any]:
    """The fields of `kind` that are dataclasses, each built from the group of its name in `config`.

    also: further groups and fields that `config` may have.
    apart: fields of `kind` that are built elsewhere.
    settled: by group, fields that the user does not set.

    Raises `UserError` for a group or a field that is not there, and as `build` does.
    """
    hints = typing.get_type_hints(kind)
    left = {*also, *apart}
    names = [f.name for f in dataclasses.fields(kind) if f.name not in left and dataclasses.is_dataclass(hints[f.name])]
    groups(config, names, also)
    return {name: build(hints[name], config[name], f"config.{name}", **settled.get(name, {})) for name in names}


def build(kind: type[T], values: Any, path: str, **settled: Any) -> T:
    """An instance of dataclass `kind` from `values`.

    path: the path of the group, for errors.
    settled: fields that the user does not set.

    Raises `UserError` for an unknown field, a missing field or a wrong type, named by its whole path.
    """
    values = group(values, path)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init and f.name not in settled}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in fields:
            raise reject(f"{path}.{name}", values[name], f"no such field; the fields are {', '.join(fields)}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise reject(f"{path}.{name}", None, f"a value of type {_name(hints[name])}")
    read = {name: coerce(value, hints[name], f"{path}.{name}") for name, value in values.items()}
    for name, value in read.items():
        if "bounds" in fields[name].metadata:
            fields[name].metadata["bounds"].check(value, f"{path}.{name}")
    built = kind(**read, **settled)
    if isinstance(built, Checked):
        built.check(path)
    return built


def coerce(value: Any, hint: Any, path: str) -> Any:
    """`value` as type `hint`.

    Ints pass as floats, lists as tuples, groups as dataclasses; nothing else is converted.
    """
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value not in arguments:
            raise reject(path, value, "one of " + ", ".join(map(repr, arguments)))
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else coerce(value, next(a for a in arguments if a is not type(None)), path)
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(coerce(v, arguments[0], f"{path}[{i}]") for i, v in enumerate(value))
        if len(value) == len(arguments):
            return tuple(coerce(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True)))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not (value == 0 or LEAST <= abs(value) <= FLOAT):
            raise reject(path, value, f"a finite number: 0, or one that float32 holds, {LEAST} to {FLOAT}")
        return float(value)
    if hint is int and type(value) is int and abs(value) > INT:
        raise reject(path, value, "an int of 32 bits, at most 2^31 - 1")
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise reject(path, value, f"a value of type {_name(hint)}")


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def at_least(low: float, path: str, **values: float) -> None:
    """Raise `UserError` for the first of `values` under `low`."""
    for name, value in values.items():
        if value < low:
            raise reject(f"{path}.{name}", value, f"{low} or more")


def check_mesh(mesh: Any, *shared: tuple[str, int, str]) -> None:
    """Raise `UserError` for an axis of `mesh` that does not divide what it shares.

    shared: rows of (axis, size, what it shares).
    """
    for axis, size, what in shared:
        share = getattr(mesh, axis)
        if share < 1 or size % share:
            raise reject(f"config.mesh.{axis}", share, f"a divisor of the {size} {what}")
