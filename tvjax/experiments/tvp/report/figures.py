"""The figures of the final evaluation: by number of demonstrations, and by layer. One function a figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tvjax.experiments.tvp.report.looks import (
    Look,
    axis_label,
    baseline_looks,
    evidence,
    looks,
    member_lines,
    prior_line,
    ring_key,
    rings,
)
from tvjax.experiments.tvp.report.summary import Measure, Summary
from tvjax.report.style import INK, ORACLE, PRIOR, bottom_legend, log_axis, log_limits, open_figure, quiet
from tvjax.report.words import Estimate, number

BASELINE_SPAN = (0.01, 8.0)


def icl_figure(summary: Summary) -> Figure:
    """ICL risk (and accuracy) by number of demonstrations, with bands, beside oracle, prior and baselines."""
    demonstrations = summary.base.num_demonstrations
    figure, panels = _panels(
        summary,
        "What in-context learning makes of more demonstrations",
        f"{summary.task}, layout {summary.layout}; {evidence(summary)}",
    )
    counts = np.arange(demonstrations + 1)
    handles = member_lines(looks(summary), markers=True)
    for ax, word, measure in panels:
        rows = [scores.icl for scores in measure.scores]
        _bands(ax, counts, rows, looks(summary))
        baselines = _baselines(ax, counts, measure, baseline_looks(summary))
        ax.axhline(float(measure.prior.value), **PRIOR)
        _scale(ax, word, measure, rows, [baseline.icl for baseline in measure.baselines.values()], measure.oracle)
        entries = [_oracle(ax, counts, measure.oracle)] if measure.oracle else []
        handles += [*entries, *baselines] if word == "risk" else []
        quiet(ax, "demonstrations before the query", axis_label(summary, "ICL", word))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlim(-0.02 * len(counts), demonstrations + 0.02 * len(counts))
    bottom_legend(figure, [*handles, prior_line()])
    return figure


def tvp_figure(summary: Summary) -> Figure:
    """TVP risk (and accuracy) by replaced layer, with bands, the prior, and a ring at each prescribed layer."""
    figure, panels = _panels(
        summary,
        "Which layer's state is a task vector: TVP by replaced layer",
        f"{summary.task}, layout {summary.layout}, K = {summary.base.num_demonstrations} demonstrations;"
        f" {evidence(summary)}",
    )
    layers = np.arange(summary.num_layers + 1)
    for ax, word, measure in panels:
        rows = [scores.tvp for scores in measure.scores]
        _bands(ax, layers, rows, looks(summary))
        rings(ax, summary, rows)
        ax.axhline(float(measure.prior.value), **PRIOR)
        if summary.layout == "xzy":
            for end in (0, summary.num_layers):
                ax.axvspan(end - 0.5, end + 0.5, color="#f3f3f3", zorder=0, linewidth=0)
        _scale(ax, word, measure, rows)
        quiet(ax, "layer l whose state is replaced", axis_label(summary, "TVP", word))
        ax.set_xlim(-0.5, summary.num_layers + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=13))
    bottom_legend(figure, [*member_lines(looks(summary), markers=True), prior_line(), *_layer_marks(summary)])
    return figure


def _panels(summary: Summary, title: str, subtitle: str) -> tuple[Figure, list[tuple[Axes, str, Measure]]]:
    """A figure with a panel for the risk and, for token tasks, a panel for the accuracy."""
    base = summary.base
    measures = [("accuracy", base.accuracy)] if base.accuracy else []
    measures.append(("risk", base.risk))
    width = 9.8 if len(measures) > 1 else 7.6
    figure = open_figure(width, 3.9 + 0.12 * len(summary.members), title, subtitle)
    axes = figure.subplots(1, len(measures), squeeze=False)[0]
    return figure, [(ax, word, measure) for ax, (word, measure) in zip(axes, measures, strict=True)]


def _bands(ax: Axes, x: np.ndarray, rows: Sequence[Estimate], styles: Sequence[Look]) -> None:
    for row, look in zip(rows, styles, strict=True):
        ax.fill_between(x, row.low, row.high, color=look.color, alpha=0.18, linewidth=0)
        ax.plot(x, row.value, color=look.color, marker=look.marker, markersize=4, linewidth=1.7, label=look.label)


def _baselines(ax: Axes, counts: np.ndarray, measure: Measure, styles: Mapping[str, dict[str, Any]]) -> list[Line2D]:
    """Draw the baselines, each through the numbers of demonstrations that were tried; their entries of the legend."""
    for name, baseline in measure.baselines.items():
        row, tried = baseline.icl, np.isfinite(baseline.icl.value)
        band = {"color": styles[name]["color"], "alpha": 0.07, "linewidth": 0}
        ax.fill_between(counts[tried], row.low[tried], row.high[tried], **band)
        ax.plot(counts[tried], row.value[tried], **styles[name])
    return [Line2D([], [], **style) for style in styles.values()]


def _scale(
    ax: Axes,
    word: str,
    measure: Measure,
    rows: Sequence[Estimate],
    baselines: Iterable[Estimate] = (),
    oracle: Estimate | None = None,
) -> None:
    """Accuracies run from 0 to 1; risks on a log axis over the span of members, prior and baselines.

    An oracle that is anywhere under a third of all these leaves it, and so do baselines that are not within
    `BASELINE_SPAN` times the prior.
    """
    if word == "accuracy":
        ax.set_ylim(-0.03, 1.03)
        return
    prior = measure.prior.value
    near = [np.clip(row.value, *(prior * end for end in BASELINE_SPAN)) for row in baselines]
    low, high = log_limits([*(row.low for row in rows), *(row.high for row in rows), prior, *near])
    if oracle is not None and low / 3 <= oracle.low.min():
        low = min(low, float(oracle.low.min()) / 1.05)
    log_axis(ax, "y", low, high)


def _oracle(ax: Axes, counts: np.ndarray, oracle: Estimate) -> Line2D:
    """Draw the oracle and return its legend entry, which says from where on the line is below the axis, if it is."""
    bottom = ax.get_ylim()[0]
    ax.fill_between(counts, oracle.low, oracle.high, color=INK, alpha=0.12, linewidth=0)
    if ax.get_yscale() == "log":
        ax.plot(counts, np.maximum(oracle.value, bottom / 3), label="oracle", **ORACLE)
    else:
        ax.plot(counts, oracle.value, label="oracle", **ORACLE)
    below = np.flatnonzero(oracle.value < bottom)
    note = (
        f": below the axis from {below[0]} demonstrations on, down to {number(oracle.value.min())}"
        if below.size
        else ""
    )
    return Line2D([], [], label=f"oracle{note}", **ORACLE)


def _layer_marks(summary: Summary) -> list[Artist]:
    marks: list[Artist] = [*ring_key(summary)]
    if summary.layout == "xzy":
        marks.append(Patch(facecolor="#ececec", label=f"l = 0 holds no task; l = {summary.num_layers} sees no query"))
    return marks
