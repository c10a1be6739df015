"""Golden folders, and what the tests that read them share."""

import importlib.util
from pathlib import Path

import pytest

from tests.nn.golden import make

GOLDEN = Path(__file__).parent
HAS_TORCH = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs the parity extra")
every_model = pytest.mark.parametrize("name", make.MODELS)
