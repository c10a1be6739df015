#!/usr/bin/env bash
# safetensors 0.8.0: the same arrays and the same metadata, saved by two processes.
#
# A guess: the same bytes, since a dict has an order and the format is canonical JSON in front of the data.
# What happens: metadata go through a hash map with a seed of each call, so their order in the header, and the hash of
# the file, differ from one save to the next. PYTHONHASHSEED has no part in it. Checks of "the same run writes the same
# files" fail on files whose arrays are all equal. One metadata entry that holds the rest has one order.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cat >"$place/save.py" <<'PYTHON'
import hashlib
import sys

import numpy as np
import safetensors.numpy

metadata = {f"key{i}": str(i) for i in range(int(sys.argv[1]))}
print(hashlib.sha256(safetensors.numpy.save({"v": np.ones(3, np.float32)}, metadata=metadata)).hexdigest())
PYTHON
hashes() { # how many different files ten processes write, with $1 metadata entries
  for _ in 1 2 3 4 5 6 7 8 9 10; do PYTHONHASHSEED=0 "$place/env/bin/python" "$place/save.py" "$1"; done | sort -u | wc -l
}
many=$(hashes 8) one=$(hashes 1)
echo "ten processes: $many different files with 8 metadata entries, $one with 1"
[[ $many -gt 1 && $one -eq 1 ]]
