"""What config.json may say, family by family: one row a field, with its type, its default, and what null means.

The defaults are those of the config class that `transformers` has for the family: a field that a config.json leaves out
is a field that its writer may have left out because it has that value. `Fields` reads by this table. What is in no
row is refused (`READ`: it would change the model), passed over (`INERT`), or named in `unread`: that class does not
read it either, so it cannot change the model. tests/nn/test_config_fields.py holds all of it to `transformers`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from tvjax.errors import UserError

REFUSED: Any = object()
"""Stands for null where it means nothing: `transformers` fails on it too."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A type that a field can have, and which of its values are accepted."""

    type: type
    holds: Callable[[Any], bool]
    accepted: str


# What counts fits the 32 bits that shapes and positions are computed in; of layers all are named before one is read.
SIZE = Kind(int, lambda v: 1 <= v < 2**31, "1 or more, below 2**31")
LAYERS = Kind(int, lambda v: 1 <= v <= 10_000, "1 or more, at most 10000")
WHOLE = Kind(int, lambda v: abs(v) < 2**31, "a whole number of at most 31 bits")
NUMBER = Kind(float, lambda v: v >= 0, "0 or more")
POSITIVE = Kind(float, lambda v: v > 0, "more than 0")
FLAG = Kind(bool, lambda v: True, "")
WORD = Kind(str, lambda v: True, "")
WORDS = Kind(list, lambda v: all(type(word) is str for word in v), "a list of words")
BLOCK = Kind(dict, lambda v: True, "")
NUMBERS = Kind(list, lambda v: all(type(number) is int for number in v), "a list of whole numbers")


@dataclasses.dataclass(frozen=True)
class Row:
    """One field of one family: its name, its type, its value if it is absent, its value if it is null, other spellings.

    None, as a value, says that there is no such thing (a window, a cap), or that other fields say how large it is.
    """

    name: str
    kind: Kind
    default: Any
    null: Any = REFUSED
    aliases: tuple[str, ...] = ()


_LAYER_TYPES = Row("layer_types", WORDS, None, null=None)
_ROPE = (
    Row("rope_parameters", BLOCK, None, null=None),
    Row("rope_scaling", BLOCK, None, null=None),
    Row("original_max_position_embeddings", SIZE, None, null=None),
)


def _rotary(base: float = 10_000.0) -> tuple[Row, ...]:
    """With names as Llama has them; null is no error in the last two if `rope_parameters` has the value."""
    return (
        *_ROPE,
        Row("rope_theta", POSITIVE, base, null=None),
        Row("partial_rotary_factor", NUMBER, None, null=None),
    )


# What the smallest Llama has, and others after it.
_HEADS = (
    Row("num_key_value_heads", SIZE, None, null=None),
    Row("head_dim", SIZE, None),
    Row("hidden_act", WORD, "silu"),
)
_SIZES = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def _like_llama(*own: Row, **defaults: Any) -> tuple[Row, ...]:
    """The rows that most descendants of Llama share, with their `defaults`, and the family's `own`."""
    shared = {
        "vocab_size": SIZE,
        "hidden_size": SIZE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": SIZE,
        "intermediate_size": SIZE,
        "max_position_embeddings": SIZE,
        "rms_norm_eps": NUMBER,
        "tie_word_embeddings": FLAG,
    }
    return (*(Row(name, kind, defaults[name]) for name, kind in shared.items()), *own, _LAYER_TYPES)


FIELDS: Mapping[str, tuple[Row, ...]] = {
    "gpt2": (
        Row("vocab_size", SIZE, 50257),
        Row("n_positions", SIZE, 1024, aliases=("max_position_embeddings",)),
        Row("n_embd", SIZE, 768, aliases=("hidden_size",)),
        Row("n_layer", LAYERS, 12, aliases=("num_hidden_layers",)),
        Row("n_head", SIZE, 12, aliases=("num_attention_heads",)),
        Row("n_inner", SIZE, None, null=None),
        Row("activation_function", WORD, "gelu_new"),
        Row("layer_norm_epsilon", NUMBER, 1e-5),
        Row("tie_word_embeddings", FLAG, True),
        _LAYER_TYPES,
    ),
    "gptj": (
        Row("vocab_size", SIZE, 50400),
        Row("n_positions", SIZE, 2048, aliases=("max_position_embeddings",)),
        Row("n_embd", SIZE, 4096, aliases=("hidden_size",)),
        Row("n_layer", LAYERS, 28, aliases=("num_hidden_layers",)),
        Row("n_head", SIZE, 16, aliases=("num_attention_heads",)),
        Row("n_inner", SIZE, None, null=None),
        Row("rotary_dim", SIZE, 64),
        Row("activation_function", WORD, "gelu_new"),
        Row("layer_norm_epsilon", NUMBER, 1e-5),
        Row("tie_word_embeddings", FLAG, False),
        _LAYER_TYPES,
    ),
    "gpt_neox": (
        Row("vocab_size", SIZE, 50432),
        Row("hidden_size", SIZE, 6144),
        Row("num_hidden_layers", LAYERS, 44),
        Row("num_attention_heads", SIZE, 64),
        Row("head_dim", SIZE, None, null=None),
        Row("intermediate_size", SIZE, 24576),
        Row("hidden_act", WORD, "gelu"),
        Row("max_position_embeddings", SIZE, 2048),
        Row("layer_norm_eps", NUMBER, 1e-5),
        Row("use_parallel_residual", FLAG, True),
        Row("attention_bias", FLAG, True),
        Row("tie_word_embeddings", FLAG, False),
        *_ROPE,
        Row("rotary_emb_base", POSITIVE, 10_000.0, null=None),
        Row("rotary_pct", NUMBER, 0.25, null=None),
        _LAYER_TYPES,
    ),
    "llama": (
        Row("vocab_size", SIZE, 32000),
        Row("hidden_size", SIZE, 4096),
        Row("num_hidden_layers", LAYERS, 32),
        Row("num_attention_heads", SIZE, 32),
        Row("num_key_value_heads", SIZE, None, null=None),
        Row("head_dim", SIZE, None, null=None),
        Row("intermediate_size", SIZE, 11008),
        Row("hidden_act", WORD, "silu"),
        Row("max_position_embeddings", SIZE, 2048),
        Row("rms_norm_eps", NUMBER, 1e-6),
        Row("attention_bias", FLAG, False),
        Row("mlp_bias", FLAG, False),
        Row("tie_word_embeddings", FLAG, False),
        *_rotary(),
        _LAYER_TYPES,
    ),
    "mistral": (
        Row("vocab_size", SIZE, 32000),
        Row("hidden_size", SIZE, 4096),
        Row("num_hidden_layers", LAYERS, 32),
        Row("num_attention_heads", SIZE, 32),
        Row("num_key_value_heads", SIZE, 8),
        Row("head_dim", SIZE, None, null=None),
        Row("intermediate_size", SIZE, 14336),
        Row("hidden_act", WORD, "silu"),
        Row("max_position_embeddings", SIZE, 131072),
        Row("rms_norm_eps", NUMBER, 1e-6),
        Row("sliding_window", SIZE, 4096, null=None),
        Row("tie_word_embeddings", FLAG, False),
        *_rotary(),
        _LAYER_TYPES,
    ),
    "qwen2": (
        Row("vocab_size", SIZE, 151936),
        Row("hidden_size", SIZE, 4096),
        Row("num_hidden_layers", LAYERS, 32),
        Row("num_attention_heads", SIZE, 32),
        Row("num_key_value_heads", SIZE, 32, null=None),
        Row("head_dim", SIZE, None),
        Row("intermediate_size", SIZE, 22016),
        Row("hidden_act", WORD, "silu"),
        Row("max_position_embeddings", SIZE, 32768),
        Row("rms_norm_eps", NUMBER, 1e-6),
        Row("use_sliding_window", FLAG, False),
        Row("sliding_window", WHOLE, 4096, null=None),
        Row("max_window_layers", WHOLE, 28),
        Row("tie_word_embeddings", FLAG, False),
        *_rotary(),
        _LAYER_TYPES,
    ),
    "qwen3": (
        Row("vocab_size", SIZE, 151936),
        Row("hidden_size", SIZE, 4096),
        Row("num_hidden_layers", LAYERS, 32),
        Row("num_attention_heads", SIZE, 32),
        Row("num_key_value_heads", SIZE, 32, null=None),
        Row("head_dim", SIZE, 128),
        Row("intermediate_size", SIZE, 22016),
        Row("hidden_act", WORD, "silu"),
        Row("max_position_embeddings", SIZE, 32768),
        Row("rms_norm_eps", NUMBER, 1e-6),
        Row("attention_bias", FLAG, False),
        Row("use_sliding_window", FLAG, False),
        Row("sliding_window", WHOLE, 4096, null=None),
        Row("max_window_layers", WHOLE, 28),
        Row("tie_word_embeddings", FLAG, False),
        *_rotary(),
        _LAYER_TYPES,
    ),
    "gemma": (
        Row("vocab_size", SIZE, 256000),
        Row("hidden_size", SIZE, 3072),
        Row("num_hidden_layers", LAYERS, 28),
        Row("num_attention_heads", SIZE, 16),
        Row("num_key_value_heads", SIZE, 16),
        Row("head_dim", SIZE, 256),
        Row("intermediate_size", SIZE, 24576),
        Row("hidden_act", WORD, "gelu_pytorch_tanh"),
        Row("max_position_embeddings", SIZE, 8192),
        Row("rms_norm_eps", NUMBER, 1e-6),
        Row("attention_bias", FLAG, False),
        Row("tie_word_embeddings", FLAG, True),
        *_rotary(),
        _LAYER_TYPES,
    ),
    "gemma2": (
        Row("vocab_size", SIZE, 256000),
        Row("hidden_size", SIZE, 2304),
        Row("num_hidden_layers", LAYERS, 26),
        Row("num_attention_heads", SIZE, 8),
        Row("num_key_value_heads", SIZE, 4),
        Row("head_dim", SIZE, 256),
        Row("intermediate_size", SIZE, 9216),
        Row("hidden_activation", WORD, "gelu_pytorch_tanh"),
        Row("max_position_embeddings", SIZE, 8192),
        Row("rms_norm_eps", NUMBER, 1e-6),
        Row("attention_bias", FLAG, False),
        Row("query_pre_attn_scalar", SIZE, 256),
        Row("attn_logit_softcapping", POSITIVE, 50.0, null=None),
        Row("final_logit_softcapping", POSITIVE, 30.0, null=None),
        Row("sliding_window", SIZE, 4096),
        Row("tie_word_embeddings", FLAG, True),
        *_rotary(),
        _LAYER_TYPES,
    ),
    "gemma3_text": _like_llama(
        Row("num_key_value_heads", SIZE, 4),
        Row("head_dim", SIZE, 256),
        Row("hidden_activation", WORD, "gelu_pytorch_tanh"),
        Row("attention_bias", FLAG, False),
        Row("query_pre_attn_scalar", SIZE, 256),
        Row("final_logit_softcapping", POSITIVE, None, null=None),
        Row("sliding_window", SIZE, 4096, null=None),
        Row("sliding_window_pattern", SIZE, 6),
        *_ROPE,
        Row("rope_theta", POSITIVE, 1_000_000.0, null=None),
        Row("rope_local_base_freq", POSITIVE, 10_000.0, null=None),
        Row("partial_rotary_factor", NUMBER, None, null=None),
        vocab_size=262_208,
        hidden_size=2304,
        num_hidden_layers=26,
        num_attention_heads=8,
        intermediate_size=9216,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    ),
    "olmo2": _like_llama(
        *_HEADS,
        Row("attention_bias", FLAG, False),
        *_rotary(),
        vocab_size=50304,
        rms_norm_eps=1e-5,
        **_SIZES,
    ),
    "olmo3": _like_llama(
        *_HEADS,
        Row("attention_bias", FLAG, False),
        Row("sliding_window", SIZE, 4096, null=None),
        *_rotary(500_000.0),
        vocab_size=50304,
        rms_norm_eps=1e-5,
        **_SIZES,
    ),
    "smollm3": _like_llama(
        Row("num_key_value_heads", SIZE, 4, null=None),
        Row("head_dim", SIZE, None),
        Row("hidden_act", WORD, "silu"),
        Row("attention_bias", FLAG, False),
        Row("mlp_bias", FLAG, False),
        Row("use_sliding_window", FLAG, False),
        Row("sliding_window", SIZE, None, null=None),
        Row("no_rope_layers", NUMBERS, None, null=None),
        Row("no_rope_layer_interval", SIZE, 4),
        *_rotary(2_000_000.0),
        vocab_size=128256,
        hidden_size=2048,
        num_hidden_layers=36,
        num_attention_heads=16,
        intermediate_size=11008,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    ),
    "phi3": _like_llama(
        *_HEADS,
        Row("sliding_window", SIZE, None, null=None),
        Row("rope_parameters", BLOCK, None, null=None),
        Row("rope_scaling", BLOCK, None, null=None),
        Row("original_max_position_embeddings", SIZE, 4096),
        Row("rope_theta", POSITIVE, 10_000.0, null=None),
        Row("partial_rotary_factor", NUMBER, 1.0, null=None),
        vocab_size=32064,
        hidden_size=3072,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=8192,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    ),
    "granite": _like_llama(
        *_HEADS,
        Row("attention_bias", FLAG, False),
        Row("mlp_bias", FLAG, False),
        Row("embedding_multiplier", POSITIVE, 1.0),
        Row("logits_scaling", POSITIVE, 1.0),
        Row("residual_multiplier", POSITIVE, 1.0),
        Row("attention_multiplier", POSITIVE, 1.0),
        *_rotary(),
        vocab_size=32000,
        rms_norm_eps=1e-6,
        **_SIZES,
    ),
}

# Fields that `transformers` reads in every family (the first ones) or in one, and that would change the model. Each is
# accepted only with the values that leave it as we compute it.
READ: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "": {
        "is_causal": (True,),
        "is_encoder_decoder": (False, None),
        "attention_chunk_size": (None,),
        "configuration_files": ([],),
        "decoder": (None,),
        "fusion_config": (None,),
        "generator": (None,),
        "kv_sharing_modes": (None,),
        "mlp_layer_types": (None,),
        "mtp_layer_types": (None,),
        "per_layer_config": (None,),
        "quantization_config": (None,),
        "sliding_window": (None,),
        "text_config": (None,),
        "text_encoder": (None,),
        "transformers_weights": (None,),
    },
    "gpt2": {
        "add_cross_attention": (False,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
    },
    "gemma": {"use_bidirectional_attention": (None, False)},
    "gemma2": {"use_bidirectional_attention": (None, False)},
    "gemma3_text": {"use_bidirectional_attention": (None, False), "attn_logit_softcapping": (None,)},
}
# Fields that every folder may have and that say nothing about what the model computes when it is evaluated.
INERT = frozenset(
    """
    _name_or_path _sliding_window_pattern architectures attention_dropout attn_implementation attn_pdrop auto_map
    bad_words_ids begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout
    diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout id2label
    initializer_range is_decoder label2id length_penalty max_length min_length model_type n_ctx no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_scores
    pad_token_id prefix pretraining_tp problem_type remove_invalid_values repetition_penalty resid_pdrop return_dict
    return_dict_in_generate sep_token_id summary_activation summary_first_dropout summary_proj_to_labels
    summary_type summary_use_proj suppress_tokens task_specific_params temperature tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()  # noqa: SIM905
)


class Fields:
    """The values of one config.json, by the rows of its family; `unread` names what it says and nobody reads."""

    def __init__(self, family: str, values: Mapping[str, Any], source: str) -> None:
        """Raises `UserError` for a value that a row does not accept, two spellings that disagree, and all of `READ`."""
        self._raw, self._source = values, source
        self._values = {row.name: self._read(row) for row in FIELDS[family]}
        self.unread = self._check_others(family)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        """Whether the config.json itself says `name`."""
        return name in self._raw

    def reject(self, name: str, accepted: str, value: Any = REFUSED) -> UserError:
        """What to raise for the field `name`: what was given (default: what the config.json says), what is accepted."""
        if value is REFUSED:
            value = self._raw.get(name, self._values.get(name))
        absent = "" if name.split(".")[0] in self._raw else " (not in the file: the default)"
        return UserError(f"{self._source}: {name}: given {value!r}{absent}; accepted: {accepted}")

    def check(self, name: str, value: Any, kind: Kind) -> Any:
        """`value` if it is of that kind; a whole number is a float too, true and false are no numbers."""
        if kind.type is float and type(value) is int:
            value = float(value) if abs(value) < 2**1000 else math.inf
        if type(value) is not kind.type:
            raise self.reject(name, f"a value of type {kind.type.__name__}", value)
        if isinstance(value, float) and not math.isfinite(value):
            raise self.reject(name, "a finite number", value)
        if not kind.holds(value):
            raise self.reject(name, kind.accepted, value)
        return value

    def _read(self, row: Row) -> Any:
        spellings = [name for name in (row.name, *row.aliases) if name in self._raw]
        if not spellings:
            return row.default
        values = [self._one(name, row) for name in spellings]
        for name, value in zip(spellings, values, strict=True):
            if value != values[0]:
                raise self.reject(name, f"{values[0]!r}, as {spellings[0]} says, which is the same field", value)
        return values[0]

    def _one(self, name: str, row: Row) -> Any:
        value = self._raw[name]
        if value is None and row.null is not REFUSED:
            return row.null
        return self.check(name, value, row.kind)

    def _check_others(self, family: str) -> list[str]:
        rows = {name for row in FIELDS[family] for name in (row.name, *row.aliases)}
        read, unread = {**READ[""], **READ.get(family, {})}, []
        for name, value in self._raw.items():
            if name in rows or name in INERT:
                continue
            if name not in read:
                unread.append(name)
            elif not any(type(value) is type(other) and value == other for other in read[name]):
                raise self.reject(name, " or ".join(map(repr, read[name])) + " (others are not implemented)")
        return unread
