"""Pretrained models by their shapes alone: a config.json in a folder, or one that is known by its name."""

from typing import Any

from tvjax.errors import reject
from tvjax.files import read_json, user_path
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.pretrained.families import read_config
from tvjax.nn.sources import is_gguf

_LLAMA3: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
}
_MISTRAL: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
}

# The fields of their config.json that say shapes, from the published model cards.
SHAPES: dict[str, dict[str, Any]] = {
    "Meta-Llama-3-8B": _LLAMA3
    | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
    "Meta-Llama-3-70B": _LLAMA3
    | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672},
    "Mistral-7B-v0.1": _MISTRAL | {"vocab_size": 32000, "sliding_window": 4096},
    "Mistral-7B-v0.3": _MISTRAL | {"vocab_size": 32768, "sliding_window": None, "rope_theta": 1e6},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
    },
    "smollm2": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
    },
}


def shape_of(path: str, field: str, **how: Any) -> DecoderConfig:
    """The decoder of the folder, the GGUF file or the name that `field` gives; `how` sets unroll, remat and dtypes.

    Raises `UserError` where it is neither.
    """
    folder = user_path(path, field)
    if (folder / "config.json").is_file():
        return read_config(read_json(folder / "config.json", ""), str(folder / "config.json"), **how)
    if is_gguf(folder):
        from tvjax.nn.pretrained.gguf_file import GGUF

        return read_config(GGUF(folder).values, str(folder), **how)
    if folder.name not in SHAPES:
        raise reject(field, path, f"a folder with a config.json, a GGUF file, or one of {', '.join(SHAPES)}")
    return read_config(SHAPES[folder.name], folder.name, **how)
