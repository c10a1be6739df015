#!/usr/bin/env bash
# jax 0.10.2: jax.nn.dot_product_attention with is_causal=True and fewer queries than keys, as in decoding with a cache.
#
# A guess: the queries are the last positions, so that a single one sees all keys; or the lengths must be equal.
# What happens: they are taken for the first positions. A single query sees the first key and nothing else, and of two
# the last one sees two. local_window_size counts from the start as well. Nothing is said. Without a mask, of which one
# query needs none, it is right.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$place/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

query, keys = (jax.random.normal(jax.random.key(i), (1, 4, 1, 4)) for i in range(2))
values = jnp.eye(4)[None, :, None]  # so that what comes out is how much each key is attended to


def seen(count, **mask):
    """Which of four keys each of the last `count` positions attends to."""
    weights = jax.nn.dot_product_attention(query[:, -count:], keys, values, **mask)[0, :, 0]
    return [jnp.flatnonzero(row > 1e-6).tolist() for row in weights]


for count, mask, expected in (
    (4, {"is_causal": True}, [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]),
    (2, {"is_causal": True}, [[0], [0, 1]]),
    (1, {"is_causal": True}, [[0]]),
    (1, {"local_window_size": (1, 0)}, [[0]]),
    (1, {}, [[0, 1, 2, 3]]),
):
    print(f"the last {count} of 4 positions, {mask}: keys {seen(count, **mask)}")
    assert seen(count, **mask) == expected
PYTHON
