"""tvjax: task vectors in JAX. Train for them, find them, move them, measure them.

Names of arrays end in their axes, `theta_LBD`; a digit is an axis of that size:

    A  tokens of an answer
    B  batch: prompts, or rows of them
    C  channels a head
    D  width
    E  numbers to be recovered from a vector
    F  hidden width
    G  key/value heads
    H  heads
    I  examples of text tasks
    J  slots of a hidden Markov model
    K  candidates for a token
    L  layers, or chosen ones
    M  members
    N  pairs of a prompt, the last query with them
    O  readout width
    P  evaluation prompts
    Q  states of an automaton, values of a hidden Markov model
    R  directions of a subspace
    S  source positions, or chosen ones
    T  positions
    U  vectors side by side
    V  vocabulary, symbols of an automaton
    W  tokens of an x
    X  input width
    Y  outputs
    Z  tasks that an oracle weighs: a finite pool, a grid

Layers are numbered 0..L: h^0 is the embedding, h^l the residual stream after block l.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvjax.library import attribute, atv, capture, export, generate, load, logit_lens, run, sweep, trained
    from tvjax.nn.pretrained.peft import export_adapter, load_adapter
    from tvjax.nn.taps import Edit
    from tvjax.report.results import results
    from tvjax.vectors.control_vector import export_control_vector, load_control_vector
    from tvjax.vectors.edits import add, mix, replace
    from tvjax.vectors.store import load_vectors, save_vectors

__version__ = "0.1.0"

_PLACES = {
    **dict.fromkeys(("attribute", "atv", "capture", "export", "generate", "load"), "tvjax.library"),
    **dict.fromkeys(("logit_lens", "run", "sweep", "trained"), "tvjax.library"),
    "Edit": "tvjax.nn.taps",
    **dict.fromkeys(("export_adapter", "load_adapter"), "tvjax.nn.pretrained.peft"),
    "results": "tvjax.report.results",
    **dict.fromkeys(("export_control_vector", "load_control_vector"), "tvjax.vectors.control_vector"),
    **dict.fromkeys(("add", "mix", "replace"), "tvjax.vectors.edits"),
    **dict.fromkeys(("load_vectors", "save_vectors"), "tvjax.vectors.store"),
}

__all__ = [
    "Edit",
    "add",
    "attribute",
    "atv",
    "capture",
    "export",
    "export_adapter",
    "export_control_vector",
    "generate",
    "load",
    "load_adapter",
    "load_control_vector",
    "load_vectors",
    "logit_lens",
    "mix",
    "replace",
    "results",
    "run",
    "save_vectors",
    "sweep",
    "trained",
]


def __getattr__(name: str) -> Any:
    # Imported when used: the command line answers --help, and refuses bad input, without waiting for jax.
    if name not in _PLACES:
        from tvjax.errors import near

        raise AttributeError(f"module 'tvjax' has no attribute {name!r}{near(name, __all__)}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
