"""How much of one set of vectors another holds: explained variance, as it stands and through a linear map. [ours]

P prompts; D and E are the widths of the two sets. A map is fitted on every second prompt and scored on the others, so
that vectors of any width can be compared: what a map learns by heart does not count.
"""

from collections.abc import Mapping

import numpy as np

from tvjax.evals.statistics import ratio

RIDGE = 1e-6
"""What is added to the second moments of a map's inputs, as a share of their mean over the D directions."""


def explained(true_PE: np.ndarray, read_PE: np.ndarray, *, seed: int = 0) -> tuple[float, list[float]]:
    """``1 - sum |true - read|^2 / sum |true - mean|^2``, and its percentile bootstrap interval over prompts.

    1 is all of the variance, 0 is what the mean alone would get, and less than 0 is worse than the mean. The mean is
    that of all prompts in every draw. If `true` never varies there is nothing to explain: 0.
    """
    true, read = true_PE.astype(np.float64), read_PE.astype(np.float64)
    spread_P = np.square(true - true.mean(0, keepdims=True)).sum(1)
    if not spread_P.any():
        return 0.0, [0.0, 0.0]
    missed, (low, high) = ratio(np.square(true - read).sum(1), spread_P, seed=seed)
    return float(1 - missed), [float(1 - high), float(1 - low)]


def mapped(source_PD: np.ndarray, wanted_PE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is wanted of prompts 1, 3, .., and what the best linear map of prompts 0, 2, .. makes of `source_PD` there.

    The map is affine, of least squares, in float64, with `RIDGE`. At least two prompts.
    """
    source, wanted = source_PD.astype(np.float64), wanted_PE.astype(np.float64)
    middle_D, middle_E = source[::2].mean(0, keepdims=True), wanted[::2].mean(0, keepdims=True)
    centred = source[::2] - middle_D
    moments_DD = centred.T @ centred
    ridge = max(RIDGE * np.trace(moments_DD) / len(moments_DD), np.finfo(float).tiny)
    kernel_DE = np.linalg.solve(moments_DD + ridge * np.eye(len(moments_DD)), centred.T @ (wanted[::2] - middle_E))
    return wanted[1::2], (source[1::2] - middle_D) @ kernel_DE + middle_E


def neighbours(source_PD: np.ndarray, wanted_PE: np.ndarray, count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """What is wanted of prompts 1, 3, .., and its mean over the nearest of prompts 0, 2, .. by `source_PD`.

    The nearest are `count` neighbours by Euclidean distance (all, if there are fewer), and those as near as the last of
    them, so that a source that never varies says the mean. Neighbours read what no linear map brings out.
    """
    source, wanted = source_PD.astype(np.float64), wanted_PE.astype(np.float64)
    known, queries = (half - source.mean(0, keepdims=True) for half in (source[::2], source[1::2]))
    distance = np.square(known).sum(1)[None] - 2 * queries @ known.T  # less |asked|^2, which orders nothing
    limit = np.sort(distance, axis=1)[:, : min(count, len(known))][:, -1:]
    near = (distance <= limit).astype(np.float64)
    return wanted[1::2], near @ wanted[::2] / near.sum(1, keepdims=True)


def readable(parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Task parameters ``{name: [P, ...]}`` as a linear map can say them, ``{name: [P, E]}``.

    Whole numbers are classes, one-hot; a phase is its cosine and its sine.
    """
    values = {}
    for name, value in parameters.items():
        flat = value.reshape(len(value), -1)
        if flat.dtype.kind in "iub":
            flat = (flat[:, :, None] == np.unique(flat)[None, None]).reshape(len(flat), -1).astype(np.float64)
        elif "phase" in name:
            flat = np.concatenate([np.cos(flat), np.sin(flat)], axis=1)
        values[name] = flat
    return values
