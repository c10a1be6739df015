#!/usr/bin/env bash
# jax 0.10.2: jax.default_matmul_precision in a loss, and the gradient of a function with a custom_vjp in it.
#
# A guess: the gradient's products have the precision of the loss's, as those of the same function without custom_vjp.
# What happens: those of the backward function have the default precision. It is traced when the gradient is taken, when
# the context is closed, while derivatives that JAX makes by itself copy the precision of each product. A loss in
# "highest" so gets gradients in TF32 or bfloat16 on accelerators, for these functions alone. A context around the
# call of jax.grad reaches them.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$place/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp


def plain(x, w):
    return x @ w


custom = jax.custom_vjp(plain)
custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, c: (c @ saved[1].T, saved[0].T @ c))


def products(function, around):
    """How many products the gradient's program has, and how many of them in full precision."""

    def loss(x, w):
        with jax.default_matmul_precision("highest"):
            return function(x, w).sum()

    with jax.default_matmul_precision(around):
        program = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.ones((2, 2)), jnp.ones((2, 2))))
    return program.count("dot_general["), program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")


for name, function, around, expected in (
    ("plain, context in the loss", plain, None, (3, 3)),
    ("custom_vjp, context in the loss", custom, None, (3, 1)),
    ("custom_vjp, context around the gradient too", custom, "highest", (3, 3)),
):
    seen = products(function, around)
    print(f"{name}: {seen[1]} of {seen[0]} products in the highest precision")
    assert seen == expected
PYTHON
