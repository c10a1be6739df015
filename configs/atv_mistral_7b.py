"""Adaptive task vectors in the published setting (Kang et al. 2025): GPT-2 writes for Mistral-7B.

As configs/atv_llama3_8b.py, arguments included, but for the target.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

# By path: neither the working directory nor how this file is loaded makes a difference.
_LLAMA = runpy.run_path(str(Path(__file__).with_name("atv_llama3_8b.py")))
VARIANTS = _LLAMA["VARIANTS"]


def get_config(variant: str = "released_code") -> ConfigDict:
    config = _LLAMA["get_config"](variant)
    config.target.path = "Mistral-7B-v0.3"  # a Hugging Face folder
    return config
