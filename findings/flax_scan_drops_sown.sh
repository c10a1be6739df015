#!/usr/bin/env bash
# flax 0.12.8, jax 0.10.2: activations sown inside of nn.scan, read with mutable=["intermediates"].
#
# A guess: they come back stacked over the layers, as parameters do, or the missing axis is an error.
# What happens: unless variable_axes names the collection, the sown values vanish and the tree comes back empty, although
# the collection was asked for and the block sows into it. Without scan the same block gives them.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$place/env/bin/python" - <<'PYTHON'
import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.Dense(2)(x)
        self.sow("intermediates", "state", x)
        return x, None


def sown(block):
    """What one pass of `block` leaves in the collection, as shapes."""
    x = jnp.ones((1, 2))
    variables = block.init(jax.random.key(0), x, None)
    _, state = block.apply({"params": variables["params"]}, x, None, mutable=["intermediates"])
    return jax.tree.map(jnp.shape, state)


def scanned(**axes):
    return nn.scan(Block, variable_axes={"params": 0, **axes}, split_rngs={"params": True}, length=3)()


print("without scan:", sown(Block()))
print("scan, parameters alone named:", sown(scanned()))
print("scan, intermediates named too:", sown(scanned(intermediates=0)))
assert sown(Block()) == {"intermediates": {"state": ((1, 2),)}}
assert sown(scanned()) == {}
assert sown(scanned(intermediates=0)) == {"intermediates": {"state": ((3, 1, 2),)}}
PYTHON
