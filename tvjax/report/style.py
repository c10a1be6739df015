"""One look for all figures: colours that colour-blind readers can tell apart, a heading, a legend, quiet axes.

Figures are made without pyplot and touch nothing global, so reports can be made in threads and beside notebooks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tvjax.report.words import number

DPI = 150
INK, QUIET, GRID = "#1a1a1a", "#5c5c5c", "#e4e4e4"
PRIOR: dict[str, Any] = {"color": "#6b6b6b", "linestyle": (0, (4, 3)), "linewidth": 1.3}
ORACLE: dict[str, Any] = {"color": INK, "linestyle": "-", "linewidth": 1.6}
HUES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00", "#56b4e9", "#882255", "#7f7f00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")


def hues(count: int) -> tuple[str, ...]:
    """`count` different colours: the first of `HUES`, or, of more than there are, steps around a map of colours."""
    if count <= len(HUES):
        return HUES[:count]
    return tuple(to_hex(color) for color in colormaps["turbo"](np.linspace(0.03, 0.97, count)))


def open_figure(width: float, height: float, title: str, subtitle: str) -> Figure:
    """An empty figure of `width` x `height` inches below a heading. Axes keep clear of the heading."""
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
    """Label `ax` and remove lines that carry no data."""
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

    Zeros are drawn at the end of the axis.
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
    """One legend for the whole figure, below its axes, in at most so many columns that no label is cut."""
    labels = [str(getattr(handle, "get_label", str)()) for handle in handles]
    room = figure.get_size_inches()[0]
    figure.legend(
        handles=list(handles),
        loc="outside lower left",
        ncols=next((n for n in range(columns, 1, -1) if _width(labels, n) <= room), 1),
        fontsize=8.5,
        frameon=False,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=2.0,
    )


def _width(labels: Sequence[str], columns: int) -> float:
    """About how many inches a legend takes, which fills one column after another."""
    rows = -(-len(labels) // columns)
    parts = [labels[start : start + rows] for start in range(0, len(labels), rows)]
    return sum(0.064 * max(map(len, part)) + 0.55 for part in parts)


def log_limits(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([np.ravel(group) for group in groups])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 0.1, 10.0
    low, high = float(values.min()), float(values.max())
    margin = max(1.15, (high / low) ** 0.06)
    return low / margin, high * margin
