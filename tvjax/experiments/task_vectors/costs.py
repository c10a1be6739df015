"""What each way to ask costs: tokens, trained numbers, FLOPs and seconds, to make it and to use it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tvjax.experiments.task_vectors.settings import CONTROL, STATE, TaskVectorSettings
from tvjax.methods import state_vector
from tvjax.methods.base import milliseconds, pass_flops
from tvjax.methods.vector import Choice, TaskVectors, VectorMethod
from tvjax.text.bench import Bench, Spent
from tvjax.text.measures import Measured, measured

PROMPTS = ("zero_shot", "few_shot", "shuffled_shot")


class Asking:
    """How many tokens prompts have, and the seconds in which they are asked, all tasks together."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {kind: [] for kind in PROMPTS}
        self.seconds = dict.fromkeys(PROMPTS, 0.0)

    def ask(self, kind: str, bench: Bench, name: str, prompts: Sequence[str]) -> Measured:
        """What is measured of prompts of a kind that ask the test inputs of a task."""
        self.tokens[kind] += map(len, bench.tokenizer.encode(prompts))
        began = bench.clock()
        answers = measured(bench, name, prompts)
        self.seconds[kind] += (bench.clock() - began).seconds
        return answers


def costs(
    bench: Bench, s: TaskVectorSettings, made: Mapping[str, Spent], asking: Asking
) -> dict[str, dict[str, float]]:
    """Of each way to ask what a query takes, and what making it takes, for all tasks."""
    taken: dict[str, dict[str, float]] = {}
    for kind, lengths in asking.tokens.items():
        tokens = float(np.mean(lengths))
        flops = {"query_flops": pass_flops(bench.model, tokens), "make_flops": 0.0}
        taken[kind] = {"tokens_per_query": tokens, "trainable_parameters": 0, **flops}
    bare = taken["zero_shot"]["tokens_per_query"]
    for kind, method in _vectors(s).items():
        trained = method.trainable(bench.model.config) * len(bench.tasks)
        tokens = method.query_tokens(bench, bare)
        flops = {"query_flops": method.query_flops(bench, tokens), "make_flops": made[kind].flops}
        taken[kind] = {"tokens_per_query": tokens, "trainable_parameters": trained, **flops}
    return taken


def _vectors(s: TaskVectorSettings) -> dict[str, VectorMethod]:
    """The kinds of vectors that are measured, the control with them."""
    return {**{method.name: method for method in s.methods}, CONTROL: state_vector.METHOD}


def timing(
    bench: Bench,
    s: TaskVectorSettings,
    results: Mapping[str, TaskVectors],
    entry: Mapping[str, Any],
    made: Mapping[str, Spent],
    asking: Asking,
) -> dict[str, dict[str, float]]:
    """Milliseconds of a query, in a batch, and seconds to make it for all tasks: of vectors by the first task.

    entry: what the summary says of the first task.
    """
    times = {
        kind: {"query_ms": 1000 * asking.seconds[kind] / len(asking.tokens[kind]), "make_seconds": 0.0}
        for kind in PROMPTS
    }
    name = next(iter(bench.tasks))
    for kind, method in _vectors(s).items():
        choice = Choice(entry[f"{STATE}_layer"], 1.0)
        if kind != CONTROL:
            choice = Choice(entry[f"{kind}_layer"], entry[f"{kind}_scale"])
        ask, count = method.timed(bench, name, results[kind].vectors[name], choice)
        times[kind] = {"query_ms": milliseconds(ask, count, rounds=1), "make_seconds": made[kind].seconds}
    return times
