"""What a study of formats answers: means over tasks, their intervals, paired differences, and rules for them. [ours]

All intervals are of 90%, by a bootstrap over tasks and over the questions of each (`over_tasks`). A question's value is
the mean over the seeds. Accuracies are of first tokens, which a vector steers, and beside them of whole answers.

- A vector *works* in a cell if the interval of its accuracy less that zero-shot, on the same questions, is all above 0.
- Of two cells, or two positions in one cell, that are asked the same questions, one is *higher* if the interval of the
  difference is all above 0, *lower* if it is all below 0; otherwise the difference is *not clear*. If the vector works
  in neither, nothing is compared: *neither works*.
- Shuffled labels *destroy* a task if the interval of its k-shot accuracy less that with shuffled labels, a mean over
  all cells, is all above 0, and the difference is at least half of the k-shot accuracy.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from tvjax.evals.statistics import macro, over_tasks

Tree = Mapping[str, Any]
Key = tuple[str, str]
KINDS = {"": "whole", "_first": "first"}
SHOTS = ("zero_shot", "few_shot", "shuffled_shot")
DESTROYED = 0.5
"""The share of k-shot accuracy that shuffled labels take at least from a task that they destroy."""
EXPLAINS = -0.5
"""The rank correlation at or below which reading explains the formats."""


def _values(entry: Tree, position: str = "", kind: str = "first") -> np.ndarray:
    """Which test questions of a task are answered right with the vector, ``[n]``: a mean over seeds."""
    return np.asarray(entry[position][kind], float).mean(1)


def _estimate(name: str, groups: Sequence[np.ndarray]) -> dict[str, Any]:
    mean, interval = over_tasks(groups)
    return {name: mean, f"{name}_ci": interval}


def verdict(difference_ci: Sequence[float], works: bool) -> str:
    """What a paired difference says: higher, lower, not clear; or that neither of the two vectors works."""
    if not works:
        return "neither works"
    low, high = difference_ci
    return "higher" if low > 0 else "lower" if high < 0 else "not clear"


def compared(ours: Tree, theirs: Tree, where: tuple[str, str], works: bool) -> dict[str, Any]:
    """A cell's vector less another's on the same questions; where: the position in each."""
    pairs = zip(ours["tasks"].values(), theirs["tasks"].values(), strict=True)
    groups = [_values(a, where[0]) - _values(b, where[1]) for a, b in pairs]
    estimate = _estimate("difference", groups)
    return {**estimate, "verdict": verdict(estimate["difference_ci"], works)}


def _means(key: Key, measured: Tree, positions: Sequence[str]) -> dict[str, Any]:
    """The means of one cell."""
    tasks = measured["tasks"]
    entry: dict[str, Any] = {"template": key[0], "start": key[1], "query_first": measured["query_first"]}
    for shot in SHOTS:
        for suffix, kind in KINDS.items():
            entry |= _estimate(f"{shot}{suffix}", [np.asarray(e[shot][kind], float) for e in tasks.values()])
    entry["positions"] = {}
    for position in positions:
        gain = _estimate(
            "gain", [_values(e, position) - np.asarray(e["zero_shot"]["first"], float) for e in tasks.values()]
        )
        row: dict[str, Any] = {**gain, "works": gain["gain_ci"][0] > 0}
        for suffix, kind in KINDS.items():
            row |= _estimate(f"vector{suffix}", [_values(e, position, kind) for e in tasks.values()])
            rows = [e[position][f"dev_{kind}"] for e in tasks.values()]
            row[f"vector{suffix}_by_layer_dev"] = np.mean(rows, 0).tolist()
        by_seed = [np.asarray(e[position]["first"], float).mean(0) for e in tasks.values()]
        row["vector_first_by_seed"] = np.mean(by_seed, 0).tolist()
        row["cosine"] = np.mean([e[position]["cosine"] for e in tasks.values()], 0).tolist()
        row["tasks"] = {
            name: {
                "layer": e[position]["layer"],
                "works": e[position]["works"],
                "vector_first": float(_values(e, position).mean()),
            }
            for name, e in tasks.items()
        }
        entry["positions"][position] = row
    return entry


def _tasks(answers: Mapping[Key, Tree]) -> dict[str, Any]:
    """Of each task, over the prompts of all cells: k-shot accuracy, and what shuffled labels leave of it."""
    entries: dict[str, Any] = {}
    for name, one in next(iter(answers.values()))["tasks"].items():
        entry: dict[str, Any] = {"questions": len(one["zero_shot"]["first"])}
        shots = [
            [np.asarray(measured["tasks"][name][shot]["first"], float) for measured in answers.values()]
            for shot in ("few_shot", "shuffled_shot")
        ]
        # The prompts of all cells show the same pairs: a prompt's value is the mean over cells.
        few, shuffled = (np.mean(rows, 0) for rows in shots)
        for kind, values in (("few_shot_first", few), ("shuffled_shot_first", shuffled), ("loss", few - shuffled)):
            mean, interval = macro([values])
            entry |= {kind: mean, f"{kind}_ci": interval}
        entry["destroyed"] = entry["loss_ci"][0] > 0 and entry["loss"] >= DESTROYED * entry["few_shot_first"]
        entries[name] = entry
    return entries


def _ranks(x: np.ndarray | Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None if one of the two does not vary."""
    ranks = rankdata(x), rankdata(y)
    if min(float(np.ptp(r)) for r in ranks) == 0:
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def summarized(answers: Mapping[Key, Tree], positions: Sequence[str]) -> dict[str, Any]:
    """What the summary says of cells ``{(template, start): measured}``, in the order of the config.

    "cells" are the means of each. Paired: "starts" each start against the first one in its template, "templates" each
    template against the first one with the same start, "positions" the first position against the others in a cell.
    "reading": over cells, the rank correlation between the cosine at the middle layer (and at each), at the query if
    that is among the positions, and the vector's accuracy at the first position.
    """
    cells = {key: _means(key, measured, positions) for key, measured in answers.items()}
    template, start = next(iter(answers))
    at = positions[0]

    def works(key: Key, position: str = at) -> bool:
        return bool(cells[key]["positions"][position]["works"])

    def against(other: Callable[[Key], Key]) -> list[dict[str, Any]]:
        return [
            {
                "template": key[0],
                "start": key[1],
                "less": dict(zip(("template", "start"), other(key), strict=True)),
                **compared(measured, answers[other(key)], (at, at), works(key) or works(other(key))),
            }
            for key, measured in answers.items()
            if other(key) != key
        ]

    read = "query" if "query" in positions else at
    cosines = np.array([cell["positions"][read]["cosine"] for cell in cells.values()])
    accuracies = [cell["positions"][at]["vector_first"] for cell in cells.values()]
    middle, correlations = cosines.shape[1] // 2, [_ranks(column, accuracies) for column in cosines.T]
    correlation = correlations[middle]
    return {
        "positions": list(positions),
        "cells": list(cells.values()),
        "tasks": _tasks(answers),
        "compared": {
            "starts": against(lambda key: (key[0], start)),
            "templates": against(lambda key: (template, key[1])),
            "positions": [
                {
                    "template": key[0],
                    "start": key[1],
                    "position": at,
                    "less": {"position": other},
                    **compared(measured, measured, (at, other), works(key) or works(key, other)),
                }
                for key, measured in answers.items()
                for other in positions[1:]
            ],
        },
        "reading": {
            "position": read,
            "layer": middle,
            "rank_correlation": correlation,
            "rank_correlation_by_layer": correlations,
            "explains": correlation is not None and correlation <= EXPLAINS,
        },
    }
