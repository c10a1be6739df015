"""Softmax attention in the formulation that XLA compiles best for a CPU, in plain lax: an accelerator loses nothing.

Heads move in front of tokens once, so that every product is a batched product of contiguous matrices. The softmax is
normalized after the product with the values (C divisions a row in place of S), and the backward pass is written by
hand: it keeps the unnormalized weights and takes the softmax's row term from C products in place of S. On a CPU,
causal attention is cut into two blocks of queries, each of which reads only the keys up to its own end: a quarter of
the work is never done, where an accelerator would rather have one large product.

Logits and weights are never whole there. If someone looks at them or changes them, the textbook's way is taken.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from tvjax.parallel.mesh import on_cpu

FORBIDDEN = -1e30
"""Logit of what may not be seen: finite, so that no row can turn into NaN."""
UNSEEN = FORBIDDEN / 1e6
"""A logit below it has no weight, not even in a row that sees nothing else."""
SMALLEST_BLOCK = 32
"""Queries that a block has at least: smaller products cost more than they save."""


def attention(
    q_BTHC: jax.Array,
    k_BTGC: jax.Array,
    v_BTGC: jax.Array,
    mask_BTT: jax.Array | None = None,
    *,
    past: tuple[jax.Array, jax.Array, jax.Array] | None = None,
    scale: float = 0.0,
    cap: float = 0.0,
    precision: str | None = None,
    tap: Callable[[str, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """softmax(cap(scale q k^T)) v for each head: ``[B, T, H, C]``; head h reads key/value head ``h * G // H``.

    A query that may look at nothing gets zeros. Reverse-mode derivatives only.

    mask_BTT: True = may look, ``[B or 1, T, T]``; None: causal.
    past: keys and values that stand before these, ``[B, G, S, C]``, and their mask ``[B or 1, T, S]``.
    scale: 0: C^-1/2.
    cap: cap(a) = cap tanh(a / cap); 0: none.
    precision: of the products, as `lax.dot_general` takes it.
    tap: shows the logits, as "attn_logits", and the weights, as "attn_patterns", ``[B, T, H, S]`` in float32 at least,
        and gives what is to stand in their place. S are the positions of `past`, then the T. None: nobody asks.
    """
    batch, length, heads, channels = q_BTHC.shape
    groups = k_BTGC.shape[2]
    repeat = heads // groups
    if tap:
        return _shown(q_BTHC, k_BTGC, v_BTGC, mask_BTT, past, scale or channels**-0.5, cap, precision, tap)
    if length == 1 and mask_BTT is None and past is None:  # one position looks at itself: no logit matters
        return jnp.repeat(v_BTGC, repeat, axis=2)
    q_BGHTC = (q_BTHC * (scale or channels**-0.5)).reshape(batch, length, groups, repeat, channels)
    q_BGHTC = q_BGHTC.transpose(0, 2, 3, 1, 4)
    k_BGTC, v_BGTC = k_BTGC.swapaxes(1, 2), v_BTGC.swapaxes(1, 2)

    def block(start: int, stop: int, seen: int, keep_BTS: jax.Array) -> jax.Array:
        """The queries start..stop on the keys up to `seen`; the rows of all heads of a group lie one after another."""
        rows = stop - start
        q = q_BGHTC[:, :, :, start:stop].reshape(batch, groups, repeat * rows, channels)
        parts = [(k_BGTC[:, :, :seen], v_BGTC[:, :, :seen], keep_BTS), *([past] if past else [])]
        parts = [(k, v, jnp.tile(keep, (1, repeat, 1))[:, None]) for k, v, keep in parts]
        out = _general(q, parts, cap, precision) if cap or past else _core(q, *parts[0], precision)
        return out.reshape(batch, groups, repeat, rows, channels)

    if mask_BTT is not None:
        out_BGHTC = block(0, length, length, mask_BTT)
    else:
        cuts = [0, length // 2, length] if on_cpu() and length >= 2 * SMALLEST_BLOCK else [0, length]
        parts = [
            block(a, b, b, jnp.arange(a, b)[None, :, None] >= jnp.arange(b)[None, None])
            for a, b in itertools.pairwise(cuts)
        ]
        out_BGHTC = jnp.concatenate(parts, axis=3)
    return out_BGHTC.transpose(0, 3, 1, 2, 4).reshape(q_BTHC.shape)


def _shown(
    q_BTHC: jax.Array,
    k_BTGC: jax.Array,
    v_BTGC: jax.Array,
    mask_BTT: jax.Array | None,
    past: tuple[jax.Array, jax.Array, jax.Array] | None,
    scale: float,
    cap: float,
    precision: str | None,
    tap: Callable[[str, jax.Array], jax.Array],
) -> jax.Array:
    """`attention` step by step. What `tap` gives is taken as it is: the mask has no say over it."""
    batch, length, heads, channels = q_BTHC.shape
    groups = k_BTGC.shape[2]
    rows = (batch, groups, heads // groups * length)
    seen_BTS = jnp.tril(jnp.ones((1, length, length), bool)) if mask_BTT is None else mask_BTT
    k_BGSC, v_BGSC = k_BTGC.swapaxes(1, 2), v_BTGC.swapaxes(1, 2)
    if past is not None:
        both = [jnp.broadcast_to(keep, (batch, *keep.shape[1:])) for keep in (past[2], seen_BTS)]
        seen_BTS = jnp.concatenate(both, axis=2)
        k_BGSC, v_BGSC = (jnp.concatenate(pair, axis=2) for pair in ((past[0], k_BGSC), (past[1], v_BGSC)))
    a = _dot((q_BTHC * scale).swapaxes(1, 2).reshape(*rows, channels), k_BGSC, 3, 3, precision)
    a_BTHS = (cap * jnp.tanh(a / cap) if cap else a).reshape(batch, heads, length, -1).swapaxes(1, 2)
    a_BTHS = tap("attn_logits", jnp.where(seen_BTS[:, :, None], a_BTHS, FORBIDDEN))
    weights_BTHS = jnp.where(a_BTHS > UNSEEN, jnp.exp(a_BTHS - a_BTHS.max(-1, keepdims=True)), 0.0)
    total_BTH1 = weights_BTHS.sum(-1, keepdims=True)
    weights_BTHS = tap("attn_patterns", weights_BTHS / jnp.where(total_BTH1 > 0, total_BTH1, 1.0))
    out = _dot(weights_BTHS.swapaxes(1, 2).reshape(*rows, -1).astype(v_BGSC.dtype), v_BGSC, 3, 2, precision)
    return out.astype(q_BTHC.dtype).reshape(batch, heads, length, channels).swapaxes(1, 2)


def _general(
    q: jax.Array, parts: list[tuple[jax.Array, jax.Array, jax.Array]], cap: float, precision: str | None
) -> jax.Array:
    """`_core` over keys that lie in several arrays, without joining them; derivatives are JAX's own.

    q: ``[B, G, rows, C]``, scaled; each part: keys and values ``[B, G, S, C]`` and a mask ``[B or 1, 1, rows, S]``.
    """
    logits = []
    for k, _, keep in parts:
        a = _dot(q, k, 3, 3, precision)
        logits.append(jnp.where(keep, cap * jnp.tanh(a / cap) if cap else a, FORBIDDEN))
    top = functools.reduce(jnp.maximum, [a.max(-1, keepdims=True) for a in logits])
    # exp(FORBIDDEN - FORBIDDEN) = 1 in a row that sees nothing: the mask takes it out.
    weights = [jnp.where(keep, jnp.exp(a - top), 0.0) for a, (_, _, keep) in zip(logits, parts, strict=True)]
    total = sum(w.sum(-1, keepdims=True) for w in weights)
    out = sum(_dot(w.astype(v.dtype), v, 3, 2, precision) for w, (_, v, _) in zip(weights, parts, strict=True))
    return (out / jnp.where(total > 0, total, 1.0)).astype(q.dtype)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int, precision: str | None) -> jax.Array:
    """The product over one axis of each; axes 0 and 1 are the batch. Accumulates in float32 at least."""
    dimensions, least = (((axis_a,), (axis_b,)), ((0, 1), (0, 1))), jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=least)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _core(q: jax.Array, k: jax.Array, v: jax.Array, keep: jax.Array, precision: str | None) -> jax.Array:
    """q: ``[B, G, rows, C]``, scaled; k, v: ``[B, G, S, C]``; keep: ``[B or 1, 1, rows, S]``."""
    return _forward(q, k, v, keep, precision)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, keep: jax.Array, precision: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    logits = jnp.where(keep, _dot(q, k, 3, 3, precision), FORBIDDEN)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    # A row that sees nothing has weights too: its inverse of zero takes them out, here and in the backward pass.
    inverse = jnp.where(keep.any(-1, keepdims=True), 1 / weights.sum(-1, keepdims=True), 0.0)
    weights = weights.astype(v.dtype)
    return (_dot(weights, v, 3, 2, precision) * inverse).astype(v.dtype), weights, inverse


def _core_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, keep: jax.Array, precision: str | None
) -> tuple[jax.Array, tuple]:
    out, weights, inverse = _forward(q, k, v, keep, precision)
    return out, (q, k, v, out, weights, inverse)


def _core_backward(precision: str | None, saved: tuple, d_out: jax.Array) -> tuple:
    # It is traced outside of what stands around the forward pass: no context manager there holds here.
    q, k, v, out, weights, inverse = saved
    d_sum = d_out * inverse
    row = (d_sum * out).sum(-1, keepdims=True)
    d_sum = d_sum.astype(v.dtype)
    d_logits = (weights * (_dot(d_sum, v, 3, 3, precision) - row)).astype(q.dtype)
    d_q = _dot(d_logits, k, 3, 2, precision).astype(q.dtype)
    d_k = _dot(d_logits, q, 2, 2, precision).astype(k.dtype)
    return d_q, d_k, _dot(weights, d_sum, 2, 2, precision).astype(v.dtype), None


_core.defvjp(_core_forward, _core_backward)
