"""Run a decoder as a pure function: edits in, chosen activations out."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tvjax.nn import selection
from tvjax.nn.decoder import Decoder, DecoderConfig, Past, apart
from tvjax.nn.taps import CAPTURED, CAPTURES, READS, WRITES, Capture

ADDRESSES = (
    "embed",
    "blocks/resid",
    "blocks/attn_out",
    "blocks/mlp_out",
    "blocks/heads",
    "blocks/queries",
    "blocks/keys",
    "blocks/values",
    "blocks/mlp_hidden",
    "blocks/attn_logits",
    "blocks/attn_patterns",
    "final_norm",
    "logits",
)
ATTENTION = ("blocks/attn_logits", "blocks/attn_patterns")
"""Where arrays ``[..., H, S]`` stand, made only if they are asked for. S are the positions of the past, then the T."""
READOUT = ("final_norm", "logits")
"""What stands only at the positions that are read out, and in no block."""


def unit(c: DecoderConfig, address: str, sources: int = 0) -> tuple[int, ...]:
    """The axes of an activation behind those of prompts and tokens: of heads ``(H, C)``, of the stream ``(D,)``, ...

    sources: S, if the address is of `ATTENTION`.
    """
    if address in ATTENTION:
        return c.num_heads, sources
    if address == "logits":
        return (c.vocab_size if c.tied_readout else c.num_outputs,)
    heads = {"blocks/heads": c.num_heads, "blocks/queries": c.num_heads}
    heads |= {"blocks/keys": c.kv_heads, "blocks/values": c.kv_heads}
    if address in heads:
        return heads[address], c.channels
    return (c.hidden,) if address == "blocks/mlp_hidden" else (c.width,)


FEW = 64
"""Tokens up to which a pass of a large model takes about as long as its parameters are read: only there `apart` pays,
which compiles longer."""


@struct.dataclass
class Model:
    """A decoder with its parameters, and what is known of where they come from.

    params: the decoder's tree; it alone is data, so that `vmap` over a model is over the members of a population whose
    parameters lead with an axis of them, ``[M, ...]``.
    config: what the decoder is made of.
    source: the folder, file or run that it is of.
    """

    params: Any
    config: DecoderConfig = struct.field(pytree_node=False)
    source: Any = struct.field(pytree_node=False, default=None)

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.config)

    @property
    def bare(self) -> "Model":
        """The model without its source, for `jax.jit`: whatever the source is, one config is one program."""
        return Model(self.params, self.config)

    @property
    def parted(self) -> Any:
        """`params` with the layers `apart`, if they can be: made once, for as long as the parameters are these."""
        leaves, held = jax.tree.leaves(self.params), self.__dict__.get("_parted")
        if held is None or list(map(id, held[0])) != list(map(id, leaves)):
            held = self.__dict__["_parted"] = (leaves, apart(self.params))
        return held[1]

    def for_tokens(self, tokens: int) -> "Model":
        """The model, bare, with its parameters as a pass over so many tokens reads them fastest."""
        return Model(self.parted if tokens <= FEW else self.params, self.config)

    def __repr__(self) -> str:
        c, source = self.config, self.source
        count = sum(math.prod(getattr(leaf, "shape", ())) for leaf in jax.tree.leaves(self.params))
        heads = f"{c.num_heads} heads" + (f" ({c.kv_heads} of keys and values)" if c.kv_heads != c.num_heads else "")
        inputs = f"{c.vocab_size} tokens" if c.inputs == "tokens" else "real inputs"
        lines = [
            f"Model of {c.num_layers} layers, width {c.width}, {heads}, {inputs}, {c.num_outputs} outputs",
            f"{count:,} parameters in {c.param_dtype}, computed in {c.dtype}",
        ]
        if hasattr(source, "tokenizer"):
            tokenizer = "with" if source.tokenizer else "without"
            lines.append(f"from {source.path} ({source.values['model_type']}), {tokenizer} a tokenizer")
        elif source is not None:
            lines.append(f"from a run; source: {type(source).__name__}")
        return "\n  ".join(lines)


def cut(model: Model, layer: int) -> tuple[Model, Model]:
    """The blocks up to `layer` and those above it, ``1 <= layer < L``, each as a model.

    h^layer is the last `blocks/resid` of the first and the `embed` of the second, where it is to be written.
    """
    whole = model.config

    def part(start: int, stop: int) -> Model:
        blocks = jax.tree.map(lambda p: p[start:stop], model.params["blocks"])
        return Model({**model.params, "blocks": blocks}, whole.between(start, stop))

    return part(0, layer), part(layer, whole.num_layers)


def forward(
    model: Model,
    inputs: jax.Array,
    *,
    edits: Mapping[str, Any] | None = None,
    addresses: Sequence[str] | str = (),
    layers: Any = None,
    read_BS: jax.Array | None = None,
    at: slice | jax.Array = slice(None),
    positions_BT: jax.Array | None = None,
    mask_BTT: jax.Array | None = None,
    past: Past | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The readout at positions `at` and the activations at `addresses`, ``{address: array}``; nothing else is kept.

    Activations inside `blocks` have a leading axis of L. Those of `READOUT` are of the positions `at`.

    layers: the chosen ones, numbered 1..L, in their order, each as often as it is named; None: all.
    read_BS: the positions of which activations are kept; None: all.

    Raises `UserError` for an address or a layer that is not there.
    """
    wanted, chosen = selection.addresses(addresses, ADDRESSES), None
    if layers is not None:
        where = " (layer 0 is the address 'embed')"
        chosen = selection.layers_of(selection.choice("layers", layers), 1, model.config.num_layers, where)
    span = (at.start, at.stop, at.step) if isinstance(at, slice) else None
    arrays = (edits, read_BS, None if span else at, positions_BT, mask_BTT, past)
    return _forward(model.decoder, wanted, chosen, span, model.params, inputs, *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _forward(
    decoder: Decoder,
    addresses: tuple[str, ...],
    layers: tuple[int, ...] | None,
    span: tuple[int | None, int | None, int | None] | None,
    params: Any,
    inputs: jax.Array,
    edits: Mapping[str, Any] | None,
    read_BS: jax.Array | None,
    at_BS: jax.Array | None,
    positions_BT: jax.Array | None,
    mask_BTT: jax.Array | None,
    past: Past | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    variables = {"params": params, **({WRITES: edits} if edits else {})}
    options: dict[str, Any] = {"positions_BT": positions_BT, "mask_BTT": mask_BTT, "past": past}
    options["at"] = slice(*span) if span else at_BS
    if not addresses:
        return jnp.asarray(decoder.apply(variables, inputs, **options)), {}
    picked: tuple[str, ...] = ()
    if layers is not None or read_BS is not None or set(addresses) & set(ATTENTION):
        picked = tuple(address for address in addresses if address not in READOUT)
        before = 0 if past is None else past.positions_BS.shape[1]
        variables |= _captures(decoder.config, picked, layers, read_BS, inputs.shape[0], inputs.shape[1], before)
    kinds = {address: CAPTURED if address in picked else READS for address in addresses}
    out, state = decoder.apply(variables, inputs, mutable=sorted(set(kinds.values())), **options)
    activations = {address: _at(state[kind], address) for address, kind in kinds.items()}
    if "embed" in picked:
        activations["embed"] = activations["embed"][0]
    if layers is not None and len(set(layers)) < len(layers):
        slots = jnp.array([_distinct(layers).index(layer) for layer in layers])
        activations = {name: a[slots] if name.startswith("blocks/") else a for name, a in activations.items()}
    return jnp.asarray(out), activations


def _distinct(layers: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(layers))


def _at(tree: Any, address: str) -> Any:
    for part in address.split("/"):
        tree = tree[part]
    return tree


def _captures(
    c: DecoderConfig,
    addresses: tuple[str, ...],
    layers: tuple[int, ...] | None,
    read_BS: jax.Array | None,
    batch: int,
    length: int,
    before: int,
) -> dict[str, Any]:
    """The collections that make taps keep `layers` and positions `read_BS` of `addresses`, and nothing else.

    layers: 1..L; None: all.
    read_BS: indices in T, ``[B, S]`` or one row ``[1, S]`` for all; None: all.
    before: how many positions the past has.
    """
    if not addresses:
        return {}
    layers = tuple(range(1, c.num_layers + 1)) if layers is None else _distinct(layers)
    read_BS = jnp.arange(length)[None] if read_BS is None else read_BS
    read_BS = jnp.broadcast_to(read_BS, (batch, read_BS.shape[1]))
    blocks = jnp.array(layers, jnp.int32) - 1
    slots_L = jnp.full(c.num_layers, len(layers)).at[blocks].set(jnp.arange(len(layers)))
    captures: dict[str, Any] = {}
    buffers: dict[str, Any] = {}
    for address in addresses:
        shape = (*read_BS.shape, *unit(c, address, before + length))
        dtype = jnp.promote_types(c.dtype, jnp.float32) if address in ATTENTION else jnp.dtype(c.dtype)
        group, _, name = address.rpartition("/")
        if group:
            capture = Capture(slots_L, jnp.broadcast_to(read_BS, (c.num_layers, *read_BS.shape)))
            captures.setdefault(group, {})[name] = capture
            buffers.setdefault(group, {})[name] = jnp.zeros((len(layers), *shape), dtype)
        else:
            captures[name], buffers[name] = Capture(jnp.asarray(0), read_BS), jnp.zeros((1, *shape), dtype)
    return {CAPTURES: captures, CAPTURED: buffers}
