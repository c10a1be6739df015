"""Which model vectors are of: its fingerprint goes with them, and another model refuses them."""

import hashlib
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tvjax.errors import UserError
from tvjax.nn.model import Model
from tvjax.parallel import processes

_REMEMBERED = 16
_known: list[tuple[Any, list[weakref.ref], str]] = []


def fingerprint(params: Any) -> str:
    """A short hash of a parameter tree: names and numbers, wherever they lie. Of several processes all must call this.

    The same folder in another dtype has other numbers, so is another model. Settings that are no parameters (a window,
    the scaling of rotary positions) do not count. A tree of jax arrays, which cannot change, is hashed once.
    """
    leaves, structure = jax.tree.flatten(params)
    if not all(isinstance(leaf, jax.Array) for leaf in leaves):
        return _hashed(params)
    for known, refs, name in _known:
        if known == structure and all(ref() is leaf for ref, leaf in zip(refs, leaves, strict=True)):
            return name
    name = _hashed(params)
    _known[:] = [*_known[1 - _REMEMBERED :], (structure, [weakref.ref(leaf) for leaf in leaves], name)]
    return name


def _hashed(params: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(processes.fetch(leaf)).tobytes())
    return digest.hexdigest()[:16]


def twins(fingerprints: Mapping[str, str]) -> list[list[str]]:
    """The names of models whose parameters are the same bit for bit, a list for each such model: none as it should be.

    fingerprints: of each model by name.
    """
    same: dict[str, list[str]] = {}
    for name, mark in fingerprints.items():
        same.setdefault(mark, []).append(name)
    return [names for names in same.values() if len(names) > 1]


class Origin(NamedTuple):
    """The fingerprint of the model that vectors are of, and the file that says so."""

    model: str
    file: str


class ModelArray(np.ndarray):
    """A numpy array that knows its `Origin`, as does what numpy makes of it: slices, sums, stacks and copies.

    Arrays of two models do not mix. jax's arrays cannot know an origin: `jnp.asarray(a)` is a plain array.
    """

    origin: Origin | None = None

    def __array_finalize__(self, obj: Any) -> None:
        self.origin = getattr(obj, "origin", None)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _with_origin(getattr(ufunc, method), inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _with_origin(func, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return known, (self.view(np.ndarray), self.origin)


def known(array: np.ndarray, origin: Origin | None) -> ModelArray:
    """`array` with its origin."""
    view = array.view(ModelArray)
    view.origin = origin
    return view


def _with_origin(func: Any, args: Any, kwargs: Any) -> Any:
    """What `func` of numpy makes of arrays, with the origin that they have."""
    origin = origin_of([args, kwargs])

    def plain(value: Any) -> Any:
        return value.view(np.ndarray) if isinstance(value, ModelArray) else value

    def marked(value: Any) -> Any:
        return known(value, origin) if isinstance(value, np.ndarray) else value

    args, kwargs = jax.tree.map(plain, (args, kwargs))
    return jax.tree.map(marked, func(*args, **kwargs))


def origin_of(vectors: Any) -> Origin | None:
    """The origin of vectors, or of those in a list, or None if nothing is known of it.

    Raises `UserError` for vectors of two models together.
    """
    if not isinstance(vectors, list | tuple | dict):
        return getattr(vectors, "origin", None)
    leaves = jax.tree.leaves(vectors, is_leaf=lambda value: hasattr(value, "origin"))
    origins = {origin.model: origin for origin in map(origin_of, leaves) if origin is not None}
    if len(origins) > 1:
        names = " and ".join(f"{origin.model} ({origin.file})" for _, origin in sorted(origins.items()))
        raise UserError(f"vectors: given those of models {names} together; accepted: of one, or np.array(v) of each")
    return next(iter(origins.values()), None)


def check(model: Model, edits: Any) -> None:
    """Raise `UserError` if writes, or arrays in a tree of edits, are known to be of another model than `model`.

    Nothing is computed if none of them knows its model.
    """
    leaves = jax.tree.leaves(edits, is_leaf=lambda e: hasattr(e, "origin"))
    origins = {origin for origin in map(origin_of, leaves) if origin is not None}
    if not origins:
        return
    accepted = "accepted: vectors of this model, or any_model=True (of replace, add, mix, sweep, atv)"
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(model.params)):
        raise UserError(
            f"vectors: {min(origins).file}: in jit or grad the model that they meet is not known; {accepted}"
        )
    here = fingerprint(model.params)
    for origin in sorted(origins):
        if origin.model != here:
            folder = getattr(model.source, "path", None)
            raise UserError(
                f"vectors: given those of model {origin.model} ({origin.file}); {accepted}, which is {here}"
                + (f" ({folder}, in {model.config.param_dtype})" if folder else "")
            )
