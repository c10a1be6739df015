#!/usr/bin/env bash
# orbax-checkpoint 0.12.8, jax 0.10.2: a checkpoint restored into a template of another dtype, and of another shape.
#
# A guess: a template that does not fit the stored arrays is an error; or whatever it says is made of them.
# What happens: another shape is an error, another dtype is not. Float32 weights restored into an int32 template lose
# their fractions, into bfloat16 their digits, without a word. A template made with the wrong parameter dtype so changes
# the numbers of a run that goes on.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$place/env/bin/python" - "$place/checkpoint" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint

checkpointer = orbax.checkpoint.StandardCheckpointer()
checkpointer.save(sys.argv[1], {"w": jnp.array([0.75, 1.001, -2.5])})
checkpointer.wait_until_finished()


def restored(shape, dtype):
    """The weights in that template, or the name of the error."""
    try:
        return checkpointer.restore(sys.argv[1], {"w": jax.ShapeDtypeStruct(shape, dtype)})["w"].tolist()
    except ValueError as error:
        return type(error).__name__


for shape, dtype, expected in (
    ((3,), jnp.int32, [0, 1, -2]),
    ((3,), jnp.bfloat16, [0.75, 1.0, -2.5]),
    ((2,), jnp.float32, "ValueError"),
):
    print(f"template {shape} {jnp.dtype(dtype).name}: {restored(shape, dtype)}")
    assert restored(shape, dtype) == expected
PYTHON
