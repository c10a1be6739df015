"""The one idea: an activation has an address; you can read it and you can write it.

A module calls `tap` where the outside may look in and reach in. Reading is Flax's `intermediates` collection, writing
is an `edits` collection with an `Edit` at the same address. To keep chosen layers and positions only, `asks` holds an
`Ask` at the address and `kept` the array that fills. Edits are data: no hook, no global state, and no
recompilation when the layer, the position, the scale or the vector changes. `vmap` over edits is a sweep, `grad`
through them trains whatever made them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from tvjax.parallel.mesh import shard_activation

READS = "intermediates"
WRITES = "edits"
ASKS = "asks"
KEPT = "kept"


@struct.dataclass
class Edit:
    """The affine edit ``x <- keep * x + add`` of one activation, where `here` is true; all leaves broadcast against it.

    Replace is ``keep=0, add=v``, add is ``keep=1, add=scale*v``, mix is both; `here` (everywhere if None) lets the
    edit of one position be stored as one. For an address inside `blocks` all leaves carry a leading axis of L.
    """

    keep: jax.Array
    add: jax.Array
    here: jax.Array | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        new = self.keep.astype(x.dtype) * x + self.add.astype(x.dtype)
        return new if self.here is None else jnp.where(self.here, new, x)


@struct.dataclass
class Ask:
    """What to keep of an activation ``[B, T, ...]``: positions ``[B, N]``, in entry `slot` (out of range: nothing)."""

    slot: jax.Array
    positions_BN: jax.Array

    def __call__(self, kept: jax.Array, x: jax.Array) -> jax.Array:
        index = self.positions_BN.reshape(*self.positions_BN.shape, *[1] * (x.ndim - 2))
        return kept.at[self.slot].set(jnp.take_along_axis(x, index, axis=1), mode="drop")


def tap(module: nn.Module, name: str, x: Any) -> Any:
    """Expose activation `x` of `module` at address `name`: apply the edit that stands there, then show the result.

    Here it is also told how it lies on the mesh, so that what is read and written lies with it.
    """
    x = shard_activation(name, x)
    if module.has_variable(WRITES, name):
        x = module.get_variable(WRITES, name)(x)
    if module.has_variable(ASKS, name):
        module.put_variable(KEPT, name, module.get_variable(ASKS, name)(module.get_variable(KEPT, name), x))
    module.sow(READS, name, x, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return x
