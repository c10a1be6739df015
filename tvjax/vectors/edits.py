"""Build edits: write vectors at chosen addresses, layers and positions.

`replace`, `add` and `mix` say what to write and where, before any model is known; `place` turns them into the tree
that the decoder's taps read. Layer l is h^l: 0 is the embedding, l what stands in block l or, at `blocks/resid`, after.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tvjax.errors import reject
from tvjax.nn import selection
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.model import ADDRESSES, ATTENTION, READOUT, unit
from tvjax.nn.selection import Chosen, Positions
from tvjax.nn.show import brief
from tvjax.nn.taps import Edit
from tvjax.vectors.origin import Origin, origin_of

Tree = dict[str, Any]
HEADS = "blocks/heads"
STATES = ("blocks/resid", "blocks/attn_out", "blocks/mlp_out", HEADS)
WRITABLE = (*STATES, *ATTENTION, *READOUT)
BY_HEAD = {HEADS: "H, C", **dict.fromkeys(ATTENTION, "H, S")}
"""Addresses of each head's own, and what stands there for one token."""


@struct.dataclass
class Write:
    """``a <- keep * a + scale * vectors`` at `address`, `layers` and `positions`; elsewhere nothing changes.

    With `rescaled` the new a is made as long as the old one.

    vectors: ``[D]``, ``[B, D]``, or either with a leading axis of the layers (`per_layer`); at "blocks/heads" D is
    ``H, C``, at attention's logits and patterns ``H, S``, and `heads` (empty: all) says which heads are written.
    keep, scale: a number, or one for each layer or prompt, ``[layers]``, ``[B]`` or ``[layers or 1, B or 1]``.
    positions: "last" (of each prompt), "all", indices among a prompt's own tokens, or a mask ``[B, T]`` or ``[T]``.
    layers, positions and heads are as `tvjax.nn.selection` has them: `listed` says whether layers were more than one.
    origin: the model that the vectors are of, if they know it; another one refuses the write.
    """

    vectors: jax.Array
    keep: jax.Array
    scale: jax.Array
    layers: Chosen = struct.field(pytree_node=False)
    positions: Positions = struct.field(pytree_node=False, default="last")
    mask: Any = None
    per_layer: bool = struct.field(pytree_node=False, default=False)
    address: str = struct.field(pytree_node=False, default="blocks/resid")
    heads: Chosen = struct.field(pytree_node=False, default=())
    rescaled: bool = struct.field(pytree_node=False, default=False)
    listed: bool = struct.field(pytree_node=False, default=False)
    origin: Origin | None = struct.field(pytree_node=False, default=None)

    __repr__ = brief


def mix(
    vectors: Any,
    *,
    layers: Any = None,
    positions: Any = "last",
    keep: Any = 0.0,
    scale: Any = 1.0,
    address: str = "blocks/resid",
    heads: Any = (),
    rescaled: bool = False,
    any_model: bool = False,
) -> Write:
    """Write ``keep * a + scale * vectors``. A leading axis of `vectors` as long as a list of `layers` is per layer.

    layers: an int, or a list, a slice or a mask ``[L+1]`` (or ``[L]``: 1..L); None at an address outside of `blocks`.
    heads: the same, of H.
    positions: "last", "all", an int or ints ``[N]`` of every prompt, ints ``[B, N]`` of each, a slice, or a mask of
        bools ``[T]`` or ``[B, T]``, of which padding does not count.
    keep, scale: a number, or as `Write` has them.
    rescaled: whether what is written is made as long as what stood there, over its last axis; such a write is the only
        one at its address.
    any_model: write vectors of a file (`tvjax.load_vectors`) into another model too, which refuses them otherwise.

    Raises `UserError` for what is none of that, for a layer, head or position that is named twice, for vectors that are
    not finite or whose axes do not fit, and for an address that is not written; `place` for what a model does not have.
    """
    if not isinstance(address, str):
        raise reject("address", address, f"one of {', '.join(WRITABLE)}; a list of writes has several")
    selection.addresses(address, WRITABLE, "address")
    if address in READOUT and layers is not None:
        raise reject("layers", layers, f"None at {address}, which is in no layer")
    chosen: Chosen = () if address in READOUT else selection.choice("layers", layers)
    several = selection.several(layers)
    source = None if selection.flag("any_model", any_model) else origin_of(vectors)
    vectors = _vectors(vectors)
    named = () if isinstance(heads, tuple | list) and not heads else selection.choice("heads", heads)
    if named and address not in BY_HEAD:
        raise reject("heads", heads, f"none, unless the address is one of {', '.join(BY_HEAD)}")
    for field, numbers in (("layers", chosen), ("heads", named)):
        selection.once(field, numbers)
    unit = 2 if address in BY_HEAD else 1
    per_layer = several and vectors.ndim > unit
    if per_layer and not isinstance(chosen, selection.Span):
        _check_leading(vectors, sum(chosen) if isinstance(chosen[0], bool) else len(chosen))
    if vectors.ndim - per_layer not in (unit, unit + 1):
        shape = BY_HEAD.get(address, "D")
        raise reject("vectors", vectors.shape, f"[{shape}], [B, {shape}], or either with a leading axis of the layers")
    rescaled = selection.flag("rescaled", rescaled)
    _check_rescaled(address, rescaled)
    where = (chosen, *selection.positions(positions), per_layer, address, named, rescaled, several)
    return Write(vectors, selection.factor("keep", keep), selection.factor("scale", scale), *where, source)


def _check_rescaled(address: str, rescaled: bool) -> None:
    if rescaled and address == "blocks/attn_logits":
        raise reject("rescaled", rescaled, f"False at {address}: logits of what may not be seen have no length to keep")


def _vectors(vectors: Any) -> jax.Array:
    """At least float32, so that what it is multiplied with is not rounded to fewer bits."""
    array = jnp.asarray(selection.finite("vectors", vectors))
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _check_leading(vectors: jax.Array, count: int) -> None:
    if len(vectors) != count:
        raise reject("vectors", vectors.shape, f"a leading axis of {count}, one entry for each of the layers")


def replace(vectors: Any, *, layers: Any = None, positions: Any = "last", **where: Any) -> Write:
    """Put `vectors` in the place of the states (Hendel et al. 2023). `where`: address, heads, rescaled, any_model."""
    return mix(vectors, layers=layers, positions=positions, **where)


def add(vectors: Any, *, layers: Any = None, positions: Any = "last", scale: Any = 1.0, **where: Any) -> Write:
    """Add ``scale * vectors`` to the states (Todd et al. 2024, Kang et al. 2025). `where`: as of `replace`."""
    return mix(vectors, layers=layers, positions=positions, keep=1.0, scale=scale, **where)


def edit_at(
    address: str, add: jax.Array, *, keep: Any = 0.0, here: jax.Array | None = None, rescaled: bool = False
) -> Tree:
    """The edits tree of one write, ``a <- keep * a + add`` where `here` is true: all other trees are made of this.

    address: what is written, which has the axes ``[B, T, D]``, ``[B, T, H, C]`` at "blocks/heads", or ``[B, T, H, S]``
        at attention's logits and patterns.
    add: of those axes, each as long as theirs or 1, and for an address in `blocks` a leading axis of L.
    keep: a number, or an array of the same axes as `add`.
    here: a mask of the same axes, which may be traced; None: everywhere.
    rescaled: whether the new activation is made as long as the old one.
    """
    group, _, name = address.rpartition("/")
    layers = (len(add),) if group else ()
    if not isinstance(keep, jax.Array):
        keep = jnp.full((*layers, *[1] * (add.ndim - len(layers))), keep, add.dtype)
    edit = Edit(keep, add, here, rescaled)
    return {group: {name: edit}} if group else {name: edit}


def affine(
    vectors: jax.Array, *, keep: Any = 0.0, scale: Any = 1.0, at_layer: jax.Array, at_position: jax.Array
) -> Tree:
    """The edits tree of one affine write to the residual stream, from masks: TVP and sweeps are this.

    ``keep`` holds where both masks do, the rest of the stream is kept. Either mask may be traced: the layer of a sweep
    is data.

    vectors: ``[L+1 or 1, B or 1, T or 1, D]``.
    at_layer: a mask ``[L+1]``.
    at_position: a mask ``[B or 1, T]``.
    """
    here = at_layer.astype(bool)[:, None, None, None] & at_position.astype(bool)[None, :, :, None]
    return _stream(jnp.asarray(keep).reshape(1, 1, 1, 1), scale * vectors, here)


def _stream(keep: jax.Array, added: jax.Array, here: jax.Array, rescaled: bool = False) -> Tree:
    """The tree of ``[L+1, ...]`` leaves over h^0..h^L."""
    layers = here.shape[0]
    keep = jnp.broadcast_to(jnp.asarray(keep, added.dtype), (layers, *keep.shape[1:]))
    added = jnp.broadcast_to(added, (layers, *added.shape[1:]))
    embed = edit_at("embed", keep=keep[0], add=added[0], here=here[0], rescaled=rescaled)
    return embed | edit_at("blocks/resid", keep=keep[1:], add=added[1:], here=here[1:], rescaled=rescaled)


def at_layer(layer: Any, num_layers: int) -> jax.Array:
    """The mask ``[L+1]`` of one layer, which may be traced."""
    return jnp.arange(num_layers + 1) == layer


def merge(*trees: Tree) -> Tree:
    """The tree that applies `trees` in their order: affine maps compose."""
    return functools.reduce(_merge, trees)


def _merge(first: Tree, second: Tree) -> Tree:
    merged = dict(first)
    for name, node in second.items():
        if name not in first:
            merged[name] = node
        elif isinstance(node, Edit):
            merged[name] = _compose(first[name], node)
        else:
            merged[name] = _merge(first[name], node)
    return merged


def _compose(a: Edit, b: Edit) -> Edit:
    if a.rescaled or b.rescaled:
        raise reject("edits", "a rescaled write beside another one at its address", "one write there, or none rescaled")
    keep_a, add_a = (a.keep, a.add) if a.here is None else (jnp.where(a.here, a.keep, 1), jnp.where(a.here, a.add, 0))
    keep, added = b.keep * keep_a, b.keep * add_a + b.add
    if b.here is not None:
        keep, added = jnp.where(b.here, keep, keep_a), jnp.where(b.here, added, add_a)
    return Edit(keep, added)


def place(writes: Write | Sequence[Write], config: DecoderConfig, positions_BT: Any, batch: int = 0) -> Tree:
    """The edits tree of `writes`, applied in their order, for prompts whose tokens stand at `positions_BT`.

    batch: how many prompts there are, if `positions_BT` has one row for them all.

    Raises `UserError` for a layer, a head, a position or a width that is not there, and for vectors or factors of
    another number of prompts.
    """
    own = selection.Own.of(positions_BT, batch or (len(positions_BT) if len(positions_BT) > 1 else 0))
    sources = positions_BT.shape[1]
    return _joined(writes, config, lambda write: own.where(write.positions, write.mask), own.batch, sources)


def place_step(writes: Write | Sequence[Write], config: DecoderConfig, batch: int = 0) -> Tree | None:
    """The edits tree for a token that is generated: the last, and one of all; indices and masks do not name it.

    Raises `UserError` for a write to attention's logits or patterns: each new token has one source more.
    """
    writes = [write for write in listed(writes) if write.positions in ("last", "all")]
    for write in writes:
        if write.address in ATTENTION:
            raise reject("edits", f"a write at {write.address} of new tokens", "one of the prompt: during='prompt'")
    return _joined(writes, config, lambda write: jnp.ones((1, 1), bool), batch, 0) if writes else None


def listed(writes: Write | Sequence[Write]) -> list[Write]:
    """One write or several as a list. Raises `UserError` for none, and for what is no write."""
    if isinstance(writes, Write):
        return [writes]
    if not isinstance(writes, list | tuple) or not writes:
        raise reject("edits", writes, "what replace, add or mix make, or a list of at least one")
    for number, write in enumerate(writes):
        if not isinstance(write, Write):
            raise reject(f"edits[{number}]", write, "what replace, add or mix make")
    return list(writes)


def by_address(tree: Any) -> dict[str, Edit]:
    """The edits of a tree by their addresses. Raises `UserError` for what is no edit, and for what no tap reads."""
    if not isinstance(tree, dict):
        raise reject("edits", type(tree).__name__, "a tree of Edits: dictionaries")
    flat = {name: edit for name, edit in tree.items() if name != "blocks"}
    inside = tree.get("blocks", {})
    if not isinstance(inside, dict) or ("blocks" in tree and not inside):
        raise reject("edits", "no dictionary, or an empty one, at 'blocks'", "a dictionary of addresses in it")
    edits = {**flat, **{f"blocks/{name}": edit for name, edit in inside.items()}}
    for address, edit in edits.items():
        selection.addresses(address, ADDRESSES, "edits")
        if not isinstance(edit, Edit):
            raise reject(f"edits at {address}", type(edit).__name__, "a tvjax.Edit")
    return edits


def check_tree(tree: Any, config: DecoderConfig, batch: int, length: int) -> None:
    """Raise `UserError` for a tree with what no tap reads, with a shape that does not fit, or that changes nothing."""
    if not tree:
        raise reject("edits", tree, "a tree with at least one Edit, or None")
    for address, edit in by_address(tree).items():
        layers = (config.num_layers,) if address.startswith("blocks/") else ()
        _check_rescaled(address, edit.rescaled)
        _check_edit(address, edit, layers, (batch, length, *unit(config, address, length)))


def _check_edit(address: str, edit: Edit, layers: tuple[int, ...], shape: tuple[int, ...]) -> None:
    for name in ("keep", "add", "here"):
        leaf = getattr(edit, name)
        if name == "here" and leaf is None:
            continue
        inner = np.shape(leaf)[len(layers) :]
        fits = np.shape(leaf)[: len(layers)] == layers and len(inner) <= len(shape)
        if not fits or any(a not in (1, b) for a, b in zip(inner[::-1], shape[::-1], strict=False)):
            raise reject(f"edits at {address}", f"{name} of shape {np.shape(leaf)}", f"one for {(*layers, *shape)}")
        if name != "here":
            selection.finite(f"edits at {address}: {name}", leaf)
            continue
        here = selection.host(leaf)
        if here is not None and not here.any():
            raise reject(f"edits at {address}", "here, which is true nowhere", "a mask that is true somewhere")


def _joined(writes: Write | Sequence[Write], config: DecoderConfig, where: Any, batch: int, sources: int) -> Tree:
    return merge(*(_one(write, config, jnp.asarray(where(write)), batch, sources) for write in listed(writes)))


def _one(write: Write, c: DecoderConfig, at_position: jax.Array, batch: int, sources: int) -> Tree:
    stream, alone, axes = write.address == "blocks/resid", write.address in READOUT, unit(c, write.address, sources)
    named: tuple[int, ...] = (0,)  # what is in no layer is built as the embedding is
    if not alone:
        named = selection.layers_of(write.layers, 0 if stream else 1, c.num_layers, f" at {write.address}")
    layers = jnp.array(named)
    if write.vectors.shape[-len(axes) :] != axes:
        raise reject("vectors", write.vectors.shape, f"{list(axes)} at the end, the shape of one state at this address")
    if write.per_layer:
        _check_leading(write.vectors, len(layers))
    blank = [1] * len(axes)
    at_layer_ = jnp.zeros(c.num_layers + 1, bool).at[layers].set(True)
    here = at_layer_.reshape(-1, 1, 1, *blank) & at_position.reshape(1, *at_position.shape, *blank)
    if write.heads:
        heads = jnp.array(selection.heads_of(write.heads, c.num_heads))
        here = here & jnp.zeros(c.num_heads, bool).at[heads].set(True)[None, None, None, :, None]
    vectors = write.vectors if write.per_layer else write.vectors[None]
    vectors = vectors.reshape(vectors.shape[0], -1, 1, *axes)  # [layers or 1, B or 1, 1, unit]
    if batch and vectors.shape[1] not in (1, batch):
        raise reject("vectors", f"those of {vectors.shape[1]} prompts", f"[D] of all, or of {batch}, the prompts")

    def over_layers(values: jax.Array) -> jax.Array:
        """``[layers or 1, ...]`` as ``[L+1 or 1, ...]``."""
        blank_table = jnp.zeros((c.num_layers + 1, *values.shape[1:]), values.dtype)
        return values if len(values) == 1 else blank_table.at[layers].set(values)

    def factors(field: str, values: jax.Array) -> jax.Array:
        """``[layers or 1, B or 1, 1, ...]``."""
        values = selection.factors_of(field, values, len(layers), batch, write.listed)
        return values.reshape(*values.shape, 1, *blank)

    added = factors("scale", write.scale) * vectors
    tree = _stream(over_layers(factors("keep", write.keep)), over_layers(added), here, write.rescaled)
    if alone:
        return {write.address: tree["embed"]}
    return tree if stream else {"blocks": {write.address.split("/")[1]: tree["blocks"]["resid"]}}
