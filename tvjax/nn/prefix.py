"""Prefix tuning (Li and Liang 2021) as a transform of the cache: learned keys and values before every prompt."""

from typing import Any

import jax
import jax.numpy as jnp

from tvjax.nn.decoder import DecoderConfig, Past
from tvjax.nn.decoding import CACHE, past_of
from tvjax.nn.model import Model, forward


def per_token(c: DecoderConfig) -> int:
    """How many numbers one more token of the prefix has, over all layers."""
    return 2 * c.num_layers * c.kv_heads * c.channels


def start_prefix(model: Model, ids_S: jax.Array) -> Any:
    """A prefix that says what real tokens say, as its authors advise: ``{"keys", "values": [L, G, S, C]}``.

    Prefixes that start at random take attention away from the prompt. Rotary keys stand before position 0, where the
    prompt begins, so that distances are those of words before it.
    """
    c, positions = model.config, jnp.arange(ids_S.shape[0])[None]
    if c.positions == "rotary":
        positions = positions - ids_S.shape[0]
    elif c.positions == "learned":
        positions = jnp.minimum(positions, c.max_positions - 1)
    _, cache = forward(model, ids_S[None], addresses=CACHE, at=slice(0, 1), positions_BT=positions)
    past = past_of(cache, positions)
    return {"keys": past.keys[:, 0].astype(jnp.float32), "values": past.values[:, 0].astype(jnp.float32)}


def past_of_prefix(prefix: Any, c: DecoderConfig, batch: int) -> Past:
    """The `Past` of a batch. The prefix stands at position 0, so all tokens see it and none is moved on."""

    def each(x_LGSC: jax.Array) -> jax.Array:
        """The same entries for every prompt."""
        layers, *rest = x_LGSC.shape
        return jnp.broadcast_to(x_LGSC[:, None], (layers, batch, *rest)).astype(c.dtype)

    length = prefix["keys"].shape[2]
    return Past(each(prefix["keys"]), each(prefix["values"]), jnp.zeros((batch, length), jnp.int32))
