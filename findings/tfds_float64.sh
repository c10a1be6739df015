#!/usr/bin/env bash
# tensorflow-datasets 4.9.10, numpy 2.4.6: features declared as float64, without TensorFlow.
#
# A guess: what is read has the values that were written, since the feature says float64 and the integers keep 64 bits.
# What happens: the examples hold floats of 32 bits. 0.1 comes back as 0.10000000149011612, 16777217.0 as 16777216.0 and
# 1e300 as infinity, in an array whose dtype is float64 all the same. int64 is exact. Nothing is said.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install --quiet --disable-pip-version-check tensorflow-datasets==4.9.10 numpy==2.4.6
"$place/env/bin/python" - "$place/data" <<'PYTHON'
import sys

import numpy as np
import tensorflow_datasets as tfds

written = {"one": 0.1, "several": np.array([0.1, 16777217.0, 1e300]), "whole": 2**53 + 1}
features = {
    "one": tfds.features.Scalar(np.float64),
    "several": tfds.features.Tensor(shape=(3,), dtype=np.float64),
    "whole": tfds.features.Scalar(np.int64),
}


class Numbers(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, written


builder = Numbers(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
read = builder.as_data_source("train")[0]
for name, value in read.items():
    print(f"{name}: written {written[name]}, read {value}")
assert read["one"] == float(np.float32(0.1)) != 0.1
assert read["several"].dtype == np.float64 and read["several"].tolist() == [read["one"], 16777216.0, np.inf]
assert read["whole"] == written["whole"]
PYTHON
