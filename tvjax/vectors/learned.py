"""A vector that is learned: gradient descent on the answers of a task's own zero-shot prompts, the model frozen."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from tvjax.nn.answers import Questions, from_last, risk
from tvjax.nn.decoder import Past, rows_of
from tvjax.nn.model import Model, cut
from tvjax.vectors.above import states
from tvjax.vectors.edits import edit_at, merge
from tvjax.vectors.from_prompts import at_last

CUTS = 5
"""Places at which a model is cut for learning: so many programs at most, for vectors at any layer."""


def lowest(layer: int, num_layers: int) -> int:
    """The layer that a model is cut at to learn a vector at `layer`: the next one down."""
    step = -(-num_layers // CUTS)
    return min(layer, num_layers - 1) // step * step


def upper(model: Model, start: int) -> Model:
    """The blocks above layer `start` (0: all) with the readout, bare, for `learn`."""
    return cut(model, start)[1] if start else model.bare


@jax.jit
def learn(
    model: Model,
    above: Model,
    q: Questions,
    rows: jax.Array,
    rate: jax.Array,
    decay: jax.Array,
    first_D: jax.Array,
    layers_L: jax.Array,
) -> jax.Array:
    """For each of `layers_L` (`start`..L) the vector that answers `q` best, added at the last token: ``[L, E, D]``.

    By steps of AdamW, each on the mean risk of the prompts in its row of `rows`; the layers side by side, each with a
    vector of its own, as it stands after each of E epochs (Yang, Cho, Ding and Inoue 2026, arXiv 2509.24169).

    model: a bare one.
    above: its `upper` blocks, those above `start`, which alone are run in a step.
    rows: the prompts of each step, ``[E, steps, B]``.
    rate, decay: of AdamW.
    first_D: the vector before the first step, at every layer.
    layers_L: the numbers of the layers.
    """
    start = model.config.num_layers - above.config.num_layers
    past, q = from_last(model, q)  # what stands before the vector never changes
    h_BAD = states(model, past, q)[0][start]
    past = Past(past.keys[start:], past.values[start:], past.positions_BS)
    length = q.tokens.ids_BT.shape[1]
    optimizer = optax.adamw(rate, weight_decay=decay)

    def loss(vector_D: jax.Array, layer: jax.Array, drawn: Questions, seen: Past, h_BAD: jax.Array) -> jax.Array:
        tree = merge(
            edit_at("embed", h_BAD), at_last(above.config, vector_D, layer - start, drawn.last_B, length, keep=1.0)
        )
        return risk(above, drawn, tree, seen).mean()

    def step(state: tuple[jax.Array, Any], row_B: jax.Array) -> tuple[tuple[jax.Array, Any], None]:
        vectors_LD, moments = state
        drawn, seen = jax.tree.map(lambda a: a[row_B], q), rows_of(past, row_B)
        slope = jax.vmap(jax.grad(loss), in_axes=(0, 0, None, None, None))
        gradient_LD = slope(vectors_LD, layers_L, drawn, seen, h_BAD[row_B])
        updates, moments = optimizer.update(gradient_LD, moments, vectors_LD)
        return (optax.apply_updates(vectors_LD, updates), moments), None

    def epoch(state: tuple[jax.Array, Any], rows: jax.Array) -> tuple[tuple[jax.Array, Any], jax.Array]:
        state, _ = jax.lax.scan(step, state, rows)
        return state, state[0]

    first_LD = jnp.broadcast_to(first_D, (len(layers_L), *first_D.shape))
    _, vectors_ELD = jax.lax.scan(epoch, (first_LD, optimizer.init(first_LD)), rows)
    return vectors_ELD.swapaxes(0, 1)
