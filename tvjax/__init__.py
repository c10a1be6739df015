"""tvjax: task vectors in JAX. Train for them, find them, move them, measure them.

Dimensions, as suffixes of names everywhere: B batch, N pairs of a prompt (demonstrations and the last query),
T positions, S source positions or chosen ones, L layers, D width, H heads, G key/value heads, C channels a head,
F hidden width, V vocabulary, X input width, Y outputs, O readout width, M members, P evaluation prompts.

Layers are numbered 0..L: h^0 is the embedding, h^l the residual stream after block l.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvjax.library import atv, capture, export, generate, load, run, sweep
    from tvjax.nn.taps import Edit
    from tvjax.vectors.edits import add, mix, replace
    from tvjax.vectors.store import load_vectors, save_vectors

__version__ = "0.1.0"

_PLACES = {
    **dict.fromkeys(("atv", "capture", "export", "generate", "load", "run", "sweep"), "tvjax.library"),
    "Edit": "tvjax.nn.taps",
    **dict.fromkeys(("add", "mix", "replace"), "tvjax.vectors.edits"),
    **dict.fromkeys(("load_vectors", "save_vectors"), "tvjax.vectors.store"),
}

__all__ = [
    "Edit",
    "add",
    "atv",
    "capture",
    "export",
    "generate",
    "load",
    "load_vectors",
    "mix",
    "replace",
    "run",
    "save_vectors",
    "sweep",
]


def __getattr__(name: str) -> Any:
    # Imported when used: the command line answers --help, and refuses bad input, without waiting for jax.
    if name not in _PLACES:
        from tvjax.errors import near

        raise AttributeError(f"module 'tvjax' has no attribute {name!r}{near(name, __all__)}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
