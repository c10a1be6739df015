"""Task vectors of a language model: read from prompts (Hendel et al. 2023), written, and read out as tokens."""

from typing import Any

import jax
import jax.numpy as jnp

from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.model import Model, cut, forward
from tvjax.nn.tokens import Tokens
from tvjax.vectors import edits
from tvjax.vectors.tvp import STREAM, stream_at


def read_last(model: Model, tokens: Tokens, addresses: tuple[str, ...]) -> dict[str, jax.Array]:
    """What stands at `addresses` at each prompt's last token, ``[layers, B, 1, ...]``; nothing else is stored."""
    return forward(
        model,
        tokens.ids_BT,
        addresses=addresses,
        read_BS=tokens.last_B[:, None],
        at=slice(0, 1),
        positions_BT=tokens.positions_BT,
    )[1]


def last_states(model: Model, tokens: Tokens) -> jax.Array:
    """h^0..h^L at each prompt's last token, ``[B, L+1, D]``."""
    return stream_at(read_last(model, tokens, STREAM), slice(None))[:, :, 0].swapaxes(0, 1)


def last_states_and_heads(model: Model, tokens: Tokens) -> dict[str, jax.Array]:
    """At each prompt's last token: "states" h^0..h^L ``[B, L+1, D]``, "heads", what each writes ``[B, L, H, C]``."""
    activations = read_last(model, tokens, (*STREAM, edits.HEADS))
    read = {"states": stream_at(activations, slice(None)), "heads": activations[edits.HEADS]}
    return {name: a[:, :, 0].swapaxes(0, 1) for name, a in read.items()}


ADDED = ("attn_out", "mlp_out")


def last_outputs(model: Model, tokens: Tokens) -> jax.Array:
    """What attention and the MLP of each layer add to the stream at each prompt's last token: ``[B, 2, L, D]``."""
    addresses = tuple(f"blocks/{name}" for name in ADDED)
    activations = read_last(model, tokens, addresses)
    return jnp.stack([activations[address][:, :, 0].swapaxes(0, 1) for address in addresses], axis=1)


def at_last(c: DecoderConfig, vectors: jax.Array, layer: Any, last_B: jax.Array, length: int, keep: Any = 0.0) -> Any:
    """The edits tree that writes vectors at h^`layer` (which may be traced) of the positions `last_B`.

    vectors: ``[D]``, one for all prompts, or ``[B, D]``, each prompt's own.
    """
    return edits.affine(
        jnp.atleast_2d(vectors)[None, :, None],
        keep=keep,
        at_layer=edits.at_layer(layer, c.num_layers),
        at_position=jnp.arange(length)[None] == last_B[:, None],
    )


def vocabulary(model: Model, vectors_UD: jax.Array) -> jax.Array:
    """The readout ``[U, O]`` of vectors as if they were the last state: final norm, then readout (the "logit lens")."""
    layers, inputs = model.config.num_layers, jnp.zeros((len(vectors_UD), 1), jnp.int32)
    if model.config.inputs == "real":
        inputs = jnp.zeros((*inputs.shape, model.params["front"]["kernel"].shape[0]))
    last = cut(model, layers - 1)[1] if layers > 1 else model  # one block is enough to be written behind
    tree = edits.affine(vectors_UD[None, :, None], at_layer=edits.at_layer(1, 1), at_position=jnp.ones((1, 1), bool))
    return forward(last, inputs, edits=tree)[0][:, 0]
