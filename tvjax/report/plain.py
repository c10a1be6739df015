"""The report of an experiment without a page of its own: the numbers of its summary."""

from collections.abc import Iterator, Mapping
from typing import Any

from tvjax.report.page import Contents, Page
from tvjax.report.reader import Run
from tvjax.report.tables import Cell, Row, Table
from tvjax.report.words import number

MOST = 400
"""The most numbers that are listed; the summary has all."""


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """All values of a summary, each with its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
        for index, inner in enumerate(value):
            yield from _numbers(inner, f"{name}[{index}]")
    else:
        shown = value if isinstance(value, list) else [value]
        yield name, ", ".join(number(one) if isinstance(one, float) else str(one) for one in shown)


def _table(summary: Mapping[str, Any]) -> Table:
    numbers = list(_numbers(summary))
    more = [("...", f"{len(numbers) - MOST} more in eval/summary.json")] if len(numbers) > MOST else []
    rows = tuple(Row((name, Cell(value, wrap=True))) for name, value in [*numbers[:MOST], *more])
    return Table(f"The summary of a run of {summary['experiment']}", ("field", "value"), rows)


def _contents(run: Run) -> Contents:
    heading = run.experiment.replace("_", " ")
    return Contents(heading, ["<h2>Results</h2>", _table(run.summary).html()], [])


PAGE = Page(lambda summary: [_table(summary)], _contents)
