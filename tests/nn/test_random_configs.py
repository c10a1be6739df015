"""Random configs of every family that `transformers` can make: the same logits, or a refusal; never others silently."""

import random
import warnings
from typing import Any

import jax
import numpy as np
import pytest

from tests.nn.golden import needs_torch
from tvjax.errors import UserError
from tvjax.nn.decoder import Decoder
from tvjax.nn.pretrained.families import FAMILIES
from tvjax.nn.pretrained.weights import load_folder

LAYERS, HEADS, CHANNELS = 3, 4, 4
SHORT, LONG = [[5, 9, 3]], [[5, 9, 13, 2, 30, 23, 7, 11, 22, 8, 3]]  # below and beyond the windows, and some limits
GPT = {"vocab_size": 32, "n_embd": 16, "n_layer": LAYERS, "n_head": HEADS}
GATED = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 20,
}
# One of each list is drawn for each field; None leaves the field out. What is not implemented is among them.
PLAIN: dict[str, list[Any]] = {"tie_word_embeddings": [None, True, False]}
WIDE = PLAIN | {
    "num_key_value_heads": [1, 2, 4],
    "rms_norm_eps": [None, 1e-5, 0.03],
    "max_position_embeddings": [64, 64, 256, 8],
}
ACTS = ["silu", "silu", "gelu", "gelu_pytorch_tanh", "relu", "gelu_new", "quick_gelu", None]
FLAGS = [None, True, False]
BIASED = {"attention_bias": FLAGS, "hidden_act": ACTS}
TYPES = ("full_attention", "sliding_attention")
OPTIONS: dict[str, dict[str, list[Any]]] = {
    "gpt2": PLAIN
    | {
        "n_inner": [None, 20],
        "activation_function": ACTS,
        "layer_norm_epsilon": [None, 0.03],
        "scale_attn_weights": [None, None, None, False],
        "scale_attn_by_inverse_layer_idx": [None, None, None, True],
    },
    "gptj": PLAIN
    | {"n_inner": [None, 20], "rotary_dim": [2, 4], "activation_function": ACTS, "layer_norm_epsilon": [None, 0.03]},
    "gpt_neox": PLAIN
    | {
        "rotary_pct": [None, 0.5, 1.0],
        "use_parallel_residual": FLAGS,
        "attention_bias": FLAGS,
        "hidden_act": ACTS,
        "layer_norm_eps": [None, 0.03],
        "max_position_embeddings": [64, 256],
    },
    "llama": WIDE | BIASED | {"mlp_bias": FLAGS, "head_dim": [None, 6]},
    "mistral": WIDE | {"hidden_act": ACTS, "head_dim": [None, 6], "sliding_window": [None, 4, 20]},
    "qwen2": WIDE
    | {
        "hidden_act": ACTS,
        "use_sliding_window": FLAGS,
        "sliding_window": [None, 4, 20],
        "max_window_layers": [None, 0, 1, 2],
    },
    "qwen3": WIDE
    | BIASED
    | {
        "head_dim": [4, 6],
        "use_sliding_window": FLAGS,
        "sliding_window": [None, 4, 20],
        "max_window_layers": [None, 0, 1, 2],
    },
    "gemma": WIDE | BIASED | {"head_dim": [4, 6]},
    "gemma2": WIDE
    | {
        "attention_bias": FLAGS,
        "hidden_activation": ACTS,
        "head_dim": [4, 6],
        "query_pre_attn_scalar": [4, 9],
        "attn_logit_softcapping": [None, 2.0],
        "final_logit_softcapping": [None, 2.0],
        "sliding_window": [4, 20],
    },
    "gemma3_text": WIDE
    | {
        "attention_bias": FLAGS,
        "hidden_activation": ACTS,
        "head_dim": [4, 6],
        "query_pre_attn_scalar": [4, 9],
        "attn_logit_softcapping": [None, None, None, 2.0],
        "final_logit_softcapping": [None, 2.0],
        "sliding_window": [4, 20],
        "sliding_window_pattern": [None, 1, 2, 3],
        "use_bidirectional_attention": [None, None, None, True],
    },
    "olmo2": WIDE | BIASED,
    "olmo3": WIDE | BIASED | {"sliding_window": [4, 20]},
    "smollm3": WIDE
    | BIASED
    | {
        "mlp_bias": FLAGS,
        "no_rope_layers": [None, None, [1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]],
        "no_rope_layer_interval": [None, 1, 2, 3],
        "use_sliding_window": FLAGS,
        "sliding_window": [None, 4, 20],
    },
    "phi3": WIDE
    | {
        "hidden_act": ACTS,
        "sliding_window": [None, 4, 20],
        "original_max_position_embeddings": [None, 64, 8],
    },
    "granite": WIDE
    | BIASED
    | {
        "mlp_bias": FLAGS,
        "embedding_multiplier": [None, 3, 0.5],
        "attention_multiplier": [0.5, 0.2],
        "residual_multiplier": [None, 0.7],
        "logits_scaling": [None, 2.0, 3],
    },
}
TYPED = ("mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo3", "smollm3")
NESTED = ("gemma3_text", "olmo3")


def rope(draw: random.Random, half: int) -> dict[str, Any]:
    """A block of rotary positions for heads of which `half` pairs turn."""
    kind = draw.choice(["default", "linear", "llama3", "yarn", "yarn", "longrope", "dynamic"])
    block: dict[str, Any] = {"rope_type": kind, "rope_theta": draw.choice([30.0, 10_000.0, 2e6])}
    maybe = lambda name, *values: block.update({name: draw.choice(values)} if draw.random() < 0.5 else {})
    if kind in ("linear", "llama3", "yarn", "dynamic"):
        block["factor"] = draw.choice([1.0, 2.5, 8])
    if kind in ("llama3", "yarn", "longrope"):
        maybe("original_max_position_embeddings", 8, 64)
    if kind == "llama3":
        block |= {"low_freq_factor": draw.choice([1.0, 2]), "high_freq_factor": 4.0}
    if kind == "yarn":
        maybe("beta_fast", 4, 32.0)
        maybe("beta_slow", 0.5, 2)
        maybe("mscale", 0.7, 2.0)
        maybe("mscale_all_dim", 1.0, 0)
        maybe("truncate", True, False)
    if kind in ("yarn", "longrope"):
        maybe("attention_factor", 1.0, 0.8)
    if kind == "longrope":
        maybe("factor", 2.0, 8)
        block["short_factor"] = [draw.choice([1.0, 1.5, 3]) for _ in range(half)]
        block["long_factor"] = draw.choice([block["short_factor"], [2.0] * half])
    return block


def options(family: str, draw: random.Random) -> dict[str, Any]:
    """The fields of one config."""
    fields = {name: draw.choice(values) for name, values in OPTIONS[family].items()}
    fields = {name: value for name, value in fields.items() if value is not None}
    fields = (GPT if family in ("gpt2", "gptj") else GATED) | fields
    if draw.random() < (0.5 if family in TYPED else 0.05):
        fields["layer_types"] = [draw.choice(TYPES) for _ in range(LAYERS)]
    if family not in ("gpt2", "gptj") and draw.random() < 0.7:
        channels, fraction = fields.get("head_dim", CHANNELS), draw.choice([1.0, 0.5])
        acts = family in ("gpt_neox", "phi3")
        half = max(1, int(channels * fraction) // 2) if acts else channels // 2
        block = rope(draw, half)
        if acts or draw.random() < 0.05:
            block["partial_rotary_factor"] = fraction
        if family in NESTED:
            fields["rope_parameters"] = {kind: rope(draw, half) if draw.random() < 0.5 else block for kind in TYPES}
        else:
            fields["rope_parameters"] = block
    return fields


def reference(family: str, draw: random.Random, folder: Any) -> tuple[Any, dict[str, Any]]:
    """A model that `transformers` makes, writes into `folder`, reads and runs, and its fields."""
    import torch
    import transformers

    kind = transformers.CONFIG_MAPPING[family]
    while True:
        fields = options(family, draw)
        try:
            config = kind(**fields, pad_token_id=0, bos_token_id=1, eos_token_id=None)
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn(parameter.shape))
            model.save_pretrained(folder)
            read = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
            with torch.no_grad():
                said = read(torch.tensor(SHORT)).logits
        except Exception:
            continue
        if said.isfinite().all():
            return read, fields


def differences(family: str, count: int, folder: Any) -> tuple[list[tuple[Any, ...]], int]:
    """Of so many configs those whose logits are others here, and how many were compared."""
    import torch

    draw, wrong, compared = random.Random(family), [], 0
    for number in range(count):
        theirs, fields = reference(family, draw, folder / str(number))
        try:
            config, params, _ = load_folder(folder / str(number), unroll=1)
        except UserError as error:
            assert "\n" not in str(error), error
            continue
        for prompt in (LONG, SHORT):
            try:
                with jax.disable_jit():
                    said = np.asarray(Decoder(config).apply({"params": params}, np.array(prompt)))
            except UserError as error:
                assert "rotary positions" in str(error), error
                continue
            with torch.no_grad():
                expected = theirs(torch.tensor(prompt)).logits.numpy()
            compared += 1
            far = np.abs(said - expected).max() / max(1.0, np.abs(expected).max())
            if not far < 1e-4:
                wrong.append((number, len(prompt[0]), far, fields))
            break  # the short one is for those that refuse the long one
    return wrong, compared


def test_every_family_has_options():
    assert OPTIONS.keys() == FAMILIES.keys()


# Their configs are drawn before a release alone.
EARLIER = ("gpt2", "gptj", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")


@needs_torch
@pytest.mark.parametrize(
    ("family", "count"),
    [pytest.param(family, 10, marks=pytest.mark.slow) for family in FAMILIES if family not in EARLIER]
    + [pytest.param(family, 200, marks=pytest.mark.exhaustive) for family in FAMILIES],
)
def test_none_has_other_logits(family, count, tmp_path):
    import transformers

    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong, compared = differences(family, count, tmp_path)
    assert not wrong, "\n".join(map(str, wrong))
    assert compared >= count // 2, compared
