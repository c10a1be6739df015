"""What task vectors say by themselves: which tasks can be read from the vectors, what the vectors vary with, and the
rank of the map that the vectors carry. [ours]

No model runs here, so nothing here is causal but the rank: that a task can be read from a state does not say that the
model reads the task there. P prompts, m dummy queries each, L layers, X inputs, Y outputs, R = min(X, Y) directions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tvjax.evals import recovery
from tvjax.evals.statistics import draws, interval, ratio, with_interval

READERS = {"linear": recovery.mapped, "neighbours": recovery.neighbours}
"""Each fits on every second prompt and is scored on the others."""


def decodability(theta_PLD: np.ndarray, parameters: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How much of the tasks' parameters ``{name: [P, ...]}`` can be read from theta^l, for l = 0..L. [ours]

    ``{reader: {name: {'explained': [L+1], 'explained_ci': [L+1, 2], ...}}}`` with ``1 - sum |true - read|^2 /
    sum |true - mean|^2`` (`recovery.explained`) and, for whole numbers, `accuracy`: how often the class that is read
    with the most weight is the true one. Of several parameters `all` is what is explained of all together, each of unit
    variance. The intervals hold the fit. At least two prompts.
    """
    wanted = recovery.readable(parameters)
    values = dict(parameters)
    if len(wanted) > 1:
        parts = [part / max(part.var(0).sum() ** 0.5, np.finfo(float).tiny) for part in wanted.values()]
        wanted["all"] = values["all"] = np.concatenate(parts, axis=1)
    return {
        reader: {name: _read(read, theta_PLD, wanted[name], values[name]) for name in wanted}
        for reader, read in READERS.items()
    }


def _read(read: Any, theta_PLD: np.ndarray, wanted_PE: np.ndarray, value: np.ndarray) -> dict[str, Any]:
    """One parameter at every layer. wanted_PE: what `recovery.readable` makes of `value`."""
    layers = [read(theta_PLD[:, layer], wanted_PE) for layer in range(theta_PLD.shape[1])]
    scores = [recovery.explained(*pair) for pair in layers]
    entry: dict[str, Any] = {"explained": [e[0] for e in scores], "explained_ci": [e[1] for e in scores]}
    if value.dtype.kind in "iub":
        classes = len(np.unique(value))
        chosen = [[part.reshape(len(part), -1, classes).argmax(-1) for part in pair] for pair in layers]
        right_PL = np.stack([(true == guess).mean(1) for true, guess in chosen], axis=1)
        entry |= with_interval("accuracy", right_PL)
    return entry


def entanglement(theta_LPSD: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """How much theta varies with the dummy query, for each unit that it varies with the task: ``{'ratio': [L+1], ..}``.

    ``W / (B - W / m)``, each summed over the D channels: W is the variance over a prompt's m dummy queries, in the mean
    over prompts, B the variance over prompts of the mean over dummy queries; both unbiased, and W / m is what the dummy
    queries add to B. 0 if theta is the same for all of them; None if theta does not vary with the task beyond that.
    The interval is over prompts. [ours]
    """
    theta = theta_LPSD.astype(np.float64)
    theta = theta - theta[:, :1, :1]  # so that what never varies has a variance of 0, not one of rounding
    prompts, queries = theta.shape[1:3]
    counts = np.concatenate([np.ones((1, prompts)), draws(np.random.default_rng(seed), prompts)])
    shares = []
    for theta_PSD in theta:
        within = counts @ theta_PSD.var(1, ddof=1).sum(-1) / prompts
        centre_PD = theta_PSD.mean(1)
        centre_PD = centre_PD - centre_PD.mean(0, keepdims=True)
        second = counts @ np.square(centre_PD).sum(-1) / prompts
        between = (second - np.square(counts @ centre_PD / prompts).sum(-1)) * prompts / (prompts - 1)
        total = within + np.maximum(between - within / queries, 0)
        # As a share, which has an end: what is 1 has no ratio, but its place among the draws.
        shares.append(np.divide(within, total, out=np.zeros_like(within), where=total > 0))
    low_high = [interval(share[1:]) for share in shares]
    return {
        "ratio": [_odds(share[0]) for share in shares],
        "ratio_ci": [[_odds(low), _odds(high)] for low, high in low_high],
    }


def _odds(share: float) -> float | None:
    return None if share >= 1 else float(share / (1 - share))


def linear_map(x_PNX: np.ndarray, y_PNY: np.ndarray) -> np.ndarray:
    """The map ``[P, Y, X]`` of each prompt that makes of its N inputs what comes nearest to y, by least squares."""
    return (np.linalg.pinv(x_PNX.astype(np.float64)) @ y_PNY.astype(np.float64)).swapaxes(1, 2)


def rank(map_PYX: np.ndarray, w_PYX: np.ndarray) -> dict[str, Any]:
    """Which of the directions of y = W x the map What that a vector carries has, W = U S V' prompt by prompt. [ours]

    captured: ``[R]``, ``u_r' What v_r / s_r``: 1 if direction r is carried exactly, 0 if not at all. Over prompts the
        mean with weights s_r^2, ``sum s_r u_r' What v_r / sum s_r^2``, for 1 / s_r has no mean.
    participation, true_participation: ``(sum s)^2 / sum s^2`` of the singular values of What and of W, the number of
        directions if the values are equal; of a single vector rank one is predicted (Dong et al. 2025).
    power: ``sum |What|^2 / sum |W|^2``; if the power is near 0 the participation is that of noise.
    """
    u_PYR, s_PR, v_PRX = np.linalg.svd(w_PYX.astype(np.float64), full_matrices=False)
    along_PR = np.einsum("pyr,pyx,prx->pr", u_PYR, map_PYX, v_PRX)
    captured, captured_ci = ratio(along_PR * s_PR, np.square(s_PR))
    power, power_ci = ratio(np.square(map_PYX).sum((1, 2)), np.square(s_PR).sum(1))
    entry: dict[str, Any] = {"captured": captured.tolist(), "captured_ci": captured_ci.tolist()}
    entry |= {"power": power.tolist(), "power_ci": power_ci.tolist()}
    for name, singular_PR in (
        ("participation", np.linalg.svd(map_PYX, compute_uv=False)),
        ("true_participation", s_PR),
    ):
        power_P = np.maximum(np.square(singular_PR).sum(1), np.finfo(float).tiny)
        entry |= with_interval(name, np.square(singular_PR.sum(1)) / power_P)
    return entry
