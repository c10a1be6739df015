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
    layers_L: jax.Array,
) -> jax.Array:
    """For each of `layers_L` (`start`..L) the vector, ``[L, D]``, that answers `q` best, added at the last token.

    From zero by steps of Adam, each on the mean risk of the prompts in its row of `rows`; the layers side by side, each
    with a vector of its own. [ours: what vectors read from states are to be compared with]

    model: a bare one.
    above: its `upper` blocks, those above `start`, which alone are run in a step.
    rows: the prompts of each step, ``[steps, B]``.
    rate: of Adam.
    layers_L: the numbers of the layers.
    """
    start = model.config.num_layers - above.config.num_layers
    past, q = from_last(model, q)  # what stands before the vector never changes
    h_BAD = states(model, past, q)[0][start]
    past = Past(past.keys[start:], past.values[start:], past.positions_BS)
    length = q.tokens.ids_BT.shape[1]
    optimizer = optax.adam(rate)

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
        updates, moments = optimizer.update(gradient_LD, moments)
        return (optax.apply_updates(vectors_LD, updates), moments), None

    zero_LD = jnp.zeros((len(layers_L), model.config.width))
    (vectors_LD, _), _ = jax.lax.scan(step, (zero_LD, optimizer.init(zero_LD)), rows)
    return vectors_LD
