"""State vectors: the mean state at the last token of few-shot prompts, in the place of that of the query alone."""

from typing import Any

from tvjax.methods.vector import TaskVectors, VectorMethod
from tvjax.text.bench import Bench


def make(bench: Bench, own: Any, *, shuffled: bool = False) -> TaskVectors:
    """The mean state at the last token of few-shot prompts, at every layer (Hendel et al. 2023).

    shuffled: of prompts whose demonstrations have their outputs shuffled, which is a control. [ours]
    """
    return TaskVectors({name: bench.shown(name, shuffled=shuffled)["states"] for name in bench.tasks})


METHOD = VectorMethod(
    name="vector",
    label="state vector",
    source="State vectors, the state at the last token of prompts with demonstrations in the place of that of a"
    " zero-shot prompt: Hendel, Geva and Globerson (2023).",
    make=make,
    keep=0.0,
)
