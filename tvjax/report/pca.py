"""The two main directions of vectors, and colours by the parameters that the vectors should encode."""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize

from tvjax.report.reader import Vectors

MOST_PANELS = 3
"""The most panels of one set of vectors, one a parameter."""


def principal(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [P, 2] of `theta` [P, D] along its first two principal directions, and their share of the variance.

    Signs are fixed (the largest loading is positive), so the same vectors always give the same picture.
    """
    centred = theta - theta.mean(0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    share = singular**2 / max(float((singular**2).sum()), np.finfo(float).tiny)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    points = left * singular * np.where(signs == 0, 1, signs)
    points, share = np.pad(points, ((0, 0), (0, 2))), np.pad(share, (0, 2))
    return points[:, :2], share[:2]


def coordinates(vectors: Vectors) -> dict[str, np.ndarray]:
    """The values that colour the panels.

    Scalar parameters and the first two coordinates of vectors, unless constant.
    """
    colours: dict[str, np.ndarray] = {}
    for name, value in sorted(vectors.parameters.items()):
        flat = value.reshape(len(value), -1)
        for index in range(min(2, flat.shape[1])):
            label = name if value.ndim == 1 else f"{name}[{index}]"
            if np.ptp(flat[:, index].astype(np.float64)) > 0:
                colours[label] = flat[:, index]
    return dict(list(colours.items())[:MOST_PANELS])


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
