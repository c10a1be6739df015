#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.4.6: save() of an array that is not C-contiguous, then load().
#
# A guess: what is loaded equals what was saved, whatever the memory order of the array, or save() refuses it.
# What happens: save() writes the bytes as they lie in memory and the shape as numpy says it. A Fortran-ordered matrix
# comes back with its entries moved, every second entry of a vector as the first ones of the whole. Nothing is said.
# A transposed weight or a slice of activations goes wrong so; np.ascontiguousarray before save() is the remedy.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$place/env/bin/python" - <<'PYTHON'
import numpy as np
import safetensors.numpy

matrix = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
vector = np.arange(12, dtype=np.float32)[::2]
loaded = safetensors.numpy.load(safetensors.numpy.save({"matrix": matrix, "vector": vector}))
for name, saved in {"matrix": matrix, "vector": vector}.items():
    print(f"{name}: saved {saved.tolist()}, loaded {loaded[name].tolist()}")
assert loaded["matrix"].tolist() == [[0, 3, 1], [4, 2, 5]], "no longer the bytes in memory order"
assert loaded["vector"].tolist() == [0, 1, 2, 3, 4, 5], "no longer the first bytes of the whole array"
contiguous = safetensors.numpy.load(safetensors.numpy.save({"matrix": np.ascontiguousarray(matrix)}))
assert (contiguous["matrix"] == matrix).all()
PYTHON
