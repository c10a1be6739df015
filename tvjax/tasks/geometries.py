"""How a shift draws x: for the demonstrations, for the queries, and one fresh query a prompt.

Each takes (task, key, parameters, pairs) and gives `Inputs`. Each starts from the family's own `inputs` and changes
them as its docstring says. The definitions follow Garg et al. (2022) in spirit; a choice that they leave is ours
[ours].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tvjax.tasks.base import Parameters, Task
from tvjax.tasks.oracles import EXACT


class Inputs(NamedTuple):
    """What a shift draws.

    x: of the demonstrations, ``[B, N, X]`` or ``[B, N]``.
    queries: of the same shape; query i follows the first i demonstrations.
    fresh: one more query a prompt, ``[B, X]`` or ``[B]``, from the distribution of its queries.
    """

    x: jax.Array
    queries: jax.Array
    fresh: jax.Array


Geometry = Callable[[Any, jax.Array, Parameters, int], Inputs]


def same(task: Task, key: jax.Array, parameters: Parameters, pairs: int) -> Inputs:
    """The family's own inputs; the queries are x itself."""
    x_key, fresh_key = jax.random.split(key)
    x = task.inputs(x_key, parameters, pairs)
    return Inputs(x, x, task.inputs(fresh_key, parameters, 1)[:, 0])


def skewed(task: Task, key: jax.Array, parameters: Parameters, pairs: int) -> Inputs:
    """Covariance with eigenvalues in proportion to 1/i, i = 1..X, the trace kept, rotated at random for each prompt.

    The queries are x itself. [ours: Garg et al. use 1/i^2.]
    """
    x_key, rotation_key = jax.random.split(key)
    z_BNX = task.inputs(x_key, parameters, pairs + 1)
    width = z_BNX.shape[-1]
    eigenvalues_X = 1 / jnp.arange(1, width + 1)
    eigenvalues_X *= width / eigenvalues_X.sum()
    rotation_BXX = _rotations(rotation_key, len(z_BNX), width)
    x_BNX = jnp.einsum("bnr,bxr->bnx", z_BNX * jnp.sqrt(eigenvalues_X)[None, None], rotation_BXX, precision=EXACT)
    return Inputs(x_BNX[:, :-1], x_BNX[:, :-1], x_BNX[:, -1])


def half_subspace(task: Task, key: jax.Array, parameters: Parameters, pairs: int) -> Inputs:
    """Demonstrations projected on a random subspace of floor(X/2) dimensions, one a prompt; queries as in training.

    [ours] The projection keeps the scale within the subspace, so x has floor(X/2)/X of the power of training.
    """
    z_BNX, raw_BNX, basis_BXX, half = _halves(task, key, parameters, pairs)
    return Inputs(_project(z_BNX, basis_BXX[..., :half]), raw_BNX[:, :-1], raw_BNX[:, -1])


def orthogonal_query(task: Task, key: jax.Array, parameters: Parameters, pairs: int) -> Inputs:
    """Demonstrations projected on a random subspace of floor(X/2) dimensions, queries on its orthogonal complement.

    [ours] So the shift is defined for any number of demonstrations. Demonstrations say nothing of the answers: the best
    prediction is the prior mean, and the prior risk is ceil(X/2)/X of that of isotropic queries.
    """
    z_BNX, raw_BNX, basis_BXX, half = _halves(task, key, parameters, pairs)
    queries_BNX = _project(raw_BNX, basis_BXX[..., half:])
    return Inputs(_project(z_BNX, basis_BXX[..., :half]), queries_BNX[:, :-1], queries_BNX[:, -1])


def quadrants(task: Task, key: jax.Array, parameters: Parameters, pairs: int) -> Inputs:
    """Demonstrations in one random orthant of each prompt, queries in the opposite one, its negation.

    [ours] Garg et al. draw queries from anywhere, seldom from the same orthant.
    """
    x_key, query_key, sign_key = jax.random.split(key, 3)
    x_BNX = task.inputs(x_key, parameters, pairs)
    sign_B1X = jax.random.rademacher(sign_key, (len(x_BNX), 1, x_BNX.shape[-1]), x_BNX.dtype)
    queries_BNX = -sign_B1X * jnp.abs(task.inputs(query_key, parameters, pairs + 1))
    return Inputs(sign_B1X * jnp.abs(x_BNX), queries_BNX[:, :-1], queries_BNX[:, -1])


def repeated_query(task: Task, key: jax.Array, parameters: Parameters, pairs: int) -> Inputs:
    """Query i is one of the i demonstrations before it, drawn uniformly; query 0 is x_0.

    The fresh query is one of all ``N - 1`` demonstrations, drawn apart from the last query.
    """
    x_key, index_key, fresh_key = jax.random.split(key, 3)
    x = task.inputs(x_key, parameters, pairs)
    before_N = jnp.maximum(jnp.arange(pairs), 1)
    index_BN = jax.random.randint(index_key, (len(x), pairs), 0, before_N[None])
    fresh_B = jax.random.randint(fresh_key, (len(x),), 0, max(pairs - 1, 1))
    rows_B = jnp.arange(len(x))
    return Inputs(x, x[rows_B[:, None], index_BN], x[rows_B, fresh_B])


def held_out_pairs(task: Any, key: jax.Array, parameters: Parameters, pairs: int) -> Inputs:
    """Demonstrations as in training, queries from the x that are never shown with the prompt's task."""
    x_key, query_key = jax.random.split(key)
    queries = task.held_out_inputs(query_key, parameters, pairs + 1)
    return Inputs(task.inputs(x_key, parameters, pairs), queries[:, :-1], queries[:, -1])


def _halves(
    task: Task, key: jax.Array, parameters: Parameters, pairs: int
) -> tuple[jax.Array, jax.Array, jax.Array, int]:
    """Raw demonstrations, raw queries and the fresh one, an orthonormal basis for each prompt, and half its size."""
    x_key, query_key, basis_key = jax.random.split(key, 3)
    z_BNX = task.inputs(x_key, parameters, pairs)
    batch, _, width = z_BNX.shape
    return z_BNX, task.inputs(query_key, parameters, pairs + 1), _rotations(basis_key, batch, width), width // 2


def _rotations(key: jax.Array, batch: int, width: int) -> jax.Array:
    """Orthonormal columns in random directions, ``[B, X, X]``.

    Their signs are not uniform; no use here depends on them.
    """
    return jnp.linalg.qr(jax.random.normal(key, (batch, width, width)))[0]


def _project(x_BNX: jax.Array, basis_BXR: jax.Array) -> jax.Array:
    shares_BNR = jnp.einsum("bnx,bxr->bnr", x_BNX, basis_BXR, precision=EXACT)
    return jnp.einsum("bnr,bxr->bnx", shares_BNR, basis_BXR, precision=EXACT)
