#!/usr/bin/env bash
# optax 0.2.8, jax 0.10.2: one step of Adam on float16 parameters, one of which has no gradient.
#
# A guess: a parameter without a gradient stays where it is.
# What happens: it becomes NaN while the loss is finite. The moments take the parameters' dtype, Adam's epsilon of 1e-8
# is 0 in float16, and 0 / (sqrt(0) + 0) is NaN. The embedding of any token that a batch lacks is such a parameter.
# In bfloat16 it stays, but a scale of 1 that should move by 0.001 a step stays as well, for ever: 1 - 0.001 rounds to 1.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$place/env/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import optax


def train(dtype, steps):
    """Two scales of 1 after some steps with gradients of 0.1 and 0."""
    adam, scales = optax.adam(1e-3), jnp.ones(2, dtype)
    state = adam.init(scales)
    for _ in range(steps):
        updates, state = adam.update(jnp.array([0.1, 0.0], dtype), state, scales)
        scales = optax.apply_updates(scales, updates)
    return scales.astype(jnp.float32)


for dtype in (jnp.float32, jnp.float16, jnp.bfloat16):
    print(jnp.dtype(dtype).name, train(dtype, 1), "after 1 step,", train(dtype, 300), "after 300")
assert abs(train(jnp.float32, 300)[0] - 0.7) < 1e-3 and train(jnp.float32, 300)[1] == 1
assert jnp.isnan(train(jnp.float16, 1)[1]) and jnp.isfinite(train(jnp.float16, 1)[0])
assert train(jnp.bfloat16, 300).tolist() == [1, 1]
PYTHON
