"""The page of all fields, docs/fields.md: python -m tvjax.experiments.fields > docs/fields.md"""

import dataclasses
import inspect
import typing
from typing import Any

from tvjax import methods, tasks
from tvjax.experiments.base import BUILT_IN, PlanConfig, experiment_of
from tvjax.report.tables import Row, Table
from tvjax.settings import described

HEAD = """# Fields

What each field of a config is, and what it is where a config file says nothing. Set one with
`--config.GROUP.FIELD=VALUE`. A group of an experiment is a dataclass, from which this page, the values in
[configs/](../configs) and the checks are made: `python -m tvjax.experiments.fields > docs/fields.md`.
"""
NEEDED = "**needed**"
NAMES = {"decoder": "model"}
"""Fields of settings whose group in the config has another name, with that name."""


class Page:
    """The page while it is written. A repeated group is not written again."""

    def __init__(self) -> None:
        self.parts, self.seen = [HEAD], dict[Any, str]()

    def section(self, title: str) -> None:
        """A new heading."""
        self.parts.append(f"## {title}\n")

    def table(self, where: str, name: str, kind: Any) -> None:
        """The fields of one group that have a description."""
        if kind in self.seen:
            self.parts.append(f"### {name}: as {self.seen[kind]}\n")
            return
        self.seen[kind] = f"{name} of {where}"
        first = " ".join(inspect.getdoc(kind).split("\n\n")[0].split())  # type: ignore[union-attr]
        rows = tuple(Row((f"`{field}`", _shown(value), about)) for field, value, about in described(kind) if about)
        table = Table("", ("field", "default", "what it is"), rows).markdown()
        self.parts.append(f"### {name}\n\n{first}\n\n{table}")

    def family(self, name: str, kind: Any) -> None:
        """The docstring and the defaults of a task family."""
        values = ", ".join(f"`{field}` {_shown(value)}" for field, value, _ in described(kind))
        self.parts.append(f"### {name}\n\n{inspect.getdoc(kind)}\n\n{values}\n")


def page() -> str:
    """The page, Markdown."""
    document = Page()
    for name in BUILT_IN:
        document.section(name)
        kind = experiment_of({"experiment": name}).settings.__self__  # type: ignore[attr-defined]
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.name != "task" and dataclasses.is_dataclass(hints[field.name]):
                document.table(name, NAMES.get(field.name, field.name), hints[field.name])
    document.section("Methods, of task_vectors and atv")
    for group, kind in methods.groups().items():
        if dataclasses.fields(kind):
            document.table("methods", group, kind)
    document.section("config.task of tvp, by its name")
    for name in tasks.names():
        document.family(name, tasks.family(name))
    document.section("Plans")
    document.table("plans", "plan", PlanConfig)
    return "\n".join(document.parts)


def _shown(value: Any) -> str:
    return NEEDED if value is dataclasses.MISSING else f"`{value!r}`"


if __name__ == "__main__":
    print(page(), end="")
