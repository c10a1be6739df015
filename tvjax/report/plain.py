"""The report of an experiment that has no page of its own: the numbers of its summary, as they stand there."""

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from tvjax.report.gallery import Exhibit
from tvjax.report.html import table
from tvjax.report.words import number

MOST = 400
"""Numbers that are listed; the summary has all."""


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All that stands in a summary, each under its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
        for place, inner in enumerate(value):
            yield from _numbers(inner, f"{name}[{place}]")
    else:
        shown = value if isinstance(value, list) else [value]
        yield name, ", ".join(number(one) if isinstance(one, float) else str(one) for one in shown)


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = list(_numbers(summary))
    more = [("...", f"{len(rows) - MOST} more in eval/summary.json")] if len(rows) > MOST else []
    return rows[:MOST] + more


def summary_table(summary: Mapping[str, Any]) -> str:
    """The results as plain text for the terminal."""
    rows = _rows(summary)
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{value}".rstrip() for name, value in rows) + "\n"


def contents(summary: dict[str, Any], path: Path) -> tuple[list[Exhibit], str, list[str]]:
    """No figure, the heading, and one table."""
    rows = [f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in _rows(summary)]
    head = '<tr><th scope="col">field</th><th scope="col">value</th></tr>'
    name = str(summary["experiment"]).replace("_", " ")
    return [], name, ["<h2>Results</h2>", table(f"The summary of the run of {escape(name)}", head, rows)]
