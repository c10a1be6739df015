"""One look for all figures: colours that colour-blind readers can tell apart, a heading, a legend, quiet axes.

Figures are made without pyplot: nothing global is touched, so reports can be made in threads and beside notebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tvjax.report.summary import Estimate, Summary
from tvjax.report.words import arms, baseline_label, number, titles

DPI = 150
INK, QUIET, GRID = "#1a1a1a", "#5c5c5c", "#e4e4e4"
PRIOR: dict[str, Any] = {"color": "#6b6b6b", "linestyle": (0, (4, 3)), "linewidth": 1.3}
ORACLE: dict[str, Any] = {"color": INK, "linestyle": "-", "linewidth": 1.6}
RING: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 13,
    "markerfacecolor": "none",
    "markeredgewidth": 1.6,
}
HUES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00", "#56b4e9", "#882255", "#7f7f00")
BASELINE_HUES = ("#8c6d31", "#5254a3", "#843c39", "#637939", "#7b4173")
BASELINE_DASHES: tuple[Any, ...] = ((0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (7, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")


@dataclass(frozen=True)
class Look:
    """How one member is drawn in every figure: hue by its training setting; shade and marker by its seed."""

    label: str
    color: str
    marker: str


def looks(summary: Summary) -> list[Look]:
    """The look of each member, in order."""
    names = titles(summary)
    result: dict[int, Look] = {}
    for position, indices in enumerate(arms(summary.members).values()):
        for place, index in enumerate(indices):
            paler = 0.6 * place / max(1, len(indices) - 1) if len(indices) > 1 else 0.0
            shade = _mixed_with_white(HUES[position % len(HUES)], paler)
            marker = MARKERS[(position + place) % len(MARKERS)]
            result[index] = Look(names[index], shade, marker)
    return [result[index] for index in range(len(summary.members))]


def _mixed_with_white(color: str, share: float) -> str:
    red, green, blue = colors.to_rgb(color)
    return colors.to_hex((red + (1 - red) * share, green + (1 - green) * share, blue + (1 - blue) * share))


def open_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """An empty figure of `width` x `height` inches below a heading; the axes added to it keep clear of the heading."""
    lines = subtitle.count("\n") + 1
    heading = 0.42 + 0.17 * lines
    total = height + heading
    clear = (0.0, 0.0, 1.0, height / total)
    engine = ConstrainedLayoutEngine(rect=clear, w_pad=0.06, h_pad=0.06, hspace=0.04)
    figure = Figure(figsize=(width, total), dpi=DPI, layout=engine, facecolor="white")
    FigureCanvasAgg(figure)
    left = 0.12 / width
    figure.text(left, 1 - 0.12 / total, title, fontsize=12, fontweight="bold", color=INK, va="top")
    figure.text(left, 1 - 0.37 / total, subtitle, fontsize=8.5, color=QUIET, va="top", linespacing=1.35)
    return figure


def quiet(ax: Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    """Label `ax` and take away what does not carry data."""
    ax.set_xlabel(xlabel, fontsize=9, color=INK)
    ax.set_ylabel(ylabel, fontsize=9, color=INK)
    if title:
        ax.set_title(title, fontsize=9.5, color=INK, loc="left", fontweight="normal")
    ax.tick_params(labelsize=8.5, colors=QUIET, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#9a9a9a")
    ax.grid(True, color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)


def log_axis(ax: Axes, which: str, low: float, high: float) -> None:
    """Make an axis ('x' or 'y') logarithmic from `low` to `high`, its ticks plain numbers (1, 2 and 5 if few decades).

    Zeros are clipped: they are drawn at the end of the axis.
    """
    (ax.set_yscale if which == "y" else ax.set_xscale)("log", nonpositive="clip")
    (ax.set_ylim if which == "y" else ax.set_xlim)(low, high)
    axis = ax.yaxis if which == "y" else ax.xaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 200 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.set_minor_formatter(NullFormatter())


def _tick(value: float) -> str:
    return f"{value:g}" if 1e-4 <= value < 1e5 else number(value)


def bottom_legend(figure: Figure, handles: Sequence[object], columns: int = 2) -> None:
    """One legend for the whole figure, below its axes."""
    figure.legend(
        handles=list(handles),
        loc="outside lower left",
        ncols=columns,
        fontsize=8.5,
        frameon=False,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=2.0,
    )


def evidence(summary: Summary, marks: str = "bands") -> str:
    """What every evaluation figure says of its numbers: ``n = 1024 prompts; bands: 90% bootstrap``."""
    return f"n = {summary.num_prompts} prompts; {marks}: 90% bootstrap interval over prompts"


def log_limits(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([np.ravel(group) for group in groups])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 0.1, 10.0
    low, high = float(values.min()), float(values.max())
    margin = max(1.15, (high / low) ** 0.06)
    return low / margin, high * margin


def axis_label(summary: Summary, kind: str, word: str) -> str:
    return f"{kind} risk\n{summary.risk_unit}" if word == "risk" else f"{kind} accuracy\nfraction correct"


def member_lines(styles: Sequence[Look], markers: bool = False) -> list[Line2D]:
    return [
        Line2D([], [], color=look.color, linewidth=2, marker=look.marker if markers else None, label=look.label)
        for look in styles
    ]


def rings(ax: Axes, summary: Summary, rows: Sequence[Estimate]) -> None:
    """Around the value at the prescribed layer of each member that has one; rows: a member each, by layer."""
    for member, look, row in zip(summary.members, looks(summary), rows, strict=True):
        if member.prescribes:
            layer = member.prescribed_layer
            ax.plot([layer], [row[layer].value], markeredgecolor=look.color, label="prescribed layer", **RING)


def ring_key(summary: Summary) -> list[Line2D]:
    """What the legend says of `rings`; nothing where there are none."""
    if not any(member.prescribes for member in summary.members):
        return []
    return [Line2D([], [], markeredgecolor=QUIET, label="ring: the layer TVP-loss prescribes", **RING)]


def baseline_looks(summary: Summary) -> dict[str, dict[str, Any]]:
    """How the line of each baseline is drawn, with its label: thin, and none of the members' colours."""
    return {
        name: {
            "label": baseline_label(summary, name),
            "color": BASELINE_HUES[place % len(BASELINE_HUES)],
            "linestyle": BASELINE_DASHES[place % len(BASELINE_DASHES)],
            "linewidth": 1.2,
        }
        for place, name in enumerate(summary.base.risk.baselines)
    }


def prior_line() -> Line2D:
    return Line2D([], [], label="prior (knows the family, not the task)", **PRIOR)
