"""Run a decoder as a pure function: edits in, chosen activations out."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tvjax.errors import reject
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.taps import READS, WRITES

ADDRESSES = ("embed", "blocks/resid", "blocks/attn_out", "blocks/mlp_out", "blocks/heads")


@struct.dataclass
class Model:
    """A decoder with its parameters, and what is known of where they come from."""

    params: Any
    config: DecoderConfig = struct.field(pytree_node=False)
    source: Any = struct.field(pytree_node=False, default=None)

    @property
    def decoder(self) -> Decoder:
        return Decoder(self.config)


def check_addresses(addresses: Sequence[str]) -> None:
    """Raise `UserError` for an address that no decoder has."""
    for address in addresses:
        if address not in ADDRESSES:
            raise reject("addresses", address, f"one of {', '.join(ADDRESSES)}")


def cut(decoder: Decoder, params: Any, layer: int) -> tuple[tuple[Decoder, Any], tuple[Decoder, Any]]:
    """The blocks up to `layer` and those above it, ``1 <= layer < L``, each as a decoder with its parameters.

    h^layer is the last `blocks/resid` of the first and the `embed` of the second, where it is to be written.
    """
    whole = decoder.config

    def part(start: int, stop: int) -> tuple[Decoder, Any]:
        blocks = jax.tree.map(lambda p: p[start:stop], params["blocks"])
        config = dataclasses.replace(whole, num_layers=stop - start, unroll=min(whole.unroll, stop - start))
        return Decoder(config), {**params, "blocks": blocks}

    return part(0, layer), part(layer, whole.num_layers)


def forward(
    decoder: Decoder,
    params: Any,
    inputs: jax.Array,
    *,
    edits: Mapping[str, Any] | None = None,
    addresses: Sequence[str] = (),
    at: slice = slice(None),
    positions_BT: jax.Array | None = None,
    mask_BTT: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The readout at positions `at` and the activations at `addresses`, ``{address: array}``; nothing else is kept.

    Activations inside `blocks` have a leading axis of L. What is not asked for is never stored. Raises `UserError` for
    an address that is not there.
    """
    check_addresses(addresses)
    places = (at.start, at.stop, at.step)
    return _forward(decoder, tuple(addresses), places, params, inputs, edits, positions_BT, mask_BTT)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _forward(
    decoder: Decoder,
    addresses: tuple[str, ...],
    places: tuple[int | None, int | None, int | None],
    params: Any,
    inputs: jax.Array,
    edits: Mapping[str, Any] | None,
    positions_BT: jax.Array | None,
    mask_BTT: jax.Array | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    variables = {"params": params, **({WRITES: edits} if edits else {})}
    options: dict[str, Any] = {"at": slice(*places), "positions_BT": positions_BT, "mask_BTT": mask_BTT}
    if not addresses:
        return jnp.asarray(decoder.apply(variables, inputs, **options)), {}
    out, state = decoder.apply(variables, inputs, mutable=[READS], **options)
    found = {}
    for address in addresses:
        node = state[READS]
        for part in address.split("/"):
            node = node[part]
        found[address] = node
    return jnp.asarray(out), found
