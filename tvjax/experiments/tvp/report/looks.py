"""How members, baselines and references are drawn, the same in every figure of a TVP run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tvjax.experiments.tvp.report.members import arms, baseline_label, titles
from tvjax.experiments.tvp.report.summary import Summary
from tvjax.report.style import MARKERS, PRIOR, QUIET, hues
from tvjax.report.words import Estimate

RING: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 13,
    "markerfacecolor": "none",
    "markeredgewidth": 1.6,
}
BASELINE_HUES = ("#8c6d31", "#5254a3", "#843c39", "#637939", "#7b4173")
BASELINE_DASHES: tuple[Any, ...] = ((0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (7, 2)))


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
    groups = list(arms(summary.members).values())
    for position, (indices, hue) in enumerate(zip(groups, hues(len(groups)), strict=True)):
        for seed, index in enumerate(indices):
            paler = 0.6 * seed / max(1, len(indices) - 1) if len(indices) > 1 else 0.0
            shade = _mixed_with_white(hue, paler)
            marker = MARKERS[(position + seed) % len(MARKERS)]
            result[index] = Look(names[index], shade, marker)
    return [result[index] for index in range(len(summary.members))]


def _mixed_with_white(color: str, share: float) -> str:
    red, green, blue = colors.to_rgb(color)
    return colors.to_hex((red + (1 - red) * share, green + (1 - green) * share, blue + (1 - blue) * share))


def evidence(summary: Summary, marks: str = "bands") -> str:
    """What every evaluation figure says of its numbers: ``n = 1024 prompts; bands: 90% bootstrap``."""
    return f"n = {summary.num_prompts} prompts; {marks}: 90% bootstrap interval over prompts"


def axis_label(summary: Summary, kind: str, word: str) -> str:
    return f"{kind} risk\n{summary.risk_unit}" if word == "risk" else f"{kind} accuracy\nfraction correct"


def member_lines(styles: Sequence[Look], markers: bool = False) -> list[Line2D]:
    return [
        Line2D([], [], color=look.color, linewidth=2, marker=look.marker if markers else None, label=look.label)
        for look in styles
    ]


def rings(ax: Axes, summary: Summary, rows: Sequence[Estimate]) -> None:
    """Draw a ring around the value at the prescribed layer of each member that has one.

    rows: one a member, by layer.
    """
    for member, look, row in zip(summary.members, looks(summary), rows, strict=True):
        if member.prescribes:
            layer = member.prescribed_layer
            ax.plot([layer], [row[layer].value], markeredgecolor=look.color, label="prescribed layer", **RING)


def ring_key(summary: Summary) -> list[Line2D]:
    """The legend of `rings`; empty if there are none."""
    if not any(member.prescribes for member in summary.members):
        return []
    return [Line2D([], [], markeredgecolor=QUIET, label="ring: the layer TVP-loss prescribes", **RING)]


def baseline_looks(summary: Summary) -> dict[str, dict[str, Any]]:
    """How the line of each baseline is drawn, with its label: thin, and in no colour of the members."""
    return {
        name: {
            "label": baseline_label(summary, name),
            "color": BASELINE_HUES[index % len(BASELINE_HUES)],
            "linestyle": BASELINE_DASHES[index % len(BASELINE_DASHES)],
            "linewidth": 1.2,
        }
        for index, name in enumerate(summary.base.risk.baselines)
    }


def prior_line() -> Line2D:
    return Line2D([], [], label="prior (knows the family, not the task)", **PRIOR)
