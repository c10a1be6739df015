"""Each family of pretrained decoders: what its config.json means, and the rows of its tensors (`forms`).

`Family.read` turns the fields of a config.json (`fields`) into those of a `DecoderConfig`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tvjax import errors
from tvjax.errors import UserError, reject
from tvjax.nn.decoder import DecoderConfig, rotary_fields
from tvjax.nn.pretrained.fields import READ, Fields
from tvjax.nn.pretrained.forms import (
    GEMMA2_ROWS,
    GPT2_ROWS,
    GPT_NEOX_ROWS,
    GPTJ_ROWS,
    LLAMA_ROWS,
    OLMO2_ROWS,
    PHI3_ROWS,
    Row,
)
from tvjax.nn.pretrained.rope import Beside, read_rope, read_ropes

# The names that transformers has for each of our activations; the first one is what we write.
ACTIVATIONS = {
    "gelu": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
    "gelu_exact": ("gelu", "gelu_python"),
    "silu": ("silu", "swish"),
    "relu": ("relu",),
}


def _activation(f: Fields, name: str) -> str:
    """Our name of the activation that the field `name` says."""
    for ours, theirs in ACTIVATIONS.items():
        if f[name] in theirs:
            return ours
    raise f.reject(name, ", ".join(name for names in ACTIVATIONS.values() for name in names))


def _rotary(f: Fields, channels: int, beside: Beside | None = None) -> dict[str, Any]:
    """Rotary positions in heads of `channels`, the same in all layers."""
    rope = read_rope(f, channels, beside)
    return rotary_fields((rope.rotary,), rope.width)


def _rotaries(f: Fields, kinds: list[str], **bases: str | float) -> dict[str, Any]:
    """Rotary positions that each kind of layers has of its own, with what says the base of a kind (`read_ropes`)."""
    ropes = read_ropes(f, _channels(f), bases)
    return rotary_fields(tuple(ropes[kind].rotary for kind in kinds), ropes[kinds[0]].width)


def _split(f: Fields, width: str, heads: str) -> int:
    """The channels of a head, where the heads share the width among them."""
    if f[width] % f[heads]:
        raise f.reject(heads, f"a divisor of {width}, which is {f[width]}: these heads do not divide it")
    return int(f[width] // f[heads])


def _layer_types(f: Fields, layers: int) -> list[str] | None:
    """What attention each layer has, if the config.json says so."""
    kinds = f["layer_types"]
    if kinds is None:
        return None
    kinds = ["full_attention" if kind == "attention" else kind for kind in kinds]
    if len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
        raise f.reject("layer_types", f"{layers} entries (num_hidden_layers), each sliding_attention or full_attention")
    return kinds


def _no_windows(f: Fields, layers: int) -> tuple[int, ...]:
    if "sliding_attention" in (_layer_types(f, layers) or ()):
        raise f.reject("layer_types", f"{layers} entries full_attention (this family has no others)")
    return ()


def _windows(f: Fields, layers: int, default: list[str], window: int | None) -> tuple[int, ...]:
    """How far back each layer sees: `window` where `layer_types` (or `default`) says so."""
    kinds = _layer_types(f, layers) or default
    if "sliding_attention" not in kinds:
        return ()
    if window is None or window < 1:
        raise f.reject(
            "sliding_window", "1 or more, and no use_sliding_window false, as layer_types names sliding_attention"
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _last_windows(f: Fields, layers: int) -> tuple[int, ...]:
    """How far back each layer sees, where layers from `max_window_layers` on have a window if it is used."""
    window, first = f["sliding_window"] if f["use_sliding_window"] else None, f["max_window_layers"]
    sliding = [window is not None and layer >= first for layer in range(layers)]
    return _windows(f, layers, ["sliding_attention" if slides else "full_attention" for slides in sliding], window)


def _same_windows(f: Fields, layers: int) -> tuple[int, ...]:
    """How far back each layer sees, where all see as far; but a Mistral with `layer_types` is read as a Ministral."""
    window = f["sliding_window"]
    if "layer_types" in f and window is None:
        raise f.reject("sliding_window", "1 or more beside layer_types")
    return _windows(f, layers, ["sliding_attention" if window else "full_attention"] * layers, window)


def _mixed_windows(f: Fields, layers: int, kinds: list[str]) -> tuple[int, ...]:
    """How far back each layer sees, of `kinds` that differ; transformers needs a window even where no kind has one."""
    if "layer_types" in f and f["sliding_window"] is None:
        raise f.reject("sliding_window", "1 or more beside layer_types")
    return _windows(f, layers, kinds, f["sliding_window"])


def _gpt(f: Fields) -> dict[str, Any]:
    """What GPT-2 and GPT-J share: names of sizes, LayerNorm, a plain MLP."""
    _split(f, "n_embd", "n_head")
    return {
        "num_layers": f["n_layer"],
        "width": f["n_embd"],
        "num_heads": f["n_head"],
        "hidden_width": f["n_inner"] or 0,
        "max_positions": f["n_positions"],
        "norm_epsilon": f["layer_norm_epsilon"],
        "mlp": _activation(f, "activation_function"),
        "tied_readout": f["tie_word_embeddings"],
        "windows": _no_windows(f, f["n_layer"]),
    }


def _gpt2(f: Fields) -> dict[str, Any]:
    return {**_gpt(f), "unbiased": ("readout",)}


def _gpt_neox(f: Fields) -> dict[str, Any]:
    channels = _split(f, "hidden_size", "num_attention_heads")
    if f["head_dim"] not in (None, channels):
        raise f.reject("head_dim", f"{channels}, which is hidden_size / num_attention_heads")
    return {
        "num_layers": f["num_hidden_layers"],
        "width": f["hidden_size"],
        "num_heads": f["num_attention_heads"],
        "hidden_width": f["intermediate_size"],
        "max_positions": f["max_position_embeddings"],
        "norm_epsilon": f["layer_norm_eps"],
        "mlp": _activation(f, "hidden_act"),
        "unbiased": ("readout",) if f["attention_bias"] else ("readout", "attention", "out"),
        "residual": "parallel" if f["use_parallel_residual"] else "sequential",
        "tied_readout": f["tie_word_embeddings"],
        "windows": _no_windows(f, f["num_hidden_layers"]),
        **_rotary(f, channels, Beside("rotary_emb_base", "rotary_pct", acts=True)),
    }


def _gptj(f: Fields) -> dict[str, Any]:
    channels, turned = _split(f, "n_embd", "n_head"), f["rotary_dim"]
    if turned % 2 or turned > channels:
        raise f.reject("rotary_dim", f"an even number of the n_embd / n_head = {channels} channels of a head")
    return {
        **_gpt(f),
        "unbiased": ("attention", "out"),
        "residual": "shared_norm",
        "positions": "rotary",
        "rotary_width": turned,
    }


def _channels(f: Fields) -> int:
    """The channels of a head, where the file may say them."""
    return int(f["head_dim"] or _split(f, "hidden_size", "num_attention_heads"))


def _gated(f: Fields, act: str = "hidden_act") -> dict[str, Any]:
    """What Llama and most of its descendants share: RMSNorm, a gated MLP, the same rotary positions everywhere."""
    return {**_gated_sizes(f, act), **_rotary(f, _channels(f))}


def _gated_sizes(f: Fields, act: str = "hidden_act") -> dict[str, Any]:
    """The same, but for rotary positions."""
    heads = f["num_attention_heads"]
    kv_heads, channels = f["num_key_value_heads"] or heads, f["head_dim"]
    if heads % kv_heads:
        raise f.reject("num_key_value_heads", f"a divisor of num_attention_heads: {kv_heads} do not divide {heads}")
    return {
        "num_layers": f["num_hidden_layers"],
        "width": f["hidden_size"],
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_width": channels or 0,
        "hidden_width": f["intermediate_size"],
        "max_positions": f["max_position_embeddings"],
        "norm": "rmsnorm",
        "norm_epsilon": f["rms_norm_eps"],
        "mlp": "gated_" + _activation(f, act),
        "tied_readout": f["tie_word_embeddings"],
    }


def _unbiased_mlp_or_not(f: Fields) -> tuple[str, ...]:
    attention, mlp = f["attention_bias"], f["mlp_bias"]
    return ("readout", *(() if attention else ("attention", "out")), *(() if mlp else ("mlp",)))


def _llama(f: Fields) -> dict[str, Any]:
    _split(f, "hidden_size", "num_attention_heads")
    windows = _no_windows(f, f["num_hidden_layers"])
    return {**_gated(f), "unbiased": _unbiased_mlp_or_not(f), "windows": windows}


def _mistral(f: Fields) -> dict[str, Any]:
    unbiased = ("readout", "attention", "out", "mlp")
    return {**_gated(f), "unbiased": unbiased, "windows": _same_windows(f, f["num_hidden_layers"])}


def _qwen2(f: Fields) -> dict[str, Any]:
    unbiased = ("readout", "out", "mlp")
    return {**_gated(f), "unbiased": unbiased, "windows": _last_windows(f, f["num_hidden_layers"])}


def _unbiased(f: Fields) -> tuple[str, ...]:
    return ("readout", "mlp") if f["attention_bias"] else ("readout", "mlp", "attention", "out")


def _qwen3(f: Fields) -> dict[str, Any]:
    windows = _last_windows(f, f["num_hidden_layers"])
    return {**_gated(f), "unbiased": _unbiased(f), "head_norms": True, "windows": windows}


def _scaled(f: Fields, act: str) -> dict[str, Any]:
    """What all generations of Gemma share beyond Llama: norms around 1, and a factor on the embedding."""
    embed_scale = f["hidden_size"] ** 0.5
    return {**_gated_sizes(f, act), "unbiased": _unbiased(f), "norm_offset": 1.0, "embed_scale": embed_scale}


def _gemma(f: Fields) -> dict[str, Any]:
    values = _scaled(f, "hidden_act") | _rotary(f, _channels(f))
    values |= {"windows": _no_windows(f, f["num_hidden_layers"])}
    # The first release says "gelu" and means the tanh form: https://github.com/huggingface/transformers/pull/29402
    return values | ({"mlp": "gated_gelu"} if f["hidden_act"] == "gelu" else {})


def _gemma2(f: Fields) -> dict[str, Any]:
    layers = f["num_hidden_layers"]
    _split(f, "hidden_size", "num_attention_heads")
    turns = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
    return {
        **_scaled(f, "hidden_activation"),
        **_rotary(f, _channels(f)),
        "post_norms": True,
        "attention_scale": f["query_pre_attn_scalar"] ** -0.5,
        "attention_cap": f["attn_logit_softcapping"] or 0.0,
        "readout_cap": f["final_logit_softcapping"] or 0.0,
        "windows": _windows(f, layers, turns, f["sliding_window"]),
    }


def _gemma3(f: Fields) -> dict[str, Any]:
    layers, pattern = f["num_hidden_layers"], f["sliding_window_pattern"]
    _split(f, "hidden_size", "num_attention_heads")
    turns = ["sliding_attention" if layer % pattern else "full_attention" for layer in range(1, layers + 1)]
    kinds = _layer_types(f, layers) or turns
    return {
        **_scaled(f, "hidden_activation"),
        **_rotaries(f, kinds, full_attention="rope_theta", sliding_attention="rope_local_base_freq"),
        "post_norms": True,
        "head_norms": True,
        "attention_scale": f["query_pre_attn_scalar"] ** -0.5,
        "readout_cap": f["final_logit_softcapping"] or 0.0,
        "windows": _mixed_windows(f, layers, kinds),
    }


_OLMO = {"pre_norms": False, "post_norms": True, "head_norms": True, "joint_head_norms": True}


def _olmo2(f: Fields) -> dict[str, Any]:
    windows = _no_windows(f, f["num_hidden_layers"])
    return {**_gated(f), **_OLMO, "unbiased": _unbiased(f), "windows": windows}


def _olmo3(f: Fields) -> dict[str, Any]:
    layers = f["num_hidden_layers"]
    turns = ["sliding_attention" if layer % 4 else "full_attention" for layer in range(1, layers + 1)]
    kinds = _layer_types(f, layers) or turns
    return {
        **_gated_sizes(f),
        # The base beside the blocks is that of full attention alone, in transformers.
        **_rotaries(f, kinds, full_attention="rope_theta", sliding_attention=500_000.0),
        **_OLMO,
        "unbiased": _unbiased(f),
        "windows": _mixed_windows(f, layers, kinds),
    }


def _smollm3(f: Fields) -> dict[str, Any]:
    layers, turned, window = f["num_hidden_layers"], f["no_rope_layers"], f["sliding_window"]
    if turned is None:
        turned = [int(layer % f["no_rope_layer_interval"] != 0) for layer in range(1, layers + 1)]
    if len(turned) < layers:
        raise f.reject(
            "no_rope_layers", f"{layers} entries (num_hidden_layers), 0 for a layer without rotary positions"
        )
    rope = read_rope(f, _channels(f))
    slides = f["use_sliding_window"] and window is not None
    turns = ["sliding_attention" if slides and not turned[layer] else "full_attention" for layer in range(layers)]
    return {
        **_gated_sizes(f),
        **rotary_fields(tuple(rope.rotary if turned[layer] else None for layer in range(layers)), rope.width),
        "unbiased": _unbiased_mlp_or_not(f),
        "windows": _windows(f, layers, turns, window),
    }


def _phi3(f: Fields) -> dict[str, Any]:
    layers, window = f["num_hidden_layers"], f["sliding_window"]
    channels = _split(f, "hidden_size", "num_attention_heads")
    if f["head_dim"] not in (None, channels):
        raise f.reject("head_dim", f"{channels}, which is hidden_size / num_attention_heads")
    # Masks go by the window alone, in transformers; types of layers that it would need are refused.
    kinds = _layer_types(f, layers)
    if window is None and "sliding_attention" in (kinds or ()):
        raise f.reject("layer_types", f"{layers} entries full_attention, as there is no sliding_window")
    return {
        **_gated_sizes(f),
        **_rotary(f, channels, Beside(acts=True, original=True, kinds=("default", "longrope"))),
        "unbiased": ("readout", "attention", "out", "mlp"),
        "windows": () if window is None else (window,) * layers,
    }


def _granite(f: Fields) -> dict[str, Any]:
    return {
        **_gated(f),
        "unbiased": _unbiased_mlp_or_not(f),
        "windows": _no_windows(f, f["num_hidden_layers"]),
        "embed_scale": f["embedding_multiplier"],
        "attention_scale": f["attention_multiplier"],
        "residual_scale": f["residual_multiplier"],
        "readout_scale": 1 / f["logits_scaling"],
    }


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture: how its config reads, the rows of its tensors, and what bare checkpoints leave out of names."""

    read: Callable[[Fields], dict[str, Any]]
    rows: tuple[Row, ...]
    prefix: str


FAMILIES: Mapping[str, Family] = {
    "gpt2": Family(_gpt2, GPT2_ROWS, "transformer."),
    "gpt_neox": Family(_gpt_neox, GPT_NEOX_ROWS, "gpt_neox."),
    "gptj": Family(_gptj, GPTJ_ROWS, "transformer."),
    "llama": Family(_llama, LLAMA_ROWS, "model."),
    "mistral": Family(_mistral, LLAMA_ROWS, "model."),
    "qwen2": Family(_qwen2, LLAMA_ROWS, "model."),
    "qwen3": Family(_qwen3, LLAMA_ROWS, "model."),
    "gemma": Family(_gemma, LLAMA_ROWS, "model."),
    "gemma2": Family(_gemma2, GEMMA2_ROWS, "model."),
    "gemma3_text": Family(_gemma3, GEMMA2_ROWS, "model."),
    "olmo2": Family(_olmo2, OLMO2_ROWS, "model."),
    "olmo3": Family(_olmo3, OLMO2_ROWS, "model."),
    "smollm3": Family(_smollm3, LLAMA_ROWS, "model."),
    "phi3": Family(_phi3, PHI3_ROWS, "model."),
    "granite": Family(_granite, LLAMA_ROWS, "model."),
}


# Mixtures of experts, whether or not config.json counts them; others are known by that count.
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
# Folders of models that read images too, by the class of the text model that they hold.
MULTIMODAL = {"gemma3": ("gemma3_text", "Gemma3ForCausalLM")}


def text_values(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The config.json of the text model alone that a folder of a multimodal one holds; of others the same.

    Raises `UserError` where the text model computes something else by itself than as a part of the whole.
    """
    if values.get("model_type") not in MULTIMODAL:
        return dict(values)
    family, architecture = MULTIMODAL[values["model_type"]]
    text = values.get("text_config")
    if not isinstance(text, dict) or text.get("model_type", family) != family:
        given = text.get("model_type") if isinstance(text, dict) else text
        raise reject(f"{source}: text_config", given, f"an object, of model_type {family}")
    tied = values.get("tie_word_embeddings", True)
    if text.get("tie_word_embeddings", tied) != tied:
        raise reject(f"{source}: text_config.tie_word_embeddings", not tied, f"{tied!r}, as beside text_config")
    if text.get("final_logit_softcapping") is not None:
        accepted = "null (the multimodal class of transformers has no such cap)"
        raise reject(f"{source}: text_config.final_logit_softcapping", text["final_logit_softcapping"], accepted)
    outer = {*READ[""], "dtype", "torch_dtype", "eos_token_id"} - {"text_config"}
    whole = {name: value for name, value in values.items() if name in outer}
    own = {"model_type": family, "architectures": [architecture], "tie_word_embeddings": tied}
    return text | whole | own


def _unknown(values: Mapping[str, Any], field: str) -> UserError:
    """The error for another architecture. It proposes no dense family in place of a mixture of experts."""
    name, accepted = values.get("model_type"), ", ".join((*FAMILIES, *MULTIMODAL))
    if name in MIXTURES or any(key.endswith("_experts") and count for key, count in values.items()):
        return UserError(f"{field}: given {name!r} (mixtures of experts are not implemented); accepted: {accepted}")
    return reject(field, name, accepted)


def read_config(values: Mapping[str, Any], source: str, *, warn: bool = True, **how: Any) -> DecoderConfig:
    """The decoder that a config.json describes; `how` sets unroll, remat and dtypes.

    Of a multimodal one it is the text model. What the file leaves out has the default of transformers' config class of
    the family. `warn` of what the file says and that class does not read. Raises `UserError` for an architecture, a
    field or a value that is not implemented, and for two fields that contradict each other.
    """
    values = text_values(values, source)
    name = str(values.get("model_type"))
    if name not in FAMILIES:
        raise _unknown(values, f"{source}: model_type")
    fields = Fields(name, values, source)
    vocabulary = fields["vocab_size"]
    settings = {"inputs": "tokens", "vocab_size": vocabulary, "num_outputs": vocabulary, **FAMILIES[name].read(fields)}
    if warn and fields.unread:
        unread = ", ".join(fields.unread)
        errors.warn(f"{source}: {unread}: not read, as transformers' {name} does not read them either")
    return DecoderConfig(**settings | how)


def describe(c: DecoderConfig) -> dict[str, Any]:
    """The config.json of a decoder that was trained here: of gpt2 or llama. Raises `UserError` where neither fits."""
    standard = DecoderConfig(c.num_layers, c.width, c.num_heads, c.num_outputs)
    like_both = {
        "inputs": "tokens",
        **{name: getattr(standard, name) for name in ("residual", "post_norms", "head_norms", "norm_offset")},
        **{name: getattr(standard, name) for name in ("embed_scale", "rotary_scaling", "windows")},
        **{name: getattr(standard, name) for name in ("attention_scale", "attention_cap", "readout_cap")},
        **{name: getattr(standard, name) for name in ("rotaries", "pre_norms", "residual_scale", "readout_scale")},
    }
    rotary = c.positions == "rotary"
    wanted = like_both | {"positions": "rotary" if rotary else "learned", "norm": "rmsnorm" if rotary else "layernorm"}
    activation = ACTIVATIONS[c.mlp.removeprefix("gated_")][0]
    for name, value in wanted.items():
        if getattr(c, name) != value:
            raise UserError(f"export: {name}: given {getattr(c, name)!r}; accepted: {value!r} (as gpt2 and llama have)")
    for name, bad, accepted in (
        ("bias", c.biased("readout"), "a readout without bias"),
        ("num_outputs", not c.tied_readout and c.num_outputs > c.vocab_size, f"vocab_size = {c.vocab_size} or less"),
        ("mlp", c.mlp.startswith("gated_") != rotary, "a gated one with rotary positions, a plain one with learned"),
        ("num_kv_heads", not rotary and c.kv_heads != c.num_heads, "num_heads with learned positions"),
        ("head_width", not rotary and c.channels * c.num_heads != c.width, "width / num_heads with learned positions"),
        ("bias", rotary and c.biased("norm") and c.norm != "rmsnorm", "norms without bias"),
        ("rotary_width", rotary and c.rotary_width not in (0, c.channels), "all channels"),
    ):
        if bad:
            raise UserError(f"export: {name}: given {getattr(c, name)!r}; accepted: {accepted}")
    shared = {"vocab_size": c.vocab_size, "tie_word_embeddings": c.tied_readout}
    if not rotary:
        return shared | {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_layer": c.num_layers,
            "n_embd": c.width,
            "n_head": c.num_heads,
            "n_inner": c.hidden,
            "n_positions": c.max_positions,
            "layer_norm_epsilon": c.norm_epsilon,
            "activation_function": activation,
        }
    return shared | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": c.num_layers,
        "hidden_size": c.width,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.channels,
        "intermediate_size": c.hidden,
        "max_position_embeddings": c.max_positions or 2048,
        "rms_norm_eps": c.norm_epsilon,
        "hidden_act": activation,
        "rope_theta": c.rotary_base,
        "attention_bias": c.biased("attention") or c.biased("out"),
        "mlp_bias": c.biased("mlp"),
    }
