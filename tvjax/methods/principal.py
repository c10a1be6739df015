"""The principal direction of what demonstrations change in a state, at every layer (as the package repeng reads it)."""

from typing import Any

import numpy as np

from tvjax.methods.in_context_vector import directed
from tvjax.methods.vector import TaskVectors, VectorMethod
from tvjax.text.bench import Bench

SCALES = (0.25, 0.5, 1.0, 2.0)
"""Of a vector as long as the differences are on average. [ours]"""


def make(bench: Bench, own: Any) -> TaskVectors:
    """The first principal direction, layer by layer, of the states at the last tokens of prompts less those of queries.

    The prompts have demonstrations and end in the query that stands alone beside them. [ours: contrast of the two;
    repeng contrasts texts that its user writes]
    """
    vectors = {}
    for name in bench.tasks:
        pairs = bench.queries(name, bench.config.prompts)
        differences = bench.states(bench.few_shot(name, pairs)) - bench.states(bench.zero_shot(pairs))
        vectors[name] = (
            np.concatenate([directed(differences[:, [layer]]) for layer in range(differences.shape[1])])
            * np.linalg.norm(differences, axis=-1).mean(0)[:, None]
        )
    return TaskVectors(vectors)


METHOD = VectorMethod(
    name="principal",
    label="principal direction",
    source="The first principal direction of differences of states, added at every layer: as the package repeng makes"
    " control vectors.",
    make=make,
    everywhere=True,
    scales=lambda own: SCALES,
)
