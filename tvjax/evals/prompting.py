"""What one set of prompts shows of a model: its ICL curve, its task vectors, and TVP at every layer in one program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.nn.decoder import Decoder
from tvjax.nn.model import forward
from tvjax.tasks import Layout, ShiftedPrompts, Task
from tvjax.vectors import tvp

Scores = dict[str, jax.Array]


def layer_sweep(
    decoder: Decoder, params: Any, task: Task, theta_LBD: jax.Array, drawn: ShiftedPrompts, edit: str
) -> Scores:
    """Scores ``{'risk': [L+1, B], ...}`` of TVP(theta^l, l, x') for l = 0..L: one `vmap` over the edited layer."""

    def one(theta_BD: jax.Array, layer: jax.Array) -> Scores:
        out = tvp.prompt_with(decoder, params, task, drawn.prompt.layout, theta_BD, layer, drawn.fresh_x, edit)
        return task.scores(out[:, None], drawn.fresh_answers[:, None])

    sweep = jax.vmap(one)(theta_LBD, jnp.arange(decoder.config.num_layers + 1))
    return {name: value[:, :, 0] for name, value in sweep.items()}


def packed_mask(layout: Layout, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions ``[1, T]`` and mask ``[1, T, T]`` of a packed prompt: N-1 demonstrations, then N queries side by side.

    Query i takes the positions that it would have after i demonstrations and sees those and itself, nothing else. So
    one pass asks N queries of their own, each as if alone at the end of its prompt.
    """
    period, parts = len(layout.parts), layout.offset + 1
    shown, asked = period * (pairs - 1), parts * pairs
    query = np.arange(asked) // parts
    positions = np.concatenate([np.arange(shown), period * query + np.arange(asked) % parts])
    owner = np.concatenate([np.full(shown, -1), query])
    is_shown = owner == -1
    causal = positions[None, :] <= positions[:, None]
    sees_demonstration = (
        is_shown[None, :] & causal & (is_shown[:, None] | (positions[None, :] < period * owner[:, None]))
    )
    mask = sees_demonstration | (~is_shown[None, :] & (owner[None, :] == owner[:, None]) & causal)
    return positions[None], mask[None]


def predict(decoder: Decoder, params: Any, task: Task, drawn: ShiftedPrompts) -> tuple[jax.Array, jax.Array]:
    """Predictions ``[B, N, O]`` for query i after i demonstrations, and theta ``[L+1, B, D]`` at the last query."""
    prompt, layout = drawn.prompt, drawn.prompt.layout
    if not drawn.separate:
        out, theta_LBND = tvp.run_prompt(decoder, params, prompt)
        return out, theta_LBND[:, :, -1]
    batch, pairs = drawn.queries.shape[:2]
    period, parts = len(layout.parts), layout.offset + 1
    shown = task.encode(layout, prompt.x, drawn.shown)[:, : period * (pairs - 1)]
    asked = task.zero_shot(layout, drawn.queries.reshape(-1, *drawn.queries.shape[2:]))
    inputs = jnp.concatenate([shown, asked.reshape(batch, -1, *asked.shape[2:])], axis=1)
    positions, mask = (jnp.asarray(a) for a in packed_mask(layout, pairs))
    reads = slice(period * (pairs - 1) + layout.offset, None, parts)
    out, activations = forward(
        decoder, params, inputs, addresses=tvp.STREAM, at=reads, positions_BT=positions, mask_BTT=mask
    )
    return out, tvp.stream_at(activations, reads)[:, :, -1]


def score(decoder: Decoder, params: Any, task: Task, drawn: ShiftedPrompts, edit: str) -> tuple[Scores, jax.Array]:
    """All scores of one member on `drawn`, and its task vectors theta ``[L+1, B, D]``.

    ``icl_*: [B, N]`` by number of demonstrations, ``tvp_*_by_layer: [L+1, B]`` with all demonstrations in theta,
    ``zero_shot_*: [B]``; * is "risk", and "accuracy" for tokens.
    """
    out, theta_LBD = predict(decoder, params, task, drawn)
    found = {f"icl_{name}": value for name, value in task.scores(out, drawn.answers).items()}
    sweep = layer_sweep(decoder, params, task, theta_LBD, drawn, edit)
    found |= {f"tvp_{name}_by_layer": value for name, value in sweep.items()}
    bare = tvp.zero_shot(decoder, params, task, drawn.prompt.layout, drawn.fresh_x)
    blind = task.scores(bare[:, None], drawn.fresh_answers[:, None])
    return found | {f"zero_shot_{name}": value[:, 0] for name, value in blind.items()}, theta_LBD


def prompts_first(scores: Scores) -> Scores:
    """The same scores with the axis of the prompts in front: ``[B, N]``, ``[B, L+1]`` and ``[B]``."""
    return {name: value.T if name.endswith("_by_layer") else value for name, value in scores.items()}
