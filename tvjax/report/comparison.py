"""Several runs side by side: the fields in which they differ, their headline numbers, and paired differences. [ours]

A headline number is one that has an interval, in distribution: of a curve its last entry, of a row over layers the one
at the prescribed layer. Members that differ in their seeds alone are one entry, the mean over seeds with an interval by
Student's t. Runs are subtracted seed by seed, and only if they were measured on the same prompts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tvjax.errors import UserError
from tvjax.evals.statistics import of_metric, student
from tvjax.files import write_whole
from tvjax.report.html import Exhibit, box, document, figure, files, with_contents, write_figure
from tvjax.report.reader import Run, read_run
from tvjax.report.results import FIRST, LAST, Row, differing, rows
from tvjax.report.style import HUES, open_figure, quiet
from tvjax.report.tables import Cell, Table, estimate
from tvjax.report.tables import Row as Line
from tvjax.report.words import number

PROMPTS = ("task", "prompt", "data", "template", "templates", "tasks", "evaluation", "vectors", "formats")
"""Groups of a config that say what is asked: runs that differ in them were measured on different prompts."""
MOST_PANELS, MOST_TICKS = 8, 20
Key = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Number:
    """A headline number of one run: by seed (None: of no seed) the value and its interval."""

    metric: str
    by_seed: Mapping[Any, tuple[float, float, float]]

    def estimate(self) -> tuple[float, Sequence[float] | None]:
        """The mean over seeds and its interval; of a single seed the interval is the one over prompts."""
        values = list(self.by_seed.values())
        if len(values) == 1:
            return values[0][0], values[0][1:]
        return of_metric(self.metric, [value for value, *_ in values])

    def less(self, other: "Number") -> tuple[float, Sequence[float] | None] | None:
        """The mean over the seeds that both have of this number less `other`; None if they share no seed."""
        shared = [seed for seed in self.by_seed if seed in other.by_seed]
        return student([self.by_seed[seed][0] - other.by_seed[seed][0] for seed in shared]) if shared else None


@dataclass(frozen=True)
class Comparison:
    """Runs, the fields in which they differ, and their headline numbers, ``{key: {index of the run: number}}``."""

    runs: Sequence[Run]
    fields: Mapping[str, Sequence[Any]]
    numbers: Mapping[Key, Mapping[int, Number]]

    def notes(self) -> list[str]:
        """What a reader must know first: why there are no differences, or none of some numbers."""
        asked = [name for name in self.fields if _asks(name)]
        if len({run.experiment for run in self.runs}) > 1:
            return ["The runs are of different experiments: no differences are shown."]
        if asked:
            return [f"The runs were asked different things ({', '.join(asked)}): no differences are shown."]
        return []

    def lines(self) -> list[str | Table]:
        """The comparison for the terminal: the runs, notes, the fields, the numbers."""
        names = [f"{i}  {run.path}" for i, run in enumerate(self.runs, start=1)]
        return [*names, "", *self.notes(), self.field_table(), "", self.number_table()]

    def field_table(self) -> Table:
        """Each field in which the runs differ, and its value in each run."""
        heads = ("field", *(str(i) for i in range(1, len(self.runs) + 1)))
        lines = tuple(
            Line((name, *(Cell("-" if value is None else str(value)) for value in values)))
            for name, values in self.fields.items()
        )
        return Table("Fields in which the runs differ", heads, lines or (Line(("none",)),))

    def number_table(self) -> Table:
        """The headline numbers, a block a number and a line a run; differences are from the first run that has it."""
        paired = not self.notes()
        lines = []
        for key, by_run in self.numbers.items():
            first = next(iter(by_run))
            for index, one in by_run.items():
                less = one.less(by_run[first]) if paired and index != first else None
                cells = (
                    _words(key) if index == first else "",
                    str(index + 1),
                    estimate(*one.estimate(), number),
                    "" if None in one.by_seed else str(len(one.by_seed)),
                    estimate(*less, number) if less else "",
                )
                lines.append(Line(cells, names=2))
        caption = (
            "Headline numbers with 90% intervals: of several seeds Student's t over seeds (of risks the geometric mean,"
            " and the interval of the logarithms), of one seed the bootstrap over prompts. Where no seeds are counted"
            " the number is of no member, or a sweep's own mean over seeds."
            " Differences are from the first run of the block, over the seeds that both have; of one seed a difference"
            " has no interval."
        )
        return Table(caption, ("number", "run", "value", "seeds", "less the first"), tuple(lines))

    def write(self, folder: Path) -> Path:
        """Write the page and its figure into `folder`; return the page's path."""
        parts = ["<h1>Runs compared</h1>", box(self.notes())]
        exhibit = self._figure()
        parts += [f"<p>{i}: {escape(str(run.path))}</p>" for i, run in enumerate(self.runs, start=1)]
        if exhibit:
            parts += ["<h2>Figures</h2>", figure(exhibit, write_figure(exhibit, folder))]
        parts += ["<h2>Numbers</h2>", self.number_table().html(), "<h2>Fields</h2>", self.field_table().html()]
        parts.append(files([("numbers.csv", "the table of numbers")]))
        page = folder / "index.html"
        write_whole(page, document("Runs compared", with_contents(parts)))
        write_whole(folder / "numbers.csv", self.number_table().csv())
        return page

    def _figure(self) -> Exhibit | None:
        keys = list(self.numbers)[:MOST_PANELS]
        if not keys:
            return None

        def draw() -> Figure:
            """A panel a number, a line a run, with intervals."""
            columns = min(len(keys), 2)
            height = (0.5 + 0.22 * min(len(self.runs), 2 * MOST_TICKS)) * math.ceil(len(keys) / columns) + 0.3
            drawn = open_figure(9, height, "Headline numbers by run", "90% intervals")
            axes = drawn.subplots(math.ceil(len(keys) / columns), columns, squeeze=False).ravel()
            for ax in axes[len(keys) :]:
                ax.set_visible(False)
            for ax, key in zip(axes, keys, strict=False):
                estimates = {index: one.estimate() for index, one in self.numbers[key].items()}
                ax.plot([value for value, _ in estimates.values()], list(estimates), "o", color=HUES[0], markersize=5)
                ends = {index: interval for index, (_, interval) in estimates.items() if interval}
                low, high = ([interval[end] for interval in ends.values()] for end in (0, 1))
                ax.hlines(list(ends), low, high, color=HUES[0], linewidth=1.5)
                quiet(ax, "", "", _words(key))
                ticks = range(0, len(self.runs), -(-len(self.runs) // MOST_TICKS))
                ax.set_yticks(ticks, [str(i + 1) for i in ticks])
                ax.set_ylim(len(self.runs) - 0.5, -0.5)
            return drawn

        alt = "; ".join(
            f"{_words(key)}: " + ", ".join(f"run {i + 1} {number(one.estimate()[0])}" for i, one in by_run.items())
            for key, by_run in list(self.numbers.items())[:MOST_PANELS]
        )
        more = len(self.numbers) - len(keys)
        caption = "Each panel is one number, each line a run." + (f" {more} more are in the table." if more else "")
        return Exhibit("numbers", "Headline numbers", alt, caption, draw)


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Read runs of any experiments. Raises `UserError` for fewer than two, for one twice, and for what is no run."""
    runs = [read_run(folder) for folder in folders]
    paths = [run.path.resolve() for run in runs]
    if len(runs) < 2 or len(set(paths)) < len(paths):
        shown = ", ".join(str(folder) for folder in folders)
        raise UserError(f"runs: given {shown or None}; accepted: the folders of two or more different runs")
    numbers: dict[Key, dict[int, dict[Any, tuple[float, float, float]]]] = {}
    for index, run in enumerate(runs):
        for row in headline(rows(run)):
            numbers.setdefault(_key(row), {}).setdefault(index, {})[row.get("seed")] = (
                row["value"],
                row["low"],
                row["high"],
            )
    return Comparison(
        runs,
        differing(runs),
        {
            key: {index: Number(dict(key)["metric"], seeds) for index, seeds in by_run.items()}
            for key, by_run in numbers.items()
        },
    )


def headline(table: Sequence[Row]) -> list[Row]:
    """The headline numbers among the rows of one run."""
    last: dict[Key, int] = {}
    for row in table:
        if "index" in row:
            key = _key(row, apart=("index",), whole=True)
            last[key] = max(last.get(key, 0), row["index"])
    chosen = [
        row
        for row in table
        if row.get("low") is not None
        and "shift" not in row
        and ("index" not in row or row["index"] == last[_key(row, apart=("index",), whole=True)])
        and ("layer" not in row or row["layer"] == row.get("prescribed_layer"))
    ]
    return [row for row in chosen if "task" not in row] or chosen


def _key(row: Row, apart: Sequence[str] = (), whole: bool = False) -> Key:
    """What a number is of, without its run; whole: with its member and seed, which runs need not share."""
    settled = "tvp_weight" in row and not whole
    left = {"run", "experiment", *LAST, *apart, *(("member", "seed", "index", "layer") if settled else ())}
    order = [*FIRST, *(name for name in row if name not in FIRST)]
    return tuple((name, row[name]) for name in order if name in row and name not in left)


def _asks(field: str) -> bool:
    """Whether a field says what is asked: by one of its groups, in ``config.base`` of a sweep too."""
    first, *rest = field.split(".")[1:]
    return any(name in PROMPTS for name in (first, *rest[:-1]))


def _words(key: Key) -> str:
    """What a number is of, in words."""
    names = dict(key)
    metric = names.pop("metric")
    if not names.get("tvp_weight", 1.0) and "_by_layer" not in metric:  # no layer was prescribed: it is where one looks
        names.pop("prescribed_layer", None)
    of = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in names.items() if name != "index")
    return f"{metric} ({of})" if of else metric
