"""In-context vectors (Liu et al. 2024): the principal direction from queries to answers, added everywhere."""

from typing import Any

import numpy as np

from tvjax.methods.vector import TaskVectors, VectorMethod
from tvjax.text.bench import Bench

SCALES = (0.05, 0.1, 0.2, 0.4)
"""Of a vector that is as long as the states are in a layer. [ours]"""


def make(bench: Bench, own: Any) -> TaskVectors:
    """The first principal direction of h(y) - h(x) over demonstrations, all layers together.

    h(x) and h(y) are the states at the last tokens of an input and of an output, each read alone. The direction is cut
    into its layers, and there made as long as h(x) is on average, so that one strength serves all layers. [ours]
    """
    vectors = {}
    for name in bench.tasks:
        pairs = bench.queries(name, bench.config.prompts)
        inputs, outputs = (bench.states([bench.template.start + pair[side] for pair in pairs]) for side in (0, 1))
        vectors[name] = directed(outputs - inputs) * np.linalg.norm(inputs, axis=-1).mean(0)[:, None]
    return TaskVectors(vectors)


def directed(differences_PLD: np.ndarray) -> np.ndarray:
    """The first principal direction of differences, uncentred, towards their mean; each layer of unit length.

    ``[P, L+1, D] -> [L+1, D]``; a layer without any difference has zeros.
    """
    flat = differences_PLD.reshape(len(differences_PLD), -1).astype(np.float64)
    direction = np.linalg.svd(flat, full_matrices=False)[2][0]
    direction = direction * (1.0 if flat.mean(0) @ direction >= 0 else -1.0)
    by_layer = direction.reshape(differences_PLD.shape[1:])
    length = np.linalg.norm(by_layer, axis=-1, keepdims=True)
    return np.divide(by_layer, length, out=np.zeros_like(by_layer), where=length > 1e-12).astype(np.float32)


METHOD = VectorMethod(
    name="in_context_vector",
    label="in-context vector",
    source="In-context vectors, the principal direction from inputs to outputs, added at all layers and tokens, with"
    " the states' lengths kept: Liu et al. (2024).",
    make=make,
    everywhere=True,
    positions="all",
    rescaled=True,
    scales=lambda own: SCALES,
)
