#!/usr/bin/env bash
# gguf 0.19.0, numpy 2.4.6: the shape of a tensor that its reader gives.
#
# A guess: tensor.shape is the shape of tensor.data, or for quantized types of what dequantize makes of it.
# What happens: the axes are in the file's order, the reverse of the array's. tensor.data.reshape(tensor.shape) is
# accepted and moves the entries, and a square weight shows nothing of it. The data of a quantized tensor have another
# shape still, with bytes along the last axis. Only the reverse of tensor.shape is that of the weights in all types.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
cd "$place"
env/bin/python - <<'PYTHON'
import gguf
import numpy as np

weights = np.arange(128, dtype=np.float32).reshape(2, 64)
kind = gguf.GGMLQuantizationType.Q8_0
writer = gguf.GGUFWriter("weights.gguf", "llama")
writer.add_tensor("plain", weights)
writer.add_tensor("quantized", gguf.quantize(weights, kind), raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
plain, quantized = gguf.GGUFReader("weights.gguf").tensors
for tensor in (plain, quantized):
    weights_again = gguf.dequantize(tensor.data, tensor.tensor_type)
    print(f"{tensor.name}: shape {tensor.shape}, data {tensor.data.shape}, weights {weights_again.shape}")
    assert tuple(tensor.shape) == weights.shape[::-1] and weights_again.shape == weights.shape
assert plain.data.shape == (2, 64) and quantized.data.shape == (2, 68)
assert (plain.data == weights).all() and (plain.data.reshape(plain.shape).T != weights).any()
PYTHON
