"""One decoder-only transformer whose config chooses every part; all its states stand at addresses (see `taps`).

Layers are numbered as in the papers: h^0 is the embedding (address `embed`), h^l the residual stream after block l
(address `blocks/resid`, entry l - 1). `blocks/attn_out` and `blocks/mlp_out` are what attention and the MLP add to the
stream, `blocks/heads` what each head holds before the output projection, `blocks/queries` what asks (behind rotary
positions), `blocks/keys` and `blocks/values` what later positions read: given back as a `Past`, they are the cache.
`blocks/mlp_hidden` is what the MLP holds before its last map. `blocks/attn_logits` is what enters the softmax of each
head, `blocks/attn_patterns` what leaves it: both are made only if one of them is captured or written. `final_norm` and
`logits` are the readout's, at the positions that are read out. Parameters are one stacked tree always.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tvjax.errors import UserError
from tvjax.nn.attention import attention
from tvjax.nn.rotary import Rotary, Scaling, frequencies, rotate, turns
from tvjax.nn.taps import CAPTURED, CAPTURES, READS, WRITES, asked, chosen, tap
from tvjax.settings import setting

PADDING = 2**30
"""The position of a token that is none: later than every real one, so nothing sees it."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": nn.gelu,
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "silu": nn.silu,
    "relu": nn.relu,
}


WORTH_PARTING = 2**25
"""Bytes of the blocks' parameters from which on `apart` pays: what a cache holds is copied in no time."""
ALIGNMENT = 64
"""Bytes: where XLA's programs for a CPU want an array to begin."""


Precision = Literal["highest", "high", "default"]
"""How exact products of float32 are: on a TPU 6, 3 or 1 passes of bfloat16, on a GPU float32, or else TF32.
A CPU has one precision, and products of bfloat16 or float16 are the same under all."""
PRECISIONS = get_args(Precision)

KEPT_BY = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
"""What a rematerialized block keeps for its backward pass beside its input: nothing, or the products with kernels."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What a decoder is made of. `experiments` checks the values that a user may set.

    matmul_precision holds in both passes (`jax.lax.Precision`).
    From `unbiased` on, what only pretrained families need (`FAMILY_FIELDS`): parts that go without a bias although
    `bias` is set; how the MLP joins the stream (after attention, beside it, or beside it and behind the same norm);
    norms after attention and MLP; norms of queries and keys; what is added to every norm's scale; a factor on the
    embedding; on the logits of attention (0: C^-1/2); tanh caps on those logits and on the readout's (0: none); for
    each layer, how many positions back it sees, itself counted (0: all; an empty tuple: all, everywhere); for each
    layer, its rotary positions in place of `rotary_base` and `rotary_scaling` (None: it has none; an empty tuple: all
    have those); whether there are norms before attention and MLP; whether a norm of queries or keys is one of all heads
    together; factors on what attention and MLP add to the stream, and on the logits.
    """

    num_layers: int = setting(about="L")
    width: int = setting(about="D, of the residual stream")
    num_heads: int = setting(about="H")
    num_outputs: int = setting(about="O, of the readout")
    inputs: Literal["real", "tokens"] = setting("real", "what the front end takes")
    vocab_size: int = setting(0, "V, where that is tokens")
    num_kv_heads: int = setting(0, "G, key/value heads; 0: as many as heads")
    head_width: int = setting(0, "C, channels a head; 0: width / num_heads")
    hidden_width: int = setting(0, "F, of the MLP; 0: 4 * width")
    max_positions: int = setting(0, "the longest prompt that learned positions allow")
    norm: Literal["layernorm", "rmsnorm"] = setting("layernorm", "layernorm, rmsnorm")
    norm_epsilon: float = setting(1e-5, "what is added to the variance")
    positions: Literal["learned", "rotary", "none"] = setting("learned", "learned, rotary, none")
    rotary_base: float = setting(10_000.0, "of rotary positions")
    mlp: Literal["gelu", "gelu_exact", "silu", "relu", "gated_gelu", "gated_gelu_exact", "gated_silu"] = setting(
        "gelu", "gelu (of its tanh form), gelu_exact, silu, relu, gated_gelu, gated_gelu_exact, gated_silu"
    )
    bias: bool = setting(True, "biases in linear maps and norms")
    tied_readout: bool = setting(False, "whether the embedding is the readout too")
    unroll: int = setting(0, "layers unrolled in one iteration of the scan over layers; 0: all (fastest on a CPU)")
    remat: Literal["none", "full", "dots"] = setting(
        "none", "activations that the backward pass computes again: none, full, dots (all but products)"
    )
    dtype: str = setting("float32", "of activations, and so what is computed in: float32, bfloat16")
    param_dtype: str = setting("float32", "of parameters and Adam's moments: float32 where they are trained")
    matmul_precision: Precision = setting(
        "highest",
        "of products of float32: highest (exact to float32), high, default; on a GPU the others are TF32, on a TPU they"
        " are 6, 3 and 1 passes of bfloat16; no difference on a CPU, or to products of bfloat16 or float16",
    )

    unbiased: tuple[Literal["attention", "out", "mlp", "norm", "readout"], ...] = ()
    residual: Literal["sequential", "parallel", "shared_norm"] = "sequential"
    post_norms: bool = False
    head_norms: bool = False
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    rotary_width: int = 0
    rotary_scaling: Scaling | None = None
    attention_scale: float = 0.0
    attention_cap: float = 0.0
    readout_cap: float = 0.0
    windows: tuple[int, ...] = ()
    rotaries: tuple[Rotary | None, ...] = ()
    pre_norms: bool = True
    joint_head_norms: bool = False
    residual_scale: float = 1.0
    readout_scale: float = 1.0

    @property
    def kv_heads(self) -> int:
        """G, the number of key and value heads (H unless `num_kv_heads` says otherwise)."""
        return self.num_kv_heads or self.num_heads

    @property
    def channels(self) -> int:
        """C, the channels of one head (D / H unless `head_width` says otherwise)."""
        return self.head_width or self.width // self.num_heads

    @property
    def hidden(self) -> int:
        """F, the hidden width of the MLP (4 D unless `hidden_width` says otherwise)."""
        return self.hidden_width or 4 * self.width

    def biased(self, part: str) -> bool:
        """Whether the linear maps or norms of `part` have a bias."""
        return self.bias and part not in self.unbiased

    @property
    def turned(self) -> int:
        """The channels of a head that rotary positions turn."""
        return self.rotary_width or self.channels

    @property
    def layer_rotaries(self) -> tuple[Rotary | None, ...]:
        """The rotary positions of each layer."""
        same = Rotary(self.rotary_base, self.rotary_scaling) if self.positions == "rotary" else None
        return self.rotaries or (same,) * self.num_layers

    def between(self, start: int, stop: int) -> "DecoderConfig":
        """The config of the blocks from `start` up to `stop`, counted from 0 and without the last, as a decoder."""
        fields: dict[str, Any] = {
            "num_layers": stop - start,
            "unroll": min(self.unroll, stop - start),
            "windows": self.windows[start:stop],
        }
        if self.rotaries:
            fields |= rotary_fields(self.rotaries[start:stop], self.rotary_width)
        return dataclasses.replace(self, **fields)


def rotary_fields(layers: tuple[Rotary | None, ...], width: int) -> dict[str, Any]:
    """The fields of a `DecoderConfig` whose layers have these rotary positions, in `width` channels of each head.

    Equal ones are said once, so that equal decoders have equal configs.
    """
    plain: dict[str, Any] = {"rotary_base": 10_000.0, "rotary_scaling": None, "rotary_width": 0, "rotaries": ()}
    first = layers[0]
    if len(set(layers)) > 1:
        return plain | {"positions": "rotary", "rotary_width": width, "rotaries": layers}
    if first is None:
        return plain | {"positions": "none"}
    same = {"rotary_base": first.base, "rotary_scaling": first.scaling, "rotary_width": width}
    return plain | {"positions": "rotary", **same}


_NAMES = [field.name for field in dataclasses.fields(DecoderConfig)]
FAMILY_FIELDS = tuple(_NAMES[_NAMES.index("unbiased") :])


Stacked = Any
"""One array with an axis of layers in front, or where layers lie apart, a tuple of an array a layer."""


@struct.dataclass
class Past:
    """What earlier positions left for later ones: ``keys``, ``values: [L, B, G, S, C]``, ``positions_BS``.

    An entry whose position is `PADDING` is seen by nobody.
    """

    keys: Stacked
    values: Stacked
    positions_BS: jax.Array


def rows_of(past: Past, row_B: jax.Array) -> Past:
    """The `Past` of some of the prompts."""
    return Past(past.keys[:, row_B], past.values[:, row_B], past.positions_BS[row_B])


@struct.dataclass
class _Sight:
    """What every block must know of positions: those of the tokens, and who may look at whom."""

    positions_BT: jax.Array
    mask_BTT: jax.Array | None
    past_mask_BTS: jax.Array | None
    distance_BTT: jax.Array | None
    past_distance_BTS: jax.Array | None

    def masks(self, window: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
        """Whom the tokens see among themselves and in the past, no further back than `window`."""
        mask_BTT, past_mask_BTS = self.mask_BTT, self.past_mask_BTS
        if window is not None and mask_BTT is not None and self.distance_BTT is not None:
            mask_BTT = mask_BTT & (self.distance_BTT < window)
        if window is not None and past_mask_BTS is not None and self.past_distance_BTS is not None:
            past_mask_BTS = past_mask_BTS & (self.past_distance_BTS < window)
        return mask_BTT, past_mask_BTS


@struct.dataclass
class _Own:
    """What a block has of its own beside its parameters, where blocks differ; with an axis of L in front, of all.

    window: how many positions back it sees. turn: frequencies ``[W / 2]`` and amplitude of its rotary positions.
    """

    window: jax.Array | None
    turn: tuple[jax.Array, jax.Array] | None


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, in float32: ``(x - mean) / sqrt(variance + epsilon) * scale + bias``."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, shape = self.config, (x.shape[-1],)
        lead = (1,) * (x.ndim - 1)
        initial = nn.initializers.constant(1.0 - c.norm_offset)
        scale = self.param("scale", initial, shape, jnp.dtype(c.param_dtype)).astype(jnp.float32) + c.norm_offset
        y = x.astype(jnp.float32)
        if c.norm == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + c.norm_epsilon) * scale.reshape(*lead, -1)
        if c.norm == "layernorm" and c.biased("norm"):
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.dtype(c.param_dtype))
            y = y + bias.reshape(*lead, -1).astype(jnp.float32)
        return y.astype(c.dtype)


class Linear(nn.Module):
    """``x @ kernel + bias`` over the last axes of x, as many as `shape_in` has.

    In place of flax's `DenseGeneral`: all tokens stand in one axis, so that the product, and that of the kernel's
    gradient above all, is one plain matrix product, which XLA runs 1.1x faster on a CPU.
    """

    config: DecoderConfig
    part: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    variance: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, fan_in, fan_out = self.config, math.prod(self.shape_in), math.prod(self.shape_out)

        def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jax.random.normal(key, shape, dtype) * (self.variance / fan_in) ** 0.5

        kernel = self.param("kernel", init, self.shape_in + self.shape_out, jnp.dtype(c.param_dtype))
        lead = x.shape[: x.ndim - len(self.shape_in)]
        y = x.reshape(-1, fan_in).astype(c.dtype) @ kernel.reshape(fan_in, fan_out).astype(c.dtype)
        if c.biased(self.part):
            bias = self.param("bias", nn.initializers.zeros, self.shape_out, jnp.dtype(c.param_dtype))
            y = y + bias.reshape(1, fan_out).astype(c.dtype)
        return y.reshape(*lead, *self.shape_out)


class Block(nn.Module):
    """One pre-norm block: attention and an MLP, each added to the residual stream."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, h_BTD: jax.Array, own: _Own, past: tuple[jax.Array, jax.Array] | None, sight: _Sight
    ) -> tuple[jax.Array, None]:
        c = self.config
        x_BTD = self._normed("attn_norm", h_BTD)
        attn_BTD = tap(self, "attn_out", self._added("attn_post_norm", self._attend(x_BTD, own, past, sight)))
        if c.residual == "sequential":
            h_BTD = h_BTD + attn_BTD
            x_BTD = self._normed("mlp_norm", h_BTD)
        else:
            x_BTD = x_BTD if c.residual == "shared_norm" else self._normed("mlp_norm", h_BTD)
            h_BTD = h_BTD + attn_BTD
        mlp_BTD = tap(self, "mlp_out", self._added("mlp_post_norm", self._mlp(x_BTD)))
        return tap(self, "resid", h_BTD + mlp_BTD), None

    def _normed(self, name: str, h_BTD: jax.Array) -> jax.Array:
        """What attention or the MLP reads of the stream."""
        return Norm(self.config, name=name)(h_BTD) if self.config.pre_norms else h_BTD

    def _added(self, name: str, out_BTD: jax.Array) -> jax.Array:
        """What attention or the MLP adds to the stream."""
        c = self.config
        out_BTD = Norm(c, name=name)(out_BTD) if c.post_norms else out_BTD
        if c.residual_scale == 1.0:
            return out_BTD
        return (out_BTD.astype(jnp.float32) * c.residual_scale).astype(out_BTD.dtype)

    def _head_norm(self, name: str, x_BTHC: jax.Array) -> jax.Array:
        """Queries or keys, each head by itself or all together."""
        if not self.config.joint_head_norms:
            return Norm(self.config, name=name)(x_BTHC)
        return Norm(self.config, name=name)(x_BTHC.reshape(*x_BTHC.shape[:2], -1)).reshape(x_BTHC.shape)

    def _attend(
        self, x_BTD: jax.Array, own: _Own, past: tuple[jax.Array, jax.Array] | None, sight: _Sight
    ) -> jax.Array:
        c = self.config
        heads, groups = (c.num_heads, c.channels), (c.kv_heads, c.channels)
        q_BTHC = Linear(c, "attention", (c.width,), heads, name="query")(x_BTD)
        k_BTGC = Linear(c, "attention", (c.width,), groups, name="key")(x_BTD)
        v_BTGC = Linear(c, "attention", (c.width,), groups, name="value")(x_BTD)
        if c.head_norms:
            q_BTHC, k_BTGC = self._head_norm("query_norm", q_BTHC), self._head_norm("key_norm", k_BTGC)
        if c.positions == "rotary":
            turn = own.turn or (
                frequencies(c.turned, c.rotary_base, c.rotary_scaling),
                c.rotary_scaling.amplitude if c.rotary_scaling else 1.0,
            )
            q_BTHC = rotate(q_BTHC, sight.positions_BT, *turn)
            k_BTGC = rotate(k_BTGC, sight.positions_BT, *turn)
        q_BTHC = tap(self, "queries", q_BTHC)
        k_BTGC, v_BTGC = tap(self, "keys", k_BTGC), tap(self, "values", v_BTGC)
        mask_BTT, past_mask_BTS = sight.masks(own.window)
        before = None if past is None or past_mask_BTS is None else (*past, past_mask_BTS)
        heads_BTHC = attention(
            q_BTHC,
            k_BTGC,
            v_BTGC,
            mask_BTT,
            past=before,
            scale=c.attention_scale,
            cap=c.attention_cap,
            precision=c.matmul_precision,
            tap=functools.partial(tap, self) if asked(self, "attn_logits", "attn_patterns") else None,
        )
        heads_BTHC = tap(self, "heads", heads_BTHC)
        return Linear(c, "out", heads, (c.width,), 1 / (2 * c.num_layers), name="out")(heads_BTHC)

    def _mlp(self, x_BTD: jax.Array) -> jax.Array:
        c, width, hidden = self.config, (self.config.width,), (self.config.hidden,)
        up_BTF = Linear(c, "mlp", width, hidden, name="up")(x_BTD)
        # Its backward pass recomputes it from its input: one array of [B, T, F] less to write and read, 1.05x on a CPU.
        activation = jax.checkpoint(ACTIVATIONS[c.mlp.removeprefix("gated_")])
        if c.mlp.startswith("gated_"):
            up_BTF = activation(Linear(c, "mlp", width, hidden, name="gate")(x_BTD)) * up_BTF
        else:
            up_BTF = activation(up_BTF)
        up_BTF = tap(self, "mlp_hidden", up_BTF)
        return Linear(c, "mlp", hidden, width, 1 / (2 * c.num_layers), name="down")(up_BTF)


class Decoder(nn.Module):
    """Front end, L blocks, final norm, readout.

    `apply({'params': p}, inputs, ...)` takes real vectors ``[B, T, X]`` or token ids ``[B, T]`` and gives the readout
    ``[B, S, num_outputs]`` in float32 at the positions `at`: a static slice (all of them by default), or indices
    ``[B, S]`` which may differ between prompts.

    A token sees the tokens of its prompt and of `past` whose positions are not later than its own.

    positions_BT: None: 0, 1, ..; `PADDING` marks what is no token.
    mask_BTT: replaces the rule of positions among the tokens of the prompt.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        mask_BTT: jax.Array | None = None,
        past: Past | None = None,
        at: slice | jax.Array = slice(None),
    ) -> jax.Array:
        front = self._front()
        sight = _sight(self.config, inputs.shape[1], positions_BT, mask_BTT, past)
        with jax.default_matmul_precision(self.config.matmul_precision):  # of products here, and of their gradients
            h_BTD = tap(self, "embed", self._embed(front(inputs), None if positions_BT is None else sight.positions_BT))
            h_BTD = self._blocks(h_BTD, past, sight)
            return self._read_out(front, chosen(h_BTD, at), at)

    def _front(self) -> Any:
        c = self.config
        if c.inputs != "tokens":
            return nn.Dense(c.width, use_bias=False, dtype=c.dtype, param_dtype=c.param_dtype, name="front")
        initial = nn.initializers.normal(0.02 if c.tied_readout else c.width**-0.5)
        return nn.Embed(
            c.vocab_size, c.width, dtype=c.dtype, param_dtype=c.param_dtype, embedding_init=initial, name="front"
        )

    def _embed(self, h_BTD: jax.Array, positions_BT: jax.Array | None) -> jax.Array:
        c = self.config
        if c.embed_scale != 1.0:
            h_BTD = h_BTD * jnp.asarray(c.embed_scale, h_BTD.dtype)
        if c.positions != "learned":
            return h_BTD
        table = self.param("positions", nn.initializers.normal(0.02), (c.max_positions, c.width), c.param_dtype)
        rows = table[None, : h_BTD.shape[1]] if positions_BT is None else table[positions_BT]
        return h_BTD + rows.astype(c.dtype)

    def _blocks(self, h_BTD: jax.Array, past: Past | None, sight: _Sight) -> jax.Array:
        c = self.config
        windows = None if sight.distance_BTT is None else jnp.array([w or PADDING for w in c.windows])
        frequency_LR, amplitude_L = turns(c.turned, c.rotaries) if c.rotaries else (None, None)
        own = _Own(windows, None if frequency_LR is None else (jnp.asarray(frequency_LR), jnp.asarray(amplitude_L)))
        layers = None if past is None else (past.keys, past.values)
        stored: Any = self.get_variable("params", "blocks")
        if isinstance(stored, tuple):
            return self._one_by_one(stored, h_BTD, own, layers, sight)
        blocks = nn.scan(
            Block if c.remat == "none" else nn.remat(Block, prevent_cse=False, policy=KEPT_BY[c.remat]),
            length=c.num_layers,
            unroll=c.unroll or c.num_layers,
            in_axes=(0, 0, nn.broadcast),
            variable_axes={"params": 0, READS: 0, WRITES: 0, CAPTURES: 0},
            variable_carry=CAPTURED,
            split_rngs={"params": True},
        )
        h_BTD, _ = blocks(c, name="blocks")(h_BTD, own, layers, sight)
        return h_BTD

    def _read_out(self, front: Any, h_BSD: jax.Array, at: slice | jax.Array) -> jax.Array:
        c = self.config
        h_BSD = tap(self, "final_norm", Norm(c, name="norm")(h_BSD), at)
        if c.tied_readout:
            out = front.attend(h_BSD)
        else:
            bias = c.biased("readout")
            readout = nn.Dense(c.num_outputs, bias, dtype=c.dtype, param_dtype=c.param_dtype, name="readout")
            out = readout(h_BSD)
        out = out.astype(jnp.float32)
        out = out * c.readout_scale if c.readout_scale != 1.0 else out
        out = c.readout_cap * jnp.tanh(out / c.readout_cap) if c.readout_cap else out
        return jnp.asarray(tap(self, "logits", out, at))

    def _one_by_one(
        self,
        layers: tuple[Any, ...],
        h_BTD: jax.Array,
        own: _Own,
        past: tuple[Stacked, Stacked] | None,
        sight: _Sight,
    ) -> jax.Array:
        """The blocks with parameters that are `apart`: read, captured and written as ever."""
        edits: Any = self.get_variable(WRITES, "blocks")
        captures: Any = self.get_variable(CAPTURES, "blocks")
        captured: Any = self.get_variable(CAPTURED, "blocks")
        mutable = [name for name in (READS, CAPTURED) if self.is_mutable_collection(name)]
        seen = []
        for i, params in enumerate(layers):
            variables = {"params": params} | {
                name: jax.tree.map(lambda a, i=i: a[i], tree)
                for name, tree in ((WRITES, edits), (CAPTURES, captures))
                if tree is not None
            }
            variables |= {} if captured is None else {CAPTURED: captured}
            before = None if past is None else (past[0][i], past[1][i])
            mine = jax.tree.map(lambda a, i=i: a[i], own)
            (h_BTD, _), state = Block(self.config, parent=None).apply(
                variables, h_BTD, mine, before, sight, mutable=mutable
            )
            captured = state.get(CAPTURED, captured)
            seen += [state[READS]] if READS in state else []
        if seen:
            self.put_variable(READS, "blocks", jax.tree.map(lambda *a: jnp.stack(a), *seen))
        if captured is not None:
            self.put_variable(CAPTURED, "blocks", captured)
        return h_BTD


def apart(params: Any) -> Any:
    """`params` with the blocks as a tuple of layers, each a window on the stacked arrays: nothing is copied.

    What runs a layer of stacked parameters copies the layer out of the stack first, in every pass: half as much traffic
    again for a single token. Outside of compiled programs, for parameters that lie whole on one CPU. `params` as they
    are for all others, if a layer would not begin where the compiler wants it to, and for blocks smaller than
    `WORTH_PARTING`.
    """
    blocks = params["blocks"]
    leaves = jax.tree.leaves(blocks)
    if not all(map(_can_part, leaves)) or sum(leaf.nbytes for leaf in leaves) < WORTH_PARTING:
        return params
    host = jax.tree.map(np.asarray, blocks)
    (device,) = leaves[0].devices()
    windows = [jax.tree.map(lambda p, i=i: p[i], host) for i in range(len(leaves[0]))]
    return {**params, "blocks": tuple(jax.device_put(windows, device, may_alias=True))}


def _can_part(leaf: Any) -> bool:
    """Whether each layer of a stacked parameter can be seen in place."""
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array) or len(leaf.devices()) != 1:
        return False
    (device,) = leaf.devices()
    return device.platform == "cpu" and leaf.nbytes // len(leaf) % ALIGNMENT == 0


def _sight(
    c: DecoderConfig,
    length: int,
    positions_BT: jax.Array | None,
    mask_BTT: jax.Array | None,
    past: Past | None,
) -> _Sight:
    """Masks if the plain causal one does not do, and distances if some layer has a window that matters.

    Raises `UserError` for more tokens than rotary positions hold that would turn all tokens otherwise beyond.
    """
    order_BT = jnp.arange(length)[None] if positions_BT is None else positions_BT
    reach = length + (0 if past is None else past.positions_BS.shape[1])
    for rotary in set(c.layer_rotaries):
        scaling = None if rotary is None else rotary.scaling
        if scaling is not None and 0 < scaling.limit < reach:
            raise UserError(
                f"prompts: given {reach} tokens, padding and new ones counted; accepted: at most {scaling.limit}: with "
                f"{scaling.kind} rotary positions a longer prompt would turn its first tokens otherwise too"
            )
    windowed = any(0 < window < reach for window in c.windows)
    if mask_BTT is None and (windowed or positions_BT is not None):
        mask_BTT = order_BT[:, None, :] <= order_BT[:, :, None]
    past_mask_BTS = None if past is None else past.positions_BS[:, None, :] <= order_BT[:, :, None]
    return _Sight(
        jnp.where(order_BT == PADDING, 0, order_BT),
        mask_BTT,
        past_mask_BTS,
        order_BT[:, :, None] - order_BT[:, None, :] if windowed else None,
        order_BT[:, :, None] - past.positions_BS[:, None, :] if windowed and past is not None else None,
    )
