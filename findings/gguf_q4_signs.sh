#!/usr/bin/env bash
# gguf 0.19.0, numpy 2.4.6: weights of 1 and -1 (signs, ternary weights) through the types Q4_0 and Q5_0.
#
# A guess: both signs come back alike, and no weight is off by more than half a step.
# What happens: the entry of the largest magnitude becomes -8 of the steps, whatever its sign, and the other sign ends
# at 7. In a block that starts with 1, -1 comes back as -0.875; in one that starts with -1 it is 1 that comes back as
# 0.875, a whole step off: a matrix of signs is lopsided, block by block. In Q5_0 it is 15/16. In Q8_0 both are alike.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
"$place/env/bin/python" - <<'PYTHON'
import gguf
import numpy as np

signs = np.tile(np.array([1, -1, -1, 1], np.float32), 8)
for name, clipped in {"Q4_0": 7 / 8, "Q5_0": 15 / 16, "Q8_0": None}.items():
    kind = gguf.GGMLQuantizationType[name]
    first_up, first_down = (gguf.dequantize(gguf.quantize(w[None], kind), kind)[0] for w in (signs, -signs))
    print(f"{name}: {signs[:4]} becomes {first_up[:4]}, {-signs[:4]} becomes {first_down[:4]}")
    up, down = signs > 0, signs < 0
    if clipped is None:
        assert (first_up[up] == -first_up[down]).all() and abs(first_up[0] - 1) < 1e-3
    else:
        assert (first_up[up] == 1).all() and (first_up[down] == -clipped).all()
        assert (first_down[up] == -1).all() and (first_down[down] == clipped).all()
PYTHON
