#!/usr/bin/env bash
# jax 0.10.2: jax.nn.dot_product_attention where a mask leaves a position no key at all, as at padding on the left.
#
# A guess: zeros or NaN there; whatever it is, nothing of the positions that are masked.
# What happens: the mean of all values, later positions' included, although is_causal=True. The position that may look
# at nothing sees the whole sequence, more than any other does, and its output is finite and of the usual size.
# A probe or a mean over positions that takes it along reads the answer from it.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$place/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

query, keys, values = (jax.random.normal(jax.random.key(i), (1, 4, 1, 2)) for i in range(3))
padded = jnp.array([False, True, True, True])[None, None, None]  # the first key is padding: position 0 has none


def attend(values):
    return jax.nn.dot_product_attention(query, keys, values, mask=padded, is_causal=True)[0, :, 0]


before, after = attend(values), attend(values.at[0, 3].add(4.0))
print("mean of all values", values[0, :, 0].mean(0))
for position in range(4):
    print(f"position {position}: {before[position]}, with another last value {after[position]}")
assert jnp.allclose(before[0], values[0, :, 0].mean(0), atol=1e-6) and jnp.allclose(after[0], before[0] + 1, atol=1e-6)
assert (before[1:3] == after[1:3]).all()
PYTHON
