"""Reports of all runs but TVP's: the page around them, and what is on it for runs on text."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tvjax.errors import UserError
from tvjax.evals.learned import above
from tvjax.files import write_whole
from tvjax.report import adaptive, atv_tvp, emergence, language
from tvjax.report.gallery import Exhibit
from tvjax.report.html import details, document, figure, table, write_figure
from tvjax.report.reader import read_plain
from tvjax.report.style import GRID, HUES, INK, MARKERS, ORACLE, PRIOR, QUIET, bottom_legend, open_figure, quiet

PAGES: Mapping[str, Any] = {
    "atv": adaptive,
    "atv_tvp": atv_tvp,
    "emergence": emergence,
    "tvp_language": language,
}
"""Experiments whose page is a module of its own, with `summary_table(summary)` and `contents(summary, path)`."""
SHOTS = {"zero_shot": "zero-shot", "few_shot": "{k}-shot", "shuffled_shot": "{k}-shot, labels shuffled"}
VECTORS = {"vector": "state vector", "function_vector": "function vector", "learned_vector": "learned vector"}
CONTROL = {"shuffled_vector": "state vector of shuffled labels"}
METHODS = SHOTS | VECTORS | CONTROL
SOURCES = (
    "State vectors: reading the state at the last token of prompts with demonstrations and putting it in the"
    " place of the one of a zero-shot prompt is the method of Hendel, Geva and Globerson, In-Context Learning"
    " Creates Task Vectors (2023). Function vectors: the mean outputs of the heads that, put into prompts with"
    " shuffled labels, raise the right answer's probability most, summed and added to the state, are those of Todd"
    " et al., Function Vectors in Large Language Models (2024). The learned vector (added to the state, trained on"
    " zero-shot prompts of the train split), the mean over several prompts, the splits by a hash of the input, the"
    " layer chosen on the dev split, and both controls with shuffled labels are how it is done here."
)


def write_report(run_dir: str | Path) -> Path:
    """Write the figures and the page of a run on text; return the page's path."""
    path, config, environment, summary = read_plain(run_dir)
    try:
        exhibits, heading, parts = _contents(summary, path)
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
    if summary["experiment"] in PAGES:
        return PAGES[summary["experiment"]].summary_table(summary)
    if summary["experiment"] == "text_model":
        counts = range(summary["num_demonstrations"] + 1)
        lines = [
            f"small language model: {summary['num_layers']} layers, {len(summary['tasks'])} tasks, n ="
            f" {summary['num_prompts']} prompts [90% bootstrap interval]",
            *cautions(summary),
            "demonstrations  accuracy           risk (nats a token)",
        ]
        lines += [f"{n:<15} {_cell(summary, 'accuracy', n):<18} {_cell(summary, 'risk', n)}" for n in counts]
        return "\n".join(lines) + "\n"
    tasks, k = summary["tasks"], summary["num_demonstrations"]
    width = max(map(len, [*tasks, "mean"])) + 1
    lines = [
        f"accuracy on the test split; vectors of {summary['num_prompts']} prompts of {k} demonstrations, each with the"
        f" layer (of {summary['num_layers']}) chosen on the dev split, named where it beats zero-shot",
        *cautions(summary),
        f"{'':<{width}} zero-shot  {k}-shot  shuffled  state vector  function vector  learned vector  state, shuffled",
    ]
    for name, e in [*tasks.items(), ("mean", summary["mean"])]:
        shots = f"{e['zero_shot']:<10.2f} {e['few_shot']:<7.2f} {e['shuffled_shot']:<9.2f}"
        cells = [f"{e[v]:.2f}{_at(e, v)}" for v in VECTORS]
        vectors = f"{cells[0]:<13} {cells[1]:<16} {cells[2]:<15}"
        lines.append(f"{name:<{width}} {shots} {vectors} {e['shuffled_vector']:.2f}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def cautions(summary: Mapping[str, Any]) -> list[str]:
    """What comes before any number: which tasks demonstrations do not help with, so that no vector can carry them."""
    k = summary["num_demonstrations"]
    if summary["experiment"] == "text_model":
        interval, without = summary["accuracy_ci"][k], summary["accuracy"][0]
        if above(interval, without):
            return []
        return [
            f"The model has not learned the tasks: its accuracy after {k} demonstrations,"
            f" {_cell(summary, 'accuracy', k)}, is not clearly above that without any, {without:.2f}."
        ]
    failed = [name for name, e in summary["tasks"].items() if not above(e["few_shot_ci"], e["zero_shot"])]
    if not failed:
        return []
    which = "any task" if len(failed) == len(summary["tasks"]) else ", ".join(failed)
    return [
        f"Not learned in context: on {which} {k}-shot accuracy is not clearly above zero-shot, so that there is nothing"
        " that a task vector could carry."
    ]


def _works(entry: Mapping[str, Any], vector: str) -> bool:
    """Whether a vector answers clearly better than zero-shot prompts do."""
    return above(entry[f"{vector}_ci"], entry["zero_shot"])


def _at(entry: Mapping[str, Any], vector: str) -> str:
    """The layer of a vector, where it has one and works there."""
    return f" at {entry[f'{vector}_layer']}" if f"{vector}_layer" in entry and _works(entry, vector) else ""


def _first(sentences: list[str]) -> str:
    """The box at the head of a page; nothing where there is nothing to say."""
    told = "".join(f"<p>{escape(text)}</p>" for text in sentences)
    return f'<div class="headline">{told}</div>' if told else ""


def _cell(entry: Mapping[str, Any], name: str, index: int | None = None) -> str:
    value, interval = entry[name], entry[f"{name}_ci"]
    value, interval = (value, interval) if index is None else (value[index], interval[index])
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _contents(summary: dict[str, Any], path: Path) -> tuple[list[Exhibit], str, list[str]]:
    if summary["experiment"] in PAGES:
        return PAGES[summary["experiment"]].contents(summary, path)
    if summary["experiment"] == "text_model":
        told = [_first(cautions(summary)), f"<pre>{escape(summary_table(summary))}</pre>"]
        return [_curve(summary)], "a small language model", told
    return [_methods(summary), _layers(summary), _heads(summary)], "task vectors on text", _tables(summary)


def _curve(summary: dict[str, Any]) -> Exhibit:
    def draw() -> Figure:
        """Accuracy against the number of demonstrations."""
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


def _names(summary: dict[str, Any]) -> dict[str, str]:
    """The methods as readers know them."""
    return {method: label.format(k=summary["num_demonstrations"]) for method, label in METHODS.items()}


def _methods(summary: dict[str, Any]) -> Exhibit:
    tasks, names = summary["tasks"], _names(summary)

    def draw() -> Figure:
        """A row a task, a mark a method."""
        shown = ("zero_shot", *VECTORS, "few_shot")
        evidence = "accuracy on the test split; lines: 90% bootstrap interval over questions"
        drawn = open_figure(8, 0.9 + 0.42 * len(tasks), "A vector in place of demonstrations", evidence)
        ax = drawn.add_subplot()
        rows = np.arange(len(tasks))[::-1]
        handles = []
        for place, method in enumerate(shown):
            look: dict[str, Any] = {"color": HUES[place], "marker": MARKERS[place], "linestyle": "none"}
            low, high = np.array([e[f"{method}_ci"] for e in tasks.values()]).T
            height = rows + 0.16 * (2 - place)
            ax.hlines(height, low, high, color=HUES[place], linewidth=1.1)
            ax.plot([e[method] for e in tasks.values()], height, markersize=4, **look)
            handles.append(Line2D([], [], label=names[method], **look))
        for row in rows[:-1]:
            ax.axhline(row - 0.5, color=GRID, linewidth=0.7)
        ax.set_yticks(rows, list(tasks))
        ax.set_xlim(-0.02, 1.02)
        quiet(ax, "accuracy", "")
        ax.grid(False, axis="y")
        bottom_legend(drawn, handles, len(shown))
        return drawn

    return Exhibit(
        "methods",
        "By task",
        "Accuracy of each task zero-shot, zero-shot with each kind of task vector, and with demonstrations",
        "Where the mark of a vector stands near that of the demonstrations, one vector does their work.",
        draw,
    )


def _layers(summary: dict[str, Any]) -> Exhibit:
    tasks, names = summary["tasks"], _names(summary)

    def draw() -> Figure:
        """A panel a task, a line a kind of vector."""
        columns = 4
        rows = -(-len(tasks) // columns)
        evidence = "test split; rings: the layer chosen on the dev split, where the vector beats zero-shot"
        drawn = open_figure(9, 1.7 * rows + 0.6, "Vectors by the layer at which they are written", evidence)
        axes = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax in axes.flat[len(tasks) :]:
            ax.set_visible(False)
        for number, ((name, e), ax) in enumerate(zip(tasks.items(), axes.flat, strict=False)):
            ax.axhline(e["zero_shot"], **PRIOR)
            ax.axhline(e["few_shot"], **ORACLE)
            for kind, look in looks.items():
                curve, layer = e[f"{kind}_by_layer_test"], e[f"{kind}_layer"]
                ax.plot(range(len(curve)), curve, markersize=3, **look)
                ring = {**look, "marker": "o", "linestyle": "none"}
                if not _works(e, kind):
                    continue
                ax.plot([layer], [curve[layer]], markersize=9, fillstyle="none", **ring)
            ax.set_ylim(-0.08, 1.08)
            below = number + columns >= len(tasks)
            quiet(ax, "layer" if below else "", "accuracy" if number % columns == 0 else "")
            ax.tick_params(labelbottom=below)
            ax.set_title(name, fontsize=9)
        shots = [Line2D([], [], label=names[m], **s) for m, s in (("zero_shot", PRIOR), ("few_shot", ORACLE))]
        bottom_legend(drawn, [*(Line2D([], [], label=names[m], **look) for m, look in looks.items()), *shots], 5)
        return drawn

    looks: dict[str, dict[str, Any]] = {
        kind: {"color": HUES[place + 1], "marker": MARKERS[place + 1]} for place, kind in enumerate(VECTORS)
    }
    return Exhibit(
        "layers",
        "By layer",
        "Accuracy with each kind of vector written at each layer, a panel for each task",
        "The state vector replaces the state, so at the last layer it is the answer itself and the query is not read"
        " any more; at layer 0 it is the embedding of the last token, the same in every prompt. The others are added.",
        draw,
    )


def _heads(summary: dict[str, Any]) -> Exhibit:
    effect_LH = np.array(summary["indirect_effect"])

    def draw() -> Figure:
        """A cell a head."""
        layers, heads = effect_LH.shape
        evidence = "mean over tasks and prompts with shuffled labels; dots: the heads that function vectors sum"
        size = max(6.5, min(9.0, 1.6 + 0.3 * heads)), max(2.2, min(9.0, 0.8 + 0.3 * layers))
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


def _tables(summary: dict[str, Any]) -> list[str]:
    heads = ["", *_names(summary).values(), "questions", "the state vector in words"]
    head = "<tr>" + "".join(f'<th scope="col">{escape(text)}</th>' for text in heads) + "</tr>"
    rows = []
    for name, e in summary["tasks"].items():
        cells = "".join(f"<td>{_small(_cell(e, method))}{_at(e, method)}</td>" for method in METHODS)
        words = escape(" | ".join(word.strip() or repr(word) for word in e["words"]))
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th>{cells}<td>{e["pairs"]["test"]}</td>'
            f'<td class="wrap">{words}</td></tr>'
        )
    mean = "".join(f"<td>{summary['mean'][method]:.2f}</td>" for method in METHODS)
    rows.append(f'<tr class="reference"><th scope="row">mean over tasks</th>{mean}<td></td><td></td></tr>')
    model = summary["model"]
    caption = (
        "Accuracy (fraction of answers with every token right) on the test split, with 90% bootstrap intervals over"
        " questions; with each vector the layer at which it is written, chosen on the dev split, where the whole"
        " interval is above zero-shot's accuracy. In words: the tokens"
        " that the state vector favours, read as if it were the last state."
    )
    return [
        f'<p class="quiet">{escape(model["path"])} ({escape(model["model_type"])}), {summary["num_layers"]} layers;'
        f" k = {summary['num_demonstrations']} demonstrations, vectors of {summary['num_prompts']} prompts</p>",
        _first(cautions(summary)),
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
