"""Reports of the runs on text: a small model's curves by demonstrations, and the task vectors of a model."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tvjax.errors import UserError
from tvjax.files import write_whole
from tvjax.report.gallery import Exhibit
from tvjax.report.html import details, document, figure, table, write_figure
from tvjax.report.reader import read_plain
from tvjax.report.style import HUES, ORACLE, PRIOR, bottom_legend, open_figure, quiet

METHODS = {
    "zero_shot": "zero-shot",
    "few_shot": "k-shot",
    "shuffled_shot": "k-shot, labels shuffled",
    "vector": "zero-shot with the vector",
    "shuffled_vector": "with the vector of shuffled labels",
}
SOURCES = (
    "Reading the state at the last token of a prompt with demonstrations and putting it in the place of the one of a"
    " zero-shot prompt is the method of Hendel, Geva and Globerson, In-Context Learning Creates Task Vectors (2023)."
    " The mean over several prompts, the splits by a hash of the input, the layer chosen on the dev split, and both"
    " controls with shuffled labels are how it is done here."
)


def write_report(run_dir: str | Path) -> Path:
    """Write the figures and the page of a run on text; return the page's path."""
    path, config, environment, summary = read_plain(run_dir)
    try:
        exhibits, heading, parts = _contents(summary)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}/eval/summary.json: {error}: missing or broken; run --mode=eval again") from None
    folder = path / "report"
    figures = [figure(exhibit, write_figure(exhibit, folder)) for exhibit in exhibits]
    name = path.resolve().name
    body = [
        f"<h1>{escape(f'{heading} in {name}')}</h1>",
        *parts,
        "<h2>Figures</h2>",
        *figures,
        "<h2>How it was made</h2>",
        details("Configuration", config),
        details("Environment", environment),
    ]
    page = folder / "index.html"
    write_whole(page, document(f"{name}: {heading}", body))
    return page


def summary_table(summary: Mapping[str, Any]) -> str:
    """The results as plain text for the terminal."""
    if summary["experiment"] == "text_model":
        counts = range(summary["num_demonstrations"] + 1)
        lines = [
            f"small language model: {summary['num_layers']} layers, {len(summary['tasks'])} tasks, n ="
            f" {summary['num_prompts']} prompts [90% bootstrap interval]",
            "demonstrations  accuracy           risk (nats a token)",
        ]
        lines += [f"{n:<15} {_cell(summary, 'accuracy', n):<18} {_cell(summary, 'risk', n)}" for n in counts]
        return "\n".join(lines) + "\n"
    tasks = summary["tasks"]
    width = max(map(len, [*tasks, "mean"])) + 1
    lines = [
        f"accuracy on the test split, k = {summary['num_demonstrations']}, vectors of {summary['num_prompts']} prompts;"
        f" {summary['num_layers']} layers",
        f"{'':<{width}} zero-shot  k-shot  shuffled  vector  at layer  vector of shuffled",
    ]
    for name, e in [*tasks.items(), ("mean", {**summary["mean"], "layer": ""})]:
        lines.append(
            f"{name:<{width}} {e['zero_shot']:<10.2f} {e['few_shot']:<7.2f} {e['shuffled_shot']:<9.2f} "
            f"{e['vector']:<7.2f} {e['layer']!s:<9} {e['shuffled_vector']:.2f}"
        )
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _cell(entry: Mapping[str, Any], name: str, index: int | None = None) -> str:
    value, interval = entry[name], entry[f"{name}_ci"]
    value, interval = (value, interval) if index is None else (value[index], interval[index])
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _contents(summary: dict[str, Any]) -> tuple[list[Exhibit], str, list[str]]:
    if summary["experiment"] == "text_model":
        return [_curve(summary)], "a small language model", [f"<pre>{escape(summary_table(summary))}</pre>"]
    return [_methods(summary), _layers(summary)], "task vectors on text", _tables(summary)


def _curve(summary: dict[str, Any]) -> Exhibit:
    def draw() -> Figure:
        counts = np.arange(summary["num_demonstrations"] + 1)
        evidence = f"n = {summary['num_prompts']} prompts; bands: 90% bootstrap interval"
        drawn = open_figure(8, 3, "In-context learning of the small model", evidence)
        for place, (name, unit) in enumerate((("accuracy", "fraction of answers right"), ("risk", "nats a token"))):
            ax = drawn.add_subplot(1, 2, place + 1)
            band = np.array(summary[f"{name}_ci"])
            ax.fill_between(counts, band[:, 0], band[:, 1], color=HUES[0], alpha=0.2, linewidth=0)
            ax.plot(counts, summary[name], color=HUES[0], marker="o", markersize=4)
            ax.set_ylim(bottom=0)
            quiet(ax, "demonstrations before the query", f"{name}\n{unit}")
        return drawn

    return Exhibit(
        "curve",
        "By number of demonstrations",
        "Accuracy and risk of the small model by number of demonstrations",
        "With none the model can only guess which task is meant; each demonstration says more of it.",
        draw,
    )


def _methods(summary: dict[str, Any]) -> Exhibit:
    tasks = summary["tasks"]

    def draw() -> Figure:
        shown = ("zero_shot", "vector", "few_shot")
        evidence = "accuracy on the test split; lines: 90% bootstrap interval over questions"
        drawn = open_figure(8, 0.9 + 0.3 * len(tasks), "A vector in place of demonstrations", evidence)
        ax = drawn.add_subplot()
        rows = np.arange(len(tasks))[::-1]
        handles = []
        for place, method in enumerate(shown):
            values = np.array([e[method] for e in tasks.values()])
            low, high = np.array([e[f"{method}_ci"] for e in tasks.values()]).T
            height = rows + 0.22 * (1 - place)
            ax.hlines(height, low, high, color=HUES[place], linewidth=1.2)
            ax.plot(values, height, linestyle="none", marker="os^"[place], color=HUES[place], markersize=5)
            label = METHODS[method].replace("k-shot", f"{summary['num_demonstrations']}-shot")
            handles.append(Line2D([], [], linestyle="none", marker="os^"[place], color=HUES[place], label=label))
        ax.set_yticks(rows, list(tasks))
        ax.set_xlim(-0.02, 1.02)
        quiet(ax, "accuracy", "")
        bottom_legend(drawn, handles, 3)
        return drawn

    return Exhibit(
        "methods",
        "By task",
        "Accuracy of each task zero-shot, zero-shot with the task vector, and with demonstrations",
        "Where the square stands near the triangle, one vector does the work of the demonstrations.",
        draw,
    )


def _layers(summary: dict[str, Any]) -> Exhibit:
    tasks = summary["tasks"]

    def draw() -> Figure:
        columns = 4
        rows = -(-len(tasks) // columns)
        evidence = "test split; ring: the layer chosen on the dev split; dashed: zero-shot; solid black: k-shot"
        drawn = open_figure(9, 1.7 * rows + 0.3, "The vector by the layer whose state it replaces", evidence)
        axes = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax in axes.flat[len(tasks) :]:
            ax.set_visible(False)
        for number, ((name, e), ax) in enumerate(zip(tasks.items(), axes.flat, strict=False)):
            curve = e["vector_by_layer_test"]
            ax.axhline(e["zero_shot"], **PRIOR)
            ax.axhline(e["few_shot"], **ORACLE)
            ax.plot(range(len(curve)), curve, color=HUES[0], marker="o", markersize=3)
            ax.plot([e["layer"]], [curve[e["layer"]]], marker="o", markersize=9, color=HUES[1], fillstyle="none")
            ax.set_ylim(-0.03, 1.03)
            below = number + columns >= len(tasks)
            quiet(ax, "layer" if below else "", "accuracy" if number % columns == 0 else "")
            ax.tick_params(labelbottom=below)
            ax.set_title(name, fontsize=9)
        return drawn

    return Exhibit(
        "layers",
        "By layer",
        "Accuracy with the task vector written at each layer, a panel for each task",
        "Layer 0 is the embedding of the last token, which is the same in every prompt; at the last layer the vector is"
        " the answer itself, and the query is not read any more.",
        draw,
    )


def _tables(summary: dict[str, Any]) -> list[str]:
    heads = ["", *METHODS.values(), "layer", "questions", "the vector in words"]
    head = "<tr>" + "".join(f'<th scope="col">{escape(text)}</th>' for text in heads) + "</tr>"
    rows = []
    for name, e in summary["tasks"].items():
        cells = "".join(f"<td>{_small(_cell(e, method))}</td>" for method in METHODS)
        words = escape(" | ".join(word.strip() or repr(word) for word in e["words"]))
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th>{cells}<td>{e["layer"]}</td><td>{e["pairs"]["test"]}</td>'
            f'<td class="wrap">{words}</td></tr>'
        )
    mean = "".join(f"<td>{summary['mean'][method]:.2f}</td>" for method in METHODS)
    rows.append(f'<tr class="reference"><th scope="row">mean over tasks</th>{mean}<td></td><td></td><td></td></tr>')
    model = summary["model"]
    caption = (
        "Accuracy (fraction of answers with every token right) on the test split, with 90% bootstrap intervals over"
        " questions. In words: the tokens that the vector favours, read as if it were the last state."
    )
    return [
        f'<p class="quiet">{escape(model["path"])} ({escape(model["model_type"])}), {summary["num_layers"]} layers;'
        f" k = {summary['num_demonstrations']} demonstrations, vectors of {summary['num_prompts']} prompts</p>",
        "<h2>Results</h2>",
        table(caption, head, rows),
        _conflicts(summary["conflicts"]),
        f"<h2>What is whose</h2><p>{escape(SOURCES)}</p>",
    ]


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
    head = "<tr>" + "".join(f'<th scope="col">{escape(text)}</th>' for text in heads) + "</tr>"
    names = ("says_shown", "says_shown_without", "says_moved", "says_moved_without")
    rows = [
        f"<tr><td>{escape(e['shown'])}</td><td>{escape(e['moved'])}</td>"
        + "".join(f"<td>{_small(_cell(e, name))}</td>" for name in names)
        + f"<td>{e['pairs']}</td></tr>"
        for e in conflicts
    ]
    caption = (
        "Demonstrations of one task, the vector of another written in at that task's layer, on inputs that both tasks"
        " have and answer differently: whose answer does the model give?"
    )
    return "<h2>Conflicting tasks</h2>" + table(caption, head, rows)


def _small(text: str) -> str:
    value, _, interval = text.partition(" ")
    return f"{value} <small>{interval}</small>"
