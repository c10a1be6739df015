"""llama.cpp itself, by ctypes: what it makes of a GGUF file, in float32 and on the CPU.

    pip install --no-deps xllamacpp==2026.10.11549

Its Python interface hides what the tests compare (logits of every position, ids), but its shared library exports the C
interface of llama.cpp whole. Parameters go by value, so the two structs below have to be those of that version; the
library's own defaults are checked against them before they are used, since a moved field would be silent otherwise.
"""

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HAS_LLAMA = all(importlib.util.find_spec(name) for name in ("xllamacpp", "gguf"))
needs_llama = pytest.mark.skipif(not HAS_LLAMA, reason="needs xllamacpp and gguf")

F32 = 0  # ggml_type
NO_MMAP = 0  # llama_load_mode
NO_FLASH_ATTENTION = 0  # llama_flash_attn_type
LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)


class ModelParams(Structure):
    """llama_model_params."""

    _fields_ = [
        *((name, c_void_p) for name in ("devices", "tensor_buft_overrides")),
        *((name, c_int) for name in ("n_gpu_layers", "split_mode", "load_mode", "lazy_mode", "main_gpu")),
        *((name, c_void_p) for name in ("tensor_split", "progress_callback", "progress_user_data", "kv_overrides")),
        *((name, c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts")),
        *((name, c_bool) for name in ("no_host", "no_alloc", "load_mtp")),
    ]


class ContextParams(Structure):
    """llama_context_params. Three pointers stand where the latest public header has two: all are left as they are."""

    _fields_ = [
        *((name, c_int) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_int) for name in ("n_outputs_max", "n_outputs_max_per_seq", "n_threads", "n_threads_batch")),
        *((name, c_int) for name in ("ctx_type", "rope_scaling", "pooling", "attention", "flash_attn")),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale")),
        *((name, c_float) for name in ("yarn_ext", "yarn_attn", "yarn_fast", "yarn_slow")),
        ("yarn_orig_ctx", c_int),
        ("defrag_thold", c_float),
        *((name, c_void_p) for name in ("cb_eval", "cb_eval_user_data")),
        *((name, c_int) for name in ("type_k", "type_v")),
        *((name, c_void_p) for name in ("callback_1", "callback_2", "callback_3")),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf")),
        *((name, c_bool) for name in ("op_offload", "swa_full", "kv_unified")),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


# name: (result, arguments)
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [LOG, c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_detokenize": (c_int32, [c_void_p, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool]),
    "llama_batch_init": (Batch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [Batch]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_set_adapter_cvec": (c_int32, [c_void_p, c_void_p, c_size_t, c_int32, c_int32, c_int32]),
}
LINES: list[str] = []  # what llama.cpp logged of the file that it opened last


@LOG
def keep(level: int, text: bytes, data: Any) -> None:
    LINES.append(text.decode(errors="replace"))


@functools.cache
def library() -> Any:
    """The shared library of `xllamacpp`, its functions typed, its log kept from the terminal."""
    found = importlib.util.find_spec("xllamacpp")
    assert found is not None and found.origin is not None
    lib = ctypes.CDLL(str(next(Path(found.origin).parent.glob("*.so"))))
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_log_set(keep, None)
    lib.llama_backend_init()
    model, context = lib.llama_model_default_params(), lib.llama_context_default_params()
    known = {"n_ctx": 512, "n_batch": 2048, "n_threads": 4, "flash_attn": -1, "type_k": 1, "type_v": 1, "no_perf": True}
    assert {name: getattr(context, name) for name in known} == known, "llama_context_params has another layout"
    known = {"n_gpu_layers": -1, "load_mode": -1, "vocab_only": False, "use_extra_bufts": True, "no_host": False}
    assert {name: getattr(model, name) for name in known} == known, "llama_model_params has another layout"
    return lib


class LlamaCpp:
    """A GGUF file that llama.cpp has opened: ``with LlamaCpp(path) as llama: llama.logits([1, 2, 3])``.

    context: tokens of all sequences. sequences: those that are run side by side, for `generate`. threads: of a pass;
    several wait for each other, and on busy cores take ten times as long.
    vocab_only: no weights are read; `ids` and `text` alone work. Raises ValueError, in llama.cpp's own words, where it
    refuses the file.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        context: int = 256,
        sequences: int = 1,
        threads: int = 1,
        vocab_only: bool = False,
    ) -> None:
        self.lib, self.context, self.length, self.reached = library(), None, context, 0
        LINES.clear()
        params = self.lib.llama_model_default_params()
        params.load_mode, params.n_gpu_layers, params.vocab_only = NO_MMAP, 0, vocab_only
        # Repacked weights are multiplied in narrower activations.
        params.use_extra_bufts = False
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise ValueError(f"llama.cpp refuses {path}: {''.join(LINES[-5:])}")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.vocab_size: int = self.lib.llama_vocab_n_tokens(self.vocab)
        if vocab_only:
            return
        params = self.lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        # All positions are asked for their logits.
        params.n_outputs_max = params.n_outputs_max_per_seq = context
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = F32
        params.flash_attn = NO_FLASH_ATTENTION
        self.context = self.lib.llama_init_from_model(self.model, params)
        if not self.context:
            self.close()
            raise ValueError(f"llama.cpp makes no context for {path}: {''.join(LINES[-5:])}")

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.context:
            self.lib.llama_free(self.context)
        if self.model:
            self.lib.llama_model_free(self.model)
        self.context = self.model = None

    def ids(self, text: str, *, special: bool = False, add_special: bool = True) -> list[int]:
        """The ids of `text`. special: names of control tokens in the text are these tokens, not their characters;
        add_special: with the BOS and EOS tokens that the file asks for."""
        raw = text.encode()
        out = (c_int32 * (len(raw) + 8))()
        count = self.lib.llama_tokenize(self.vocab, raw, len(raw), out, len(out), add_special, special)
        if count < 0:
            raise ValueError(f"llama_tokenize: {count}")
        return list(out[:count])

    def text(self, ids: Sequence[int], *, special: bool = True, remove_special: bool = False) -> str:
        """The text of `ids`. special: control tokens are written; remove_special: without BOS and EOS at the ends."""
        room = ctypes.create_string_buffer(64 * len(ids) + 64)
        array = (c_int32 * len(ids))(*ids)
        size = self.lib.llama_detokenize(self.vocab, array, len(ids), room, len(room), remove_special, special)
        if size < 0:
            raise ValueError(f"llama_detokenize: {size}")
        return room.raw[:size].decode(errors="replace")

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V] of one sequence that begins at position 0. Nothing of earlier calls is left in the cache."""
        assert self.context and 0 < len(ids) <= self.length and max(ids) < self.vocab_size
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        batch = self.lib.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for place, token in enumerate(ids):
                batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            if code := self.lib.llama_decode(self.context, batch):
                raise ValueError(f"llama_decode: {code}")
            found = self.lib.llama_get_logits(self.context)
            return np.ctypeslib.as_array(found, (len(ids), self.vocab_size)).copy()
        finally:
            self.lib.llama_batch_free(batch)

    def generate(self, prompts: np.ndarray, n: int) -> np.ndarray:
        """The n likeliest next tokens of prompts ``[B, T]``, one after another, with a cache: ``[B, n]``."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        made, new_BT, begin = [], np.asarray(prompts), 0
        batch = self.lib.llama_batch_init(prompts.size, 0, 1)
        try:
            for _ in range(n):
                rows, length = new_BT.shape
                batch.n_tokens = new_BT.size
                for place, token in enumerate(new_BT.ravel().tolist()):
                    row, column = divmod(place, length)
                    batch.token[place], batch.pos[place] = token, begin + column
                    batch.logits[place] = column == length - 1
                    batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
                if code := self.lib.llama_decode(self.context, batch):
                    raise ValueError(f"llama_decode: {code}")
                found = np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (rows, self.vocab_size))
                begin, new_BT = begin + length, found.argmax(-1)[:, None]
                made.append(new_BT)
        finally:
            self.lib.llama_batch_free(batch)
        return np.concatenate(made, axis=1)

    def control(self, vectors: np.ndarray | None, first: int = 1, last: int = 10_000) -> None:
        """Add ``vectors[n - 1]`` of ``[N, D]`` behind block n, for n in first..last; None: nothing, anywhere.

        llama.cpp leaves what an earlier call set behind blocks that a shorter array does not reach: zeros reach them.
        """
        assert self.lib.llama_set_adapter_cvec(self.context, None, 0, 0, 0, 0) == 0
        if vectors is not None:
            self.reached = max(self.reached, len(vectors))
            array = np.zeros((self.reached, vectors.shape[1]), np.float32)
            array[: len(vectors)] = vectors
            arguments = array.ctypes.data, array.size, array.shape[1], first, last
            assert not self.lib.llama_set_adapter_cvec(self.context, *arguments), "llama.cpp refuses them"

    def greedy(self, ids: Sequence[int], n: int) -> list[int]:
        """The n likeliest next tokens, one after another, each from the whole sequence anew."""
        made = list(ids)
        for _ in range(n):
            made.append(int(self.logits(made)[-1].argmax()))
        return made[len(ids) :]
