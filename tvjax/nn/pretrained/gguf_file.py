"""A GGUF file, llama.cpp's format, as what a Hugging Face folder says: a config.json, and tensors by their names there.

The `gguf` package reads it and dequantizes. What is here is how the two formats say the same thing: `ARCHITECTURES`
has a row for each that we have. llama.cpp changes some tensors when it writes a file; each row undoes that.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tvjax.errors import UserError
from tvjax.nn.pretrained.forms import (
    GEMMA2_ROWS,
    GPT2_ROWS,
    GPT_NEOX_ROWS,
    LLAMA_ROWS,
    OLMO2_ROWS,
    PHI3_ROWS,
    Row,
)
from tvjax.nn.rotary import Scaling, frequencies

# The kinds of tensor that are read, and what each becomes: a quantized one holds numbers of no dtype but float32.
KINDS = {"F32": "F32", "F16": "F16", "BF16": "BF16"} | dict.fromkeys(
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), "F32"
)
_REQUIRED: Any = object()
_ROPE_FACTORS = "rope_freqs.weight"
# Of phi3: what each frequency is divided by in short prompts, and in long ones.
_LONGROPE = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}


class _Reader(gguf.GGUFReader):
    """The package's reader, of which no part lies behind the end of the file: it would read less there, or on."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if isinstance(self.data, np.memmap):
            # Of a map each of its many small parts would carry the map's attributes.
            self.data = np.asarray(self.data)  # type: ignore[assignment]
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError("it ends early")
        return super()._get(offset, dtype, count, override_order)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        """An array as one list, the last part: the package makes two arrays of each of 100,000 words of a tokenizer."""
        outer = gguf.GGUFValueType(raw_type)
        kind = gguf.GGUFValueType(self._get(orig_offs, np.uint32)[0]) if outer == gguf.GGUFValueType.ARRAY else None
        if kind != gguf.GGUFValueType.STRING and kind not in self.gguf_scalar_to_np:
            return super()._get_field_parts(orig_offs, raw_type)
        count, at = int(self._get(orig_offs + 4, np.uint64)[0]), orig_offs + 12
        if kind != gguf.GGUFValueType.STRING:
            numbers = self._get(at, self.gguf_scalar_to_np[kind], count)
            return 12 + numbers.nbytes, [numbers.tolist()], [], [outer, kind]
        order: Any = "big" if self.byte_order == "S" else "little"
        view, texts = memoryview(self.data), []  # type: ignore[arg-type]
        for _ in range(count):
            begin = at + 8
            at = begin + int.from_bytes(view[at:begin], order)
            if max(begin, at) > len(view):
                raise ValueError("it ends early")
            texts.append(str(view[begin:at], "utf-8"))
        return at - orig_offs, [texts], [], [outer, kind]


class Metadata:
    """The keys of a GGUF file. It knows which were read, so that what nobody reads can be refused by name."""

    def __init__(self, path: Path, fields: Mapping[str, gguf.gguf_reader.ReaderField]) -> None:
        self.path, self._fields = path, fields
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    def get(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """The value of `key`, of type `kind` (a list is of any): floats are the shortest decimals of their float32.

        Raises `UserError` where it is of another type, or absent and without a default.
        """
        self._read.add(key)
        if key not in self._fields:
            if default is _REQUIRED:
                raise UserError(f"{self.path}: has no key {key}, which this model needs")
            return default
        field = self._fields[key]
        value = field.parts[-1] if isinstance(field.parts[-1], list) else field.contents()
        if kind is float and type(value) is float:
            value = float(str(np.float32(value)))
        if type(value) is not kind:
            raise self.reject(key, f"a value of type {kind.__name__}", value)
        return value

    def check(self, key: str, kind: type, wanted: Any) -> None:
        """Raise `UserError` where the file has `key` with another value than `wanted`."""
        value = self.get(key, kind, wanted)
        if value != wanted:
            raise self.reject(key, f"{wanted!r} (others are not implemented)", value)

    def reject(self, key: str, accepted: str, value: Any) -> UserError:
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
        return UserError(f"{self.path}: {key}: given {shown}; accepted: {accepted}")

    def check_read(self, prefix: str) -> None:
        """Raise `UserError` for a key that begins with `prefix` and that nobody has read."""
        for key in self._fields:
            if key.startswith(prefix) and key not in self._read:
                raise UserError(f"{self.path}: has the key {key}, which is not implemented: it may change the model")


Undo = Callable[[str, np.ndarray, Mapping[str, Any]], np.ndarray]


def _llama(name: str, tensor: np.ndarray, values: Mapping[str, Any]) -> np.ndarray:
    """Rows of queries and keys lie so that neighbours turn together: back to halves."""
    for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
        if f".{part}." in name:
            return tensor.reshape(values[heads], -1, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def _gemma(name: str, tensor: np.ndarray, values: Mapping[str, Any]) -> np.ndarray:
    """Scales of norms have the 1 that the model adds to them."""
    return tensor - 1 if name.endswith("norm.weight") else tensor


def _gpt2(name: str, tensor: np.ndarray, values: Mapping[str, Any]) -> np.ndarray:
    return tensor.T if _turned("gpt2", name) else tensor


def _gptneox(name: str, tensor: np.ndarray, values: Mapping[str, Any]) -> np.ndarray:
    """Queries, keys and values of all heads lie one after another: back to those of one head after another."""
    if ".query_key_value." not in name:
        return tensor
    apart = tensor.reshape(3, values["num_attention_heads"], -1, *tensor.shape[1:])
    return apart.swapaxes(0, 1).reshape(tensor.shape)


def _turned(architecture: str, name: str) -> bool:
    """Whether a matrix is the transpose of the one in a Hugging Face folder."""
    return architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp: the family in a Hugging Face folder, its tensors there, and what differs.

    fields: for each field of config.json the key, without the architecture, and its type. Each is needed.
    biases: fields of config.json that say whether there are biases, each with a tensor that shows it.
    fixed: fields that no key says, as all files of this architecture have them.
    """

    family: str
    rows: tuple[Row, ...]
    fields: Mapping[str, tuple[str, type]]
    undo: Undo | None = None
    biases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_SIZES: dict[str, tuple[str, type]] = {
    "num_hidden_layers": ("block_count", int),
    "hidden_size": ("embedding_length", int),
    "intermediate_size": ("feed_forward_length", int),
    "num_attention_heads": ("attention.head_count", int),
    "max_position_embeddings": ("context_length", int),
}
_GATED: dict[str, tuple[str, type]] = _SIZES | {"rms_norm_eps": ("attention.layer_norm_rms_epsilon", float)}
_ATTENTION = {"attention_bias": "model.layers.0.self_attn.q_proj.bias"}

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        "llama", LLAMA_ROWS, _GATED, _llama, _ATTENTION | {"mlp_bias": "model.layers.0.mlp.up_proj.bias"}
    ),
    "qwen2": Architecture("qwen2", LLAMA_ROWS, _GATED, fixed={"use_sliding_window": False}),
    "qwen3": Architecture("qwen3", LLAMA_ROWS, _GATED, None, _ATTENTION, {"use_sliding_window": False}),
    "gemma": Architecture("gemma", LLAMA_ROWS, _GATED, _gemma, _ATTENTION, {"hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": Architecture(
        "gemma2", GEMMA2_ROWS, _GATED, _gemma, _ATTENTION, {"hidden_activation": "gelu_pytorch_tanh"}
    ),
    "gemma3": Architecture(
        "gemma3_text", GEMMA2_ROWS, _GATED, _gemma, _ATTENTION, {"hidden_activation": "gelu_pytorch_tanh"}
    ),
    "olmo2": Architecture("olmo2", OLMO2_ROWS, _GATED),
    "smollm3": Architecture("smollm3", LLAMA_ROWS, _GATED, _llama, fixed={"no_rope_layer_interval": 4}),
    "phi3": Architecture("phi3", PHI3_ROWS, _GATED),
    "granite": Architecture(
        "granite",
        LLAMA_ROWS,
        _GATED
        | {
            "embedding_multiplier": ("embedding_scale", float),
            "attention_multiplier": ("attention.scale", float),
            "residual_multiplier": ("residual_scale", float),
            "logits_scaling": ("logit_scale", float),
        },
        _llama,
    ),
    "gpt2": Architecture(
        "gpt2",
        GPT2_ROWS,
        {
            "n_layer": ("block_count", int),
            "n_embd": ("embedding_length", int),
            "n_inner": ("feed_forward_length", int),
            "n_head": ("attention.head_count", int),
            "n_positions": ("context_length", int),
            "layer_norm_epsilon": ("attention.layer_norm_epsilon", float),
        },
        _gpt2,
        fixed={"activation_function": "gelu_new"},
    ),
    "gptneox": Architecture(
        "gpt_neox",
        GPT_NEOX_ROWS,
        _SIZES
        | {
            "layer_norm_eps": ("attention.layer_norm_epsilon", float),
            "use_parallel_residual": ("use_parallel_residual", bool),
        },
        _gptneox,
        {"attention_bias": "gpt_neox.layers.0.attention.query_key_value.bias"},
        # The exact form, which the models were trained with; llama.cpp computes the one by tanh.
        {"hidden_act": "gelu"},
    ),
}


class GGUF:
    """The model of a GGUF file: `values` as a config.json has them, and tensors by their names in such a folder.

    path: of the file; shapes, dtypes: of each tensor, the dtype being what it is read as. A tensor that the
    architecture does not know keeps the name that it has in the file. Raises `UserError` for a file that is not whole,
    an architecture, a kind of tensor or a key that is not implemented.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = opened(path)
        self.metadata = Metadata(path, reader.fields)
        kind = self.metadata.get("general.architecture", str)
        if experts := self.metadata.get(f"{kind}.expert_count", int, 0):  # Mixtral's architecture is llama
            raise self.metadata.reject(f"{kind}.expert_count", "0 (mixtures of experts are not implemented)", experts)
        if kind not in ARCHITECTURES:
            raise self.metadata.reject("general.architecture", ", ".join(ARCHITECTURES), kind)
        if self.metadata.get("split.count", int, 1) > 1:
            raise UserError(f"{path}: is one of several parts of a model; accepted: a whole one (llama.cpp joins them)")
        self.architecture = kind
        self._row = ARCHITECTURES[kind]
        layers = min(self._of("block_count", int), len(reader.tensors))  # more would have no tensors
        names = _names(kind, self._row.rows, layers)
        self._tensors = {names.get(tensor.name, tensor.name): tensor for tensor in reader.tensors}
        factors = self._tensors.pop(_ROPE_FACTORS, None)
        longrope = {f: self._tensors.pop(n) for f, n in _LONGROPE.items() if kind == "phi3" and n in self._tensors}
        for tensor in (*self._tensors.values(), *longrope.values(), *(() if factors is None else (factors,))):
            if tensor.tensor_type.name not in KINDS:
                problem = f"tensor {tensor.name}: given {tensor.tensor_type.name}"
                raise UserError(f"{path}: {problem}; accepted: {', '.join(KINDS)}")
        self.shapes = {name: self._shape(name, tensor) for name, tensor in self._tensors.items()}
        self.dtypes = {name: KINDS[tensor.tensor_type.name] for name, tensor in self._tensors.items()}
        self.values = self._values(None if factors is None else self._array(factors))
        if longrope:
            self.values |= self._longrope({field: self._array(tensor) for field, tensor in longrope.items()})
        self.metadata.check_read(f"{self.architecture}.")

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantized, as it is in a Hugging Face folder. Nothing of the file stays in memory."""
        tensor = self._array(self._tensors[name])
        return tensor if self._row.undo is None else self._row.undo(name, tensor, self.values)

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors of one shape hold the same numbers."""
        return np.array_equal(self.read(first), self.read(second))

    def _shape(self, name: str, tensor: gguf.ReaderTensor) -> tuple[int, ...]:
        # The package counts axes from the one whose numbers are neighbours.
        shape = tuple(int(size) for size in tensor.shape)
        return shape if _turned(self.architecture, name) else shape[::-1]

    def _array(self, tensor: gguf.ReaderTensor) -> np.ndarray:
        try:
            # Not by the reader's map of the file: what was read of that stays resident.
            raw = np.fromfile(self.path, np.uint8, tensor.n_bytes, offset=tensor.data_offset)
        except OSError as error:
            raise UserError(f"{self.path}: does not read ({error.strerror}); accepted: a GGUF file") from None
        if raw.size != tensor.n_bytes:
            raise UserError(f"{self.path}: tensor {tensor.name}: ends early; fetch the file again")
        rows = raw.reshape(*(int(size) for size in tensor.shape[:0:-1]), -1)
        return gguf.dequantize(rows.view(tensor.data.dtype), tensor.tensor_type)

    def _values(self, rope_factors: np.ndarray | None) -> dict[str, Any]:
        row = self._row
        values: dict[str, Any] = {"model_type": row.family, **row.fixed}
        values |= {field: self._of(key, kind) for field, (key, kind) in row.fields.items()}
        values |= {field: tensor in self.shapes for field, tensor in row.biases.items()}
        head = next(name for name, _, paths in row.rows if paths == ("readout/kernel",))
        table = next(name for name, _, paths in row.rows if paths == ("front/embedding",))
        if len(self.shapes.get(table, ())) != 2:
            raise UserError(f"{self.path}: has no matrix token_embd.weight, which this model needs")
        values["vocab_size"] = self.shapes[table][0]
        values["tie_word_embeddings"] = head not in self.shapes
        self.metadata.check(f"{self.architecture}.vocab_size", int, values["vocab_size"])
        self._check_harmless()
        if self.architecture != "gpt2":
            values |= self._heads_and_positions(values, rope_factors)
        elif rope_factors is not None:
            raise UserError(f"{self.path}: holds a tensor {_ROPE_FACTORS} that this model has no place for")
        if self.architecture == "gemma2":
            values |= self._caps(values)
        if self.architecture == "gemma3":
            values |= self._two_kinds(values)
        if self.architecture == "phi3":
            values["sliding_window"] = self._of("attention.sliding_window", int, 0) or None
        return values

    def _of(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}", kind, default)

    def _check_harmless(self) -> None:
        """Keys that say nothing else than what every file of these architectures has, or than where it came from."""
        self.metadata.check(f"{self.architecture}.attention.causal", bool, True)
        for key, other in (
            ("tensor_data_layout", str),
            ("rope.scaling.original_context_length", int),
            *((("rope.scaling.finetuned", bool),) if self.architecture != "granite" else ()),
        ):
            self._of(key, other, None)
        self.metadata.check("granite.rope.scaling.finetuned", bool, True)  # false: no rotary positions, to llama.cpp
        if self.architecture in ("gpt2", "gptneox"):
            heads = self._of("attention.head_count", int)
            self.metadata.check(f"{self.architecture}.attention.head_count_kv", int, heads)

    def _heads_and_positions(self, values: Mapping[str, Any], factors: np.ndarray | None) -> dict[str, Any]:
        """Heads and rotary positions, with llama.cpp's defaults for what the file leaves out."""
        heads, width = values["num_attention_heads"], values["hidden_size"]
        size = self._of("attention.key_length", int, width // max(heads, 1))
        self.metadata.check(f"{self.architecture}.attention.value_length", int, size)
        turned = self._of("rope.dimension_count", int, size)
        base, scaling = self._of("rope.freq_base", float, 10_000.0), self._scaling()
        if self.architecture == "gptneox":
            fields: dict[str, Any] = {"rotary_emb_base": base, "rotary_pct": turned / max(size, 1)}
        else:
            kv_heads = self._of("attention.head_count_kv", int, heads)
            fields = {"rope_theta": base, "num_key_value_heads": kv_heads, "head_dim": size}
            if self.architecture == "phi3":
                fields["partial_rotary_factor"] = turned / max(size, 1)
            elif turned != size:
                self.metadata.check(f"{self.architecture}.rope.dimension_count", int, size)
        if factors is not None:
            if self.architecture in ("gemma3", "phi3"):
                raise UserError(f"{self.path}: holds a tensor {_ROPE_FACTORS} that this model has no place for")
            if scaling is not None:
                raise UserError(f"{self.path}: has both a tensor {_ROPE_FACTORS} and rope.scaling; accepted: one")
            scaling = self._slowed(factors.reshape(-1), turned, base)
        return fields if scaling is None else fields | {"rope_scaling": scaling}

    def _scaling(self) -> dict[str, Any] | None:
        """What slows all frequencies alike. A factor without a type is linear, as in llama.cpp."""
        kind = self._of("rope.scaling.type", str, "linear")
        old = self._of("rope.scale_linear", float, 0.0)
        factor = self._of("rope.scaling.factor", float, old)
        if kind not in ("none", "linear"):
            raise self.metadata.reject(f"{self.architecture}.rope.scaling.type", "none or linear", kind)
        if kind == "none" or factor in (0.0, 1.0):
            return None
        return {"rope_type": "linear", "factor": factor}

    def _slowed(self, factors: np.ndarray, turned: int, base: float) -> dict[str, Any]:
        """The numbers of a "llama3" scaling, of which a file keeps only what each frequency is divided by."""
        scaling = Scaling("llama3", float(factors.max(initial=0.0)), 1.0, 4.0, 8192)
        plain = frequencies(turned, base)
        if factors.shape != plain.shape or not np.allclose(
            plain / frequencies(turned, base, scaling), factors, rtol=1e-4, atol=0
        ):
            raise UserError(
                f"{self.path}: tensor {_ROPE_FACTORS}: given others; accepted: those of a Llama 3.1 or later, whose "
                "low_freq_factor is 1, high_freq_factor 4 and original_max_position_embeddings 8192"
            )
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.original,
        }

    def _longrope(self, factors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The block of rotary positions that are divided by factors of their own."""
        for field in _LONGROPE.keys() - factors.keys():
            raise UserError(f"{self.path}: has no tensor {_LONGROPE[field]}, which this model needs")
        original = self._of("rope.scaling.original_context_length", int)
        block: dict[str, Any] = {name: [float(str(x)) for x in factors[name].reshape(-1)] for name in _LONGROPE}
        block |= {"rope_type": "longrope", "original_max_position_embeddings": original}
        block["attention_factor"] = self._of("rope.scaling.attn_factor", float, 1.0)
        return {"rope_scaling": block, "original_max_position_embeddings": original}

    def _two_kinds(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What Gemma 3 has beyond Gemma, with llama.cpp's defaults. The largest has a scale of its own there."""
        window, largest = self._of("attention.sliding_window", int, 0), values["num_hidden_layers"] == 62
        pattern = self._of("attention.sliding_window_pattern", int, 6)
        return {
            "sliding_window": window or None,
            "sliding_window_pattern": pattern if window else 1,
            "rope_local_base_freq": self._of("rope.freq_base_swa", float, 10_000.0),
            "final_logit_softcapping": self._of("final_logit_softcapping", float, 0.0) or None,
            "query_pre_attn_scalar": (
                values["hidden_size"] // values["num_attention_heads"] if largest else values["head_dim"]
            ),
        }

    def _caps(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What Gemma 2 has beyond Gemma, with llama.cpp's defaults. The largest has a scale of its own there."""
        largest = values["num_hidden_layers"] == 46
        return {
            "attn_logit_softcapping": self._of("attn_logit_softcapping", float, 50.0),
            "final_logit_softcapping": self._of("final_logit_softcapping", float, 30.0),
            "sliding_window": self._of("attention.sliding_window", int, 4096),
            "query_pre_attn_scalar": (
                values["hidden_size"] // values["num_attention_heads"] if largest else values["head_dim"]
            ),
        }


def opened(path: Path) -> _Reader:
    """The file, its tensors not yet read. Raises `UserError` for one that is not whole, or is of no such format."""
    try:
        reader = _Reader(path)
    except OSError as error:
        raise UserError(f"{path}: does not read ({error.strerror}); accepted: a GGUF file") from None
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:  # what the package meets in it
        cause = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: not a whole GGUF file ({cause}); fetch it again") from None
    if reader.endianess != gguf.GGUFEndian.LITTLE:
        raise UserError(f"{path}: is big-endian; accepted: a little-endian GGUF file")
    return reader


def _names(architecture: str, rows: tuple[Row, ...], layers: int) -> dict[str, str]:
    """For the name of each tensor in the file its name in a Hugging Face folder."""
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    theirs = gguf.get_tensor_name_map(kind, layers)
    ours = [name.format(layer) for name, *_ in rows for layer in (range(layers) if "{}" in name else [0])]
    by_name = {theirs.get_name(name, try_suffixes=(".weight", ".bias")): name for name in ours}
    return {name: own for name, own in by_name.items() if name is not None}
