"""The one idea: an activation has an address, at which the activation can be read and written.

A module calls `tap` where the outside may look in and reach in. Reading is Flax's `intermediates` collection, writing
is an `edits` collection with an `Edit` at the same address. To read chosen layers and positions only, `captures` holds
a `Capture` at the address and `captured` the buffer that it fills. Edits are data: no hook, no global state, and no
recompilation when the layer, the position, the scale or the vector changes. `vmap` over edits is a sweep, `grad`
through edits trains whatever made the edits.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from tvjax.parallel.mesh import shard_activation

READS = "intermediates"
WRITES = "edits"
CAPTURES = "captures"
CAPTURED = "captured"


@struct.dataclass
class Edit:
    """The affine edit ``x <- keep * x + add`` of one activation, where `here` is true; all leaves broadcast against it.

    Replace is ``keep=0, add=v``, add is ``keep=1, add=scale*v``, mix is both; `here` (everywhere if None) lets the
    edit of one position be stored as one. For an address inside `blocks` all leaves carry a leading axis of L.
    With `rescaled` the new activation is made as long as the old one, over its last axis.
    """

    keep: jax.Array
    add: jax.Array
    here: jax.Array | None = None
    rescaled: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        new = self.keep.astype(x.dtype) * x + self.add.astype(x.dtype)
        if self.rescaled:
            was, now = (jnp.linalg.norm(a.astype(jnp.float32), axis=-1, keepdims=True) for a in (x, new))
            new = new * (was / jnp.maximum(now, 1e-30)).astype(x.dtype)
        return new if self.here is None else jnp.where(self.here, new, x)

    def of(self, at: slice | jax.Array, ndim: int) -> "Edit":
        """The edit of the positions `at` (see `chosen`) of an activation that has `ndim` axes."""

        def part(leaf: jax.Array) -> jax.Array:
            """Of a leaf that may lack leading axes, or be the same at all positions."""
            leaf = leaf.reshape(*[1] * (ndim - leaf.ndim), *leaf.shape)
            return leaf if leaf.shape[1] == 1 else chosen(leaf, at)

        here = None if self.here is None else part(self.here)
        return Edit(part(self.keep), part(self.add), here, self.rescaled)


@struct.dataclass
class Capture:
    """Which layers and positions of an activation ``[B, T, ...]`` are kept.

    slot: the entry of the buffer ``[layers, B, S, ...]`` that this layer fills; out of range: the layer fills none.
    positions_BS: the indices in T that are kept. For an address inside `blocks` both carry a leading axis of L.
    """

    slot: jax.Array
    positions_BS: jax.Array

    def __call__(self, buffer: jax.Array, x: jax.Array) -> jax.Array:
        return buffer.at[self.slot].set(chosen(x, self.positions_BS), mode="drop")


def chosen(x: jax.Array, at: slice | jax.Array) -> jax.Array:
    """Positions of an activation ``[B, T, ...]``: a slice of them, or indices in T, ``[B, S]`` or ``[1, S]``."""
    if isinstance(at, slice):
        return x[:, at]
    return jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)


def asked(module: nn.Module, *names: str) -> bool:
    """Whether one of these addresses of `module` is written or captured: what is costly is made only then."""
    return any(module.has_variable(kind, name) for kind in (WRITES, CAPTURES) for name in names)


def tap(module: nn.Module, name: str, x: Any, at: slice | jax.Array | None = None) -> Any:
    """Expose activation `x` of `module` at address `name`: apply the edit that stands there, then show the result.

    Here the activation also gets its sharding on the mesh, so that what is read and written lies with the activation.

    at: the positions that `x` is of, if they are not all; an edit is of all.
    """
    x = shard_activation(name, x)
    if module.has_variable(WRITES, name):
        edit: Edit = module.get_variable(WRITES, name)
        x = (edit if at is None else edit.of(at, x.ndim))(x)
    if module.has_variable(CAPTURES, name):
        capture: Capture = module.get_variable(CAPTURES, name)
        module.put_variable(CAPTURED, name, capture(module.get_variable(CAPTURED, name), x))
    module.sow(READS, name, x, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return x
