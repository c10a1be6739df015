"""How far are we from `transformers`? python benchmarks/parity.py [--out=docs/parity.md]

The small random models of tests/nn/golden/make.py, made anew in float32 and bfloat16: largest absolute difference of
logits and of states (h^0..h^L) over all prompts and positions. bfloat16 rounds every operation, and two programs that
round at other places differ by as much as each differs from float32: both distances stand beside ours.
Needs the `parity` extra.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

HEAD = """# Difference to transformers

Largest absolute difference over all prompts and positions, on the small random models of
[tests/nn/golden/make.py](../tests/nn/golden/make.py), whose weights are far from a tame initial scale. In bfloat16 two
programs that round at other places differ by as much as either does from float32, so those distances stand beside ours.
Made by `python benchmarks/parity.py` with {versions}.

Products of float32 are at `matmul_precision` "highest", the default, which a GPU or TPU computes to float32 too. At
"default" a GPU multiplies in TF32 and a TPU in one pass of bfloat16, 11 and 8 bits of a factor for 24: there nothing
promises 1e-4. A CPU has one precision.

Columns: *largest logit*, of transformers in float32; *float32: logits, states*, ours less theirs, with both in float32;
*bfloat16: logits*, ours less theirs, with both in bfloat16; *ours to float32* and *theirs to float32*, the logits of
each in bfloat16 less those of transformers in float32.

| model | family | largest logit | float32: logits | states | bfloat16: logits | ours to float32 | theirs to float32 |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
FOOT = """
All models of the table have random weights; of released weights, SmolLM2 is below, under llama.cpp.
[tests/nn/test_random_configs.py](../tests/nn/test_random_configs.py) draws configs that transformers can make: each has
the same logits, to 1e-4 of the largest, or is refused. 10 of each family from gemma3 on are drawn in the tests, and
with `-m exhaustive` 200 of every family.
"""


def ours(folder: Path, dtype: str) -> dict[str, np.ndarray]:
    """What `make.say` says, from this side."""
    import tvjax
    from tests.nn.golden import make
    from tvjax.vectors.tvp import STREAM, stream_at

    model, said = tvjax.load(folder, dtype=dtype), {}
    for number, prompt in enumerate(make.PROMPTS):
        ids = jnp.array([prompt])
        said[f"logits.{number}"] = np.asarray(tvjax.run(model, ids)[0], np.float32)
        states = stream_at(tvjax.capture(model, ids, STREAM), slice(None))
        said[f"states.{number}"] = np.asarray(states[:, 0], np.float32)
    return said


def distance(first: dict[str, np.ndarray], second: dict[str, np.ndarray], kind: str) -> float:
    return max(float(np.abs(first[name] - second[name]).max()) for name in first if name.startswith(kind))


def row(name: str) -> str:
    from safetensors.numpy import load_file

    from tests.nn.golden import make

    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for dtype in ("float32", "bfloat16"):
            folder = Path(place) / dtype
            make.write(folder, name, dtype=dtype)
            said[f"theirs {dtype}"], said[f"ours {dtype}"] = load_file(folder / "said.safetensors"), ours(folder, dtype)
        family = json.loads((folder / "config.json").read_text())["model_type"]
    size = max(float(np.abs(a).max()) for n, a in said["theirs float32"].items() if n.startswith("logits"))
    pairs = [
        ("ours float32", "theirs float32", "logits"),
        ("ours float32", "theirs float32", "states"),
        ("ours bfloat16", "theirs bfloat16", "logits"),
        ("ours bfloat16", "theirs float32", "logits"),
        ("theirs bfloat16", "theirs float32", "logits"),
    ]
    numbers = " | ".join(f"{distance(said[a], said[b], kind):.1e}" for a, b, kind in pairs)
    return f"| {name} | {family} | {size:.2g} | {numbers} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(ROOT / "docs" / "parity.md"))
    options = parser.parse_args()
    import jax
    import torch
    import transformers

    from tests.nn.golden import make

    versions = f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__} on a CPU"
    rows = []
    for name in make.MODELS:
        rows.append(row(name))
        print(rows[-1], flush=True)
    page = Path(options.out)
    _, heading, rest = page.read_text().partition("\n## ") if page.exists() else ("", "", "")  # what is written by hand
    page.write_text(HEAD.format(versions=versions) + "\n".join(rows) + "\n" + FOOT + heading + rest)


if __name__ == "__main__":
    main()
