"""The report of a study of formats: where a state vector works, template by start, by layer and by position."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tvjax.evals.learned import above
from tvjax.report.html import Exhibit, box
from tvjax.report.page import Contents, Page
from tvjax.report.reader import Run
from tvjax.report.style import HUES, INK, MARKERS, QUIET, bottom_legend, open_figure, quiet
from tvjax.report.tables import Cell, Head, Row, Table, of

Tree = Mapping[str, Any]
POSITIONS = {"last": "the prompt's last token", "query": "the query's last token"}
SOURCES = (
    "Reading the state at the last token of prompts with demonstrations and putting it in the place of the one of a"
    " zero-shot prompt is the method of Hendel, Geva and Globerson, In-Context Learning Creates Task Vectors (2023)."
    " That the format of prompts decides whether a task vector forms is said by Yang et al., Task Vectors in In-Context"
    " Learning (2025), of models trained from scratch. The templates, the starts, the positions, the cosine as a"
    " measure of whether a query can be read, the layer chosen on the dev split, and the rules for what works and what"
    " is higher are how it is done here."
)


def _name(key: Tree) -> str:
    return f"{key['template']} behind {key['start']}"


def _at(summary: Tree) -> str:
    """The position that the comparisons are of."""
    return str(summary["positions"][0])


def _starts(summary: Tree) -> list[str]:
    return [start["name"] for start in summary["starts"]]


def _templates(summary: Tree) -> list[str]:
    return [template["name"] for template in summary["templates"]]


def cautions(summary: Tree) -> list[str]:
    """The sentences before any comparison: formats without learning, vectors that do not work, long starts. [ours]"""
    k, at, sentences = summary["num_demonstrations"], _at(summary), []
    unlearned = [_name(c) for c in summary["cells"] if not above(c["few_shot_first_ci"], c["zero_shot_first"])]
    if unlearned:
        which = "any format" if len(unlearned) == len(summary["cells"]) else "; ".join(unlearned)
        sentences.append(
            f"Not learned in context: in {which} {k}-shot accuracy is not clearly above zero-shot, so that there is"
            " nothing that a vector could carry."
        )
    failed = [_name(c) for c in summary["cells"] if not c["positions"][at]["works"]]
    if len(failed) == len(summary["cells"]):
        sentences.append(f"The state vector at {POSITIONS[at]} works in no format.")
    elif failed:
        sentences.append(f"The state vector at {POSITIONS[at]} does not work in: {'; '.join(failed)}.")
    for start in summary["starts"]:
        if len(start["tokens"]) > 1:
            sentences.append(
                f"The start {start['name']} is {len(start['tokens'])} tokens: {' '.join(start['tokens'])}."
            )
    return sentences


def findings(summary: Tree) -> list[str]:
    """What the paired comparisons of starts and of positions say, in sentences."""
    sentences, compared = [], summary["compared"]
    for start in _starts(summary)[1:]:
        rows = [row for row in compared["starts"] if row["start"] == start]
        sentences.append(f"{start}, less {rows[0]['less']['start']} in front: {_verdicts(rows)}.")
    for position in summary["positions"][1:]:
        rows = [row for row in compared["positions"] if row["less"]["position"] == position]
        sentences.append(f"{POSITIONS[_at(summary)]}, less {POSITIONS[position]}: {_verdicts(rows, start=True)}.")
    return sentences


def _verdicts(rows: Sequence[Tree], *, start: bool = False) -> str:
    """Which comparisons went which way, each as its template (and start)."""
    names_of: dict[str, list[str]] = {}
    for row in rows:
        names_of.setdefault(row["verdict"], []).append(_name(row) if start else row["template"])
    return "; ".join(
        f"{verdict} in {len(names)} of {len(rows)}" + ("" if start else f" ({', '.join(names)})")
        for verdict, names in names_of.items()
    )


def lines(summary: Tree) -> list[str | Table]:
    """The results for the terminal."""
    k, at = summary["num_demonstrations"], _at(summary)
    parts: list[str | Table] = [
        f"first tokens right, mean over {len(summary['tasks'])} tasks [90% interval over tasks and questions];"
        f" {len(summary['seeds'])} seeds of {summary['num_prompts']} prompts of {k} demonstrations; the last columns"
        f" are paired, of the vector at {POSITIONS[at]}",
        *cautions(summary),
        *findings(summary),
        _cells(summary),
    ]
    return parts


def _paired(summary: Tree, cell: Tree) -> Tree | None:
    """The comparison of a cell with the first start in its template; None for the first start itself."""
    key = cell["template"], cell["start"]
    return next((row for row in summary["compared"]["starts"] if (row["template"], row["start"]) == key), None)


def contents(run: Run) -> Contents:
    """What is on the page of a run."""
    summary = run.summary
    model = summary["model"]
    parts = [
        f'<p class="quiet">{escape(model["path"])} ({escape(model["model_type"])}), {summary["num_layers"]} layers;'
        f" k = {summary['num_demonstrations']} demonstrations, vectors of {summary['num_prompts']} prompts,"
        f" {len(summary['seeds'])} seeds</p>",
        box([*cautions(summary), *findings(summary)]),
        "<h2>Results</h2>",
        _cells(summary).html(),
        _tasks_table(summary),
        _reading(summary),
        f"<h2>What is whose</h2><p>{escape(SOURCES)}</p>",
    ]
    exhibits = [_where(summary), _by_task(summary), _by_layer(summary), _cosines(summary), _scatter(summary)]
    return Contents("formats of prompts and state vectors", parts, exhibits)


def _cells(summary: Tree) -> Table:
    """A row a format."""
    k = summary["num_demonstrations"]
    heads: list[Head | str] = ["template", "start", "zero-shot", f"{k}-shot"]
    heads.append(Head(f"{k}-shot, labels shuffled", "shuffled"))
    heads += [Head(f"state vector at {POSITIONS[p]}", f"vector, {p}") for p in summary["positions"]]
    rows = []
    for cell in summary["cells"]:
        shots = [of(cell, f"{shot}_first") for shot in ("zero_shot", "few_shot", "shuffled_shot")]
        vectors = [
            dataclasses.replace(of(vector, "vector_first"), good=vector["works"])
            for vector in cell["positions"].values()
        ]
        row = _paired(summary, cell)
        compared = (of(row, "difference"), Cell(row["verdict"])) if row else ()
        start = Cell(cell["start"], "query first" if cell["query_first"] else "")
        rows.append(Row((Cell(cell["template"]), start, *shots, *vectors, *compared)))
    caption = (
        "First tokens right, a mean over tasks, with 90% bootstrap intervals over tasks and questions. Emphasized: the"
        " vector works, the interval of its gain over zero-shot is all above 0. Query first: the query is in the"
        " prompt's first token. The last columns compare the vector at the first position with that behind the first"
        " start in the same template, on the same questions."
    )
    return Table(caption, (*heads, Head("less the first start, paired", "less first start"), ""), tuple(rows))


def _tasks_table(summary: Tree) -> str:
    kinds = ("few_shot_first", "shuffled_shot_first", "loss")
    rows = [
        Row((name, *(of(e, kind) for kind in kinds), "yes" if e["destroyed"] else "no", str(e["questions"])))
        for name, e in summary["tasks"].items()
    ]
    caption = (
        "Which tasks shuffled labels destroy: first tokens right in prompts with the right and with shuffled labels, a"
        " mean over all formats, and the difference, with 90% bootstrap intervals over prompts. Destroyed: the interval"
        " of the difference is all above 0, and it is at least half of the accuracy with right labels."
    )
    shots = f"{summary['num_demonstrations']}-shot"
    heads = ("task", shots, "labels shuffled", "difference", "destroyed", "test questions")
    return "<h2>Tasks</h2>" + Table(caption, heads, tuple(rows)).html()


def _reading(summary: Tree) -> str:
    reading, layer = summary["reading"], summary["reading"]["layer"]
    if reading["rank_correlation"] is None:
        outcome = "is not defined, since one of the two does not vary"
    else:
        verdict = "it explains the formats" if reading["explains"] else "it does not explain the formats"
        outcome = f"is {reading['rank_correlation']:.2f}: by the rule that asks for -0.5 or less, {verdict}"
    return (
        f'<p class="quiet">Over the {len(summary["cells"])} formats, the rank correlation between the cosine of the'
        f" states of different queries at layer {layer}, at {POSITIONS[reading['position']]}, and the vector's accuracy"
        f" {outcome}.</p>"
    )


def _where(summary: Tree) -> Exhibit:
    shots = [c["few_shot_first"] for c in summary["cells"]]
    kinds = [(f"{summary['num_demonstrations']}-shot", shots, [False] * len(shots))]
    for position in summary["positions"]:
        vectors = [c["positions"][position] for c in summary["cells"]]
        name = f"state vector at\n{POSITIONS[position]}"
        kinds.append((name, [entry["vector_first"] for entry in vectors], [entry["works"] for entry in vectors]))

    def draw() -> Figure:
        """A panel a kind of prompt, a row a template, a column a start."""
        starts, templates = _starts(summary), _templates(summary)
        evidence = "first tokens right, test split, mean over tasks; bold: the vector works"
        shape = len(templates), len(starts)
        size = max(7.0, 1.6 + len(kinds) * (0.8 + 0.5 * len(starts))), 1.5 + 0.42 * len(templates)
        drawn = open_figure(*size, "Where a state vector works, by the format of the prompt", evidence)
        axes = drawn.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for ax, (name, values, works) in zip(axes, kinds, strict=True):
            grid, bold = np.reshape(values, shape), np.reshape(works, shape)
            shown = ax.imshow(grid, aspect="auto", cmap="Blues", vmin=0, vmax=1)
            for (row, column), value in np.ndenumerate(grid):
                look: dict[str, Any] = {"color": "white" if value > 0.55 else INK, "fontsize": 8.5}
                look["weight"] = "bold" if bold[row, column] else "normal"
                ax.text(column, row, f"{value:.2f}", ha="center", va="center", **look)
            quiet(ax, "", "")
            ax.grid(False)
            ax.set_title(name, fontsize=9, color=INK)
            ax.set_xticks(range(len(starts)), starts, rotation=40, ha="right")
        axes[0].set_yticks(range(len(templates)), templates)
        _bar(drawn, shown, axes)
        return drawn

    return Exhibit(
        "formats",
        "By template and start",
        "Heatmaps of accuracy, a row a template, a column a start: with demonstrations, and with the state vector at"
        " each position",
        "The first panel is what the vectors are read from. Where it is dark and the second is light, the"
        " demonstrations work and their vector does not.",
        draw,
    )


def _bar(drawn: Figure, shown: Any, axes: Sequence[Axes]) -> None:
    """The scale of a heatmap of accuracies."""
    bar = drawn.colorbar(shown, ax=list(axes))
    bar.set_label("accuracy", fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8, colors=QUIET)


def _by_task(summary: Tree) -> Exhibit:
    at = _at(summary)

    def draw() -> Figure:
        """A panel a template, a row a task, a column a start."""
        starts, templates, tasks = _starts(summary), _templates(summary), list(summary["tasks"])
        evidence = f"first tokens right with the state vector at {POSITIONS[at]}, test split, mean over seeds"
        size = max(7.0, 2 + len(templates) * (0.4 + 0.36 * len(starts))), 1.2 + 0.27 * len(tasks)
        drawn = open_figure(*size, "Which tasks the vector carries, by the format of the prompt", evidence)
        axes = drawn.subplots(1, len(templates), sharey=True, squeeze=False)[0]
        for ax, template in zip(axes, templates, strict=True):
            cells = [c["positions"][at]["tasks"] for c in summary["cells"] if c["template"] == template]
            grid = np.array([[cell[task]["vector_first"] for cell in cells] for task in tasks])
            shown = ax.imshow(grid, aspect="auto", cmap="Blues", vmin=0, vmax=1)
            quiet(ax, "", "", template)
            ax.grid(False)
            ax.set_xticks(range(len(starts)), starts, rotation=40, ha="right")
        axes[0].set_yticks(range(len(tasks)), tasks)
        _bar(drawn, shown, axes)
        return drawn

    return Exhibit(
        "tasks",
        "By task",
        "Heatmaps of the accuracy with the state vector, a panel a template, a row a task, a column a start",
        "A row that is dark in a column where others are light is a task whose queries can be answered all the same.",
        draw,
    )


def _lines(summary: Tree, title: str, evidence: str, unit: str, values: Callable[[Tree], Sequence[float]]) -> Figure:
    """A panel a template, a line a start (the first eight), against layers.

    values: from a cell to its values by layer, the last at layer L.
    """
    templates, starts = _templates(summary), _starts(summary)[: len(HUES)]
    columns = min(2, len(templates))
    rows = -(-len(templates) // columns)
    drawn = open_figure(max(7.0, 1 + 3 * columns), 0.5 + 2.1 * rows, title, evidence)
    axes = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax in axes[len(templates) :]:
        ax.set_visible(False)
    for ax, template in zip(axes, templates, strict=False):
        for index, start in enumerate(starts):
            (cell,) = (c for c in summary["cells"] if (c["template"], c["start"]) == (template, start))
            line = np.asarray(values(cell), float)
            layers = np.arange(summary["num_layers"] + 1)[-len(line) :]
            ax.plot(layers, line, color=HUES[index], marker=MARKERS[index], markersize=3, linewidth=1.3)
        quiet(ax, "layer", unit, template)
        ax.label_outer()
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylim(-0.03, 1.03)
    handles = [
        Line2D([], [], color=HUES[index], marker=MARKERS[index], markersize=4, label=start)
        for index, start in enumerate(starts)
    ]
    bottom_legend(drawn, handles, len(starts))
    return drawn


def _by_layer(summary: Tree) -> Exhibit:
    at = _at(summary)
    return Exhibit(
        "layers",
        "By layer",
        "Accuracy with the state vector at each layer, a panel a template, a line a start",
        "The vector replaces the state at that layer. Layers are chosen for each task by the dev split, which these"
        " lines are of.",
        lambda: _lines(
            summary,
            "State vectors by the layer at which they are written",
            f"first tokens right, dev split, mean over tasks, vectors of one seed; at {POSITIONS[at]}",
            "accuracy",
            lambda cell: cell["positions"][at]["vector_first_by_layer_dev"],
        ),
    )


def _cosines(summary: Tree) -> Exhibit:
    read = summary["reading"]["position"]
    return Exhibit(
        "cosine",
        "Whether the query can be read",
        "Mean cosine between the states of different queries at each layer, a panel a template, a line a start",
        "At 1 the states of all queries point the same way, and what is read off them cannot depend on the query.",
        lambda: _lines(
            summary,
            "How alike different queries are",
            f"mean cosine between the states of different zero-shot prompts of a task, at {POSITIONS[read]}",
            "cosine",
            lambda cell: cell["positions"][read]["cosine"],
        ),
    )


def _scatter(summary: Tree) -> Exhibit:
    at, read, layer = _at(summary), summary["reading"]["position"], summary["reading"]["layer"]

    def draw() -> Figure:
        """A mark a cell."""
        evidence = f"a mark a format; cosine at {POSITIONS[read]}, layer {layer}; lines: 90% interval"
        drawn = open_figure(6.6, 3.6, "Can the query be read, and does the vector work?", evidence)
        ax = drawn.add_subplot()
        starts, templates = _starts(summary)[: len(HUES)], _templates(summary)[: len(MARKERS)]
        for cell in summary["cells"]:
            if cell["start"] in starts and cell["template"] in templates:
                entry, color = cell["positions"][at], HUES[starts.index(cell["start"])]
                x, marker = cell["positions"][read]["cosine"][layer], MARKERS[templates.index(cell["template"])]
                ax.vlines(x, *entry["vector_first_ci"], color=color, linewidth=0.8, alpha=0.6)
                ax.plot(x, entry["vector_first"], color=color, marker=marker, markersize=6, linestyle="none")
        quiet(ax, "mean cosine between the states of different queries", "accuracy with the state vector")
        ax.set_ylim(-0.03, 1.03)
        handles = [Line2D([], [], color=HUES[i], linewidth=3, label=name) for i, name in enumerate(starts)]
        handles += [
            Line2D([], [], color=QUIET, marker=MARKERS[i], linestyle="none", label=name)
            for i, name in enumerate(templates)
        ]
        bottom_legend(drawn, handles, 5)
        return drawn

    return Exhibit(
        "reading",
        "Reading and writing",
        "Accuracy with the state vector against the cosine between the states of different queries, a mark a format",
        "To the right queries look alike: colours are starts, shapes templates.",
        draw,
    )


PAGE = Page(lines, contents)
