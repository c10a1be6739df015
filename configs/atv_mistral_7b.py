"""Adaptive task vectors in the published setting (Kang et al. 2025): GPT-2 writes for Mistral-7B.

As configs/atv_llama3_8b.py, arguments included, except for the target.
"""

import atv_llama3_8b
from ml_collections import ConfigDict

VARIANTS = atv_llama3_8b.VARIANTS


def get_config(variant: str = "released_code") -> ConfigDict:
    config = atv_llama3_8b.get_config(variant)
    config.target.path = "Mistral-7B-v0.3"  # a Hugging Face folder
    return config
