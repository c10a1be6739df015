"""The report of an ATV run: every method in one table, and figures of the vectors and of what they depend on."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tvjax.errors import UserError
from tvjax.evals.learned import above
from tvjax.files import read_json
from tvjax.report.html import Exhibit, box
from tvjax.report.page import Contents, Page
from tvjax.report.pca import principal
from tvjax.report.reader import Run
from tvjax.report.style import GRID, HUES, INK, MARKERS, PRIOR, QUIET, bottom_legend, hues, open_figure, quiet
from tvjax.report.tables import Cell, Head, Row, Table, both, of
from tvjax.report.words import number

KINDS = {"prompts": "prompts", "vectors": "vectors, not trained", "trained": "trained baselines", "atv": "ATV"}
"""The kinds of methods, as readers know them."""
ACCURACIES = ("accuracy", "accuracy_first")
GIGA = 1e9
GROUPS = {
    "seen": "seen tasks: the query tells which",
    "ambiguous": "seen tasks that share their inputs",
    "unseen": "unseen tasks",
}
OURS = "The tasks, the splits and the choice of each layer on the dev split are how it is done here."


def names_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """The methods of a run as readers know them, in the run's order."""
    k = summary["num_demonstrations"]
    return {m["name"]: m["label"].format(k=k) for m in summary["methods"]}


def kind_of(summary: Mapping[str, Any], kind: str) -> list[str]:
    """The names of the methods of a kind, in the run's order."""
    return [m["name"] for m in summary["methods"] if m["kind"] == kind]


def _sources(summary: Mapping[str, Any]) -> str:
    """Whose each method is."""
    return " ".join([*dict.fromkeys(m["source"] for m in summary["methods"] if m["source"]), OURS])


def groups_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """The groups of tasks that a run has, as readers know them."""
    return {group: label for group, label in GROUPS.items() if summary["tasks"][group]}


def reference(summary: Mapping[str, Any], group: str) -> float:
    """The accuracy that a method must beat: that of zero-shot, or on ambiguous tasks that of guessing.

    It is 0 if neither is known.
    """
    bare = [m[f"{group}_mean"] for m in summary["methods"] if m["name"] == "zero_shot"]
    guessed = [float(np.mean(list(summary["chance"].values())))] if group == "ambiguous" and summary["chance"] else []
    return max([0.0, *bare, *guessed])


def works(summary: Mapping[str, Any], name: str, group: str) -> bool:
    """Whether a method is clearly above `reference` on a group of tasks."""
    method = next(m for m in summary["methods"] if m["name"] == name)
    return above(method[f"{group}_mean_ci"], reference(summary, group))


def cautions(summary: Mapping[str, Any]) -> list[str]:
    """The sentences before any number: tasks on which no method works, and tasks on which ATV does not. [ours]"""
    sentences, names = [], names_of(summary)
    if summary["query_first"]:
        sentences.append(
            f"Queries that the {' and the '.join(summary['query_first'])} read are in their prompts' first tokens,"
            " which pretrained models use as attention sinks: little can be read of them there. The fourth text of a"
            " template in config.templates puts a token before them."
        )
    for m in summary["methods"]:
        if m.get("unreached"):
            paths = ", ".join(path or "its parameters" for path in m["unreached"])
            sentences.append(f"{names[m['name']]}: no gradient has reached {paths} in training.")
    for group, label in groups_of(summary).items():
        least = f"clearly above {reference(summary, group):.2f}, what asking or guessing without help gives"
        tried = [name for name in names if name != "zero_shot"]
        ours = [name for name in tried if name in kind_of(summary, "atv")]
        failed = [names[name] for name in ours if not works(summary, name, group)]
        if tried and not any(works(summary, name, group) for name in tried):
            sentences.append(f"On {label} no method is {least}: they are not compared there.")
        elif failed:
            sentences.append(f"On {label} {', '.join(failed)} {'is' if len(failed) == 1 else 'are'} not {least}.")
    return sentences


def _seeds(summary: Mapping[str, Any]) -> str:
    return "1 seed" if summary["num_seeds"] == 1 else f"{summary['num_seeds']} seeds"


def lines(summary: Mapping[str, Any]) -> list[str | Table]:
    """The results for the terminal."""
    parts: list[str | Table] = [
        "accuracy on the test split, of first tokens and of whole answers [90% bootstrap interval over questions],"
        f" macro average over tasks, {_seeds(summary)}",
        *cautions(summary),
        _methods_table(summary),
    ]
    if summary["chance"]:
        chance = np.mean(list(summary["chance"].values()))
        parts.append(f"ambiguous tasks: {chance:.2f} is what guessing among the tasks of the same inputs would give")
    return parts


def contents(run: Run) -> Contents:
    """What is on the page of a run."""
    summary, path = run.summary, run.path
    timing = path / "eval" / "timing.json"
    times = read_json(timing, "run --mode=eval first") if timing.is_file() else {}
    exhibits = [_methods(summary), _tasks(summary)]
    if summary["sensitivity"]:
        exhibits.append(_sensitivity(summary))
    vectors = _vectors(summary, path)
    if vectors:
        exhibits += [_pca(summary, vectors), _cosines(summary, vectors)]
    target = summary["target"]
    about = (
        f"target: {target['path']} ({target['model_type']}), {target['num_layers']} layers, width {target['width']},"
        f" {target['parameters']:,} parameters, frozen; k = {summary['num_demonstrations']} demonstrations;"
        f" {_seeds(summary)}"
    )
    parts = [
        f'<p class="quiet">{escape(about)}</p>',
        box(cautions(summary)),
        "<h2>Results</h2>",
        _methods_table(summary, _caption(summary), times).html(),
        _less_few_shot(summary),
        _differences(summary),
        f"<h2>What is whose</h2><p>{escape(_sources(summary))}</p>",
    ]
    return Contents("adaptive task vectors", parts, exhibits)


def _methods_table(summary: Mapping[str, Any], caption: str = "", times: Mapping[str, Any] | None = None) -> Table:
    """A row a method.

    times: by method, the milliseconds of a question and of a trained example, and seconds to make it, as further
        columns.
    """
    names, groups, rows = names_of(summary), groups_of(summary), []
    near = all("d_ntp_mean" in m for m in summary["methods"])  # older runs have none
    for m in summary["methods"]:
        trained, read = m["trainable_parameters"], m["generator_tokens_per_query"]
        cells = [both(m, f"{group}_mean") for group in groups]
        if near:
            cells += [of(m, "d_ntp_mean"), of(m, "margin_mean", "+.2f") if m["margin_mean"] is not None else Cell("-")]
        about = [m["knows"], f"{trained:,}" if trained else "none", f"{m['tokens_per_query']:.1f}"]
        about.append(f"{read:.1f}" if read else "")
        if near:
            about += [_known(m[field], GIGA) for field in ("query_flops", "make_flops")]
        if times is not None:
            took = times.get(m["name"], {})
            about += [f"{took[kind]:.2f}" if took.get(kind) else "" for kind in ("query_ms", "train_example_ms")]
            about += [_known(took.get("make_seconds"))] if near else []
        rows.append(Row((names[m["name"]], *cells, *about)))
    heads: list[Head | str] = ["", *(Head(label, group) for group, label in groups.items())]
    heads += [Head("d_NTP, nats", "d_NTP"), Head("identity margin", "margin")] if near else []
    heads += ["knows", "trained numbers", "tokens a query", Head("and of the generator", "generator's")]
    heads += ["GFLOPs a query", "GFLOPs to make"] if near else []
    heads += ["ms a query", "ms a trained example"] if times is not None else []
    heads += ["seconds to make"] if times is not None and near else []
    return Table(caption, tuple(heads), tuple(rows))


def _known(value: float | None, unit: float = 1.0) -> str:
    """A number in a unit, or a dash for one that is not known."""
    return "-" if value is None else number(value / unit)


def _caption(summary: Mapping[str, Any]) -> str:
    """What the columns of `_methods_table` are."""
    counts = sum(summary["num_questions"].values())
    chance = "".join(f" {name} {value:.2f}," for name, value in summary["chance"].items()).rstrip(",")
    return (
        "Accuracy on the test split, above of the first tokens of answers, below of whole answers: the macro average"
        f" over tasks, with 90% bootstrap intervals over questions ({counts} in all; a question counts by the mean over"
        " seeds and templates). Milliseconds: of a question in a"
        " batch, with the generator; and of a trained example, with evaluation and checkpoints, without compilation."
        " Knows: the query alone, demonstrations beside it, or which task is meant; vectors that are read, and I2CL,"
        " have also seen demonstrations of unseen tasks. Tokens a query: with those of a prefix. d_NTP: the"
        " Kullback-Leibler divergence from the distribution of k-shot prompts of the same seed and template at the"
        " answer's first token to that of the method (after Kwon, Choi and Sohn 2026). Identity margin: the chance of"
        " the task's answer at that token, less the greatest chance of an answer that another task of the run has to"
        " the same input and that begins with another token; questions without such a rival are left out. Both are"
        " means over all tasks. FLOPs: those of matrix products; of a query, one pass up to the answer's first token,"
        " with the generator's; to make, for all tasks, once: of vectors without the choice of layer and scale, of what"
        " is trained one seed's steps."
    ) + (f" Guessing among the tasks of the same inputs would give:{chance}." if chance else "")


def _less_few_shot(summary: dict[str, Any]) -> str:
    """Each method less k-shot, if the run has that."""
    names, groups, rows = names_of(summary), groups_of(summary), []
    for name, entry in summary.get("less_few_shot", {}).items():  # older runs have none
        known = {g: any(works(summary, one, g) for one in (name, "few_shot")) for g in groups}
        rows.append(
            Row((names[name], *(both(entry, g, "+.2f") if known[g] else Cell("neither works") for g in groups)))
        )
    shots = f"{summary['num_demonstrations']}-shot"
    caption = (
        f"Each method minus {shots}, on the same questions, above of first tokens, below of whole answers: paired 90%"
        " bootstrap intervals."
    )
    table = Table(caption, (f"minus {shots}", *groups.values()), tuple(rows))
    return f"<h2>Beside {shots}</h2>{table.html()}" if rows else ""


def _differences(summary: dict[str, Any]) -> str:
    names, groups, parts = names_of(summary), groups_of(summary), []
    for ours, others in summary["differences"].items():
        rows = []
        for other, entry in others.items():
            known = {g: other == "zero_shot" or any(works(summary, name, g) for name in (ours, other)) for g in groups}
            cells = (both(entry, g, "+.2f") if known[g] else Cell("neither works") for g in groups)
            rows.append(Row((names[other], *cells)))
        caption = (
            f"{names[ours]} minus each other method, on the same questions, above of first tokens, below of"
            " whole answers: paired 90% bootstrap intervals. One that holds 0 shows no difference on these questions,"
            " for these seeds. Neither works: both are not clearly"
            " above zero-shot, or above guessing where tasks share their inputs."
        )
        parts.append(Table(caption, ("minus", *groups.values()), tuple(rows)).html())
    return "<h2>Differences</h2>" + "".join(parts) if parts else ""


def _hue(method: Mapping[str, Any]) -> int:
    return list(KINDS).index(method["kind"])


def _methods(summary: dict[str, Any]) -> Exhibit:
    names, groups, methods = names_of(summary), groups_of(summary), summary["methods"]

    def draw() -> Figure:
        """Dots with intervals, a row a method, a panel a group of tasks."""
        evidence = (
            f"macro average of accuracy over tasks, {_seeds(summary)}; filled: whole answers, with a 90%"
            " bootstrap interval over questions; hollow: their first tokens"
        )
        drawn = open_figure(9.6, 0.7 + 0.27 * len(methods), "Every method, in one place", evidence)
        axes = drawn.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        height = np.arange(len(methods))[::-1]
        for ax, (group, label) in zip(axes, groups.items(), strict=True):
            for y, m in zip(height, methods, strict=True):
                hue = HUES[_hue(m)]
                ax.hlines(y, *m[f"{group}_mean_ci"], color=hue, linewidth=1.4)
                look: dict[str, Any] = {"color": hue, "marker": MARKERS[_hue(m)], "markersize": 5}
                ax.plot(m[f"{group}_mean_first"], y, markerfacecolor="white", **look)
                ax.plot(m[f"{group}_mean"], y, **look)
            if group == "ambiguous":
                ax.axvline(np.mean(list(summary["chance"].values())), **PRIOR)
            ax.set_xlim(-0.03, 1.03)
            ax.set_yticks(height, [names[m["name"]] for m in methods])
            quiet(ax, "accuracy", "", f"{label} ({len(summary['tasks'][group])})")
            ax.title.set_fontsize(8.5)
        used = {_hue(m) for m in methods}
        handles = [
            Line2D([], [], color=HUES[i], marker=MARKERS[i], linestyle="none", label=kind)
            for i, kind in enumerate(KINDS.values())
            if i in used
        ]
        if "ambiguous" in groups:
            handles.append(Line2D([], [], label="guessing among the tasks of the same inputs", **PRIOR))
        bottom_legend(drawn, handles, 5)
        return drawn

    return Exhibit(
        "methods",
        "By method",
        "Mean accuracy of each method on seen, ambiguous and unseen tasks",
        "On ambiguous tasks the query does not say what is asked for: what reads the query alone can only guess.",
        draw,
    )


def _tasks(summary: dict[str, Any]) -> Exhibit:
    names, groups, methods = names_of(summary), groups_of(summary), summary["methods"]
    tasks = [task for group in groups for task in summary["tasks"][group]]

    def draw() -> Figure:
        """A cell a task and method, shaded by accuracy and with its number."""
        evidence = (
            "accuracy of whole answers on the test split, and behind a stroke that of their first tokens where it is"
            " another; the number behind a task: its questions"
        )
        drawn = open_figure(10, 0.8 + 0.27 * len(tasks) + 0.5, "Task by task", evidence)
        ax = drawn.add_subplot()
        values, first = (np.array([[m[kind][task] for m in methods] for task in tasks]) for kind in ACCURACIES)
        ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            ink, more = "white" if value > 0.6 else INK, f" / {first[row, column]:.2f}"
            text = f"{value:.2f}" + ("" if more.endswith(f" {value:.2f}") else more)
            ax.text(column, row, text, ha="center", va="center", fontsize=7.5, color=ink)
        edge = 0
        for group in list(groups)[:-1]:
            edge += len(summary["tasks"][group])
            ax.axhline(edge - 0.5, color="white", linewidth=4)
        questions = summary["num_questions"]
        ax.set_yticks(range(len(tasks)), [f"{task} ({questions[task]})" for task in tasks])
        ax.set_xticks(range(len(methods)), [names[m["name"]] for m in methods], rotation=30, ha="right")
        quiet(ax, "", "")
        ax.grid(False)
        return drawn

    return Exhibit(
        "tasks",
        "By task",
        "Accuracy of each method on each task",
        "From above: " + "; ".join(f"{label}" for label in groups.values()) + ".",
        draw,
    )


def _sensitivity(summary: dict[str, Any]) -> Exhibit:
    groups, changed = groups_of(summary), summary["sensitivity"]
    titles = {"scale": "factor lambda", "layers": "the layers written to", "examples": "examples of a task, at most"}
    shown = {kind: [e for e in changed if e["kind"] == kind] for kind in titles}
    shown = {kind: entries for kind, entries in shown.items() if entries}
    own = next(m for m in summary["methods"] if m["kind"] == "atv")

    def draw() -> Figure:
        """A panel a kind of change, a line a group of tasks; the run's own setting stands apart, at the right."""
        evidence = (
            f"one seed of each setting; run: as in the run, {_seeds(summary)};"
            " lines: 90% bootstrap interval over questions"
        )
        drawn = open_figure(9.6, 2.6, "What ATV depends on", evidence)
        axes = drawn.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for ax, (kind, entries) in zip(axes, shown.items(), strict=True):
            ticks = [_tick(e, kind) for e in entries]
            for index, group in enumerate(groups):
                x = np.arange(len(entries)) + 0.1 * (index - 1)
                x_own = [len(entries) + 0.1 * (index - 1)]
                low, high = np.array([e[f"{group}_mean_ci"] for e in [*entries, own]]).T
                ax.vlines([*x, *x_own], low, high, color=HUES[index], linewidth=1.1)
                look = {"color": HUES[index], "marker": MARKERS[index], "markersize": 4}
                ax.plot(x, [e[f"{group}_mean"] for e in entries], **look)
                ax.plot(x_own, [own[f"{group}_mean"]], markerfacecolor="white", **look)
            ax.set_xticks(range(len(entries) + 1), [*ticks, "run"])
            ax.set_ylim(-0.03, 1.03)
            quiet(ax, titles[kind], "accuracy" if ax is axes[0] else "")
        handles = [
            Line2D([], [], color=HUES[i], marker=MARKERS[i], label=label) for i, label in enumerate(groups.values())
        ]
        bottom_legend(drawn, handles, 3)
        return drawn

    return Exhibit(
        "sensitivity",
        "What it depends on",
        "Accuracy of ATV with other factors, subsets of layers and numbers of examples",
        "Each point is ATV trained anew.",
        draw,
    )


def _tick(entry: Mapping[str, Any], kind: str) -> str:
    return ",".join(map(str, entry["layers"])) if kind == "layers" else f"{entry[kind]:g}"


def _vectors(summary: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    """The vectors of the run's first ATV, if it has one, by task: ``[n, N * D]``, all layers in one row."""
    ours = next(iter(kind_of(summary, "atv")), None)
    if ours is None:
        return {}
    vectors = {}
    for task in (task for group in groups_of(summary) for task in summary["tasks"][group]):
        file = path / "vectors" / f"{ours}.{task}.safetensors"
        try:
            arrays = load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: {error}; run --mode=eval again") from None
        if "vectors" not in arrays or not np.isfinite(arrays["vectors"]).all():
            raise UserError(f"{file}: no finite array 'vectors' in it; run --mode=eval again")
        vectors[task] = arrays["vectors"].reshape(len(arrays["vectors"]), -1)
    return vectors


def _pca(summary: dict[str, Any], vectors: dict[str, np.ndarray]) -> Exhibit:
    def draw() -> Figure:
        """One point a query, one large mark a task."""
        points, share = principal(np.concatenate(list(vectors.values())))
        evidence = f"n = {len(points)} queries of the test split, first seed; large marks: the mean of a task"
        drawn = open_figure(9, 4.2, "The vectors of queries, by task", evidence)
        ax, start, handles = drawn.add_subplot(), 0, []
        for index, (task, values) in enumerate(vectors.items()):
            own = points[start : start + len(values)]
            start += len(values)
            look: dict[str, Any] = {
                "color": hues(len(vectors))[index],
                "marker": MARKERS[index % len(MARKERS)],
            }
            ax.plot(*own.T, linestyle="none", markersize=3, alpha=0.6, markeredgewidth=0, **look)
            ax.plot(*own.mean(0), markersize=10, markeredgecolor=INK, **look)
            handles.append(Line2D([], [], linestyle="none", label=task, **look))
        quiet(ax, f"first component ({share[0]:.0%} of the variance)", f"second ({share[1]:.0%})")
        bottom_legend(drawn, handles, 6)
        return drawn

    within = np.mean([((v - v.mean(0)) ** 2).sum(1).mean() for v in vectors.values()])
    every = np.concatenate(list(vectors.values()))
    share = within / max(float(((every - every.mean(0)) ** 2).sum(1).mean()), 1e-30)
    return Exhibit(
        "pca",
        "The vectors",
        "The first two principal components of the vectors of all queries, coloured by task",
        f"Of the variance of the vectors {share:.0%} is within tasks: what adapts to the query beyond its task.",
        draw,
    )


def _cosines(summary: dict[str, Any], vectors: dict[str, np.ndarray]) -> Exhibit:
    def draw() -> Figure:
        """A cell a pair of tasks."""
        means = np.stack([v.mean(0) for v in vectors.values()])
        means = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        evidence = "cosine of the mean vectors over the queries of each task, all layers together; first seed"
        drawn = open_figure(7.6, 0.6 + 0.3 * len(vectors), "Which tasks get like vectors", evidence)
        ax = drawn.add_subplot()
        shown = ax.imshow(means @ means.T, cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set_yticks(range(len(vectors)), list(vectors))
        ax.set_xticks(range(len(vectors)), list(vectors), rotation=40, ha="right")
        quiet(ax, "", "")
        ax.grid(False)
        bar = drawn.colorbar(shown, ax=ax)
        bar.set_label("cosine", fontsize=8.5, color=INK)
        bar.ax.tick_params(labelsize=8, colors=QUIET)
        bar.outline.set_edgecolor(GRID)
        return drawn

    return Exhibit(
        "cosines",
        "Between tasks",
        "Cosine similarities between the mean vectors of tasks",
        "Where the generator reads the query alone, tasks that share their inputs get like vectors.",
        draw,
    )


PAGE = Page(lines, contents)
