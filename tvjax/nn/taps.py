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


@struct.dataclass
class Capture:
    """Which layers and positions of an activation ``[B, T, ...]`` are kept.

    slot: the entry of the buffer ``[layers, B, S, ...]`` that this layer fills; out of range: the layer fills none.
    positions_BS: the indices in T that are kept. For an address inside `blocks` both carry a leading axis of L.
    """

    slot: jax.Array
    positions_BS: jax.Array

    def __call__(self, buffer: jax.Array, x: jax.Array) -> jax.Array:
        index = self.positions_BS.reshape(*self.positions_BS.shape, *[1] * (x.ndim - 2))
        return buffer.at[self.slot].set(jnp.take_along_axis(x, index, axis=1), mode="drop")


def tap(module: nn.Module, name: str, x: Any) -> Any:
    """Expose activation `x` of `module` at address `name`: apply the edit that stands there, then show the result.

    Here the activation also gets its sharding on the mesh, so that what is read and written lies with the activation.
    """
    x = shard_activation(name, x)
    if module.has_variable(WRITES, name):
        x = module.get_variable(WRITES, name)(x)
    if module.has_variable(CAPTURES, name):
        capture: Capture = module.get_variable(CAPTURES, name)
        module.put_variable(CAPTURED, name, capture(module.get_variable(CAPTURED, name), x))
    module.sow(READS, name, x, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return x
