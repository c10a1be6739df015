"""Decoding with a cache: a prompt is read once, then each new token reads what the ones before it left.

The cache is what stands at `blocks/keys` and `blocks/values`, given back to the decoder as its `Past`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tvjax.errors import reject
from tvjax.nn import selection
from tvjax.nn.attention import FORBIDDEN
from tvjax.nn.decoder import PADDING, Past, Stacked
from tvjax.nn.model import ADDRESSES, ATTENTION, READOUT, Model, forward
from tvjax.nn.show import brief
from tvjax.nn.tokens import Tokens

CACHE = ("blocks/keys", "blocks/values")


@struct.dataclass
class Generated:
    """The new tokens of each prompt.

    ids_BT: the new tokens, 0 after a stop token.
    count_B: how many new tokens there are, a stop token included.
    activations: ``{address: [(L,) B, T, ...]}``, of the state that each new token was read from. Of attention's logits
        and patterns S are the positions of the padded prompts, then those of the new tokens.
    """

    ids_BT: jax.Array
    count_B: jax.Array
    activations: dict[str, jax.Array]

    __repr__ = brief

    @property
    def ids_BN(self) -> jax.Array:
        """`ids_BT` by its earlier name, which scripts have."""
        return self.ids_BT


def past_of(cache: Mapping[str, jax.Array], positions_BT: jax.Array, room: int = 0) -> Past:
    """The `Past` that a pass left at `CACHE`, with `room` for as many more tokens."""
    keys, values = (cache[name].swapaxes(2, 3) for name in CACHE)
    wider = [(0, 0), (0, 0), (0, 0), (0, room), (0, 0)]
    positions_BT = jnp.broadcast_to(positions_BT, (keys.shape[1], positions_BT.shape[1]))
    return Past(
        jnp.pad(keys, wider),
        jnp.pad(values, wider),
        jnp.pad(positions_BT, [(0, 0), (0, room)], constant_values=PADDING),
    )


def _behind(first: Past, second: Past) -> Past:
    """The entries of both."""
    keys, values = (jnp.concatenate(pair, 3) for pair in ((first.keys, second.keys), (first.values, second.values)))
    return Past(keys, values, jnp.concatenate([first.positions_BS, second.positions_BS], 1))


def _extended(past: Past, cache: Mapping[str, jax.Array], slot: jax.Array, position_B: jax.Array) -> Past:
    """`past` with one more token, written at `slot`."""

    def longer(old: Stacked, new: jax.Array) -> Stacked:
        if isinstance(old, tuple):
            return tuple(map(longer, old, new))
        return jax.lax.dynamic_update_slice_in_dim(old, new.swapaxes(-3, -2), slot, axis=-2)

    keys, values = (longer(old, cache[name]) for old, name in zip((past.keys, past.values), CACHE, strict=True))
    return Past(keys, values, past.positions_BS.at[:, slot].set(position_B))


@jax.jit
def before(
    model: Model, inputs: jax.Array, positions_BT: jax.Array, index_B: jax.Array
) -> tuple[Past, jax.Array, jax.Array]:
    """What the tokens before the one at `index_B` of each prompt leave; that token and its position, ``[B, 1, ...]``.

    It does not depend on what is written into that token: many edits of it cost one token each. model: a bare one.
    """
    rows = jnp.arange(inputs.shape[0])
    here_B1 = positions_BT[rows, index_B][:, None]
    before_BT = jnp.where(positions_BT < here_B1, positions_BT, PADDING)
    _, cache = forward(model, inputs, addresses=CACHE, at=slice(0, 1), positions_BT=before_BT)
    return past_of(cache, before_BT), inputs[rows, index_B][:, None], here_B1


def _mixed(x: jax.Array) -> jax.Array:
    """32 bits of which each depends on all of `x`: shifts and products by large odd numbers, in turn."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def prompt_keys(key: jax.Array, tokens: Tokens) -> jax.Array:
    """A key for each prompt ``[B]``: a function of `key`, the prompt's own tokens, and how many-th of its equals it is.

    Neither padding nor the rest of the batch matters, but equal prompts have keys of their own. [ours]
    """
    index_BT = jnp.cumsum(tokens.valid_BT, axis=1).astype(jnp.uint32)
    marks = []
    for seed in (1, 2):
        bits_BT = _mixed(_mixed(index_BT + jnp.uint32(seed << 30)) ^ tokens.ids_BT.astype(jnp.uint32))
        marks.append(jnp.where(tokens.valid_BT, bits_BT, 0).sum(1, dtype=jnp.uint32))
    order_B = jnp.lexsort(marks)
    sorted_2B, row_B = jnp.stack(marks)[:, order_B], jnp.arange(len(order_B))
    new_B = jnp.pad((sorted_2B[:, 1:] != sorted_2B[:, :-1]).any(0), (1, 0), constant_values=True)
    number_B = jnp.zeros_like(row_B).at[order_B].set(row_B - jax.lax.cummax(jnp.where(new_B, row_B, 0)))
    # Of threefry, whose draws under vmap are those of each key alone.
    root = jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")
    return jax.vmap(lambda *numbers: functools.reduce(jax.random.fold_in, numbers, root))(*marks, number_B)


def _choose(logits_BV: jax.Array, key_B: jax.Array | None, temperature: jax.Array, top_k: int) -> jax.Array:
    """The next token of each prompt: the likeliest, or with keys one drawn among the `top_k` likeliest (0: all).

    Of equally likely ones at the edge, those of the lowest ids are among them.
    """
    if key_B is None:
        return logits_BV.argmax(-1).astype(jnp.int32)
    logits_BV = logits_BV - logits_BV.max(-1, keepdims=True)  # however small the temperature, the likeliest stays at 0
    if not top_k:
        return jax.vmap(jax.random.categorical)(key_B, logits_BV / temperature).astype(jnp.int32)
    best_BK, ids_BK = jax.lax.top_k(logits_BV, min(top_k, logits_BV.shape[-1]))
    drawn_B = jax.vmap(jax.random.categorical)(key_B, best_BK / temperature)
    return jnp.take_along_axis(ids_BK, drawn_B[:, None], axis=1)[:, 0].astype(jnp.int32)


def stop_tokens(stop: Any, size: int) -> tuple[int, ...]:
    """The ids that end a text: one or several of a model's `size` tokens. Raises `UserError` for any other."""
    return selection.token_ids("stop", stop, size)


def sampling(key: Any, temperature: Any, top_k: Any, size: int) -> tuple[jax.Array | None, float, int]:
    """How a token is chosen among `size`: key (also of a seed), temperature and top_k, of which none is ignored.

    Raises `UserError` for what is no key, no number over 0, or no number of tokens, and for a temperature or a top_k
    if there is no key.
    """
    count = f"an int, 0 (all) to {size}, the tokens of the model"
    top_k = selection.integer("top_k", top_k, count)
    if not 0 <= top_k <= size:
        raise reject("top_k", top_k, count)
    heat = selection.finite("temperature", temperature)
    if selection.host(heat) is None:
        raise reject("temperature", "a traced array", "a concrete number: the program is made for it")
    if heat.ndim or not heat >= jnp.finfo(jnp.float32).tiny:
        raise reject("temperature", temperature, "a number more than 0, in float32 too; greedy is without a key")
    if key is None and (top_k or temperature != 1.0):
        raise reject("key", None, "a key, or a seed, with a temperature or top_k; without them decoding is greedy")
    return _key(key), float(heat), top_k


def _key(key: Any) -> jax.Array | None:
    accepted = "a jax.random.key, or an int from 0 to 2^31 - 1, the seed of one"
    if isinstance(key, jax.Array) and key.ndim:  # the older form of a key, ``[2]``
        if key.shape != (2,) or key.dtype != jnp.uint32:
            raise reject("key", f"an array of shape {list(key.shape)}", accepted)
        return jax.random.wrap_key_data(key)
    if key is None or (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        return key
    seed = selection.integer("key", key, accepted)
    if not 0 <= seed < 2**31:
        raise reject("key", key, accepted)
    return jax.random.key(seed)


def _axis(address: str) -> int:
    """Where the positions stand: behind the layers, if there are layers."""
    return 2 if address.startswith("blocks/") else 1


def _last_of(address: str, states: jax.Array, last_B1: jax.Array, room: int) -> jax.Array:
    """The state at each prompt's last token, with `room` for as many more."""
    axis = _axis(address)
    if address not in READOUT:  # which is of that token alone
        index = last_B1.reshape(*[1] * (axis - 1), -1, *[1] * (states.ndim - axis))
        states = jnp.take_along_axis(states, index, axis=axis)
    if address in ATTENTION:
        states = _widened(address, states, room)
    wide = [(0, 0)] * states.ndim
    wide[axis] = (0, room)
    return jnp.pad(states, wide)


def _widened(address: str, a: jax.Array, room: int) -> jax.Array:
    """Attention's logits or patterns ``[..., S]`` with `room` for sources that nobody sees yet."""
    nothing = FORBIDDEN if address == "blocks/attn_logits" else 0.0
    return jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, room)], constant_values=nothing)


def _by_slot(a: jax.Array, slot: jax.Array) -> jax.Array:
    """Attention's logits or patterns of a new token, which is its own last source, at the `slot` that it will have."""
    return jax.lax.dynamic_update_slice_in_dim(a[..., :-1], a[..., -1:], slot, axis=-1)


def generate(
    model: Model,
    tokens: Tokens,
    max_new_tokens: int,
    *,
    prompt_edits: Any = None,
    step_edits: Any = None,
    addresses: Sequence[str] = (),
    stop: Sequence[int] = (),
    key: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    prefix: Past | None = None,
) -> Generated:
    """Continue each prompt by up to `max_new_tokens`: greedily, or sampled if there is a `key`.

    A token is read from the state before it, so an edit of the prompt's last position acts on the first new token. One
    program for each shape; the program ends when every prompt has come to a stop token. What is sampled for a prompt
    depends on its own tokens and the key (`prompt_keys`). New tokens are read with the layers `apart`, if they can be.

    prompt_edits: a tree for the whole prompts ``[B, T]``.
    step_edits: a tree for a single new token ``[B, 1]``.
    prefix: what stands before every prompt.
    """
    static = (max_new_tokens, selection.addresses(addresses, ADDRESSES), tuple(stop), top_k)
    models = (model.bare, Model(model.parted, model.config))
    heat = jnp.asarray(temperature, jnp.float32)
    return _generate(*static, *models, tokens, prompt_edits, step_edits, key, heat, prefix)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    count: int,
    addresses: tuple[str, ...],
    stop: tuple[int, ...],
    top_k: int,
    model: Model,
    step_model: Model,
    tokens: Tokens,
    prompt_edits: Any,
    step_edits: Any,
    key: jax.Array | None,
    temperature: jax.Array,
    prefix: Past | None,
) -> Generated:
    batch, length = tokens.ids_BT.shape
    last_B1 = tokens.last_B[:, None]
    key_B = None if key is None else prompt_keys(key, tokens)
    next_B = tokens.count_B if tokens.start_B is None else tokens.start_B + tokens.count_B
    out, activations = forward(
        model,
        tokens.ids_BT,
        edits=prompt_edits,
        addresses=tuple(dict.fromkeys(addresses + CACHE)),
        at=last_B1,
        positions_BT=tokens.positions_BT,
        past=prefix,
    )

    def choose(logits_BV: jax.Array, step: jax.Array | int) -> jax.Array:
        """`_choose` with keys of the step's own."""
        step_B = None if key_B is None else jax.vmap(jax.random.fold_in, (0, None))(key_B, step)
        return _choose(logits_BV, step_B, temperature, top_k)

    first_B = choose(out[:, 0], 0)
    ended = jnp.isin(first_B, jnp.array(stop)) if stop else jnp.zeros(batch, bool)
    new_BT = jnp.zeros((batch, count), jnp.int32).at[:, 0].set(first_B)
    past = past_of(activations, tokens.positions_BT, count - 1)
    slot = length
    if prefix is not None:
        past, slot = _behind(prefix, past), length + prefix.positions_BS.shape[1]
    if isinstance(step_model.params["blocks"], tuple):
        past = Past(tuple(past.keys), tuple(past.values), past.positions_BS)
    start = (
        jnp.asarray(1),
        first_B,
        ended,
        jnp.ones(batch, jnp.int32),
        new_BT,
        past,
        {name: _last_of(name, activations[name], last_B1, count - 1) for name in addresses},
    )

    def going(state: tuple) -> jax.Array:
        """Whether there is a token to make for any prompt."""
        return (state[0] < count) & ~state[2].all()

    def step(state: tuple) -> tuple:
        """One token more for every prompt that has not ended."""
        n, token_B, ended, used_B, new_BT, past, seen = state
        position_B = next_B + n - 1
        out, activations = forward(
            step_model,
            token_B[:, None],
            edits=step_edits,
            addresses=tuple(dict.fromkeys(addresses + CACHE)),
            positions_BT=position_B[:, None],
            past=past,
        )
        past = _extended(past, activations, slot + n - 1, position_B)
        for name in addresses:
            new = _by_slot(activations[name], length + n - 1) if name in ATTENTION else activations[name]
            seen = seen | {name: jax.lax.dynamic_update_slice_in_dim(seen[name], new, n, _axis(name))}
        token_B = jnp.where(ended, 0, choose(out[:, 0], n))
        used_B = used_B + ~ended
        if stop:
            ended = ended | jnp.isin(token_B, jnp.array(stop))
        return n + 1, token_B, ended, used_B, new_BT.at[:, n].set(token_B), past, seen

    _, _, _, used_B, new_BT, _, seen = jax.lax.while_loop(going, step, start)
    return Generated(new_BT, used_B, seen)
