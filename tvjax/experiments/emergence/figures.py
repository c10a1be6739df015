"""The figures of an emergence study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tvjax.evals.learned import USABLE
from tvjax.report.style import (
    HUES,
    INK,
    MARKERS,
    PRIOR,
    QUIET,
    bottom_legend,
    hues,
    log_axis,
    log_limits,
    open_figure,
    quiet,
)

Tree = Mapping[str, Any]
ARMS = {"icl": "ICL loss alone", "tvp": "ICL + TVP-loss", "control": "ICL + the same queries, no vector"}
OVER_SEEDS = "small marks: seeds; large marks and lines: geometric mean and 90% t interval over seeds"
THRESHOLD: dict[str, Any] = {"color": "#9a9a9a", "linestyle": ":", "linewidth": 1.2}
LIMITS = (USABLE / 10, USABLE * 10)
"""Ends of the colour scale of TVP risk over the prior's: usable vectors are blue, others red."""
FACTORS = {
    "layout": "layout {}",
    "positions": "positions: {}",
    "num_layers": "{} layers",
    "width": "width {}",
    "demonstrations": "K = {}",
}


def label(differs_in: Tree) -> str:
    """A condition, named by its differences from the base."""
    return ", ".join(FACTORS[name].format(value) for name, value in differs_in.items()) or "base"


def second_loss(row: Tree) -> str:
    """An arm with a second loss, named by its weight and layer."""
    weight = "" if row["tvp_weight"] == 1 else f"{row['tvp_weight']:g} \N{MULTIPLICATION SIGN} "
    what = f"{weight}TVP-loss at layer {row['prescribed_layer']}" if row["arm"] == "tvp" else f"{weight}control"
    return f"{what} ({label(row['differs_in'])})" if row["differs_in"] else what


def _mark(ax: Axes, offset: float, entry: Tree, color: str, marker: str, *, upright: bool) -> None:
    """Seeds as small marks, their mean with its interval as a large one, at `offset` on the other axis."""
    values = entry["values"]
    where = [offset] * len(values)
    small: dict[str, Any] = {"color": color, "s": 14, "alpha": 0.5, "marker": marker, "linewidths": 0}
    ax.scatter(*((where, values) if upright else (values, where)), **small)
    style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 7}
    style |= {"capsize": 2, "linewidth": 1.4}
    error = None
    if entry["ci"]:
        error = np.array([[entry["mean"] - entry["ci"][0]], [entry["ci"][1] - entry["mean"]]])
    mean = entry["mean"]
    if upright:
        ax.errorbar(offset, mean, yerr=error, **style)
    else:
        ax.errorbar(mean, offset, xerr=error, **style)


def _key(color: str, marker: str, text: str) -> Line2D:
    return Line2D([], [], color=color, marker=marker, linestyle="", label=text)


def _limits(entries: Sequence[Tree], *extra: float) -> tuple[float, float]:
    """What seeds and means span: an interval over few seeds may leave the axis."""
    return log_limits([np.array([*entry["values"], entry["mean"], *extra]) for entry in entries])


def conditions(summary: Tree) -> Figure:
    """A row a condition: ICL risk and the best layer's TVP risk over the prior's."""
    rows = summary["answers"]["emergence"]
    figure = open_figure(
        8.4, 0.9 + 0.42 * len(rows), "ICL loss alone: does a task vector emerge?", f"{summary['task']}; {OVER_SEEDS}"
    )
    ax = figure.subplots()
    log_axis(ax, "x", *_limits([row[name] for row in rows for name in ("icl", "tvp_best")], 1.0))
    for index, row in enumerate(rows):
        _mark(ax, index - 0.13, row["icl"], HUES[0], "o", upright=False)
        _mark(ax, index + 0.13, row["tvp_best"], HUES[1], "s", upright=False)
    ax.axvline(1, **PRIOR)
    ax.axvline(USABLE, **THRESHOLD)
    quiet(ax, "risk / prior's risk", "")
    ax.set_yticks(range(len(rows)), [label(row["differs_in"]) for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    handles = [
        _key(HUES[0], "o", "ICL after all demonstrations"),
        _key(HUES[1], "s", "TVP at the best layer of 1..L-1"),
        Line2D([], [], label="prior", **PRIOR),
        Line2D([], [], label=f"usable: at most {USABLE:g}", **THRESHOLD),
    ]
    bottom_legend(figure, handles)
    return figure


def _by_layer(summary: Tree) -> list[tuple[str, list[float]]]:
    """Rows of the mean TVP risk by layer over the prior's: conditions, then second losses at the base."""
    rows = [
        (label(row["differs_in"]), [entry["mean"] for entry in row["tvp_by_layer"]])
        for row in summary["answers"]["emergence"]
    ]
    for row in summary["answers"]["trained"]:
        members = [
            np.array(member["tvp_risk_by_layer"], float) / population["prior_risk"]
            for population in summary["populations"]
            if population["arm"] == row["arm"] and population["differs_in"] == row["differs_in"]
            for member in population["members"]
            if all(member[name] == row[name] for name in ("tvp_weight", "prescribed_layer"))
        ]
        rows.append((second_loss(row), np.exp(np.log(np.maximum(members, 1e-12)).mean(0)).tolist()))
    return rows


def layers(summary: Tree) -> Figure:
    """A row a condition or a second loss, a column a layer: TVP risk over the prior's."""
    rows = _by_layer(summary)
    alone, depth = len(summary["answers"]["emergence"]), max(len(values) for _, values in rows)
    grid = np.full((len(rows), depth), np.nan)
    for index, (_, values) in enumerate(rows):
        grid[index, : len(values)] = values
    figure = open_figure(
        3.2 + 0.75 * depth,
        0.9 + 0.34 * len(rows),
        "TVP risk by layer, over the prior's",
        f"{summary['task']}; geometric means over seeds; above the line: ICL loss alone",
    )
    ax = figure.subplots()
    _heat(figure, ax, grid, LIMITS, "TVP risk / prior's risk")
    ax.axhline(alone - 0.5, color=INK, linewidth=1.4)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.set_xticks(range(depth))
    ax.set_xlabel("layer whose state is replaced", fontsize=9, color=INK)
    return figure


def _heat(
    figure: Figure,
    ax: Axes,
    grid: np.ndarray,
    limits: tuple[float, float],
    unit: str,
    starred: frozenset[tuple[int, int]] = frozenset(),
) -> None:
    """Cells with their numbers; the colour scale is logarithmic, its middle the geometric mean of the limits."""
    image = ax.imshow(np.ma.masked_invalid(grid), norm=LogNorm(*limits, clip=True), cmap="RdBu_r", aspect="auto")
    middle = np.sqrt(limits[0] * limits[1])
    span = np.log(limits[1] / limits[0]) / 2
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            dark = abs(np.log(max(value, 1e-12) / middle)) > 0.62 * span
            text = (f"{value:.2g}" if value < 100 else f"{value:.0f}") + (" *" if (row, column) in starred else "")
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else INK)
    bar = figure.colorbar(image, ax=ax, pad=0.02, aspect=22)
    bar.set_label(unit, fontsize=8.5, color=INK)
    bar.ax.yaxis.set_major_formatter(lambda value, index: f"{value:g}")
    bar.ax.yaxis.set_minor_formatter(lambda value, index: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    bar.ax.tick_params(which="both", labelsize=8, colors=QUIET)
    ax.tick_params(labelsize=8.5, colors=INK, length=0)


def training(summary: Tree) -> Figure:
    """ICL (left) and TVP (right) at the base condition against the step: geometric means, bands over the seeds."""
    figure = open_figure(
        9.4,
        3.6,
        "How early: risk over the prior's during training, base condition",
        f"{summary['task']}; geometric mean over seeds, bands from the least seed to the most;"
        " TVP at the prescribed layer, or the best of 1..L-1 where none is",
    )
    axes = figure.subplots(1, 2, sharey=True)
    groups: dict[str, list[Tree]] = {}
    for population in summary["populations"]:
        for member in population["members"] if not population["differs_in"] else ():
            known = {**population, **member}
            groups.setdefault(ARMS["icl"] if known["arm"] == "icl" else second_loss(known), []).append(known)
    drawn, handles = [], []
    for index, (name, members) in enumerate(groups.items()):
        color = hues(len(groups))[index]
        steps = members[0]["history"]["step"]
        curves = (
            [np.array(m["history"]["icl_risk"], float) / m["prior_risk"] for m in members],
            [_followed(m) / m["prior_risk"] for m in members],
        )
        for ax, curve in zip(axes, curves, strict=True):
            values = np.maximum(np.array(curve), 1e-12)
            ax.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0)
            ax.plot(steps, np.exp(np.log(values).mean(0)), color=color, linewidth=1.7)
            drawn.append(values)
        handles.append(Line2D([], [], color=color, linewidth=2, label=name))
    log_axis(axes[0], "y", *log_limits([*drawn, np.ones(1)]))
    for ax, title in zip(axes, ("ICL after all demonstrations", "TVP"), strict=True):
        ax.axhline(1, **PRIOR)
        ax.axhline(USABLE, **THRESHOLD)
        quiet(ax, "training step", "risk / prior's risk" if ax is axes[0] else "", title)
    handles += [Line2D([], [], label="prior", **PRIOR), Line2D([], [], label=f"{USABLE:g} of it", **THRESHOLD)]
    bottom_legend(figure, handles)
    return figure


def _followed(member: Tree) -> np.ndarray:
    """TVP risk at each evaluation: at the prescribed layer if TVP-loss trains it, else at the best layer."""
    risks = np.array(member["history"]["tvp_risk_by_layer"], float)
    return risks[:, member["prescribed_layer"]] if member["arm"] == "tvp" else risks[:, 1:-1].min(1)


def prescribed(summary: Tree) -> Figure:
    """By prescribed layer: TVP risk there over the prior's (left), ICL risk over the ICL loss alone (right)."""
    rows = [row for row in summary["answers"]["trained"] if not row["differs_in"]]
    trained = [row for row in rows if row["arm"] == "tvp"]
    control = [row for row in rows if row["arm"] == "control"]
    figure = open_figure(
        9.0, 3.4, "What TVP-loss changes, by the layer that it prescribes", f"{summary['task']}; {OVER_SEEDS}"
    )
    left, right = figure.subplots(1, 2)
    weights = sorted({row["tvp_weight"] for row in trained})
    log_axis(left, "y", *_limits([row["tvp"] for row in trained], 1.0, USABLE))
    log_axis(right, "y", *_limits([row["icl_over_plain"] for row in rows], 1.0))
    for row in trained:
        index = weights.index(row["tvp_weight"])
        x = row["prescribed_layer"] + 0.12 * (index - (len(weights) - 1) / 2)
        look = (hues(len(weights))[index], MARKERS[index % len(MARKERS)])
        _mark(left, x, row["tvp"], *look, upright=True)
        _mark(right, x, row["icl_over_plain"], *look, upright=True)
    beside = max(row["prescribed_layer"] for row in trained) + 1
    for index, row in enumerate(control):
        _mark(right, beside + 0.12 * index, row["icl_over_plain"], QUIET, "D", upright=True)
    left.axhline(USABLE, **THRESHOLD)
    for ax in (left, right):
        ax.axhline(1, **PRIOR)
    ticks = sorted({row["prescribed_layer"] for row in trained})
    left.set_xticks(ticks)
    right.set_xticks([*ticks, beside] if control else ticks, [*map(str, ticks), *(["control"] if control else [])])
    quiet(left, "prescribed layer", "TVP risk there / prior's risk")
    quiet(right, "prescribed layer", "ICL risk / ICL loss alone")
    names = [f"TVP-loss, weight {weight:g}" for weight in weights]
    handles = [_key(hues(len(names))[i], MARKERS[i % len(MARKERS)], name) for i, name in enumerate(names)]
    if control:
        handles.append(_key(QUIET, "D", ARMS["control"]))
    handles.append(Line2D([], [], label="left: prior; right: ICL loss alone", **PRIOR))
    bottom_legend(figure, [*handles, Line2D([], [], label=f"usable: at most {USABLE:g}", **THRESHOLD)])
    return figure


def shifts(summary: Tree) -> Figure:
    """A row a shift, a column a second loss.

    ICL risk over that of the ICL loss alone; a star if the difference is sure.
    """
    rows = [row for row in summary["answers"]["trained"] if not row["differs_in"] and row["shifts_over_plain"]]
    entries = [{**row["shifts_over_plain"], "mean of all": row["all_shifts_over_plain"]} for row in rows]
    names = list(entries[0])
    failed = [[*r["failed_shifts"], *([] if r["working_shifts_over_plain"] else ["mean of all"])] for r in rows]
    grid = np.array([[np.nan if n in f else e[n]["mean"] for e, f in zip(entries, failed, strict=True)] for n in names])
    figure = open_figure(
        3.4 + 1.0 * len(rows),
        1.2 + 0.3 * len(names),
        "Out of distribution: ICL risk over that of the ICL loss alone",
        f"{summary['task']}, base condition; geometric means over seeds; *: the 90% interval leaves 1 out",
    )
    ax = figure.subplots()
    intervals = {(row, column): entries[column][names[row]]["ci"] for (row, column), _ in np.ndenumerate(grid)}
    shown = np.isfinite(grid)
    starred = frozenset(cell for cell, ci in intervals.items() if shown[cell] and ci and not ci[0] <= 1 <= ci[1])
    _heat(figure, ax, grid, (1 / 3, 3.0), "ICL risk / ICL loss alone", starred)
    ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    ax.set_xticks(range(len(rows)), [second_loss(row).replace(" at ", "\nat ") for row in rows])
    ax.axhline(len(names) - 1.5, color=INK, linewidth=1.4)
    return figure
