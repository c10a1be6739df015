"""The figure of the vectors: their two main directions, coloured by the parameters that they should encode."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tvjax.experiments.tvp.report.looks import looks
from tvjax.experiments.tvp.report.reader import TVPRun
from tvjax.report.pca import colour_scale, coordinates, principal
from tvjax.report.reader import Vectors
from tvjax.report.style import INK, QUIET, open_figure, quiet

MOST_MEMBERS = 12


def pca_figure(run: TVPRun) -> Figure:
    """PCA of each member's task vectors at its prescribed layer; one panel a parameter, coloured by it."""
    members, styles = run.summary.members[:MOST_MEMBERS], looks(run.summary)[:MOST_MEMBERS]
    panels = max(1, max(len(coordinates(vectors)) for vectors in run.vectors))
    blocks = 1 if len(members) <= 3 and panels > 1 else min(len(members), 4 // panels or 1)
    rows, columns = -(-len(members) // blocks), panels * blocks
    left_out = (
        f"; {MOST_MEMBERS} of {len(run.summary.members)} members" if len(run.summary.members) > MOST_MEMBERS else ""
    )
    figure = open_figure(
        9.8 if columns > 2 else 8.2,
        rows * (3.0 if columns <= 3 else 2.55),
        "Do the vectors encode the task? Their first two principal components",
        f"{run.summary.task}; n = {len(run.vectors[0].theta)} prompts, a point each; vectors of the prescribed layer,"
        f" coloured by the task's true parameter{left_out}",
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax in grid.flat:
        ax.set_visible(False)
    for index, (member, look) in enumerate(zip(members, styles, strict=True)):
        row, block = divmod(index, blocks)
        title = f"{look.label}\nvectors of layer {member.prescribed_layer}"
        _member(figure, grid[row, block * panels : (block + 1) * panels], run.vectors[index], title)
    return figure


def _member(figure: Figure, axes: np.ndarray, vectors: Vectors, title: str) -> None:
    """One member's panels: the same points, coloured by one parameter after the other."""
    points, share = _finite_principal(vectors.theta)
    values = coordinates(vectors) or {"": np.zeros(len(points))}
    for ax, (name, value), heading in zip(axes, values.items(), [title] + ["\n"] * (len(values) - 1), strict=False):
        ax.set_visible(True)
        _panel(figure, ax, points, name, value)
        quiet(ax, f"PC 1 ({share[0]:.0%} of variance)", f"PC 2 ({share[1]:.0%})", heading)
        ax.title.set_fontsize(8.5)
        ax.set_xticks([])
        ax.set_yticks([])


def _finite_principal(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`principal` of the finite rows; the other rows are NaN."""
    finite = np.isfinite(theta).all(1)
    points = np.full((len(theta), 2), np.nan)
    if finite.sum() < 2:
        return points, np.zeros(2)
    points[finite], share = principal(theta[finite])
    return points, share


def _panel(figure: Figure, ax: Axes, points: np.ndarray, name: str, value: np.ndarray) -> None:
    colours, norm, ticks = colour_scale(name, value)
    dots = ax.scatter(points[:, 0], points[:, 1], c=value, cmap=colours, norm=norm, s=9, linewidths=0, alpha=0.85)
    if not name:
        return
    bar = figure.colorbar(dots, ax=ax, pad=0.02, aspect=22, ticks=ticks)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7.5, colors=QUIET, length=2)
    bar.outline.set_visible(False)
    bar.set_label(f"{name} (radians)" if "phase" in name else name, fontsize=8.5, color=INK)
