"""Pretrained families against `transformers`: golden folders, and where torch is installed, new models made now."""

import json

import numpy as np
import pytest
import safetensors.numpy

import tvjax
from tests.nn.golden import GOLDEN, every_model, make, needs_torch
from tvjax.nn.model import forward
from tvjax.nn.pretrained import load_model
from tvjax.nn.pretrained.families import FAMILIES
from tvjax.nn.tokens import pad
from tvjax.vectors.tvp import STREAM, stream_at


def check(folder, atol=1e-4):
    """Logits, every layer's state and 32 greedy tokens, padded on either side, as transformers says them."""
    model, said = load_model(folder, unroll=1), safetensors.numpy.load_file(folder / "said.safetensors")
    for side in ("left", "right"):
        tokens = pad(make.PROMPTS, side=side)
        out, found = forward(model, tokens.ids_BT, addresses=STREAM, positions_BT=tokens.positions_BT)
        states = stream_at(found, slice(None))
        made = tvjax.generate(model, tokens, max_new_tokens=make.NEW_TOKENS)
        for number in range(len(make.PROMPTS)):
            real = np.asarray(tokens.valid_BT[number])
            np.testing.assert_allclose(out[number][real], said[f"logits.{number}"], atol=atol, rtol=0)
            np.testing.assert_allclose(states[:, number][:, real], said[f"states.{number}"], atol=atol, rtol=0)
            np.testing.assert_array_equal(made.ids_BT[number], said[f"tokens.{number}"])


@every_model
def test_golden(name):
    check(GOLDEN / name)


@needs_torch
@pytest.mark.slow
@every_model
def test_made_now(name, tmp_path):
    make.write(tmp_path, name, seed=1)
    check(tmp_path)


def test_every_family_has_a_golden_model():
    kinds = {json.loads((GOLDEN / name / "config.json").read_text())["model_type"] for name in make.MODELS}
    assert kinds == set(FAMILIES)
