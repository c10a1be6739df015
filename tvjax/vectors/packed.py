"""Packed prompts: demonstrations once, then queries side by side, each as if alone at the end of its own prompt."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.nn.model import Model, forward
from tvjax.tasks.base import Task
from tvjax.tasks.prompt import Layout


def packed_mask(layout: Layout, shown: int, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions ``[1, T]`` and mask ``[1, T, T]`` of the first `shown` positions of a prompt and the queries behind it.

    A query takes the positions that it would have after its count of demonstrations and sees those and itself, nothing
    else. So one pass asks every query as if it stood at the end of a prompt of its own.
    """
    period, parts = len(layout.parts), layout.offset + 1
    query = np.arange(parts * len(counts)) // parts
    before = period * np.array(counts)[query]  # positions of the demonstrations that a query follows
    positions = np.concatenate([np.arange(shown), before + np.arange(len(query)) % parts])
    owner = np.concatenate([np.full(shown, -1), query])
    limit = np.concatenate([np.full(shown, shown), before])
    is_shown = owner == -1
    causal = positions[None, :] <= positions[:, None]
    sees_demonstration = is_shown[None, :] & causal & (positions[None, :] < limit[:, None])
    mask = sees_demonstration | (~is_shown[None, :] & (owner[None, :] == owner[:, None]) & causal)
    return positions[None], mask[None]


def run_packed(
    model: Model,
    task: Task,
    layout: Layout,
    shown: jax.Array,
    queries: jax.Array,
    counts: Sequence[int],
    addresses: Sequence[str] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Predictions ``[B, T, O]`` and activations at every position: those of `shown`, then those of the queries.

    Where the answers are read: `answers_at`.

    shown: the decoder's inputs of a prompt or its beginning, ``[B, T, ...]``.
    queries: an x for each of `counts`, ``[B, S, X]`` or ``[B, S]``.
    """
    batch, length = shown.shape[:2]
    zero_shot = task.zero_shot(layout, queries.reshape(-1, *queries.shape[2:]))
    inputs = jnp.concatenate([shown, zero_shot.reshape(batch, -1, *zero_shot.shape[2:])], axis=1)
    positions_BT, mask_BTT = (jnp.asarray(a) for a in packed_mask(layout, length, counts))
    return forward(model, inputs, addresses=addresses, positions_BT=positions_BT, mask_BTT=mask_BTT)


def answers_at(layout: Layout, shown: int) -> slice:
    """Where the queries behind `shown` positions are answered."""
    return slice(shown + layout.offset, None, layout.offset + 1)
