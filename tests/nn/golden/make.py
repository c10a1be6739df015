"""Golden folders: tiny random models made by `transformers`, with what it says of them.

    python tests/nn/golden/make.py     # writes NAME/{config.json,model.safetensors,said.safetensors} beside itself

Needs the `parity` extra. The tests read these files where torch is not installed, and make new ones where it is.
"""

import sys
from pathlib import Path
from typing import Any

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24}
GPT = {"vocab_size": 64, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64}
LONG = {"max_position_embeddings": 64}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 16,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}

# name: (family as transformers spells its classes, config)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT),
    "gpt2_untied": ("GPT2", {**GPT, "tie_word_embeddings": False, "n_inner": 20, "activation_function": "relu"}),
    "gpt_neox": ("GPTNeoX", {**SIZES, **LONG, "rotary_pct": 0.5}),
    "gpt_neox_sequential": (
        "GPTNeoX",
        {
            **SIZES,
            **LONG,
            "rotary_pct": 1.0,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "gptj": ("GPTJ", {**GPT, "rotary_dim": 2}),
    "llama2": ("Llama", {**SIZES, **LONG, "num_key_value_heads": 4}),
    "llama3": ("Llama", {**SIZES, **LONG, "num_key_value_heads": 2, "rope_parameters": LLAMA3_ROPE}),
    "llama_biased": (
        "Llama",
        {
            **SIZES,
            **LONG,
            "num_key_value_heads": 1,
            "head_dim": 6,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": LINEAR_ROPE,
        },
    ),
    "mistral": ("Mistral", {**SIZES, **LONG, "num_key_value_heads": 2, "sliding_window": 5}),
    "qwen2": ("Qwen2", {**SIZES, **LONG, "num_key_value_heads": 2}),
    "qwen2_windows": (
        "Qwen2",
        {
            **SIZES,
            **LONG,
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("Qwen3", {**SIZES, **LONG, "num_key_value_heads": 2, "head_dim": 8}),
    "gemma": ("Gemma", {**SIZES, **LONG, "num_key_value_heads": 1, "head_dim": 8}),
    "gemma2": (
        "Gemma2",
        {
            **SIZES,
            **LONG,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            **SIZES,
            **LONG,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 12,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {**LINEAR_ROPE, "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        },
    ),
    "olmo2": ("Olmo2", {**SIZES, **LONG, "num_key_value_heads": 2}),
    "olmo3": (
        "Olmo3",
        {
            **SIZES,
            **LONG,
            "num_key_value_heads": 2,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {**YARN_ROPE, "rope_theta": 200.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 200.0},
            },
        },
    ),
    "smollm3": ("SmolLM3", {**SIZES, **LONG, "num_hidden_layers": 4, "num_key_value_heads": 2}),
    "smollm3_windows": (
        "SmolLM3",
        {
            **SIZES,
            **LONG,
            "num_key_value_heads": 1,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 5,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": YARN_ROPE,
        },
    ),
    "phi3": ("Phi3", {**SIZES, **LONG, "num_key_value_heads": 2, "sliding_window": 5}),
    "phi3_long": (
        "Phi3",
        {
            **SIZES,
            "hidden_size": 32,
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.3, 2.0],
                "long_factor": [1.5, 3.0, 9.0],
            },
        },
    ),
    "granite": (
        "Granite",
        {
            **SIZES,
            **LONG,
            "num_key_value_heads": 2,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.75,
            "logits_scaling": 2.0,
        },
    ),
}
PROMPTS = ([5, 9, 13, 2, 40, 33, 7, 61, 22], [8, 3, 50, 19], [31, 30, 29, 11, 12, 44, 2])
NEW_TOKENS = 32


def build(name: str, seed: int = 0, dtype: str = "float32") -> Any:
    """The random model `name`, with weights far from their tame initial scale, in `dtype` (a torch name)."""
    import torch
    import transformers

    family, options = MODELS[name]
    kind = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    config = getattr(transformers, kind)(**options, pad_token_id=0, bos_token_id=1, eos_token_id=None)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    kind = {"GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM")
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim > 1 else 0.2
            noise = spread * torch.randn(parameter.shape)
            parameter.copy_(noise + (parameter if parameter.ndim == 1 and path.endswith("weight") else 0))
    return model.to(getattr(torch, dtype))


def padded(side: str) -> tuple[Any, Any]:
    """Ids and mask of `PROMPTS`, padded on `side`."""
    import torch

    length = max(map(len, PROMPTS))
    ids, mask = torch.zeros(2, len(PROMPTS), length, dtype=torch.long)
    for row, prompt in enumerate(PROMPTS):
        start = 0 if side == "right" else length - len(prompt)
        ids[row, start : start + len(prompt)] = torch.tensor(prompt)
        mask[row, start : start + len(prompt)] = 1
    return ids, mask


def say(model: Any) -> dict[str, Any]:
    """What the model says of `PROMPTS`: logits, h^0..h^L and 32 greedy tokens, each prompt alone."""
    import numpy as np
    import torch

    said = {}
    blocks = next(m for n, m in model.named_modules() if n.split(".")[-1] in ("h", "layers"))
    for number, prompt in enumerate(PROMPTS):
        states: list[Any] = []
        handles = [blocks[0].register_forward_pre_hook(lambda m, args, s=states: s.append(args[0]))]
        for block in blocks:
            keep = lambda m, args, out, s=states: s.append(out[0] if isinstance(out, tuple) else out)
            handles.append(block.register_forward_hook(keep))
        ids = torch.tensor([prompt])
        with torch.no_grad():
            logits = model(ids).logits[0]
        for handle in handles:
            handle.remove()
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
        said[f"logits.{number}"] = logits.float().numpy()
        said[f"states.{number}"] = torch.stack([s[0] for s in states]).float().numpy()
        said[f"tokens.{number}"] = ids[0, len(prompt) :].numpy().astype(np.int32)
    return said


def write(folder: Path, name: str, seed: int = 0, dtype: str = "float32") -> None:
    """The model as a Hugging Face folder, and what it says beside it."""
    from safetensors.numpy import save_file

    model = build(name, seed, dtype)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(say(model), folder / "said.safetensors")


if __name__ == "__main__":
    here = Path(__file__).parent
    for chosen in sys.argv[1:] or MODELS:
        write(here / chosen, chosen)
        print(chosen, sum(f.stat().st_size for f in (here / chosen).iterdir()), "bytes")
