"""The report of a run that measures task vectors of text tasks."""

import dataclasses
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tvjax.experiments.task_vectors.methods_report import by_task_table, learned, methods_table, published_table
from tvjax.files import read_json
from tvjax.report.html import Exhibit, box
from tvjax.report.page import Contents, Page
from tvjax.report.reader import Run
from tvjax.report.style import GRID, HUES, INK, MARKERS, QUIET, bottom_legend, hues, open_figure, quiet
from tvjax.report.tables import Cell, Head, Row, Table, both, of
from tvjax.report.words import SINK

SHOTS = {"zero_shot": "zero-shot", "few_shot": "{k}-shot", "shuffled_shot": "{k}-shot, labels shuffled"}
CONTROL = {"shuffled_vector": "state vector of shuffled labels"}
OURS = (
    "The mean over several prompts, the splits by a hash of the input, layer and scale chosen on the dev split, and"
    " both controls with shuffled labels are how it is done here."
)


def lines(summary: Mapping[str, Any]) -> list[str | Table]:
    """The results for the terminal."""
    k = summary["num_demonstrations"]
    parts: list[str | Table] = [
        f"accuracy on the test split, of first tokens and of whole answers; vectors of {summary['num_prompts']} prompts"
        f" of {k} demonstrations, each at the layer (of {summary['num_layers']}; all: added at each) and of the scale"
        " that the dev split prefers; the layer is named where it beats zero-shot there",
        *cautions(summary),
        _tasks(summary, plain=True),
    ]
    if "cost" in summary:  # older runs have none
        parts.append(methods_table(summary, _names(summary)))
    return parts


def cautions(summary: Mapping[str, Any]) -> list[str]:
    """The sentences before any number: tasks in which demonstrations do not help, so no vector can carry them."""
    k = summary["num_demonstrations"]
    sentences = []
    if summary["query_first"]:
        sentences.append(SINK)
    failed = [name for name in summary["tasks"] if name not in learned(summary)]
    if not failed:
        return sentences
    which = "any task" if len(failed) == len(summary["tasks"]) else ", ".join(failed)
    return [
        *sentences,
        f"Not learned in context: on {which} {k}-shot accuracy is not clearly above zero-shot, so that there is nothing"
        " that a task vector could carry.",
    ]


def _at(entry: Mapping[str, Any], vector: str) -> str:
    """The layer of a vector if it has one and works there, and its scale unless that is 1."""
    if f"{vector}_layer" not in entry:
        return ""
    scale, layer = entry[f"{vector}_scale"], entry[f"{vector}_layer"]
    factor = f" x{scale:g}" if scale != 1 else ""
    if not entry[f"{vector}_works"]:
        return "none works" + (factor and f",{factor}")
    return f"at {'all' if layer is None else layer}{factor}"


def _otherwise(summary: Mapping[str, Any]) -> str:
    """The sentence on the vectors that are not written at one layer and the last token."""
    names, kinds = _names(summary), [m for m in summary["methods"] if m.get("everywhere")]
    where = {"last": "every layer", "all": "every layer and all tokens, the answer's too"}
    ways = [f"{names[m['name']]}, added at {where[m['positions']]}" for m in kinds]
    return f" Otherwise: {'; '.join(ways)}." if ways else ""


def contents(run: Run) -> Contents:
    """What is on the page of a run."""
    summary = run.summary
    exhibits = [_methods(summary), _layers(summary)]
    if "indirect_effect" in summary:
        exhibits.append(_heads(summary))
    timing = run.path / "eval" / "timing.json"
    times = read_json(timing, "run --mode=eval again") if timing.is_file() else {}
    return Contents("task vectors on text", _tables(summary, times), exhibits)


def _names(summary: Mapping[str, Any]) -> dict[str, str]:
    """The methods as readers know them: prompts, vectors, and the control."""
    labels = SHOTS | {m["name"]: m["label"] for m in summary["methods"]} | CONTROL
    return {method: label.format(k=summary["num_demonstrations"]) for method, label in labels.items()}


def _methods(summary: dict[str, Any]) -> Exhibit:
    tasks, names = summary["tasks"], _names(summary)

    def draw() -> Figure:
        """A row a task, a mark a method; a panel of first tokens and one of whole answers."""
        shown = ("zero_shot", *(m["name"] for m in summary["methods"]), "few_shot")
        evidence = "test split; lines: 90% bootstrap interval over questions"
        drawn = open_figure(10, 1.2 + 0.42 * len(tasks), "A vector in place of demonstrations", evidence)
        axes = drawn.subplots(1, 2, sharey=True)
        rows = np.arange(len(tasks))[::-1]
        for ax, suffix, unit in zip(axes, ("_first", ""), ("first tokens", "whole answers"), strict=True):
            for index, method in enumerate(shown):
                look = _look(index, len(shown))
                low, high = np.array([e[f"{method}{suffix}_ci"] for e in tasks.values()]).T
                height = rows + 0.64 * (0.5 - index / (len(shown) - 1))
                ax.hlines(height, low, high, color=look["color"], linewidth=1.1)
                ax.plot([e[f"{method}{suffix}"] for e in tasks.values()], height, markersize=4, **look)
            for row in rows[:-1]:
                ax.axhline(row - 0.5, color=GRID, linewidth=0.7)
            ax.set_xlim(-0.02, 1.02)
            quiet(ax, f"accuracy of {unit}", "")
            ax.grid(False, axis="y")
        axes[0].set_yticks(rows, list(tasks))
        handles = [
            Line2D([], [], label=names[method], **_look(index, len(shown))) for index, method in enumerate(shown)
        ]
        bottom_legend(drawn, handles, len(shown))
        return drawn

    return Exhibit(
        "methods",
        "By task",
        "Accuracy of each task zero-shot, zero-shot with each kind of task vector, and with demonstrations, of first"
        " tokens and of whole answers",
        "Where the mark of a vector stands near that of the demonstrations, one vector does their work. It is written"
        " at the last token of the query, from which the first token of the answer is read; the others follow on it."
        + _otherwise(summary),
        draw,
    )


def _look(index: int, count: int) -> dict[str, Any]:
    """The mark of one of `count` methods, by its number in the legend."""
    return {"color": hues(count)[index], "marker": MARKERS[index % len(MARKERS)], "linestyle": "none"}


ADDED = " The function vector is added, times the scale that the dev split prefers."


def _swept(summary: dict[str, Any]) -> list[str]:
    """The vectors that are written at every layer in turn."""
    kinds = [m["name"] for m in summary["methods"]]
    return [kind for kind in kinds if all(None not in _by_layer(e, kind) for e in summary["tasks"].values())]


def _by_layer(entry: dict[str, Any], kind: str) -> list[float | None]:
    accuracies: list[float | None] = entry[f"{kind}_first_by_layer_test"][1:]
    return accuracies


def _layers(summary: dict[str, Any]) -> Exhibit:
    tasks, names, swept = summary["tasks"], _names(summary), _swept(summary)

    def draw() -> Figure:
        """A panel a kind of vector, a row a task, a column a layer."""
        evidence = (
            "accuracy of first tokens, test split; rings: the layer chosen on the dev split, where the vector works"
        )
        drawn = open_figure(10, 1.3 + 0.3 * len(tasks), "Vectors by the layer at which they are written", evidence)
        axes = drawn.subplots(1, len(swept), sharey=True, squeeze=False)[0]
        for ax, kind in zip(axes, swept, strict=True):
            grid = np.array([_by_layer(e, kind) for e in tasks.values()], float)
            edges = 0.5, grid.shape[1] + 0.5, len(tasks) - 0.5, -0.5
            shown = ax.imshow(grid, aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=edges)
            works = [(e[f"{kind}_layer"], row) for row, e in enumerate(tasks.values()) if e[f"{kind}_works"]]
            ax.plot(*np.array(works).reshape(-1, 2).T, linestyle="none", marker="o", color=HUES[1], fillstyle="none")
            quiet(ax, "layer", "")
            ax.grid(False)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_title(names[kind], fontsize=9)
        axes[0].set_yticks(range(len(tasks)), list(tasks))
        bar = drawn.colorbar(shown, ax=list(axes))
        bar.set_label("accuracy", fontsize=8.5, color=INK)
        bar.ax.tick_params(labelsize=8, colors=QUIET)
        return drawn

    return Exhibit(
        "layers",
        "By layer",
        f"Accuracy of first tokens for each task, at each layer, with {' and '.join(names[kind] for kind in swept)}",
        "The state vector replaces the state, so at the last layer it is the answer itself and the query is not read"
        " any more." + (ADDED if "function_vector" in swept else ""),
        draw,
    )


def _heads(summary: dict[str, Any]) -> Exhibit:
    effect_LH = np.array(summary["indirect_effect"])

    def draw() -> Figure:
        """A cell a head."""
        layers, heads = effect_LH.shape
        evidence = "mean over tasks and prompts with shuffled labels; dots: the heads that function vectors sum"
        size = max(6.5, min(9.0, 1.6 + 0.3 * heads)), max(2.2, min(9.0, 0.8 + 0.18 * layers))
        drawn = open_figure(*size, "Heads that carry tasks", evidence)
        ax = drawn.add_subplot()
        most = max(float(np.abs(effect_LH).max()), 1e-9)
        edges = -0.5, heads - 0.5, 0.5, layers + 0.5
        colours: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
        shown = ax.imshow(effect_LH, aspect="auto", origin="lower", extent=edges, **colours)
        summed = [[head[name] for head in summary["heads"]] for name in ("head", "layer")]
        ax.plot(*summed, linestyle="none", marker="o", markersize=5, color=INK)
        quiet(ax, "head", "layer")
        ax.grid(False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        bar = drawn.colorbar(shown, ax=ax)
        bar.set_label("indirect effect\n(probability of the answer)", fontsize=8.5, color=INK)
        bar.ax.tick_params(labelsize=8, colors=QUIET)
        return drawn

    return Exhibit(
        "heads",
        "By head",
        "The average indirect effect of each head, with those that function vectors sum",
        "By how much the probability of the right answer rises when a head's mean output over prompts with right"
        " demonstrations is put into prompts whose demonstrations have their outputs shuffled.",
        draw,
    )


def _tasks(summary: Mapping[str, Any], *, plain: bool = False) -> Table:
    """A row a task, a column a way to ask.

    plain: whether it is for the terminal, without intervals and the details of the page.
    """
    names = _names(summary)
    short = {"few_shot": f"{summary['num_demonstrations']}-shot", "shuffled_shot": "shuffled"}
    short["shuffled_vector"] = "state, shuffled"
    heads: list[Head | str] = ["", *(Head(label, short.get(name, label)) for name, label in names.items())]
    heads += [] if plain else ["questions", "the state vector in words"]
    rows = []
    for name, e in [*summary["tasks"].items(), ("mean", summary["mean"])]:
        cells = []
        for kind in names:
            if plain or name == "mean":
                first, whole = (Cell(f"{e[f'{kind}{suffix}']:.2f}") for suffix in ("_first", ""))
                cell = dataclasses.replace(first, more=(whole,))
            else:
                cell = both(e, kind)
            where = (Cell(_at(e, kind)),) if _at(e, kind) else ()
            cells.append(dataclasses.replace(cell, more=(*cell.more, *where)))
        more: list[Cell | str] = (
            [] if plain or name == "mean" else [str(e["pairs"]["test"]), Cell(_words(e), wrap=True)]
        )
        mean = name == "mean"
        rows.append(Row(("mean over tasks" if mean and not plain else name, *cells, *more), reference=mean))
    caption = (
        "Accuracy on the test split, with 90% bootstrap intervals over questions: above of the first tokens of answers,"
        " below of whole answers. With each vector the layer at which it is written (all: added at each), and the"
        " factor that it is multiplied with, unless that is 1, chosen on the dev split by first tokens; none works"
        " where the interval of its gain over zero-shot there is not all above 0. In words: the tokens that the state"
        " vector favours, read as if it were the last state."
    )
    return Table(caption, tuple(heads), tuple(rows))


def _words(entry: Mapping[str, Any]) -> str:
    return " | ".join(word.strip() or repr(word) for word in entry["words"])


def _tables(summary: dict[str, Any], times: Mapping[str, Any] | None = None) -> list[str]:
    model, names = summary["model"], _names(summary)
    compared = [methods_table(summary, names, times), by_task_table(summary, names)] if "cost" in summary else []
    return [
        f'<p class="quiet">{escape(model["path"])} ({escape(model["model_type"])}), {summary["num_layers"]} layers;'
        f" k = {summary['num_demonstrations']} demonstrations, vectors of {summary['num_prompts']} prompts</p>",
        box(cautions(summary)),
        "<h2>Results</h2>",
        _tasks(summary).html(),
        *(table.html() for table in compared),
        _conflicts(summary["conflicts"]),
        "<h2>Published elsewhere</h2>",
        published_table().html(),
        f"<h2>What is whose</h2><p>{escape(_sources(summary))}</p>",
    ]


def _sources(summary: dict[str, Any]) -> str:
    """Whose each method is."""
    return " ".join([*(m["source"] for m in summary["methods"] if m["source"]), OURS])


def _conflicts(conflicts: list[dict[str, Any]]) -> str:
    if not conflicts:
        return ""
    heads = (
        "demonstrations",
        "vector",
        "answers as demonstrated",
        "without the vector",
        "answers as the vector",
        "without the vector",
        "questions",
    )
    names = ("says_shown", "says_shown_without", "says_moved", "says_moved_without")
    rows = [
        Row((e["shown"], e["moved"], *(of(e, name) for name in names), str(e["pairs"])), names=0) for e in conflicts
    ]
    caption = (
        "Demonstrations of one task, the vector of another written in at that task's layer, on inputs that both tasks"
        " have and whose answers begin with other tokens: with whose first token does the model's answer begin?"
    )
    return "<h2>Conflicting tasks</h2>" + Table(caption, heads, tuple(rows)).html()


PAGE = Page(lines, contents)
