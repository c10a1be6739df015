"""Softmax attention in the formulation that XLA compiles best for a CPU, in plain lax: an accelerator loses nothing.

Heads move in front of tokens once, so that every product is a batched product of contiguous matrices. The softmax is
normalized after the product with the values (C divisions a row in place of S), and the backward pass is written by
hand: it keeps the unnormalized weights and takes the softmax's row term from C products in place of S. On a CPU,
causal attention is cut into two blocks of queries, each of which reads only the keys up to its own end: a quarter of
the work is never done, where an accelerator would rather have one large product.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from tvjax.parallel.mesh import on_cpu

FORBIDDEN = -1e30
"""Logit of what may not be seen: finite, so that no row can turn into NaN."""
SMALLEST_BLOCK = 32
"""Queries that a block has at least: smaller products cost more than they save."""


def attention(q_BTHC: jax.Array, k_BSGC: jax.Array, v_BSGC: jax.Array, mask_BTS: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(C)) v for each head: ``[B, T, H, C]``; head h reads key/value head ``h * G // H``.

    mask_BTS: True = may look, ``[B or 1, T, S]``; causal where it is None, and then T = S. A query that may look at
    nothing gets zeros. Reverse-mode derivatives only.
    """
    batch, length, heads, channels = q_BTHC.shape
    source, groups = k_BSGC.shape[1:3]
    repeat = heads // groups
    if source == 1 and mask_BTS is None:  # one position looks at itself: no logit matters
        return jnp.repeat(v_BSGC, repeat, axis=2)
    q_BGRTC = (q_BTHC * channels**-0.5).reshape(batch, length, groups, repeat, channels).transpose(0, 2, 3, 1, 4)
    k_BGSC, v_BGSC = k_BSGC.swapaxes(1, 2), v_BSGC.swapaxes(1, 2)

    def block(start: int, stop: int, seen: int, keep_BTS: jax.Array) -> jax.Array:
        """The queries start..stop on the keys up to `seen`: those that share a key head lie one after another."""
        rows = stop - start
        out_BGNC = _core(
            q_BGRTC[:, :, :, start:stop].reshape(batch, groups, repeat * rows, channels),
            k_BGSC[:, :, :seen],
            v_BGSC[:, :, :seen],
            jnp.tile(keep_BTS, (1, repeat, 1))[:, None],
        )
        return out_BGNC.reshape(batch, groups, repeat, rows, channels)

    if mask_BTS is not None:
        out_BGRTC = block(0, length, source, mask_BTS)
    else:
        cuts = [0, length // 2, length] if on_cpu() and length >= 2 * SMALLEST_BLOCK else [0, length]
        parts = [
            block(a, b, b, jnp.arange(a, b)[None, :, None] >= jnp.arange(b)[None, None])
            for a, b in itertools.pairwise(cuts)
        ]
        out_BGRTC = jnp.concatenate(parts, axis=3)
    return out_BGRTC.transpose(0, 3, 1, 2, 4).reshape(q_BTHC.shape)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """The product over one axis of each; axes 0 and 1 are the batch. Accumulates in float32 at least."""
    dimensions = (((axis_a,), (axis_b,)), ((0, 1), (0, 1)))
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


@jax.custom_vjp
def _core(q: jax.Array, k: jax.Array, v: jax.Array, keep: jax.Array) -> jax.Array:
    """q: ``[B, G, N, C]``, scaled; k, v: ``[B, G, S, C]``; keep: ``[B or 1, 1, N, S]``."""
    return _forward(q, k, v, keep)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    logits = jnp.where(keep, _dot(q, k, 3, 3), FORBIDDEN)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    # A row that sees nothing has weights too: its inverse of zero takes them out, here and in the backward pass.
    inverse = jnp.where(keep.any(-1, keepdims=True), 1 / weights.sum(-1, keepdims=True), 0.0)
    weights = weights.astype(v.dtype)
    return (_dot(weights, v, 3, 2) * inverse).astype(v.dtype), weights, inverse


def _core_forward(q: jax.Array, k: jax.Array, v: jax.Array, keep: jax.Array) -> tuple[jax.Array, tuple]:
    out, weights, inverse = _forward(q, k, v, keep)
    return out, (q, k, v, out, weights, inverse)


def _core_backward(saved: tuple, d_out: jax.Array) -> tuple:
    q, k, v, out, weights, inverse = saved
    d_sum = d_out * inverse
    row = (d_sum * out).sum(-1, keepdims=True)
    d_sum = d_sum.astype(v.dtype)
    d_logits = (weights * (_dot(d_sum, v, 3, 3) - row)).astype(q.dtype)
    d_q = _dot(d_logits, k, 3, 2).astype(q.dtype)
    d_k = _dot(d_logits, q, 2, 2).astype(k.dtype)
    return d_q, d_k, _dot(weights, d_sum, 2, 2).astype(v.dtype), None


_core.defvjp(_core_forward, _core_backward)
