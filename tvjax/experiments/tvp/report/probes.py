"""The figures of the probes, and sentences made from their numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tvjax.experiments.tvp.report.findings import by_setting
from tvjax.experiments.tvp.report.looks import Look, looks, member_lines, prior_line, ring_key, rings
from tvjax.experiments.tvp.report.members import arms
from tvjax.experiments.tvp.report.summary import Measure, Probes, Summary
from tvjax.report.style import PRIOR, QUIET, bottom_legend, log_axis, log_limits, open_figure, quiet
from tvjax.report.words import UNLEARNED, Estimate, number

STYLES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)))
NO_EDIT = -1
"""The position of a prompt without an edit on an axis of layers."""


@dataclass(frozen=True)
class Probe:
    """One probe on the page.

    stem: the name of its figure's file.
    question: its heading.
    meaning: what the figure shows, for its caption.
    draw: draws it.
    text: the sentence with its numbers at the members' prescribed layers.
    styles: what solid, dashed and dotted lines are.
    """

    stem: str
    question: str
    meaning: str
    draw: Callable[[Axes, Summary, str, Measure], None]
    text: Callable[[Summary], str]
    styles: tuple[str, ...] = ()


def probes_of(summary: Summary) -> list[Probes]:
    """The probes of the members; all members have probes, or none."""
    return [member.probes for member in summary.members if member.probes]


def probe_figure(summary: Summary, probe: Probe) -> Figure:
    """The figure of one probe."""
    probes = probes_of(summary)
    word, measure = _measure(summary)
    figure = open_figure(
        7.2,
        3.2 + 0.24 * len(probes),
        probe.question,
        f"{summary.task}, K = {summary.base.num_demonstrations} demonstrations; n ="
        f" {summary.num_prompts // 2 if probe.stem == 'probe_read' else probes[0].num_prompts} prompts;"
        " bands: 90% bootstrap interval over prompts",
    )
    probe.draw(figure.subplots(), summary, word, measure)
    styles = [
        Line2D([], [], color=QUIET, linestyle=style, label=name)
        for style, name in zip(STYLES, probe.styles, strict=False)
    ]
    prior = [] if probe in (READ, DUMMY, OPERANDS, ADDITIVITY) else [prior_line()]
    bottom_legend(figure, [*member_lines(looks(summary), markers=True), *styles, *prior, *ring_key(summary)])
    return figure


def _measure(summary: Summary) -> tuple[str, Measure]:
    """Accuracy, for tasks that have one, else risk."""
    accuracy = summary.base.accuracy
    return ("accuracy", accuracy) if accuracy else ("risk", summary.base.risk)


def _lines(ax: Axes, x: Sequence[float], rows: Sequence[Estimate], styles: Sequence[Look], style: Any = "-") -> None:
    """A line a member, with its band. What is not defined leaves a gap."""
    for row, look in zip(rows, styles, strict=True):
        ax.fill_between(x, row.low, row.high, color=look.color, alpha=0.15, linewidth=0)
        ax.plot(x, row.value, color=look.color, marker=look.marker, markersize=3.5, linewidth=1.5, linestyle=style)


def _scaled(ax: Axes, word: str, rows: Sequence[Estimate], prior: float, least: float = 1e-4) -> None:
    """Accuracies from 0 to 1; risks on a log axis, no further down than `least` of the prior's."""
    ax.axhline(prior, **PRIOR)
    if word == "accuracy":
        ax.set_ylim(-0.03, 1.05)
    else:
        low, high = log_limits([*(row.low for row in rows), *(row.high for row in rows), np.array(prior)])
        log_axis(ax, "y", max(low, least * prior), high)


def _layers(ax: Axes, summary: Summary) -> np.ndarray:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    ax.set_xlim(-0.4, summary.num_layers + 0.4)
    return np.arange(summary.num_layers + 1)


def _read(ax: Axes, summary: Summary, word: str, measure: Measure) -> None:
    layers = _layers(ax, summary)
    for style, reader in zip(STYLES, ("linear", "neighbours"), strict=False):
        rows = [probes.read[reader] for probes in probes_of(summary)]
        _lines(ax, list(layers), rows, looks(summary), style)
        if reader == "linear":
            rings(ax, summary, rows)
    ax.set_ylim(-0.35, 1.08)
    quiet(ax, "layer l of theta", "task variance explained")


def _entanglement(ax: Axes, summary: Summary, word: str, measure: Measure) -> None:
    layers = _layers(ax, summary)
    # On a log axis 0 has no place: a line down to it would say nothing.
    rows = [
        Estimate(np.where(row.value > 0, row.value, np.nan), row.low, row.high)
        for row in (probes.entanglement for probes in probes_of(summary))
    ]
    _lines(ax, list(layers), rows, looks(summary))
    rings(ax, summary, rows)
    ax.axhline(1.0, color=QUIET, linewidth=0.8)
    ends = [end for row in rows for end in (row.value, row.high)]
    low, high = log_limits([*ends, np.array([0.5, 2.0])])
    log_axis(ax, "y", low, high)
    quiet(ax, "layer l of theta", "variance over dummy queries\n/ variance over tasks")


def _averaging(ax: Axes, summary: Summary, word: str, measure: Measure) -> None:
    rows = [
        Estimate(*(part[:, member.prescribed_layer] for part in (entry.value, entry.low, entry.high)))
        for member, entry in ((m, p.averaging[word]) for m, p in zip(summary.members, probes_of(summary), strict=True))
    ]
    counts = probes_of(summary)[0].counts
    _lines(ax, counts, rows, looks(summary))
    ax.set_xscale("log", base=2)
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.minorticks_off()
    _scaled(ax, word, rows, float(measure.prior.value))
    quiet(ax, "dummy queries in the mean of theta", f"TVP {word} at l*")


def _swap(ax: Axes, summary: Summary, word: str, measure: Measure) -> None:
    layers, shown = _layers(ax, summary), []
    for style, kind in zip(STYLES, ("vector", "prompt"), strict=False):
        rows = [probes.swap[f"{kind}_{word}"] for probes in probes_of(summary)]
        _lines(ax, list(layers), rows, looks(summary), style)
        plain = [probes.swap[f"unedited_{kind}_{word}"] for probes in probes_of(summary)]
        for row, look in zip(plain, looks(summary), strict=True):
            filled = look.color if kind == "vector" else "white"
            ax.plot([NO_EDIT], [row.value], color=look.color, marker=look.marker, markersize=4, markerfacecolor=filled)
        if kind == "vector":
            rings(ax, summary, rows)
        shown += [*rows, *plain]
    _scaled(ax, word, shown, float(measure.prior.value))
    ax.set_xlim(NO_EDIT - 0.4, summary.num_layers + 0.4)
    step = max(1, -(-len(layers) // 8))
    ax.set_xticks([NO_EDIT, *layers[::step]], ["no edit", *(str(layer) for layer in layers[::step])])
    quiet(ax, "layer at which A's theta is written", f"{word} at the end of B's prompt")


def _superposition(ax: Axes, summary: Summary, word: str, measure: Measure) -> None:
    probes, shown = probes_of(summary), []
    kinds = ["first", "second", *(["mixture"] if f"mixture_{word}" in probes[0].superposition else [])]
    for style, kind in zip(STYLES, kinds, strict=False):
        rows = [one.superposition[f"{kind}_{word}"] for one in probes]
        _lines(ax, probes[0].shares, rows, looks(summary), style)
        shown += rows
    _scaled(ax, word, shown, float(measure.prior.value))
    ax.set_xticks(probes[0].shares)
    quiet(ax, "\N{GREEK SMALL LETTER ALPHA}, the share of A's vector", f"TVP {word} at l*")


def _operands(ax: Axes, summary: Summary, word: str, measure: Measure) -> None:
    pools = sorted(probes_of(summary)[0].operands)
    for style, kind in zip(STYLES, ("", "single_"), strict=False):
        rows = []
        for member, probes in zip(summary.members, probes_of(summary), strict=True):
            found = [probes.operands[pool][f"{kind}margin_by_layer"][member.prescribed_layer] for pool in pools]
            rows.append(Estimate(*(np.array([getattr(one, end) for one in found]) for end in ("value", "low", "high"))))
        _lines(ax, pools, rows, looks(summary), style)
    ax.axhline(0, **PRIOR)
    ax.set_ylim(-1.05, 1.05)
    ax.set_xticks(pools)
    quiet(ax, "different tokens that the prompts of a vector draw from", "identity margin at l*")


def _additivity(ax: Axes, summary: Summary, word: str, measure: Measure) -> None:
    layers = list(_layers(ax, summary))
    for style, kind in zip(STYLES, ("weighted", "best", "other_best"), strict=True):
        rows = [probes.additivity[kind]["explained_by_layer"] for probes in probes_of(summary)]
        _lines(ax, layers, rows, looks(summary), style)
        if kind == "weighted":
            rings(ax, summary, rows)
    ax.axhline(0, **PRIOR)
    ax.set_ylim(-0.35, 1.08)
    quiet(ax, "layer l of theta", "share of the variance of theta")


def rank_figure(summary: Summary) -> Figure:
    """Captured directions of W, and how many there are, at the prescribed and at the best layer."""
    probes = probes_of(summary)
    figure = open_figure(
        9.8,
        3.3 + 0.12 * len(probes),
        "How much of y = W x does one vector carry?",
        f"{summary.task}, K = {summary.base.num_demonstrations} demonstrations; n = {probes[0].num_prompts} prompts;"
        " filled: prescribed layer, open: best layer; bars: 90% bootstrap interval over prompts",
    )
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    directions = len(probes[0].rank["prescribed"]["captured"].value)
    width = 0.7 / (2 * len(probes))
    for index, (one, look) in enumerate(zip(probes, looks(summary), strict=True)):
        for side, layer in enumerate(("prescribed", "best")):
            shift = (2 * index + side - len(probes) + 0.5) * width
            fill = look.color if layer == "prescribed" else "white"
            points(left, np.arange(1, directions + 1) + shift, one.rank[layer]["captured"], look, fill)
            points(right, np.array([1 + shift]), one.rank[layer]["participation"], look, fill)
    true = float(probes[0].rank["prescribed"]["true_participation"].value)
    for ax, levels in ((left, {"": 0.0, "carried exactly": 1.0}), (right, {"rank one": 1.0, "W itself": true})):
        for text, level in levels.items():
            ax.axhline(level, **PRIOR)
            ax.text(
                0.99, level, text, transform=ax.get_yaxis_transform(), fontsize=8, color=QUIET, ha="right", va="bottom"
            )
    left.set_xticks(range(1, directions + 1))
    left.set_xlim(0.4, directions + 0.6)
    right.set_xlim(0.4, 1.6)
    right.set_xticks([])
    quiet(left, "direction r of W, the strongest first", "share of the direction that is carried", "Which directions")
    sums = "({0} s)\N{SUPERSCRIPT TWO} / {0} s\N{SUPERSCRIPT TWO}".format("\N{GREEK CAPITAL LETTER SIGMA}")
    quiet(right, "", f"{sums} of the map's singular values", "How many directions")
    bottom_legend(figure, member_lines(looks(summary), markers=True))
    return figure


def points(ax: Axes, x: np.ndarray, row: Estimate, look: Look, fill: str) -> None:
    """Values as points with their intervals as bars."""
    low, high, value = (np.atleast_1d(part) for part in (row.low, row.high, row.value))
    ax.vlines(x, low, high, color=look.color, linewidth=1.2)
    ax.plot(x, value, linestyle="none", color=look.color, marker=look.marker, markersize=6, markerfacecolor=fill)


def _at_prescribed(summary: Summary) -> list[tuple[int, Probes]]:
    """The prescribed layer and the probes of each member."""
    layers = (member.prescribed_layer for member in summary.members)
    return list(zip(layers, probes_of(summary), strict=True))


def _read_text(summary: Summary) -> str:
    read = by_setting(summary, [one.read["linear"][layer].value for layer, one in _at_prescribed(summary)])
    return f"At the prescribed layer l* (of all members), a linear map reads this share of the task: {read}."


def _entanglement_text(summary: Summary) -> str:
    dummy = by_setting(summary, [one.entanglement[layer].value for layer, one in _at_prescribed(summary)])
    return f"At l* the dummy query varies theta so many times as much as the task does: {dummy}."


def _averaging_text(summary: Summary) -> str:
    word, _ = _measure(summary)
    first, last = (
        by_setting(summary, [one.averaging[word].value[end, layer] for layer, one in _at_prescribed(summary)])
        for end in (0, -1)
    )
    count = probes_of(summary)[0].counts[-1]
    return f"TVP {word} at l* with one dummy query: {first}; with the mean over {count}: {last}."


def swapped_to(probes: Probes, layer: int, word: str) -> str:
    """Whose answer a swap gives: the ``vector``'s task, the ``prompt``'s, or ``neither`` if intervals overlap."""
    vector, prompt = (probes.swap[f"{kind}_{word}"][layer] for kind in ("vector", "prompt"))
    if word == "accuracy":
        vector, prompt = prompt, vector  # of accuracies the greater is the better
    if vector.high < prompt.low:
        return "vector"
    return "prompt" if prompt.high < vector.low else "neither"


def _swap_text(summary: Summary) -> str:
    """Whose answer each setting gives after a swap, in how many of its seeds."""
    word, _ = _measure(summary)
    kinds = [swapped_to(one, layer, word) for layer, one in _at_prescribed(summary)]
    meaning = {"vector": "to the vector's task", "prompt": "to the prompt's own task", "neither": "clearly to neither"}
    parts = []
    for name, indices in arms(summary.members).items():
        if not any(map(summary.learned, indices)):
            parts.append(f"{name}: nothing to read, {UNLEARNED}")
            continue
        counts = {kind: sum(kinds[index] == kind for index in indices) for kind in meaning}
        sides = [
            f"{meaning[kind]}{f' ({n} of {len(indices)} seeds)' if n < len(indices) else ''}"
            for kind, n in counts.items()
            if n
        ]
        parts.append(f"{name}: {', '.join(sides)}")
    return f"After a swap at l*, the answer is closer (whole intervals): {'; '.join(parts)}."


def _operands_text(summary: Summary) -> str:
    pools = sorted(probes_of(summary)[0].operands)
    most, least = (
        by_setting(
            summary,
            [one.operands[pool]["margin_by_layer"][layer].value for layer, one in _at_prescribed(summary)],
        )
        for pool in (pools[-1], pools[0])
    )
    return f"Margin at l* of vectors made of {pools[-1]} different tokens: {most}; of {pools[0]}: {least}."


def _additivity_text(summary: Summary) -> str:
    word, _ = _measure(summary)
    share = by_setting(
        summary,
        [one.additivity["weighted"]["explained_by_layer"].value[layer] for layer, one in _at_prescribed(summary)],
    )
    whole, weighted, plain = (
        by_setting(
            summary,
            [one.additivity[name][f"tvp_{word}_by_layer"].value[layer] for layer, one in _at_prescribed(summary)],
        )
        for name in ("theta", "weighted", "sum")
    )
    return (
        f"Share at l* that one set of weights has of theta: {share}. TVP {word} at l* with theta: {whole}; with these"
        f" weights: {weighted}; with the plain sum: {plain}."
    )


def _mix_text(summary: Summary) -> str:
    probes, (word, _) = probes_of(summary), _measure(summary)
    middle = len(probes[0].shares) // 2
    kind = "mixture" if f"mixture_{word}" in probes[0].superposition else "first"
    answer = "the mix of both answers" if kind == "mixture" else "A's answer"
    values = by_setting(summary, [one.superposition[f"{kind}_{word}"][middle].value for one in probes])
    share = f"\N{GREEK SMALL LETTER ALPHA} = {probes[0].shares[middle]:g}"
    return f"With {share}, {word} against {answer}: {values}."


def rank_text(summary: Summary) -> str:
    """How many directions the vectors carry at the prescribed layer, beside W's."""
    rank = [one.rank["prescribed"] for one in probes_of(summary)]
    carried = by_setting(summary, [row["participation"].value for row in rank])
    power = by_setting(summary, [row["power"].value for row in rank])
    weakest = by_setting(summary, [row["captured"].value[-1] for row in rank])
    return (
        f"At the prescribed layer, number of directions (W: {number(rank[0]['true_participation'].value)}): {carried};"
        f" of W's weakest direction this share is carried: {weakest}. The map has this share of W's power: {power};"
        " near 0 its number of directions is that of noise."
    )


READ = Probe(
    "probe_read",
    "Can the task be read from the vector?",
    "The share of the task's variance that a linear map (solid) and the 5 nearest neighbours (dashed) read from theta."
    " That a task can be read does not say that the model uses it there.",
    _read,
    _read_text,
    ("by a linear map", "by the 5 nearest neighbours"),
)
DUMMY = Probe(
    "probe_dummy",
    "Is the dummy query in the vector?",
    "How much theta varies with the dummy query at which it was read, over how much it varies with the task. No point:"
    " it does not vary with the query, or with nothing else.",
    _entanglement,
    _entanglement_text,
)
AVERAGING = Probe(
    "probe_averaging",
    "Does a mean over dummy queries help?",
    "Zero-shot, with the mean of the vectors that were read at several dummy queries after the same demonstrations.",
    _averaging,
    _averaging_text,
)
SWAP = Probe(
    "probe_swap",
    "Whose answer after a swap?",
    "The vector of task A is written at the end of a whole prompt of task B, whose demonstrations the layers above can"
    " still read. Solid: against the answer of A, the vector's task; dashed: against that of B, the prompt's.",
    _swap,
    _swap_text,
    ("against the answer of A, whose vector it is", "against the answer of B, whose prompt it is"),
)
MIX = Probe(
    "probe_mix",
    "What does a mix of two vectors say?",
    "Zero-shot, with \N{GREEK SMALL LETTER ALPHA} times the vector of task A and the rest of B's. Solid: against the"
    " answer of A; dashed: of B; dotted, where answers can be mixed: against the same mix of both.",
    _superposition,
    _mix_text,
    ("against the answer of A", "against the answer of B", "against the mix of both answers"),
)

OPERANDS = Probe(
    "probe_operands",
    "Which function does a vector hold that was made of few tokens?",
    "The probability of the task's answer less the greatest of another task's answers to the same x, over all x,"
    " zero-shot with the vector at l*. Below 0 the vector holds another function of the family, whatever it answers to"
    " the few tokens that it was made of.",
    _operands,
    _operands_text,
    ("mean vector of several prompts", "vector of one prompt"),
)

ADDITIVITY = Probe(
    "probe_additivity",
    "Do demonstrations add up?",
    "How much of theta of a whole prompt a combination has of the thetas of its demonstrations, each alone in a prompt"
    " of its own with the same query. Solid: with one set of weights for all prompts, fitted on other prompts; dashed:"
    " with the best weights for each prompt; dotted: the same of the demonstrations of another task, which is what any"
    " vectors of the family get.",
    _additivity,
    _additivity_text,
    ("one set of weights", "weights of each prompt", "the same, of another task's demonstrations"),
)


def probes_shown(summary: Summary) -> list[Probe]:
    """The probes that the members have: swaps and mixes if an x of one task is one of another as well."""
    one = probes_of(summary)[0]
    more = [*([SWAP, MIX] if one.swap else []), *([OPERANDS] if one.operands else [])]
    return [READ, DUMMY, AVERAGING, *more, *([ADDITIVITY] if one.additivity else [])]
