"""Golden folders, and what the tests that read them share."""

import importlib.util
from pathlib import Path

import pytest

from tests.nn.golden import make

GOLDEN = Path(__file__).parent
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs the parity extra")
every_model = pytest.mark.parametrize("name", make.MODELS)

SECOND = ("gpt_neox_sequential", "llama_biased", "qwen2_windows", "smollm3_windows", "phi3_long")
"""Folders whose family has another: their logits are always asked for, the rest is among the exhaustive tests."""
each_family = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive) if name in SECOND else name for name in make.MODELS]
)
