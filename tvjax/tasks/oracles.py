"""Estimators that see a prompt's demonstrations: the yardsticks for in-context regression.

Each predicts query i from the demonstrations before it, for every i at once: x ``[B, N, X]``, y ``[B, N, Y]``, queries
``[B, N, X]`` -> ``[B, N, Y]``. Query i need not be x_i. With no demonstration before it, every estimator falls back on
its prior mean (0, or the mean of the pool). Matrix products run at full precision: on a TPU or a recent GPU the default
precision would leave errors far above the risk of a noiseless oracle.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

EXACT = jax.lax.Precision.HIGHEST
NOISELESS_WIDTH = 1e-3
"""Standard deviation of a noiseless likelihood, in units of y, if a posterior needs one."""

_CHUNK = 2**23


def sum_before(terms: jax.Array, axis: int) -> jax.Array:
    """Entry i is the sum of the terms before i: 0 for i = 0. Same shape as `terms`."""
    sums = jax.lax.slice_in_dim(jnp.cumsum(terms, axis), 0, terms.shape[axis] - 1, axis=axis)
    first = jnp.zeros_like(jax.lax.slice_in_dim(terms, 0, 1, axis=axis))
    return jnp.concatenate([first, sums], axis)


def least_squares(x: jax.Array, y: jax.Array, queries: jax.Array) -> jax.Array:
    """Minimum-norm least squares, ``w = pinv(X_<i) y_<i``, by singular values.

    Noiseless, with x ~ N(0, I_d) and w isotropic, its risk is ``max(0, 1 - i/d)`` of the prior risk. Singular values
    below ``10 max(N, X) eps`` of the greatest count as zero, so demonstrations that span a subspace only up to rounding
    are safe.
    """
    cut = 10 * max(x.shape[1:]) * jnp.finfo(x.dtype).eps

    def invert(s_BR: jax.Array) -> jax.Array:
        kept_BR = s_BR > cut * s_BR.max(-1, keepdims=True)
        return jnp.where(kept_BR, 1 / jnp.where(kept_BR, s_BR, 1), 0)

    return _by_singular_values(x, y, queries, invert)


def ridge(x: jax.Array, y: jax.Array, queries: jax.Array, lam: float) -> jax.Array:
    """``w = (X'X + lam I)^-1 X'y``, without intercept, lam > 0.

    The posterior mean for ``lam = noise variance / prior variance of each weight``.
    """
    return _by_singular_values(x, y, queries, lambda s_BR: s_BR / (jnp.square(s_BR) + lam))


def averaging(x: jax.Array, y: jax.Array, queries: jax.Array) -> jax.Array:
    """``w = mean of y_j x_j``. Noiseless and isotropic in d dimensions, its risk is ``(d + 1)/i`` of the prior risk."""
    counts_N = jnp.maximum(jnp.arange(x.shape[1]), 1)
    w_BNXY = sum_before(x[..., None] * y[:, :, None], axis=1) / counts_N[None, :, None, None]
    return (queries[..., None] * w_BNXY).sum(2)


def discrete_mmse(
    x: jax.Array, y: jax.Array, queries: jax.Array, pool: jax.Array, noise: float | jax.Array
) -> jax.Array:
    """Posterior mean of w.x' if w is one of a finite pool, equally likely (Raventos et al. 2023).

    pool: the tasks, ``[Z, X]``.
    noise: standard deviation of the Gaussian likelihood, at least `NOISELESS_WIDTH`.

    One answer: Y = 1. Prompts are taken a few at a time, so memory stays near ``N Z`` numbers for each.
    """
    width = jnp.maximum(noise, NOISELESS_WIDTH)

    def one_prompt(pairs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        x_NX, y_N1, queries_NX = pairs
        error_NZ = y_N1 - jnp.matmul(x_NX, pool.T, precision=EXACT)
        posterior_NZ = jax.nn.softmax(sum_before(-0.5 * jnp.square(error_NZ / width), axis=0), axis=-1)
        return (posterior_NZ * jnp.matmul(queries_NX, pool.T, precision=EXACT)).sum(-1, keepdims=True)

    return map_prompts(one_prompt, (x, y, queries), x.shape[1] * pool.shape[0])


def map_prompts(function: Callable, arrays: tuple[jax.Array, ...], size: int) -> jax.Array:
    """``vmap`` over prompts, a few at a time, so that `size` numbers for each stay within 32 MiB."""
    together = max(1, min(arrays[0].shape[0], _CHUNK // size))
    return jax.lax.map(function, arrays, batch_size=together)


def _by_singular_values(
    x_BNX: jax.Array, y_BNY: jax.Array, queries_BNX: jax.Array, gain: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Predictions of ``w = V gain(S) U'y``, with ``U S V'`` the demonstrations before each query.

    Not by the normal equations: in float32 their squared condition number costs the minimum norm near i = X.
    """
    index_N = jnp.arange(x_BNX.shape[1])

    def at(i: jax.Array) -> jax.Array:
        seen_N11 = (index_N < i)[None, :, None]
        u_BNR, s_BR, v_BRX = jnp.linalg.svd(jnp.where(seen_N11, x_BNX, 0), full_matrices=False)
        shares_BRY = jnp.einsum("bnr,bny->bry", u_BNR, jnp.where(seen_N11, y_BNY, 0), precision=EXACT)
        w_BXY = jnp.einsum("brx,bry->bxy", v_BRX, gain(s_BR)[..., None] * shares_BRY, precision=EXACT)
        return (queries_BNX[:, i, :, None] * w_BXY).sum(1)

    return jnp.moveaxis(jax.lax.map(at, index_N), 0, 1)
