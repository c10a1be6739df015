"""The one idea: an activation has an address; you can read it and you can write it.

A module calls `tap` where the outside may look in and reach in. Reading is Flax's `intermediates` collection, writing
is an `edits` collection with an `Edit` at the same address. Edits are data: no hook, no global state, and no
recompilation when the layer, the position, the scale or the vector changes. `vmap` over edits is a sweep, `grad`
through them trains whatever made them.
"""

from typing import Any

import flax.linen as nn
import jax
from flax import struct

READS = "intermediates"
WRITES = "edits"


@struct.dataclass
class Edit:
    """The affine edit ``x <- keep * x + add`` of one activation; both leaves broadcast against it.

    Replace is ``keep=0, add=v`` at the chosen positions, add is ``keep=1, add=scale*v``, mix is both. For an address
    inside `blocks` both leaves carry a leading axis of L.
    """

    keep: jax.Array
    add: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.keep.astype(x.dtype) * x + self.add.astype(x.dtype)


def tap(module: nn.Module, name: str, x: Any) -> Any:
    """Expose activation `x` of `module` at address `name`: apply the edit that stands there, then sow the result."""
    if module.has_variable(WRITES, name):
        x = module.get_variable(WRITES, name)(x)
    module.sow(READS, name, x, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return x
