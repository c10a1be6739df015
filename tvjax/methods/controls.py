"""Vectors that know less than a task's own: what every other vector must beat. [ours]"""

from typing import Any

import numpy as np

from tvjax.methods.vector import TaskVectors, VectorMethod
from tvjax.text.bench import Bench


def mean_of_tasks(bench: Bench, own: Any) -> TaskVectors:
    """The state vector, averaged over the other tasks: what any demonstrations bring, whichever the task. [ours]

    Of a single task there are no others: the vector is its own.
    """
    states = {name: bench.shown(name)["states"] for name in bench.tasks}
    return TaskVectors(
        {
            name: np.mean([other for task, other in states.items() if task != name or len(states) == 1], 0)
            for name in states
        }
    )


def mean_of_demonstrations(bench: Bench, own: Any) -> TaskVectors:
    """The mean state at the last tokens of single demonstrations, each read alone: no query, and no context. [ours]"""
    vectors = {}
    for name in bench.tasks:
        pairs = bench.queries(name, bench.config.prompts)
        vectors[name] = bench.states([bench.template.prompt([], x) + bench.template.answer(y) for x, y in pairs]).mean(
            0
        )
    return TaskVectors(vectors)


MEAN_OF_TASKS = VectorMethod(
    name="mean_of_tasks",
    label="mean over other tasks",
    source="As a control, the state vector averaged over the other tasks.",
    make=mean_of_tasks,
    keep=0.0,
)
MEAN_OF_DEMONSTRATIONS = VectorMethod(
    name="mean_of_demonstrations",
    label="mean of demonstrations",
    source="As a control, the mean state at the ends of single demonstrations.",
    make=mean_of_demonstrations,
    keep=0.0,
)
