"""Build edits: write vectors into the residual stream at chosen layers and positions.

`replace`, `add` and `mix` say what to write and where, before any model is known; `place` turns them into the tree
that the decoder's taps read. Layer l is h^l: 0 is the embedding, l the residual stream after block l.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tvjax.errors import reject
from tvjax.nn.taps import Edit

Tree = dict[str, Any]


@struct.dataclass
class Write:
    """``h^l <- keep * h^l + scale * vectors`` at `layers` and `positions`; elsewhere nothing changes.

    vectors: ``[D]``, ``[B, D]``, or ``[len(layers), D]`` / ``[len(layers), B, D]`` with `per_layer`.
    positions: "last" (of each prompt), "all", a sequence of indices, or a mask ``[B, T]`` or ``[T]``.
    """

    vectors: jax.Array
    keep: jax.Array
    scale: jax.Array
    layers: tuple[int, ...] = struct.field(pytree_node=False)
    positions: Any = struct.field(pytree_node=False, default="last")
    mask: jax.Array | None = None
    per_layer: bool = struct.field(pytree_node=False, default=False)


def mix(
    vectors: jax.Array, *, layers: int | Sequence[int], positions: Any = "last", keep: Any = 0.0, scale: Any = 1.0
) -> Write:
    """Write ``keep * h + scale * vectors``. A leading axis of `vectors` as long as a list of `layers` is per layer."""
    chosen = (layers,) if isinstance(layers, int) else tuple(layers)
    vectors = jnp.asarray(vectors)
    per_layer = not isinstance(layers, int) and vectors.ndim >= 2
    if per_layer and vectors.shape[0] != len(chosen):
        raise reject("vectors", vectors.shape, f"a leading axis of {len(chosen)}, one entry for each of the layers")
    if vectors.ndim - per_layer not in (1, 2):
        raise reject("vectors", vectors.shape, "[D], [B, D], or either with a leading axis of the layers")
    mask = None
    if not isinstance(positions, str):
        given = jnp.asarray(positions)
        if given.dtype == bool:
            positions, mask = "mask", given
        else:
            positions = tuple(int(p) for p in given.reshape(-1))
    elif positions not in ("last", "all"):
        raise reject("positions", positions, "'last', 'all', indices, or a mask")
    return Write(vectors, jnp.asarray(keep), jnp.asarray(scale), chosen, positions, mask, per_layer)


def replace(vectors: jax.Array, *, layers: int | Sequence[int], positions: Any = "last") -> Write:
    """Put `vectors` in the place of the states (Hendel et al. 2023)."""
    return mix(vectors, layers=layers, positions=positions)


def add(vectors: jax.Array, *, layers: int | Sequence[int], positions: Any = "last", scale: Any = 1.0) -> Write:
    """Add ``scale * vectors`` to the states (Todd et al. 2024, Kang et al. 2025)."""
    return mix(vectors, layers=layers, positions=positions, keep=1.0, scale=scale)


def _where(write: Write, length: int, last_B: jax.Array | None) -> jax.Array:
    """The mask ``[B or 1, T]`` of the positions that `write` names."""
    steps = jnp.arange(length)[None]
    if write.mask is not None:
        return write.mask if write.mask.ndim == 2 else write.mask[None]
    if write.positions == "all":
        return jnp.ones((1, length), bool)
    if write.positions == "last":
        return steps == (length - 1 if last_B is None else last_B[:, None])
    outside = [p for p in write.positions if not -length <= p < length]
    if outside:
        raise reject("positions", outside[0], f"-{length}..{length - 1}, since the prompt has {length} positions")
    chosen = jnp.array([p % length for p in write.positions])
    return (steps[..., None] == chosen[None, None]).any(-1)


def affine(
    vectors: jax.Array, *, keep: Any = 0.0, scale: Any = 1.0, at_layer: jax.Array, at_position: jax.Array
) -> Tree:
    """The edits tree of one affine write, from masks: everything else here ends in this, and so do TVP and sweeps.

    vectors: ``[L+1 or 1, B or 1, T or 1, D]``; at_layer: ``[L+1]``, at_position: ``[B or 1, T]``, both 0/1 and either
    may be traced: the layer of a sweep is data. ``keep`` holds where both masks do, the rest of the stream is kept.
    """
    here = at_layer[:, None, None, None] * at_position[None, :, :, None].astype(vectors.dtype)
    kept = 1 - here * (1 - keep)
    added = here * scale * vectors
    return {"embed": Edit(kept[0], added[0]), "blocks": {"resid": Edit(kept[1:], added[1:])}}


def at_layer(layer: Any, num_layers: int) -> jax.Array:
    """The mask ``[L+1]`` of one layer, which may be traced."""
    return (jnp.arange(num_layers + 1) == layer).astype(jnp.float32)


def merge(first: Tree, second: Tree) -> Tree:
    """The tree that applies `first`, then `second`: affine maps compose."""

    def compose(a: Edit, b: Edit) -> Edit:
        return Edit(keep=a.keep * b.keep, add=b.keep * a.add + b.add)

    return jax.tree.map(compose, first, second, is_leaf=lambda node: isinstance(node, Edit))


def place(writes: Write | Sequence[Write], *, num_layers: int, length: int, last_B: jax.Array | None = None) -> Tree:
    """The edits tree of `writes`, applied in their order, for prompts of `length` positions.

    `last_B` is where each prompt ends (for right padding); the last position by default. Raises `UserError` for a
    layer or a position that is not there.
    """
    tree: Tree | None = None
    for write in [writes] if isinstance(writes, Write) else writes:
        for layer in write.layers:
            if not 0 <= layer <= num_layers:
                raise reject("layers", layer, f"0..{num_layers}")
        place_T = _where(write, length, last_B)
        layers_mask = jnp.zeros(num_layers + 1).at[jnp.array(write.layers)].set(1.0)
        if write.per_layer:
            table = jnp.zeros((num_layers + 1, *write.vectors.shape[1:]), write.vectors.dtype)
            vectors = table.at[jnp.array(write.layers)].set(write.vectors)
            vectors = vectors[:, None, None] if vectors.ndim == 2 else vectors[:, :, None]
        else:
            vectors = write.vectors[None, None, None] if write.vectors.ndim == 1 else write.vectors[None, :, None]
        new = affine(vectors, keep=write.keep, scale=write.scale, at_layer=layers_mask, at_position=place_T)
        tree = new if tree is None else merge(tree, new)
    if tree is None:
        raise reject("edits", writes, "at least one write")
    return tree
