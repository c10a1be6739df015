"""The figure of the vectors themselves: their two main directions, coloured by what they should encode."""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from tvjax.report.reader import Run, Vectors
from tvjax.report.style import INK, QUIET, looks, open_figure, quiet

MOST_PANELS, MOST_MEMBERS = 3, 12


def principal(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [P, 2] of `theta` [P, D] along its first two principal directions, and their share of the variance.

    Signs are fixed (the largest loading is positive), so that the same vectors always give the same picture.
    """
    centred = theta - theta.mean(0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    share = singular**2 / max(float((singular**2).sum()), np.finfo(float).tiny)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    points = left * singular * np.where(signs == 0, 1, signs)
    points, share = np.pad(points, ((0, 0), (0, 2))), np.pad(share, (0, 2))
    return points[:, :2], share[:2]


def coordinates(vectors: Vectors) -> dict[str, np.ndarray]:
    """What colours the panels: scalar parameters, the first two coordinates of vectors; nothing that is constant."""
    found: dict[str, np.ndarray] = {}
    for name, value in sorted(vectors.parameters.items()):
        flat = value.reshape(len(value), -1)
        for place in range(min(2, flat.shape[1])):
            label = name if value.ndim == 1 else f"{name}[{place}]"
            if np.ptp(flat[:, place].astype(np.float64)) > 0:
                found[label] = flat[:, place]
    return dict(list(found.items())[:MOST_PANELS])


def pca_figure(run: Run) -> Figure:
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
    for place, (member, look) in enumerate(zip(members, styles, strict=True)):
        row, block = divmod(place, blocks)
        title = f"{look.label}\nvectors of layer {member.prescribed_layer}"
        _member(figure, grid[row, block * panels : (block + 1) * panels], run.vectors[place], title)
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
    """`principal` of the rows that are finite; the others get no place."""
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


def colour_scale(name: str, value: np.ndarray) -> tuple[Colormap, Normalize, list[float] | None]:
    """Colours for a parameter: steps for whole numbers, a closed circle for a phase, else dark to bright."""
    if value.dtype.kind in "iub":
        levels = np.unique(value).astype(float)
        colours = ListedColormap(colormaps["viridis"](np.linspace(0, 1, len(levels))))
        middles = (levels[1:] + levels[:-1]) / 2
        norm = BoundaryNorm(np.concatenate([[levels[0] - 0.5], middles, [levels[-1] + 0.5]]), len(levels))
        return colours, norm, list(levels[:: -(-len(levels) // 10)])
    if "phase" in name:
        low = float(np.floor(value.min() / np.pi + 1e-6) * np.pi)
        return colormaps["twilight"], Normalize(low, low + 2 * np.pi), None
    low, high = np.percentile(value, [2, 98])
    return colormaps["viridis"], Normalize(float(low), float(high)), None
