"""The usual estimators beside a model: what its demonstrations say to methods that know nothing of its family.

As in Garg et al. (2022), each predicts y_i from the pairs before it and answers 0 where there is none. P prompts, N
pairs, X inputs. Everything is float64 on the host, and a trained tree's ties are broken by a fixed seed: the same pairs
give the same numbers.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from tvjax.evals.statistics import with_interval
from tvjax.tasks import Task, TokenTask

NEIGHBOURS = 3
MOST_COUNTS = 24
"""Numbers of demonstrations that are tried; of more, so many are taken evenly, the first and the last among them."""
CLOSED_FORMS, FITS = 2**15, 5 * 2**10
"""Pairs (prompt, number of demonstrations) that are tried: of what is one formula, and of what scikit-learn fits."""

SMOOTHING = 0.1
"""What is added to each count of a trigram."""

Estimator = Callable[..., np.ndarray]
"""From i pairs of each prompt, x ``[P, i, X]`` and y ``[P, i]`` with i > 0, and a query ``[P, X]``, to ``[P]``.

One of tokens is also told how many there are, and answers with their probabilities, ``[P, tokens]``.
"""


def predict(names: Iterable[str], x: np.ndarray, y: np.ndarray, tokens: int = 0) -> dict[str, np.ndarray]:
    """Predictions ``{name: [P, N, Y]}`` of y ``[P, N, Y]`` at x ``[P, N, X]``; entry i has seen the pairs before i.

    Not all are made, so that those of a family take at most some 20 s on two cores: of more than `MOST_COUNTS` pairs so
    many i, spread evenly, and only the first prompts, as many as make `CLOSED_FORMS` predictions, or `FITS` if each
    is a fit of scikit-learn (a millisecond or two). Each output is predicted by itself. Those left out are
    not-a-number. Raises KeyError for a name that is not in `BASELINES`. Of tokens, `tokens` many, y begins with the one
    that was observed and predictions are log-probabilities ``[P, N, tokens]``.
    """
    x, y = (x, y[..., :1]) if tokens else (x.astype(np.float64), y.astype(np.float64))
    prompts, pairs, outputs = y.shape
    chosen = np.unique(np.linspace(0, pairs - 1, min(pairs, MOST_COUNTS)).round().astype(int))
    predictions = {}
    for name in names:
        estimate, most = BASELINES[name]
        size = min(prompts, max(1, most // (len(chosen) * outputs)))
        predictions[name] = np.full((prompts, pairs, tokens or outputs), np.nan)
        for i, output in itertools.product(chosen, range(outputs)):
            shown = (x[:size, :i], y[:size, :i, output], x[:size, i])
            if tokens:
                predictions[name][:size, i] = np.log(estimate(*shown, tokens)) if i else 0.0
            else:
                predictions[name][:size, i, output] = estimate(*shown) if i else 0.0
    return predictions


def summary(task: Task, x: np.ndarray, y: np.ndarray) -> dict[str, dict[str, Any]]:
    """The scores of the family's baselines on pairs x, y, for a summary.

    ``{name: {'num_prompts': n, 'risk': [N], 'risk_ci': [N, 2], ...}}`` by number of demonstrations; None if that
    number was not tried; ``{}`` for a family that has none.
    """
    entries: dict[str, dict[str, Any]] = {}
    if not task.baselines:
        return entries
    tokens = task.vocab_size if isinstance(task, TokenTask) else 0
    for name, predictions in predict(task.baselines, x, y, tokens).items():
        tried_P, tried_N = (~np.isnan(predictions[..., 0]).all(axis) for axis in (1, 0))
        scores = task.scores(jnp.asarray(predictions[tried_P][:, tried_N]), jnp.asarray(y[tried_P][:, tried_N]))
        entries[name] = {"num_prompts": int(tried_P.sum())}
        for word, score in scores.items():
            for key, values in with_interval(word, np.asarray(score)).items():
                entries[name][key] = _spread(list(values), tried_N)  # type: ignore[call-overload]
    return entries


def _spread(values: list[Any], tried_N: np.ndarray) -> list[Any]:
    """Values in the places that were tried; in the others None, or two of them for an interval."""
    left, nothing = iter(values), [None, None] if isinstance(values[0], list) else None
    return [next(left) if tried else nothing for tried in tried_N]


def least_squares(x: np.ndarray, y: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Minimum-norm least squares, without intercept. What x cannot tell from 0 in float32 counts as 0."""
    cut = 10 * max(x.shape[1:]) * float(np.finfo(np.float32).eps)
    return _dot(query, (np.linalg.pinv(x, rcond=cut) @ y[..., None])[..., 0])


def nearest_neighbours(x: np.ndarray, y: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The mean answer of the `NEIGHBOURS` demonstrations nearest to the query (of all, if there are fewer)."""
    distance = np.square(x - query[:, None]).sum(-1)
    nearest = distance.argsort(1, kind="stable")[:, :NEIGHBOURS]
    return np.take_along_axis(y, nearest, 1).mean(1)


def averaging(x: np.ndarray, y: np.ndarray, query: np.ndarray) -> np.ndarray:
    """``w.x`` with w the mean of y_j x_j."""
    return _dot(query, (x * y[..., None]).mean(1))


def lasso(x: np.ndarray, y: np.ndarray, query: np.ndarray, alpha: float) -> np.ndarray:
    """The w of least ``|y - Xw|^2 / 2i + alpha |w|_1``, without intercept."""
    # Here, as below: scikit-learn takes seconds to import, and most programs that import this file fit nothing.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lasso_path

    with warnings.catch_warnings():
        # Noiseless, with as many demonstrations as dimensions, the last digits take long; nobody sees them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        w = [lasso_path(x_p, y_p, alphas=[alpha], max_iter=10_000)[1][:, 0] for x_p, y_p in zip(x, y, strict=True)]
    return _dot(query, np.stack(w))


def greedy_tree(x: np.ndarray, y: np.ndarray, query: np.ndarray) -> np.ndarray:
    """A regression tree grown greedily by squared error (CART) until it fits the demonstrations."""
    from sklearn import config_context
    from sklearn.tree import DecisionTreeRegressor

    with config_context(assume_finite=True, skip_parameter_validation=True):
        fits = (DecisionTreeRegressor(random_state=0).fit(x_p, y_p) for x_p, y_p in zip(x, y, strict=True))
        return np.array([fit.predict(query_p[None])[0] for fit, query_p in zip(fits, query, strict=True)])


def greedy_tree_of_signs(x: np.ndarray, y: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The `greedy_tree` of the signs of x alone, which say where a tree of the family may split. [ours]"""
    return greedy_tree(np.sign(x), y, np.sign(query))


def trigram(x: np.ndarray, y: np.ndarray, query: np.ndarray, tokens: int) -> np.ndarray:
    """The next token by how often each followed the last two, in the strings x y; `SMOOTHING` is added to each count.

    If these two never stood together the last one counts, and if that never stood, none. The last token of the
    vocabulary is the blank, which stands before a string. [ours]
    """
    strings, context = np.concatenate([x, y[..., None]], -1), query
    blank = lambda a: np.full_like(a[..., :1], tokens - 1)  # noqa: E731
    strings, context = (np.concatenate([blank(a), a], -1) for a in (strings, context))
    first, second, third = (strings[..., t : strings.shape[-1] - 2 + t].reshape(len(x), -1) for t in range(3))
    follows = third[..., None] == np.arange(tokens)
    after_last = second == context[:, -1:]
    counts = np.ones((len(x), tokens))
    for which in (second < tokens - 1, after_last, after_last & (first == context[:, -2:-1])):
        seen = (follows & which[..., None]).sum(1)
        counts = np.where(seen.any(1, keepdims=True), seen + SMOOTHING, counts)
    return counts / counts.sum(1, keepdims=True)


def _lasso(alpha: float) -> Estimator:
    return lambda x, y, query: lasso(x, y, query, alpha)


def _dot(query: np.ndarray, w: np.ndarray) -> np.ndarray:
    return (query * w).sum(-1)


BASELINES: dict[str, tuple[Estimator, int]] = {
    "least_squares": (least_squares, CLOSED_FORMS),
    "nearest_neighbours": (nearest_neighbours, CLOSED_FORMS),
    "averaging": (averaging, CLOSED_FORMS),
    **{f"lasso_{alpha:g}": (_lasso(alpha), FITS) for alpha in (0.1, 0.01, 0.001)},
    "greedy_tree": (greedy_tree, FITS),
    "trigram": (trigram, CLOSED_FORMS),
    "greedy_tree_of_signs": (greedy_tree_of_signs, FITS),
}
"""Each family names its own (`Task.baselines`); with each, how many predictions are made at most."""
