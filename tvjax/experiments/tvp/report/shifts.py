"""The figure of robustness: ICL and TVP risk under each shift, relative to the prior's risk under the shift."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tvjax.experiments.tvp.report.looks import evidence, looks
from tvjax.experiments.tvp.report.summary import Condition, Member, Summary
from tvjax.report.style import INK, QUIET, bottom_legend, log_axis, open_figure, quiet
from tvjax.report.words import Estimate, number

FLOOR, CEILING = 0.005, 50.0
ORACLE_COLOR = "#b5b5b5"

Row = list[Estimate | None]


def icl_ratio(condition: Condition, index: int) -> Estimate:
    """Member `index`'s ICL risk at all demonstrations, relative to the prior's risk under this condition."""
    return condition.risk.scores[index].icl[condition.num_demonstrations].over(float(condition.risk.prior.value))


def tvp_ratio(condition: Condition, index: int, member: Member) -> Estimate:
    """Member `index`'s TVP risk at the prescribed layer, relative to the prior's risk under this condition."""
    return condition.risk.scores[index].tvp[member.prescribed_layer].over(float(condition.risk.prior.value))


def oracle_ratio(condition: Condition) -> Estimate | None:
    """The oracle's risk at all demonstrations relative to the prior's; None: the task has no oracle."""
    if condition.risk.oracle is None:
        return None
    return condition.risk.oracle[condition.num_demonstrations].over(float(condition.risk.prior.value))


def shifts_figure(summary: Summary) -> Figure:
    """Bars from the prior (1.0): ICL risk at K demonstrations left, with the oracle; TVP risk at the prescribed layer
    right. One group a shift, the training condition first. What leaves the axis is cut there, its number written.
    """
    members, conditions = summary.members, [summary.base, *summary.shifts]
    oracle: Row = [oracle_ratio(condition) for condition in conditions]
    thickness = 0.105 if len(summary.members) <= 4 else 0.08
    figure = open_figure(
        9.8,
        0.9 + len(conditions) * (thickness * (len(summary.members) + 1) + 0.13),
        "Out of distribution: risk relative to each shift's own prior",
        f"{summary.task}; bars start at the prior (1): to the left better, to the right worse; log axis, bars beyond it"
        f" are cut and their value written\n{evidence(summary, 'whiskers')}",
    )
    left, right = figure.subplots(1, 2, sharey=True)
    icl: list[Row] = [
        [icl_ratio(condition, index) for condition in conditions] for index in range(len(summary.members))
    ]
    tvp: list[Row] = [
        [tvp_ratio(condition, index, member) for condition in conditions] for index, member in enumerate(members)
    ]
    limits = _limits([entry for row in [oracle, *icl, *tvp] for entry in row if entry is not None])
    colors = [look.color for look in looks(summary)]
    _panel(left, [oracle, *icl], [ORACLE_COLOR, *colors], limits)
    _panel(right, tvp, colors, limits)
    quiet(left, "ICL risk / prior risk", "", "ICL, all demonstrations")
    quiet(right, "TVP risk / prior risk", "", "TVP at the prescribed layer")
    left.set_yticks(range(len(conditions)), [condition.name.replace("_", " ") for condition in conditions])
    left.tick_params(axis="y", labelcolor=INK, labelsize=9, length=0)
    right.tick_params(axis="y", length=0)
    left.set_ylim(len(conditions) - 0.5, -0.5)
    handles = [Patch(color=look.color, label=look.label) for look in looks(summary)]
    bottom_legend(
        figure, [*handles, *([Patch(color=ORACLE_COLOR, label="oracle (left panel)")] if any(oracle) else [])]
    )
    return figure


def _limits(entries: list[Estimate]) -> tuple[float, float]:
    values = np.array([float(entry.value) for entry in entries])
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return 0.1, 10.0
    low, high = min(values.min() / 1.3, 0.5), max(values.max() * 1.6, 3.0)
    return float(max(low, FLOOR)), float(min(high, CEILING))


def _panel(ax: Axes, series: list[Row], colors: list[str], limits: tuple[float, float]) -> None:
    log_axis(ax, "x", *limits)
    height = 0.78 / len(series)
    for index, (entries, color) in enumerate(zip(series, colors, strict=True)):
        for row, entry in enumerate(entries):
            if entry is not None:
                _bar(ax, row + (index - (len(series) - 1) / 2) * height, height, entry, color, limits)
    ax.axvline(1.0, color=INK, linewidth=1.0)
    for row in range(1, len(series[0])):
        ax.axhline(row - 0.5, color="#d6d6d6", linewidth=0.7)


def _bar(ax: Axes, y: float, height: float, entry: Estimate, color: str, limits: tuple[float, float]) -> None:
    value = float(entry.value)
    if np.isnan(value):
        ax.text(1.0, y, " n/a", fontsize=6.5, color=QUIET, va="center")
        return
    end = float(np.clip(value, *limits))
    ax.barh(y, end - 1.0, height * 0.88, left=1.0, color=color, linewidth=0)
    if limits[0] < value < limits[1]:
        low, high = np.clip([entry.low, entry.high], *limits)
        ax.plot([low, high], [y, y], color=INK, linewidth=0.8, solid_capstyle="butt")
    else:
        high = value >= limits[1]
        text = f"{number(value)} \N{RIGHTWARDS ARROW}" if high else f"\N{LEFTWARDS ARROW} {number(value)}"
        ax.annotate(
            text,
            (end, y),
            (-3 if high else 3, 0),
            textcoords="offset points",
            ha="right" if high else "left",
            va="center_baseline",
            fontsize=6.5,
            color="white" if color != ORACLE_COLOR else INK,
        )
