#!/usr/bin/env bash
# optax 0.2.8, jax 0.10.2: optax.inject_hyperparams(optax.adam) on bfloat16 parameters.
#
# A guess: the same steps as of optax.adam, with the learning rate in the state, where it can be read and set.
# What happens: NaN from the first step on. All numbers of the optimizer are injected, not the learning rate alone, and
# take the parameters' dtype: b2 = 0.999 is 1 in bfloat16, and the correction of Adam's second moment is 0 / (1 - 1).
# Plain optax.adam trains the same parameters. One float32 parameter in the tree makes the numbers float32, and all is
# well. With the others in static_args the learning rate alone is rounded.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$place/env/bin/python" - <<'PYTHON'
import jax.numpy as jnp
import optax

fixed = ("b1", "b2", "eps", "eps_root")
one, two = {"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.ones(2, jnp.bfloat16), "scale": jnp.ones(2)}
for name, optimizer, parameters, b2, finite in (
    ("plain", optax.adam(1e-3), one, None, True),
    ("injected", optax.inject_hyperparams(optax.adam)(1e-3), one, 1, False),
    ("injected, a float32 parameter too", optax.inject_hyperparams(optax.adam)(1e-3), two, jnp.float32(0.999), True),
    ("injected, the others static", optax.inject_hyperparams(optax.adam, static_args=fixed)(1e-3), one, None, True),
):
    gradients = {key: jnp.full_like(value, 0.1) for key, value in parameters.items()}
    updates, state = optimizer.update(gradients, optimizer.init(parameters), parameters)
    numbers = getattr(state, "hyperparams", {})
    print(f"{name}: step {updates['w']}, b2 {numbers.get('b2')}, learning rate {numbers.get('learning_rate')}")
    assert numbers.get("b2") == b2 and bool(jnp.isfinite(updates["w"]).all()) == finite
PYTHON
