#!/usr/bin/env bash
# flax 0.12.8, jax 0.10.2: linen's LayerNorm of float32 states whose mean is large beside their spread.
#
# A guess: entries of about 1 and -1, off in some digits at most: the mean is taken off before anything is squared.
# What happens: at a mean of 10,000 and a spread of 1 the entries are 1000 and -1000. The variance is the mean of the
# squares less the square of the mean, which is 0 in float32, and epsilon alone is left to divide by. At 1000 all is
# well. use_fast_variance=False gives 1 at both. jax.nn.standardize has no such option, and gives 316.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$place/env/bin/python" - <<'PYTHON'
import flax.linen as nn
import jax
import jax.numpy as jnp

spread = jnp.array([-1.0, 1.0, -1.0, 1.0])
norms = {
    "LayerNorm": nn.LayerNorm(use_bias=False, use_scale=False).bind({}),
    "LayerNorm without fast variance": nn.LayerNorm(use_bias=False, use_scale=False, use_fast_variance=False).bind({}),
    "standardize": jax.nn.standardize,
}
for mean, sizes in {1e3: (1, 1, 1), 1e4: (1000, 1, 316.2278)}.items():
    for (name, norm), size in zip(norms.items(), sizes, strict=True):
        entries = norm(mean + spread)
        print(f"mean {mean:.0f}, {name}: {entries}")
        assert jnp.allclose(entries, size * spread, rtol=1e-3)
PYTHON
