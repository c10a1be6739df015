"""Prefix tuning (Li and Liang 2021) as a transform of the cache: learned keys and values before every prompt."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.errors import reject
from tvjax.nn.decoder import DecoderConfig, Past
from tvjax.nn.decoding import CACHE, past_of
from tvjax.nn.model import Model, forward
from tvjax.nn.selection import finite


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


def check_prefix(prefix: Any, c: DecoderConfig) -> tuple[Any, Any]:
    """Keys and values ``[L, G, S, C]``. Raises `UserError` for what is no prefix of this decoder."""
    shape = f"[L, G, S, C] = [{c.num_layers}, {c.kv_heads}, S, {c.channels}]"
    if not isinstance(prefix, Mapping) or set(prefix) != {"keys", "values"}:
        given = sorted(map(str, prefix)) if isinstance(prefix, Mapping) else type(prefix).__name__
        raise reject("prefix", given, f'{{"keys", "values"}} of {shape}')
    keys, values = (finite(f"prefix[{name!r}]", prefix[name]) for name in ("keys", "values"))
    for name, array in (("keys", keys), ("values", values)):
        fits = array.ndim == 4 and array.shape[2] and array.shape == keys.shape
        if not fits or (*array.shape[:2], array.shape[3]) != (c.num_layers, c.kv_heads, c.channels):
            raise reject(f"prefix[{name!r}]", f"shape {list(array.shape)}", f"{shape}, S as of the keys")
    return keys, values


def past_of_prefix(prefix: Any, c: DecoderConfig, batch: int) -> Past:
    """The `Past` of a batch. The prefix stands before position 0, where prompts begin, so that none is moved on."""

    def each(x_LGSC: jax.Array) -> jax.Array:
        """The same entries for every prompt."""
        layers, *rest = x_LGSC.shape
        return jnp.broadcast_to(x_LGSC[:, None], (layers, batch, *rest)).astype(c.dtype)

    length = prefix["keys"].shape[2]
    positions_BS = jnp.broadcast_to(jnp.arange(-length, 0, dtype=jnp.int32), (batch, length))
    return Past(each(prefix["keys"]), each(prefix["values"]), positions_BS)
