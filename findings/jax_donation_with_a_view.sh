#!/usr/bin/env bash
# jax 0.10.2 on a CPU: an array that is donated while numpy looks at it.
#
# A guess: what is donated is gone after the call, and its memory holds the result; if numpy has a view of it, jax warns
# that it could not be used, or numpy sees the new values.
# What happens: with a view alive (np.asarray copies nothing on a CPU) the donation is dropped without a word. The array
# is not deleted and can be used again, the result lies in a second buffer, and the view keeps the old values. A training
# step that donates its state, beside a checkpoint that is being written from such views, needs room for two states.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$place/env/bin/python" -W error - <<'PYTHON'
import jax
import numpy as np

step = jax.jit(lambda state: state + 1, donate_argnums=0)
for looked_at in (False, True):
    state = jax.block_until_ready(jax.random.normal(jax.random.key(0), (1 << 20,)))
    place, first = state.unsafe_buffer_pointer(), float(state[0])
    view = np.asarray(state) if looked_at else None
    after = jax.block_until_ready(step(state))
    same = after.unsafe_buffer_pointer() == place
    print(f"numpy has a view: {looked_at}; donated array deleted: {state.is_deleted()}; result in its buffer: {same}")
    assert state.is_deleted() is same is (not looked_at)
    if view is not None:
        assert not view.flags.owndata and view[0] == state[0] == np.float32(first) and after[0] == np.float32(first + 1)
PYTHON
