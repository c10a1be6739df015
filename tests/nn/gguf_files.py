"""GGUF files for tests: Hugging Face folders (config.json, model.safetensors) written as llama.cpp's converter does.

What the converter changes on the way, besides names: rows of queries and keys (llama, smollm3, granite), norms (gemma),
the order of queries, keys and values (gptneox), transposed matrices (gpt2), and frequencies that become tensors.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.nn.golden import GOLDEN

Metadata = dict[str, Any]
# model_type of config.json: general.architecture. Mistral's files say llama and nothing of a window.
ARCHITECTURES = {
    **{name: name for name in ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gpt2")},
    **{name: name for name in ("olmo2", "smollm3", "phi3", "granite")},
    "gemma3_text": "gemma3",
    "mistral": "llama",
    "gpt_neox": "gptneox",
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
NO_VOCAB: Metadata = {"tokenizer.ggml.model": "no_vocab"}


def write_gguf(
    path: Path,
    folder: Path,
    *,
    tokenizer: Metadata | None = None,
    kind: str = "F32",
    change: Mapping[str, Any] | None = None,
) -> Path:
    """The model in `folder` as the GGUF file `path`, which is returned.

    tokenizer: its metadata (`byte_level`, `sentencepiece`, or, where metadata says vocab_size, `NO_VOCAB`; None:
    `byte_level`). kind: how matrices are kept whose rows are whole blocks of that kind (a name of
    gguf.GGMLQuantizationType); all else is float32. change: metadata that replaces, is added, or (None) is left out.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["model_type"]]
    vocabulary = byte_level(config["vocab_size"]) if tokenizer is None else tokenizer
    writer = gguf.GGUFWriter(path, arch)  # it writes general.architecture by itself
    for key, value in {**metadata(config), **vocabulary, **(change or {})}.items():
        if value is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add.get(type(value), writer.add_array)(key, value)
    quantization = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[quantization]
    for name, array in tensors(folder, config).items():
        whole = array.ndim == 2 and array.shape[1] % block == 0 and not name.startswith("position_embd")
        data = gguf.quants.quantize(array, quantization) if whole else array
        writer.add_tensor(name, data, raw_dtype=quantization if whole else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def resized(folder: Path, source: Path, sizes: Mapping[int, int], **fields: Any) -> Path:
    """`folder`, with the model of `source` but for `fields` of its config.json, and random tensors.

    sizes: of each axis of a tensor, by what it is in `source`.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    made = {
        name: rng.normal(t.ndim == 1, 0.15, [sizes.get(n, n) for n in t.shape]).astype(np.float32)
        for name, t in safetensors.numpy.load_file(source / "model.safetensors").items()
    }
    safetensors.numpy.save_file(made, folder / "model.safetensors")
    return folder


def with_vocabulary(folder: Path, size: int) -> Path:
    """`folder`, with golden llama2 of so many tokens."""
    return resized(folder, GOLDEN / "llama2", {64: size}, vocab_size=size)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def wide(folder: Path) -> Path:
    """`folder`, with a model like Llama 3.1 whose rows are whole blocks of 32."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    return resized(folder, GOLDEN / "llama3", {8: 32, 16: 64, 24: 96}, rope_parameters=LLAMA3, **sizes)


def size(config: Metadata, *names: str) -> Any:
    """The first of the fields `names` that has a value."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def head_size(config: Metadata) -> int:
    return size(config, "head_dim") or size(config, "hidden_size", "n_embd") // size(
        config, "num_attention_heads", "n_head"
    )


def rope(config: Metadata) -> Metadata:
    """The block of rotary positions, where there is one; where layers have their own, that of full attention."""
    beside = {name: config[name] for name in ("rope_theta",) if name in config}
    block = config.get("rope_parameters") or {}
    return {"rope_type": "default", **beside, **block.get("full_attention", block)}


def metadata(config: Metadata) -> Metadata:
    """What the file says of the model's shape, `general.architecture` apart."""
    arch, width = ARCHITECTURES[config["model_type"]], size(config, "hidden_size", "n_embd")
    heads = size(config, "num_attention_heads", "n_head")
    found: Metadata = {
        "context_length": size(config, "max_position_embeddings", "n_positions"),
        "embedding_length": width,
        "block_count": size(config, "num_hidden_layers", "n_layer"),
        "feed_forward_length": size(config, "intermediate_size", "n_inner") or 4 * width,
        "attention.head_count": heads,
    }
    if arch in ("gpt2", "gptneox"):
        found["attention.layer_norm_epsilon"] = size(config, "layer_norm_epsilon", "layer_norm_eps")
    else:
        found["attention.head_count_kv"] = size(config, "num_key_value_heads") or heads
        found["attention.layer_norm_rms_epsilon"] = config["rms_norm_eps"]
    if config.get("head_dim") is not None:
        found["attention.key_length"] = found["attention.value_length"] = config["head_dim"]
    if arch in ("llama", "qwen2", "qwen3", "olmo2", "smollm3", "phi3", "granite", "gemma3"):
        found["rope.freq_base"] = float(rope(config)["rope_theta"])
    elif arch != "gpt2":
        # The converter says nothing, and 10000 is what llama.cpp takes then.
        assert rope(config)["rope_theta"] == 10000
    if arch in ("llama", "smollm3", "granite"):
        found["rope.dimension_count"] = head_size(config)
        found["vocab_size"] = config["vocab_size"]
    if arch == "gptneox":
        found["rope.dimension_count"] = int(rope(config)["partial_rotary_factor"] * head_size(config))
        found["use_parallel_residual"] = config["use_parallel_residual"]
    if rope(config)["rope_type"] == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope(config)["factor"])}
    if arch == "granite":
        found["embedding_scale"], found["residual_scale"] = (
            config["embedding_multiplier"],
            config["residual_multiplier"],
        )
        found["attention.scale"], found["logit_scale"] = config["attention_multiplier"], config["logits_scaling"]
    if arch == "gemma3":
        found["attention.sliding_window"] = config["sliding_window"]
        found["attention.sliding_window_pattern"] = config["layer_types"].index("full_attention") + 1
        found["rope.freq_base_swa"] = config["rope_parameters"]["sliding_attention"]["rope_theta"]
    if arch == "phi3":
        found["attention.sliding_window"] = config["sliding_window"] or 0
        found["rope.dimension_count"] = int(rope(config).get("partial_rotary_factor", 1.0) * head_size(config))
        if rope(config)["rope_type"] == "longrope":
            long, original = config["max_position_embeddings"], config["original_max_position_embeddings"]
            found["rope.scaling.original_context_length"] = original
            found["rope.scaling.attn_factor"] = float((1 + np.log(long / original) / np.log(original)) ** 0.5)
    if arch == "gemma2":
        found["attn_logit_softcapping"] = config["attn_logit_softcapping"]
        found["final_logit_softcapping"] = config["final_logit_softcapping"]
        found["attention.sliding_window"] = config["sliding_window"]
    return {"general.name": "a tiny model"} | {f"{arch}.{key}": value for key, value in found.items()}


def tensors(folder: Path, config: Metadata) -> dict[str, np.ndarray]:
    """The file's tensors, in float32 and in numpy's order of axes (GGUF lists them from the last to the first)."""
    import gguf

    arch = ARCHITECTURES[config["model_type"]]
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, size(config, "num_hidden_layers", "n_layer"))
    found = {}
    for path, tensor in safetensors.numpy.load_file(folder / "model.safetensors").items():
        if path == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        name = names.get_name(path, try_suffixes=(".weight", ".bias"))
        assert name is not None, path
        found[name] = np.ascontiguousarray(converted(arch, path, tensor.astype(np.float32), config))
    if rope(config)["rope_type"] == "longrope":
        for length in ("short", "long"):
            found[f"rope_factors_{length}.weight"] = np.array(rope(config)[f"{length}_factor"], np.float32)
    if rope(config)["rope_type"] == "llama3":
        found["rope_freqs.weight"] = llama3_factors(rope(config), head_size(config))
    return found


def converted(arch: str, path: str, tensor: np.ndarray, config: Metadata) -> np.ndarray:
    """One tensor, as the file keeps it."""
    part = path.split(".")[-2]
    if arch in ("llama", "smollm3", "granite") and part in ("q_proj", "k_proj"):
        heads = config["num_key_value_heads" if part == "k_proj" else "num_attention_heads"]
        # The two halves of a head, which turn together, become neighbours.
        return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    if arch in ("gemma", "gemma2", "gemma3") and part.endswith("norm"):
        return tensor + 1
    if arch == "gpt2" and part in ("c_attn", "c_proj", "c_fc"):
        return tensor.T
    if arch == "gptneox" and part == "query_key_value":
        by_head = tensor.reshape(config["num_attention_heads"], 3, -1, *tensor.shape[1:])
        return by_head.swapaxes(0, 1).reshape(tensor.shape)
    return tensor


def llama3_factors(block: Metadata, channels: int) -> np.ndarray:
    """What llama3's scaling divides each frequency by: 1 for fast channels, `factor` for slow ones."""
    low, high, original = (
        block[key] for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    frequencies = float(block["rope_theta"]) ** (-np.arange(0, channels, 2) / channels)
    turns = original * frequencies / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / block["factor"] + smooth)).astype(np.float32)


def byte_letters() -> list[str]:
    """The character that byte-level BPE has for each of the 256 bytes: itself where it can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in seen else next(hidden)) for byte in range(256)]


def byte_level(
    vocab_size: int,
    *,
    pre: str = "gpt-2",
    merges: Sequence[str] = (),
    special: Mapping[str, int] | None = None,
    **fields: Any,
) -> Metadata:
    """Metadata of a byte-level BPE: what `merges` ("a b") make, the bytes (letters, digits, space and newline first),
    `special` (token: type), then unused ones up to `vocab_size`, where it all ends. fields: more of tokenizer.ggml."""
    letters = byte_letters()
    merges = merges or ["a b"]  # llama.cpp refuses a file of this model without
    first = [ord(c) for c in " \nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"]
    rest = [letter for byte, letter in enumerate(letters) if byte not in first]
    made = [merge.replace(" ", "") for merge in merges]
    tokens = made + [letters[byte] for byte in first] + rest + list(special or {})
    types = [NORMAL] * (256 + len(merges)) + list((special or {}).values())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        **filled(tokens, types, vocab_size),
        "tokenizer.ggml.merges": list(merges),
        **{f"tokenizer.ggml.{key}": value for key, value in fields.items()},
    }


def sentencepiece(
    vocab_size: int, pieces: Mapping[str, float], *, special: Mapping[str, int] | None = None, **fields: Any
) -> Metadata:
    """Metadata of a SentencePiece BPE: <unk>, <s>, </s>, the 256 bytes, `pieces` (piece: score, a higher one is merged
    first), `special` (token: type), then unused ones up to `vocab_size`. fields: more of tokenizer.ggml."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *(special or {})]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces) + list((special or {}).values())
    made = filled(tokens, types, vocab_size)
    scores = [0.0] * 259 + [float(score) for score in pieces.values()]
    return {
        "tokenizer.ggml.model": "llama",
        **made,
        "tokenizer.ggml.scores": scores + [0.0] * (vocab_size - len(scores)),
        **{f"tokenizer.ggml.{key}": value for key, value in fields.items()},
    }


def filled(tokens: list[str], types: list[int], vocab_size: int) -> Metadata:
    """Tokens and types, cut or filled to `vocab_size`."""
    more = [f"[unused{number}]" for number in range(vocab_size - len(tokens))]
    return {
        "tokenizer.ggml.tokens": (tokens + more)[:vocab_size],
        "tokenizer.ggml.token_type": (types + [UNUSED] * len(more))[:vocab_size],
    }
