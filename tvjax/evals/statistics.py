"""Means with intervals: the bootstrap over prompts or questions, and Student's t over seeds."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.9
RESAMPLES = 1000


def draws(random: np.random.Generator, count: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each of `count` entries is drawn, with replacement (Efron 1979): ``[resamples, count]``."""
    return random.multinomial(count, np.full(count, 1 / count), size=resamples)


def interval(resampled: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The percentile interval of resampled statistics ``[resamples, ...]``: ``[2, ...]``."""
    return np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)


def bootstrap(
    losses_P: np.ndarray, *, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """The mean over prompts of ``[P, ...]`` and its percentile bootstrap interval ``[..., 2]``.

    Whole prompts are drawn, the same draws for every entry of a curve, so that curves
    and members that were scored on the same prompts stay paired.
    """
    count = losses_P.shape[0]
    flat = losses_P.reshape(count, -1).astype(np.float64)
    low, high = interval(draws(np.random.default_rng(seed), count, resamples) @ flat / count, level)
    shape = losses_P.shape[1:]
    return flat.mean(0).reshape(shape), np.stack([low, high], axis=-1).reshape(*shape, 2)


def with_interval(name: str, losses_P: np.ndarray) -> dict[str, object]:
    """``{name: mean, name_ci: [low, high]}`` as plain numbers and lists, for a summary."""
    mean, limits = bootstrap(losses_P)
    return {name: mean.tolist(), f"{name}_ci": limits.tolist()}


def ratio(above_P: np.ndarray, below_P: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The sum of `above` over that of `below`, over prompts ``[P, ...]``, and its bootstrap interval ``[..., 2]``.

    Whole prompts are drawn. Where all that is drawn of `below` is 0 the ratio is 0.
    """
    above, below = (a.reshape(len(a), -1).astype(np.float64) for a in (above_P, below_P))
    counts = np.concatenate([np.ones((1, len(above))), draws(np.random.default_rng(seed), len(above))])
    under = counts @ below
    ratios = np.divide(counts @ above, under, out=np.zeros_like(under), where=under != 0)
    value, (low, high) = ratios[0], interval(ratios[1:])
    shape = above_P.shape[1:]
    return value.reshape(shape), np.stack([low, high], axis=-1).reshape(*shape, 2)


def macro(groups: Sequence[np.ndarray], *, seed: int = 0) -> tuple[float, list[float]]:
    """The mean of the means of groups ``[n]``, and its percentile bootstrap interval: drawn anew within each group.

    Of accuracies by task the mean is the macro average; of the differences of two methods on the same queries, a paired
    comparison. Each group has draws of its own, the same for every method.
    """
    random = np.random.default_rng(seed)
    means, resampled = [], []
    for values in groups:
        count = len(values)
        means.append(values.mean())
        resampled.append(draws(random, count) @ np.asarray(values, np.float64) / count)
    low, high = interval(np.mean(resampled, 0))
    return float(np.mean(means)), [float(low), float(high)]


def of_known(name: str, groups: Sequence[np.ndarray]) -> dict[str, object]:
    """``{name: mean, name_ci: [low, high]}`` of groups ``[n]``, as `macro`, without the entries that are nan.

    Both are None if nothing is left. A group of which nothing is left does not count.
    """
    known = [values[~np.isnan(values)] for values in groups]
    mean, limits = macro([values for values in known if len(values)]) if any(map(len, known)) else (None, None)
    return {name: mean, f"{name}_ci": limits}


def over_tasks(groups: Sequence[np.ndarray], *, seed: int = 0) -> tuple[float, list[float]]:
    """As `macro`, but the groups ``[n]`` are drawn too: the interval is for other tasks of the kind as well. [ours]

    Of each resample, as many tasks are drawn as there are, with replacement, and within each draw its entries anew.
    """
    random, count = np.random.default_rng(seed), len(groups)
    means = [draws(random, len(values)) @ np.asarray(values, np.float64) / len(values) for values in groups]
    task, row = (random.integers(most, size=(RESAMPLES, count)) for most in (count, RESAMPLES))
    low, high = interval(np.stack(means)[task, row].mean(1))
    return float(np.mean([np.mean(values) for values in groups])), [float(low), float(high)]


def student(values: Sequence[float], *, level: float = LEVEL) -> tuple[float, list[float] | None]:
    """The mean of a number a seed, and its interval by Student's t, which says what another seed would give.

    None for a single seed.
    """
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, None
    half = float(stdtrit(len(array) - 1, (1 + level) / 2) * array.std(ddof=1) / len(array) ** 0.5)
    return mean, [mean - half, mean + half]


def over_seeds(values: Sequence[float], *, level: float = LEVEL) -> tuple[float, list[float] | None]:
    """The geometric mean of positive numbers, one a seed, and its interval: `student` of their logarithms."""
    mean, limits = student([math.log(value) for value in values], level=level)
    return float(np.exp(mean)), limits and [float(np.exp(end)) for end in limits]


def of_metric(name: str, values: Sequence[float]) -> tuple[float, list[float] | None]:
    """The mean over seeds of a metric and its interval: of risks and losses geometric, of all else arithmetic. [ours]

    Risks of seeds differ by factors, and their arithmetic interval would reach below 0. With a risk of 0 among them it
    is arithmetic after all.
    """
    by_factors = name.endswith(("_risk", "_loss", "_risk_by_layer", "_loss_by_layer"))
    return over_seeds(values) if by_factors and min(values) > 0 else student(values)
