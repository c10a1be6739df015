"""The numbers of runs as tidy rows: one number a row, with what the number is of.

A summary is a tree. What its names say of a number becomes columns: a list of members, methods, shifts, ... that have
names gives the column "member", "method", "shift", ...; a list whose name has "_by_layer" counts layers; any other list
counts "index" (of a curve the number of demonstrations), and the texts of its entries are columns. ``NAME_ci`` are the
ends of the interval of ``NAME``.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvjax.errors import UserError
from tvjax.files import flatten
from tvjax.report.reader import Run, read_run

Row = dict[str, Any]
NAMED = {
    "arms": "arm",
    "baselines": "baseline",
    "members": "member",
    "methods": "method",
    "populations": "population",
    "shifts": "shift",
    "tasks": "task",
}
"""Parts of a summary whose entries have names, and the column of those names."""
SETTINGS = ("seed", "tvp_weight", "prescribed_layer")
"""What a member was trained with, as its entry in a summary says: columns, and no results."""
OF_LOSS = ("tvp.gradient", "tvp.start_step", "tvp.answered_from", "tvp.schedule")
"""Fields that the TVP-loss alone reads: without its weight they change nothing, in training or after it."""
RATE = "learning_rate"
"""What else members may differ in, as the config says: a column of the runs whose members do."""
DURING = "training"
"""What a summary says of the time before its results: curves for figures, and no numbers."""
FIRST = ("run", "experiment", "member", *SETTINGS, "metric", "layer", "shift")
LAST = ("value", "low", "high")
"""The columns that every row has, before and after those of the runs at hand."""


def rows(run: Run) -> list[Row]:
    """The numbers of one run's summary, each with the columns that it needs."""
    of = {"run": str(run.path), "experiment": run.experiment}
    return list(_tree(run.summary, of, "", _members(run)))


def results(folders: Sequence[str | Path]) -> Any:
    """The numbers of runs, of any experiments, as a pandas DataFrame; if pandas is not installed, as a list of dicts.

    Columns: run, experiment, member, seed, tvp_weight, prescribed_layer, metric, layer, shift, then what else the
    numbers are of (method, task, index, ...), then each field in which the runs' configs differ (``config.FIELD``),
    then value, low and high (the ends of the 90% interval that the summary has). None where a column says nothing.

    Raises `UserError` for a folder that holds no measured run, and for one that is named twice.
    """
    runs = [read_run(folder) for folder in folders]
    paths = [run.path.resolve() for run in runs]
    for path, run in zip(paths, runs, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"{run.path}: given twice; accepted: different runs")
    fields = differing(runs)
    table: list[Row] = []
    for number, run in enumerate(runs):
        own = {name: values[number] for name, values in fields.items()}
        table += [{**row, **own} for row in rows(run)]
    between = dict.fromkeys(name for row in table for name in row if name not in (*FIRST, *LAST))
    columns = (*FIRST, *between, *LAST)
    table = [{name: row.get(name) for name in columns} for row in table]
    try:
        import pandas
    except ImportError:
        return table
    return pandas.DataFrame(table, columns=columns)


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The fields in which the configs of `runs` differ, ``{"config.FIELD": [a value a run]}``; None: no such field."""
    flat = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    values = {name: [fields.get(name) for fields in flat] for name in names}
    return {name: column for name, column in values.items() if any(value != column[0] for value in column)}


def _members(run: Run) -> list[Row]:
    """Name and settings of each member: the same under every shift, where only its place is said."""
    members, population = run.summary.get("members"), run.config.get("population", {})
    rates = dict(zip(population.get("name", ()), population.get(RATE, ()), strict=False))
    differ = len(set(rates.values())) > 1
    entries = members if isinstance(members, list) else []
    rows = [_member(entry) for entry in entries if isinstance(entry, Mapping)]
    return [{**row, RATE: rates.get(row["member"])} if differ else row for row in rows]


def _member(entry: Mapping[str, Any]) -> Row:
    return {"member": entry.get("name"), **{name: entry[name] for name in SETTINGS if name in entry}}


def _tree(tree: Mapping[str, Any], of: Row, path: str, members: Sequence[Row]) -> Iterator[Row]:
    for name, value in tree.items():
        metric = f"{path}{name}"
        if name.endswith("_ci") and name.removesuffix("_ci") in tree:
            continue
        if isinstance(value, bool) or name == DURING or ("member" in of and name in SETTINGS):
            continue
        if name in NAMED and _has_entries(value):
            yield from _entries(NAMED[name], value, of, path, members)
        elif isinstance(value, Mapping):
            yield from _tree(value, of, f"{metric}.", members)
        elif isinstance(value, list):
            yield from _list(metric, value, tree.get(f"{name}_ci"), of, members)
        elif isinstance(value, int | float):
            yield _row(of, metric, value, tree.get(f"{name}_ci"))


def _has_entries(value: Any) -> bool:
    entries = list(value.values()) if isinstance(value, Mapping) else value
    return isinstance(entries, list) and bool(entries) and all(isinstance(entry, Mapping) for entry in entries)


def _entries(column: str, value: Any, of: Row, path: str, members: Sequence[Row]) -> Iterator[Row]:
    """The numbers of entries that have names, or of members in the order of the summary's first list of them."""
    for number, (name, entry) in enumerate(value.items() if isinstance(value, Mapping) else _by_name(value)):
        names = {column: name}
        if column == "member":
            known = (
                [row for row in members if row["member"] == name] if "name" in entry else members[number : number + 1]
            )
            names = {**(_member(entry) if "name" in entry else names), **(known[0] if known else {})}
        yield from _tree(entry, {**of, **names}, path, members)


def _by_name(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    for number, entry in enumerate(entries):
        yield entry.get("name", number), entry


def _list(metric: str, values: list[Any], ends: Any, of: Row, members: Sequence[Row]) -> Iterator[Row]:
    column = "layer" if "_by_layer" in metric else "index"
    for number, value in enumerate(values):
        here = {**of, column: number}
        if isinstance(value, Mapping) and "metric" in value:  # a row already, of a sweep
            what = {name: one for name, one in value.items() if not isinstance(one, Mapping | list)}
            yield _row({**of, **what}, value["metric"], value["value"], value["value_ci"])
        elif isinstance(value, Mapping):
            texts = {name: text for name, text in value.items() if isinstance(text, str)}
            yield from _tree(value, {**here, **texts}, f"{metric}.", members)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield _row(here, metric, value, ends[number] if isinstance(ends, list) and number < len(ends) else None)


def _row(of: Row, metric: str, value: float, ends: Any) -> Row:
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    return {**of, "metric": metric, "value": value, "low": low, "high": high}
