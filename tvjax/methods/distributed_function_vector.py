"""Distributed function vectors (Pham et al. 2026): the mean of each chosen head, written at the head's own layer."""

import numpy as np

from tvjax.methods.function_vector import FunctionVector, FunctionVectorSettings, making, means_and_heads
from tvjax.methods.vector import TaskVectors
from tvjax.text.bench import Bench
from tvjax.vectors.function_vectors import function_vector


def make(bench: Bench, own: FunctionVectorSettings) -> TaskVectors:
    """For each layer the summed output of its chosen heads, zero where none is chosen.

    It is added to the stream behind the heads' block. [ours: the paper's text does not say where in the block]
    """
    means, chosen, about = means_and_heads(bench, own, "distributed_function_vector")
    vectors = {}
    for name, mean_LHC in means.items():
        vectors[name] = np.zeros((len(bench.layers), bench.model.config.width), np.float32)
        for layer in {layer for layer, _ in chosen}:
            own_heads = [place for place in chosen if place[0] == layer]
            vectors[name][1 + layer] = function_vector(bench.model.params, mean_LHC, own_heads)
    return TaskVectors(vectors, {f"distributed_{key}": value for key, value in about.items()})


METHOD = FunctionVector(
    name="distributed_function_vector",
    label="distributed function vector",
    source="Distributed function vectors, the mean output of each chosen head added at its own layer: Pham et al."
    " (2026, arXiv 2606.05079).",
    settings=FunctionVectorSettings,
    make=make,
    scales=lambda own: own.scales,
    everywhere=True,
    making=making,
)
