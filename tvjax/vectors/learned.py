"""A vector that is learned: gradient descent on the answers of a task's own zero-shot prompts, the model frozen."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tvjax.nn.answers import Questions, from_last, risk
from tvjax.nn.decoder import Decoder, Past, rows_of
from tvjax.vectors.from_prompts import at_last


@functools.partial(jax.jit, static_argnums=0)
def learn(
    decoder: Decoder, params: Any, q: Questions, rows_SB: jax.Array, rate: jax.Array, layers_N: jax.Array
) -> jax.Array:
    """For each of `layers_N` (0..L) the vector, ``[N, D]``, that answers `q` best when it is added at the last token.

    From zero by S steps of Adam at `rate`, each on the mean risk of the prompts in its row of `rows_SB`; the layers
    side by side, each with a vector of its own. [ours: what vectors read from states are to be compared with]
    """
    past, q = from_last(decoder, params, q)  # what stands before the vector never changes
    length = q.tokens.ids_BT.shape[1]
    optimizer = optax.adam(rate)

    def loss(vector_D: jax.Array, layer: jax.Array, drawn: Questions, seen: Past) -> jax.Array:
        edits = at_last(decoder, vector_D, layer, drawn.last_B, length, keep=1.0)
        return risk(decoder, params, drawn, edits, seen).mean()

    def step(state: tuple[jax.Array, Any], row_B: jax.Array) -> tuple[tuple[jax.Array, Any], None]:
        vectors_ND, moments = state
        drawn, seen = jax.tree.map(lambda a: a[row_B], q), rows_of(past, row_B)
        gradient_ND = jax.vmap(jax.grad(loss), in_axes=(0, 0, None, None))(vectors_ND, layers_N, drawn, seen)
        updates, moments = optimizer.update(gradient_ND, moments)
        return (optax.apply_updates(vectors_ND, updates), moments), None

    start = jnp.zeros((len(layers_N), decoder.config.width))
    (vectors_ND, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), rows_SB)
    return vectors_ND
