"""Softmax attention in the formulation that XLA compiles best for a CPU, in plain lax: an accelerator loses nothing.

Heads move in front of tokens once, so that every product is a batched product of contiguous matrices. The softmax is
normalized after the product with the values (C divisions a row in place of S), and the backward pass is written by
hand: it keeps the unnormalized weights and takes the softmax's row term from C products in place of S.
"""

import jax
import jax.numpy as jnp
from jax import lax

FORBIDDEN = -1e30
"""Logit of what may not be seen: finite, so that no row can turn into NaN."""


def attention(q_BTHC: jax.Array, k_BSGC: jax.Array, v_BSGC: jax.Array, mask_BTS: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(C)) v for each head: ``[B, T, H, C]``; head h reads key/value head ``h * G // H``.

    mask_BTS: True = may look, ``[B or 1, T, S]``; causal where it is None, and then T = S. A query that may look at
    nothing gets zeros. Reverse-mode derivatives only.
    """
    batch, length, heads, channels = q_BTHC.shape
    source, groups = k_BSGC.shape[1:3]
    repeat = heads // groups
    if mask_BTS is None:
        mask_BTS = jnp.tril(jnp.ones((length, source), bool))[None]
    # The queries that share a key head lie one after another: one product [R * T, C] x [C, S] for each key head.
    q_BGRTC = (q_BTHC * channels**-0.5).reshape(batch, length, groups, repeat, channels).transpose(0, 2, 3, 1, 4)
    keep = jnp.broadcast_to(mask_BTS[:, None, None], (mask_BTS.shape[0], 1, repeat, length, source))
    out = _core(
        q_BGRTC.reshape(batch, groups, repeat * length, channels),
        k_BSGC.swapaxes(1, 2),
        v_BSGC.swapaxes(1, 2),
        keep.reshape(-1, 1, repeat * length, source),
    )
    out_BGRTC = out.reshape(batch, groups, repeat, length, channels)
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
    weights = jnp.where(keep, jnp.exp(logits - logits.max(-1, keepdims=True)), 0.0)
    total = weights.sum(-1, keepdims=True)
    inverse = 1 / jnp.where(total == 0, 1.0, total)
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
