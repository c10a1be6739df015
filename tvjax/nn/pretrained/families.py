"""Each family of pretrained decoders: what its config.json means, and the rows of its tensors (`forms`).

`Family.read` turns a config.json into the fields of a `DecoderConfig`; what we do not implement is refused by name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tvjax.errors import UserError
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.pretrained.forms import GEMMA2_ROWS, GPT2_ROWS, GPT_NEOX_ROWS, GPTJ_ROWS, LLAMA_ROWS, Row
from tvjax.nn.rotary import Scaling

# Fields that say nothing about what the model computes when it is evaluated.
INERT = frozenset(
    """
    _name_or_path architectures attention_dropout attn_implementation attn_pdrop auto_map bad_words_ids
    begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout
    diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout id2label
    initializer_range label2id length_penalty max_length min_length model_type n_ctx no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_scores pad_token_id
    prefix pretraining_tp problem_type remove_invalid_values repetition_penalty resid_pdrop return_dict
    return_dict_in_generate sep_token_id summary_activation summary_first_dropout summary_proj_to_labels summary_type
    summary_use_proj suppress_tokens task_specific_params temperature tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()  # noqa: SIM905
)
# Fields that would change the model; each is accepted only with a value that leaves it as we compute it.
SETTLED: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "cross_attention_hidden_size": (None,),
    "decoder_start_token_id": (None,),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False,),
    "tf_legacy_loss": (False,),
    "quantization_config": (None,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
    "use_bidirectional_attention": (None, False),
    "rotary": (True,),
}
ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


class Fields:
    """The fields of one config.json, each to be asked for once: `finish` refuses what nobody asked for."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values, self._source = values, source
        self._asked: set[str] = set()

    def reject(self, name: str, accepted: str) -> UserError:
        return UserError(f"{self._source}: {name}: given {self._values.get(name)!r}; accepted: {accepted}")

    def __call__(self, name: str, kind: type, default: Any = dataclasses.MISSING) -> Any:
        """The value of `name`, of type `kind`; null and absence are its default, if it has one."""
        self._asked.add(name)
        value = self._values.get(name)
        if value is None:
            if default is dataclasses.MISSING:
                raise self.reject(name, f"a value of type {kind.__name__}")
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.reject(name, f"a value of type {kind.__name__}")
        return value

    def size(self, name: str, default: Any = dataclasses.MISSING) -> Any:
        """A whole number of 1 or more; its default may be anything."""
        value = self(name, int, default)
        if self._values.get(name) is not None and value < 1:
            raise self.reject(name, "1 or more")
        return value

    def activation(self, *names: str, default: Any = dataclasses.MISSING) -> str:
        """Our name of the activation that the first of `names` with a value says."""
        given = [self(name, str, None) for name in names]
        value = next((v for v in given if v is not None), default)
        if value not in ACTIVATIONS:
            raise self.reject(names[0], ", ".join(ACTIVATIONS))
        return ACTIVATIONS[value]

    def finish(self) -> None:
        """Raise `UserError` for the first field that would change the model in a way that nobody here implements."""
        for name, value in self._values.items():
            if name in SETTLED:
                if value not in SETTLED[name]:
                    raise self.reject(name, " or ".join(map(repr, SETTLED[name])) + " (others are not implemented)")
            elif name not in self._asked and name not in INERT:
                raise self.reject(name, "no such field: tvjax does not know what it does to the model")


def _rotary(f: Fields, fraction: float = 1.0) -> dict[str, Any]:
    """Base, scaling and fraction of rotary positions, from either generation of field names."""
    new, old = f("rope_parameters", dict, {}), f("rope_scaling", dict, {})
    values = dict(new or old)
    base = values.pop("rope_theta", None) or f("rope_theta", float, None) or f("rotary_emb_base", float, 10_000.0)
    fraction = values.pop("partial_rotary_factor", None) or f("rotary_pct", float, fraction)
    kind = values.pop("rope_type", None) or values.pop("type", None) or "default"
    values.pop("type", None)
    scaling = None
    name = "rope_parameters" if new else "rope_scaling"
    try:
        if kind == "linear":
            scaling = Scaling("linear", float(values.pop("factor")))
        elif kind == "llama3":
            scaling = Scaling(
                "llama3",
                float(values.pop("factor")),
                float(values.pop("low_freq_factor")),
                float(values.pop("high_freq_factor")),
                int(values.pop("original_max_position_embeddings")),
            )
        elif kind != "default":
            raise f.reject(name, "rope_type default, linear or llama3")
    except (KeyError, TypeError, ValueError):
        raise f.reject(name, f"all numbers that rope_type {kind} needs") from None
    if any(v is not None for v in values.values()):
        raise f.reject(name, f"no fields beside those of rope_type {kind}, but it has {', '.join(values)}")
    return {"positions": "rotary", "rotary_base": float(base), "rotary_scaling": scaling, "fraction": float(fraction)}


def _windows(f: Fields, layers: int, *, everywhere: bool = False, alternate: bool = False) -> tuple[int, ...]:
    """How far back each layer sees. everywhere: a `sliding_window` holds in all layers; alternate: in every other."""
    window, kinds = f("sliding_window", int, 0), f("layer_types", list, None)
    used = f("use_sliding_window", bool, everywhere or alternate)
    first = f("max_window_layers", int, 0)
    if not window or not used:
        if kinds and "sliding_attention" in kinds and used:
            raise f.reject("sliding_window", "1 or more, since layer_types names sliding_attention")
        return ()
    if kinds is None:
        kinds = ["sliding_attention" if i >= first and not (alternate and i % 2) else "" for i in range(layers)]
    elif len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
        raise f.reject("layer_types", f"{layers} entries, each sliding_attention or full_attention")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _gpt(f: Fields) -> dict[str, Any]:
    """What GPT-2 and GPT-J share: names of sizes, LayerNorm, a plain MLP."""
    return {
        "num_layers": f.size("n_layer"),
        "width": f.size("n_embd"),
        "num_heads": f.size("n_head"),
        "hidden_width": f.size("n_inner", 0),
        "max_positions": f.size("n_positions"),
        "norm_epsilon": f("layer_norm_epsilon", float, 1e-5),
        "mlp": f.activation("activation_function", default="gelu_new"),
    }


def _gpt2(f: Fields) -> dict[str, Any]:
    return {**_gpt(f), "unbiased": ("readout",), "tied_readout": f("tie_word_embeddings", bool, True)}


def _gpt_neox(f: Fields) -> dict[str, Any]:
    unbiased = ("readout",) if f("attention_bias", bool, True) else ("readout", "attention", "out")
    return {
        "num_layers": f.size("num_hidden_layers"),
        "width": f.size("hidden_size"),
        "num_heads": f.size("num_attention_heads"),
        "hidden_width": f.size("intermediate_size"),
        "max_positions": f.size("max_position_embeddings"),
        "norm_epsilon": f("layer_norm_eps", float, 1e-5),
        "mlp": f.activation("hidden_act", default="gelu"),
        "unbiased": unbiased,
        "residual": "parallel" if f("use_parallel_residual", bool, True) else "sequential",
        "tied_readout": f("tie_word_embeddings", bool, False),
        **_rotary(f, fraction=0.25),
    }


def _gptj(f: Fields) -> dict[str, Any]:
    return {
        **_gpt(f),
        "unbiased": ("attention", "out"),
        "residual": "shared_norm",
        "positions": "rotary",
        "rotary_width": f.size("rotary_dim"),
        "tied_readout": f("tie_word_embeddings", bool, False),
    }


def _gated(f: Fields, default: str = "silu", names: tuple[str, ...] = ("hidden_act",)) -> dict[str, Any]:
    """What Llama and its descendants share: RMSNorm, rotary positions, a gated MLP."""
    heads = f.size("num_attention_heads")
    return {
        "num_layers": f.size("num_hidden_layers"),
        "width": f.size("hidden_size"),
        "num_heads": heads,
        "num_kv_heads": f.size("num_key_value_heads", heads),
        "head_width": f.size("head_dim", 0),
        "hidden_width": f.size("intermediate_size"),
        "max_positions": f.size("max_position_embeddings"),
        "norm": "rmsnorm",
        "norm_epsilon": f("rms_norm_eps", float, 1e-6),
        "mlp": "gated_" + f.activation(*names, default=default),
        **_rotary(f),
    }


def _llama(f: Fields) -> dict[str, Any]:
    attention, mlp = f("attention_bias", bool, False), f("mlp_bias", bool, False)
    unbiased = ("readout", *(() if attention else ("attention", "out")), *(() if mlp else ("mlp",)))
    return {**_gated(f), "unbiased": unbiased, "tied_readout": f("tie_word_embeddings", bool, False)}


def _mistral(f: Fields) -> dict[str, Any]:
    unbiased = ("readout", "attention", "out", "mlp")
    values = {**_gated(f), "unbiased": unbiased, "tied_readout": f("tie_word_embeddings", bool, False)}
    return values | {"windows": _windows(f, values["num_layers"], everywhere=True)}


def _qwen2(f: Fields) -> dict[str, Any]:
    values = {
        **_gated(f),
        "unbiased": ("readout", "out", "mlp"),
        "tied_readout": f("tie_word_embeddings", bool, False),
    }
    return values | {"windows": _windows(f, values["num_layers"])}


def _qwen3(f: Fields) -> dict[str, Any]:
    unbiased = ("readout", "mlp") if f("attention_bias", bool, False) else ("readout", "mlp", "attention", "out")
    values = {
        **_gated(f),
        "unbiased": unbiased,
        "head_norms": True,
        "tied_readout": f("tie_word_embeddings", bool, False),
    }
    return values | {"windows": _windows(f, values["num_layers"])}


def _gemma(f: Fields) -> dict[str, Any]:
    unbiased = ("readout", "mlp") if f("attention_bias", bool, False) else ("readout", "mlp", "attention", "out")
    values = _gated(f, "gelu_pytorch_tanh", ("hidden_activation", "hidden_act"))
    return {
        **values,
        # The first release says "gelu" and means the tanh form: https://github.com/huggingface/transformers/pull/29402
        "mlp": "gated_gelu" if values["mlp"] == "gated_gelu_exact" else values["mlp"],
        "unbiased": unbiased,
        "norm_offset": 1.0,
        "embed_scale": values["width"] ** 0.5,
        "tied_readout": f("tie_word_embeddings", bool, True),
    }


def _gemma2(f: Fields) -> dict[str, Any]:
    values = _gemma(f)
    return values | {
        "post_norms": True,
        "attention_scale": f("query_pre_attn_scalar", float, 256.0) ** -0.5,
        "attention_cap": f("attn_logit_softcapping", float, 0.0),
        "readout_cap": f("final_logit_softcapping", float, 0.0),
        "windows": _windows(f, values["num_layers"], alternate=True),
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
}


def read_config(values: Mapping[str, Any], source: str, **how: Any) -> DecoderConfig:
    """The decoder that a config.json describes; `how` sets unroll, remat and dtypes.

    Raises `UserError` for an architecture, a field or a value that is not implemented, and for one that is missing.
    """
    name = str(values.get("model_type"))
    if name not in FAMILIES:
        raise UserError(f"{source}: model_type: given {values.get('model_type')!r}; accepted: {', '.join(FAMILIES)}")
    fields = Fields(values, source)
    vocabulary = fields.size("vocab_size")
    settings = FAMILIES[name].read(fields)
    fields.finish()
    fraction = settings.pop("fraction", 1.0)
    config = DecoderConfig(
        **{"inputs": "tokens", "vocab_size": vocabulary, "num_outputs": vocabulary, **settings, **how}
    )
    if not config.head_width and config.width % config.num_heads:
        raise UserError(f"{source}: {config.num_heads} heads do not divide the width {config.width}")
    if config.num_heads % config.kv_heads:
        raise UserError(f"{source}: {config.kv_heads} key/value heads do not divide {config.num_heads} heads")
    if config.positions == "rotary" and not config.rotary_width:
        config = dataclasses.replace(config, rotary_width=int(config.channels * fraction))
    if config.rotary_width % 2 or config.rotary_width > config.channels:
        raise UserError(f"{source}: rotary positions need an even number of a head's {config.channels} channels")
    return config


def describe(c: DecoderConfig) -> dict[str, Any]:
    """The config.json of a decoder that was trained here: of gpt2 or llama. Raises `UserError` where neither fits."""
    standard = DecoderConfig(c.num_layers, c.width, c.num_heads, c.num_outputs)
    like_both = {
        "inputs": "tokens",
        **{name: getattr(standard, name) for name in ("residual", "post_norms", "head_norms", "norm_offset")},
        **{name: getattr(standard, name) for name in ("embed_scale", "rotary_scaling", "windows")},
        **{name: getattr(standard, name) for name in ("attention_scale", "attention_cap", "readout_cap")},
    }
    rotary = c.positions == "rotary"
    wanted = like_both | {"positions": "rotary" if rotary else "learned", "norm": "rmsnorm" if rotary else "layernorm"}
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    activation = names.get(c.mlp.removeprefix("gated_"))
    for name, value in wanted.items():
        if getattr(c, name) != value:
            raise UserError(f"export: {name}: given {getattr(c, name)!r}; accepted: {value!r} (as gpt2 and llama have)")
    for name, bad, accepted in (
        ("bias", c.biased("readout"), "a readout without bias"),
        ("mlp", c.mlp.startswith("gated_") != rotary, "a gated one with rotary positions, a plain one with learned"),
        ("num_kv_heads", not rotary and c.kv_heads != c.num_heads, "num_heads with learned positions"),
        ("head_width", not rotary and c.channels * c.num_heads != c.width, "width / num_heads with learned positions"),
        ("bias", rotary and c.biased("norm") and c.norm != "rmsnorm", "norms without bias"),
        ("rotary_width", rotary and c.rotary_width not in (0, c.channels), "all channels"),
    ):
        if bad:
            raise UserError(f"export: {name}: given {getattr(c, name)!r}; accepted: {accepted}")
    shared = {"vocab_size": c.vocab_size, "tie_word_embeddings": c.tied_readout, "torch_dtype": c.param_dtype}
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
