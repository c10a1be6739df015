"""Which tensor of a family's files is which parameter, and how the one turns into the other and back.

A row is ``(name in the file, form, parameters)``. A row whose parameters a config does not have is not in the file.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from tvjax.nn.decoder import DecoderConfig

Shapes = list[tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Form:
    """How a tensor of a file turns into parameters and back.

    split: ``(tensor, shapes of the parameters, config) -> parameters``; join: ``(parameters, config) -> tensor``;
    shape: ``(shapes of the parameters, config) -> shape of the tensor``.
    Of a kernel, split and join also take what has a rank in the place of the inputs, as B of LoRA does (`peft_lora`).
    """

    split: Callable[[np.ndarray, Shapes, DecoderConfig], list[np.ndarray]]
    join: Callable[[list[np.ndarray], DecoderConfig], np.ndarray]
    shape: Callable[[Shapes, DecoderConfig], tuple[int, ...]]


def _rows(shape: tuple[int, ...], inputs: int) -> tuple[int, int]:
    """A kernel ``[in.., out..]`` with `inputs` axes of inputs, as a matrix ``[in, out]``."""
    return int(np.prod(shape[:inputs])), int(np.prod(shape[inputs:]))


def _linear(inputs: int) -> Form:
    """A matrix ``[out, in]``, as PyTorch's Linear keeps it."""
    return Form(
        lambda t, shapes, c: [t.T.reshape(shapes[0])],
        lambda parts, c: parts[0].reshape(_rows(parts[0].shape, inputs)).T,
        lambda shapes, c: _rows(shapes[0], inputs)[::-1],
    )


def _conv(inputs: int) -> Form:
    """A matrix ``[in, out]``, as GPT-2 keeps it."""
    return Form(
        lambda t, shapes, c: [t.reshape(shapes[0])],
        lambda parts, c: parts[0].reshape(_rows(parts[0].shape, inputs)),
        lambda shapes, c: _rows(shapes[0], inputs),
    )


def turned_order(c: DecoderConfig) -> np.ndarray:
    """Where the channels of a head come from if those that turn together are neighbours in the file."""
    turned = c.rotary_width or c.channels
    return np.concatenate([np.arange(0, turned, 2), np.arange(1, turned, 2), np.arange(turned, c.channels)])


VECTOR = Form(
    lambda t, shapes, c: [t.reshape(shapes[0])],
    lambda parts, c: parts[0].reshape(-1),
    lambda shapes, c: (int(np.prod(shapes[0])),),
)
TABLE = Form(lambda t, shapes, c: [t], lambda parts, c: parts[0], lambda shapes, c: shapes[0])
LINEAR, LINEAR_OUT, CONV, CONV_OUT = _linear(1), _linear(2), _conv(1), _conv(2)
# Query, key and value side by side: [D, 3 H C] and [3 H C].
CONV_QKV = Form(
    lambda t, shapes, c: [p.reshape(s) for p, s in zip(np.split(t, 3, axis=1), shapes, strict=True)],
    lambda parts, c: np.concatenate([p.reshape(p.shape[0], -1) for p in parts], axis=1),
    lambda shapes, c: (shapes[0][0], 3 * shapes[0][1] * shapes[0][2]),
)
VECTOR_QKV = Form(
    lambda t, shapes, c: [p.reshape(s) for p, s in zip(np.split(t, 3), shapes, strict=True)],
    lambda parts, c: np.concatenate([p.reshape(-1) for p in parts]),
    lambda shapes, c: (3 * int(np.prod(shapes[0])),),
)
# Query, key and value of one head after another: [H 3 C, D] and [H 3 C].
LINEAR_HEADS = Form(
    lambda t, shapes, c: [
        t.reshape(c.num_heads, 3, c.channels, -1)[:, i].transpose(2, 0, 1).reshape(shapes[i]) for i in range(3)
    ],
    lambda parts, c: np.stack([p.transpose(1, 2, 0) for p in parts], axis=1).reshape(-1, len(parts[0])),
    lambda shapes, c: (3 * shapes[0][1] * shapes[0][2], shapes[0][0]),
)
VECTOR_HEADS = Form(
    lambda t, shapes, c: [t.reshape(c.num_heads, 3, c.channels)[:, i] for i in range(3)],
    lambda parts, c: np.stack(parts, axis=1).reshape(-1),
    lambda shapes, c: (3 * int(np.prod(shapes[0])),),
)
# As LINEAR, with channels that turn together as neighbours.
LINEAR_NEIGHBOURS = Form(
    lambda t, shapes, c: [t.T.reshape(shapes[0])[:, :, turned_order(c)]],
    lambda parts, c: parts[0][:, :, np.argsort(turned_order(c))].reshape(parts[0].shape[0], -1).T,
    LINEAR.shape,
)

# All queries, then all keys, then all values, of which there may be fewer: [(H + 2 G) C, D].
LINEAR_QKV = Form(
    lambda t, shapes, c: [
        part.T.reshape(shape)
        for part, shape in zip(np.split(t, np.cumsum([s[1] * s[2] for s in shapes])[:-1]), shapes, strict=True)
    ],
    lambda parts, c: np.concatenate([part.reshape(len(part), -1).T for part in parts]),
    lambda shapes, c: (sum(s[1] * s[2] for s in shapes), shapes[0][0]),
)
# The gate, then what it gates: [2 F, D].
LINEAR_GATED = Form(
    lambda t, shapes, c: [part.T for part in np.split(t, 2)],
    lambda parts, c: np.concatenate([part.T for part in parts]),
    lambda shapes, c: (2 * shapes[0][1], shapes[0][0]),
)

Row = tuple[str, Form, tuple[str, ...]]


def _rows_of(form: Form, **pairs: str) -> tuple[Row, ...]:
    """Rows ``(name in the file, form, (parameter,))``; in parameters ``__`` stands for a slash, names lead by layer."""
    return tuple((name, form, (path.replace("__", "/"),)) for path, name in pairs.items())


def _both(form: Form, **pairs: str) -> tuple[Row, ...]:
    """The kernel (by `form`) and the bias of each linear map."""
    kernels = _rows_of(form, **{f"{path}__kernel": f"{name}.weight" for path, name in pairs.items()})
    return kernels + _rows_of(VECTOR, **{f"{path}__bias": f"{name}.bias" for path, name in pairs.items()})


def _norms(**pairs: str) -> tuple[Row, ...]:
    scales = _rows_of(VECTOR, **{f"{path}__scale": f"{name}.weight" for path, name in pairs.items()})
    return scales + _rows_of(VECTOR, **{f"{path}__bias": f"{name}.bias" for path, name in pairs.items()})


_QKV = ("query", "key", "value")
_QKV_KERNELS = tuple(f"blocks/{name}/kernel" for name in _QKV)
_QKV_BIASES = tuple(f"blocks/{name}/bias" for name in _QKV)
_HEAD = _both(LINEAR, readout="lm_head")

GPT2_ROWS = (
    *_rows_of(TABLE, front__embedding="transformer.wte.weight", positions="transformer.wpe.weight"),
    *_norms(
        blocks__attn_norm="transformer.h.{}.ln_1", blocks__mlp_norm="transformer.h.{}.ln_2", norm="transformer.ln_f"
    ),
    ("transformer.h.{}.attn.c_attn.weight", CONV_QKV, _QKV_KERNELS),
    ("transformer.h.{}.attn.c_attn.bias", VECTOR_QKV, _QKV_BIASES),
    *_both(CONV_OUT, blocks__out="transformer.h.{}.attn.c_proj"),
    *_both(CONV, blocks__up="transformer.h.{}.mlp.c_fc", blocks__down="transformer.h.{}.mlp.c_proj"),
    *_HEAD,
)
GPT_NEOX_ROWS = (
    *_rows_of(TABLE, front__embedding="gpt_neox.embed_in.weight"),
    *_norms(
        blocks__attn_norm="gpt_neox.layers.{}.input_layernorm",
        blocks__mlp_norm="gpt_neox.layers.{}.post_attention_layernorm",
        norm="gpt_neox.final_layer_norm",
    ),
    ("gpt_neox.layers.{}.attention.query_key_value.weight", LINEAR_HEADS, _QKV_KERNELS),
    ("gpt_neox.layers.{}.attention.query_key_value.bias", VECTOR_HEADS, _QKV_BIASES),
    *_both(LINEAR_OUT, blocks__out="gpt_neox.layers.{}.attention.dense"),
    *_both(
        LINEAR,
        blocks__up="gpt_neox.layers.{}.mlp.dense_h_to_4h",
        blocks__down="gpt_neox.layers.{}.mlp.dense_4h_to_h",
        readout="embed_out",
    ),
)
GPTJ_ROWS = (
    *_rows_of(TABLE, front__embedding="transformer.wte.weight"),
    *_norms(blocks__attn_norm="transformer.h.{}.ln_1", norm="transformer.ln_f"),
    *_rows_of(
        LINEAR_NEIGHBOURS,
        blocks__query__kernel="transformer.h.{}.attn.q_proj.weight",
        blocks__key__kernel="transformer.h.{}.attn.k_proj.weight",
    ),
    *_rows_of(LINEAR, blocks__value__kernel="transformer.h.{}.attn.v_proj.weight"),
    *_rows_of(LINEAR_OUT, blocks__out__kernel="transformer.h.{}.attn.out_proj.weight"),
    *_both(LINEAR, blocks__up="transformer.h.{}.mlp.fc_in", blocks__down="transformer.h.{}.mlp.fc_out"),
    *_HEAD,
)


def _gated_rows(**norms: str) -> tuple[Row, ...]:
    return (
        *_rows_of(TABLE, front__embedding="model.embed_tokens.weight"),
        *_norms(
            norm="model.norm",
            blocks__query_norm="model.layers.{}.self_attn.q_norm",
            blocks__key_norm="model.layers.{}.self_attn.k_norm",
            **{f"blocks__{path}": "model.layers.{}." + name for path, name in norms.items()},
        ),
        *_both(LINEAR, **{f"blocks__{name}": "model.layers.{}.self_attn." + name[0] + "_proj" for name in _QKV}),
        *_both(LINEAR_OUT, blocks__out="model.layers.{}.self_attn.o_proj"),
        *_both(LINEAR, **{f"blocks__{n}": "model.layers.{}.mlp." + n + "_proj" for n in ("gate", "up", "down")}),
        *_HEAD,
    )


LLAMA_ROWS = _gated_rows(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm")
GEMMA2_ROWS = _gated_rows(
    attn_norm="input_layernorm",
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
OLMO2_ROWS = _gated_rows(attn_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")
PHI3_ROWS = (
    *_rows_of(TABLE, front__embedding="model.embed_tokens.weight"),
    *_norms(
        norm="model.norm",
        blocks__attn_norm="model.layers.{}.input_layernorm",
        blocks__mlp_norm="model.layers.{}.post_attention_layernorm",
    ),
    ("model.layers.{}.self_attn.qkv_proj.weight", LINEAR_QKV, _QKV_KERNELS),
    *_rows_of(LINEAR_OUT, blocks__out__kernel="model.layers.{}.self_attn.o_proj.weight"),
    ("model.layers.{}.mlp.gate_up_proj.weight", LINEAR_GATED, ("blocks/gate/kernel", "blocks/up/kernel")),
    *_rows_of(LINEAR, blocks__down__kernel="model.layers.{}.mlp.down_proj.weight"),
    *_HEAD,
)
