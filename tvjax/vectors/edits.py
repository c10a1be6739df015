"""Build edits: write vectors at chosen addresses, layers and positions.

`replace`, `add` and `mix` say what to write and where, before any model is known; `place` turns them into the tree
that the decoder's taps read. Layer l is h^l: 0 is the embedding, l what stands in block l or, at `blocks/resid`, after.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tvjax.errors import reject
from tvjax.nn.decoder import PADDING, DecoderConfig
from tvjax.nn.taps import Edit
from tvjax.vectors.origin import Origin, origin_of

Tree = dict[str, Any]
HEADS = "blocks/heads"
WRITABLE = ("blocks/resid", "blocks/attn_out", "blocks/mlp_out", HEADS)


@struct.dataclass
class Write:
    """``a <- keep * a + scale * vectors`` at `address`, `layers` and `positions`; elsewhere nothing changes.

    vectors: ``[D]``, ``[B, D]``, or either with a leading axis of the layers (`per_layer`); at "blocks/heads" D is
    ``H, C``, and `heads` (empty: all) says which of them are written.
    positions: "last" (of each prompt), "all", indices among a prompt's own tokens, or a mask ``[B, T]`` or ``[T]``.
    origin: the model that the vectors are of, if they know it; another one refuses the write.
    """

    vectors: jax.Array
    keep: jax.Array
    scale: jax.Array
    layers: tuple[int, ...] = struct.field(pytree_node=False)
    positions: Any = struct.field(pytree_node=False, default="last")
    mask: jax.Array | None = None
    per_layer: bool = struct.field(pytree_node=False, default=False)
    address: str = struct.field(pytree_node=False, default="blocks/resid")
    heads: tuple[int, ...] = struct.field(pytree_node=False, default=())
    origin: Origin | None = struct.field(pytree_node=False, default=None)


def mix(
    vectors: jax.Array,
    *,
    layers: int | Sequence[int],
    positions: Any = "last",
    keep: Any = 0.0,
    scale: Any = 1.0,
    address: str = "blocks/resid",
    heads: Sequence[int] = (),
    any_model: bool = False,
) -> Write:
    """Write ``keep * a + scale * vectors``. A leading axis of `vectors` as long as a list of `layers` is per layer.

    Vectors of a file (`tvjax.load_vectors`) are refused by a model that they are not of, unless `any_model`.

    Raises `UserError` for vectors whose axes do not fit, and for an address that is not written.
    """
    chosen = (layers,) if isinstance(layers, int) else tuple(layers)
    origin = None if any_model else origin_of(vectors)
    vectors = jnp.asarray(vectors)
    if address not in WRITABLE:
        raise reject("address", address, ", ".join(WRITABLE))
    if heads and address != HEADS:
        raise reject("heads", heads, f"none, unless the address is {HEADS}")
    unit = 2 if address == HEADS else 1
    per_layer = not isinstance(layers, int) and vectors.ndim > unit
    if per_layer and vectors.shape[0] != len(chosen):
        raise reject("vectors", vectors.shape, f"a leading axis of {len(chosen)}, one entry for each of the layers")
    if vectors.ndim - per_layer not in (unit, unit + 1):
        shape = "H, C" if unit == 2 else "D"
        raise reject("vectors", vectors.shape, f"[{shape}], [B, {shape}], or either with a leading axis of the layers")
    mask = None
    if not isinstance(positions, str):
        given = jnp.asarray(positions)
        if given.dtype == bool:
            positions, mask = "mask", given
        else:
            positions = tuple(int(p) for p in given.reshape(-1))
    elif positions not in ("last", "all"):
        raise reject("positions", positions, "'last', 'all', indices, or a mask")
    where = (chosen, positions, mask, per_layer, address, tuple(heads))
    return Write(vectors, jnp.asarray(keep), jnp.asarray(scale), *where, origin)


def replace(vectors: jax.Array, *, layers: int | Sequence[int], positions: Any = "last", **where: Any) -> Write:
    """Put `vectors` in the place of the states (Hendel et al. 2023). `where`: address, heads, any_model."""
    return mix(vectors, layers=layers, positions=positions, **where)


def add(
    vectors: jax.Array, *, layers: int | Sequence[int], positions: Any = "last", scale: Any = 1.0, **where: Any
) -> Write:
    """Add ``scale * vectors`` to the states (Todd et al. 2024, Kang et al. 2025). `where`: as of `replace`."""
    return mix(vectors, layers=layers, positions=positions, keep=1.0, scale=scale, **where)


def _positions(write: Write, positions_BT: jax.Array) -> jax.Array:
    """The mask ``[B or 1, T]`` of the positions that `write` names."""
    real_BT = positions_BT != PADDING
    if write.mask is not None:
        mask_BT = write.mask if write.mask.ndim == 2 else write.mask[None]
        if mask_BT.shape[1] != positions_BT.shape[1]:
            raise reject("positions", mask_BT.shape, f"a mask over {positions_BT.shape[1]} positions")
        return mask_BT
    if write.positions == "all":
        return real_BT
    count_B = real_BT.sum(1)[:, None]
    if write.positions == "last":
        return positions_BT == count_B - 1
    length = positions_BT.shape[1]
    outside = [p for p in write.positions if not -length <= p < length]
    if outside:
        raise reject("positions", outside[0], f"-{length}..{length - 1}, since the prompt has {length} positions")
    chosen = [positions_BT == (p if p >= 0 else count_B + p) for p in write.positions]
    return jnp.stack(chosen).any(0)


def affine(
    vectors: jax.Array, *, keep: Any = 0.0, scale: Any = 1.0, at_layer: jax.Array, at_position: jax.Array
) -> Tree:
    """The edits tree of one affine write to the residual stream, from masks: TVP and sweeps are this.

    vectors: ``[L+1 or 1, B or 1, T or 1, D]``; at_layer: ``[L+1]``, at_position: ``[B or 1, T]``, both masks and either
    may be traced: the layer of a sweep is data. ``keep`` holds where both masks do, the rest of the stream is kept.
    """
    here = at_layer.astype(bool)[:, None, None, None] & at_position.astype(bool)[None, :, :, None]
    return _stream(jnp.asarray(keep), scale * vectors, here)


def _stream(keep: jax.Array, added: jax.Array, here: jax.Array) -> Tree:
    """The tree of ``[L+1, ...]`` leaves over h^0..h^L."""
    layers = here.shape[0]
    keep = jnp.full((layers, *[1] * (here.ndim - 1)), keep, added.dtype)
    added = jnp.broadcast_to(added, (layers, *added.shape[1:]))
    return {"embed": Edit(keep[0], added[0], here[0]), "blocks": {"resid": Edit(keep[1:], added[1:], here[1:])}}


def at_layer(layer: Any, num_layers: int) -> jax.Array:
    """The mask ``[L+1]`` of one layer, which may be traced."""
    return jnp.arange(num_layers + 1) == layer


def merge(first: Tree, second: Tree) -> Tree:
    """The tree that applies `first`, then `second`: affine maps compose."""
    merged = dict(first)
    for name, node in second.items():
        if name not in first:
            merged[name] = node
        elif isinstance(node, Edit):
            merged[name] = _compose(first[name], node)
        else:
            merged[name] = merge(first[name], node)
    return merged


def _compose(a: Edit, b: Edit) -> Edit:
    keep_a, add_a = (a.keep, a.add) if a.here is None else (jnp.where(a.here, a.keep, 1), jnp.where(a.here, a.add, 0))
    keep, added = b.keep * keep_a, b.keep * add_a + b.add
    if b.here is None:
        return Edit(keep, added)
    return Edit(jnp.where(b.here, keep, keep_a), jnp.where(b.here, added, add_a))


def place(writes: Write | Sequence[Write], config: DecoderConfig, positions_BT: jax.Array) -> Tree:
    """The edits tree of `writes`, applied in their order, for prompts whose tokens stand at `positions_BT`.

    Raises `UserError` for a layer, a head, a position or a width that is not there.
    """
    return _joined(writes, config, lambda write: _positions(write, positions_BT))


def place_step(writes: Write | Sequence[Write], config: DecoderConfig) -> Tree | None:
    """The edits tree for a token that is generated: the last, and one of all; indices and masks do not name it."""
    writes = [writes] if isinstance(writes, Write) else list(writes)
    writes = [write for write in writes if write.positions in ("last", "all")]
    return _joined(writes, config, lambda write: jnp.ones((1, 1), bool)) if writes else None


def _joined(writes: Write | Sequence[Write], config: DecoderConfig, where: Any) -> Tree:
    tree: Tree | None = None
    for write in [writes] if isinstance(writes, Write) else writes:
        new = _one(write, config, where(write))
        tree = new if tree is None else merge(tree, new)
    if tree is None:
        raise reject("edits", writes, "at least one write")
    return tree


def _one(write: Write, c: DecoderConfig, at_position: jax.Array) -> Tree:
    stream, unit = write.address == "blocks/resid", (c.num_heads, c.channels) if write.address == HEADS else (c.width,)
    lowest = 0 if stream else 1
    for layer in write.layers:
        if not lowest <= layer <= c.num_layers:
            raise reject("layers", layer, f"{lowest}..{c.num_layers} at {write.address}")
    for head in write.heads:
        if not 0 <= head < c.num_heads:
            raise reject("heads", head, f"0..{c.num_heads - 1}")
    if write.vectors.shape[-len(unit) :] != unit:
        raise reject("vectors", write.vectors.shape, f"{list(unit)} at the end, the shape of one state at this address")
    blank = [1] * len(unit)
    at_layer_ = jnp.zeros(c.num_layers + 1, bool).at[jnp.array(write.layers)].set(True)
    here = at_layer_.reshape(-1, 1, 1, *blank) & at_position.reshape(1, *at_position.shape, *blank)
    if write.heads:
        here = here & jnp.zeros(c.num_heads, bool).at[jnp.array(write.heads)].set(True)[None, None, None, :, None]
    vectors = write.vectors if write.per_layer else write.vectors[None]
    vectors = vectors.reshape(vectors.shape[0], -1, 1, *unit)  # [layers or 1, B or 1, 1, unit]
    if write.per_layer:
        table = jnp.zeros((c.num_layers + 1, *vectors.shape[1:]), vectors.dtype)
        vectors = table.at[jnp.array(write.layers)].set(vectors)
    tree = _stream(write.keep, write.scale * vectors, here)
    return tree if stream else {"blocks": {write.address.split("/")[1]: tree["blocks"]["resid"]}}
