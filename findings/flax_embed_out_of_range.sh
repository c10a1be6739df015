#!/usr/bin/env bash
# flax 0.12.8, jax 0.10.2: linen's Embed of token ids that its table does not have.
#
# A guess: an error, or (as arrays on accelerators usually do) the id is clamped to the nearest row, for all such ids.
# What happens: an id of V or more gives NaN. A negative id down to -V counts from the end, as in Python, so that -1,
# with which some data pad, is the last token's embedding. One below -V (-100, the usual label of "no token") is NaN.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$place/env/bin/python" - <<'PYTHON'
import flax.linen as nn
import jax
import jax.numpy as jnp

table = nn.Embed(num_embeddings=4, features=2)
variables = table.init(jax.random.key(0), jnp.array([0]))
rows = variables["params"]["embedding"]
for token, row in {3: 3, 4: None, -1: 3, -4: 0, -5: None, -100: None}.items():
    vector = table.apply(variables, jnp.array([token]))[0]
    print(f"id {token}: {vector}")
    assert bool(jnp.isnan(vector).all()) if row is None else bool((vector == rows[row]).all())
PYTHON
