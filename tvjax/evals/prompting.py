"""What one set of prompts shows of a model: its ICL curve, its task vectors, and TVP at every layer in one program."""

import jax
import jax.numpy as jnp

from tvjax.nn.model import Model
from tvjax.tasks import ShiftedPrompts, Task
from tvjax.vectors import tvp
from tvjax.vectors.packed import answers_at, run_packed

Scores = dict[str, jax.Array]


def layer_sweep(model: Model, task: Task, theta_LBD: jax.Array, drawn: ShiftedPrompts, edit: str) -> Scores:
    """Scores ``{'risk': [L+1, B], ...}`` of TVP(theta^l, l, x') for l = 0..L: one `vmap` over the edited layer."""

    def one(theta_BD: jax.Array, layer: jax.Array) -> Scores:
        out = tvp.prompt_with(model, task, drawn.prompt.layout, theta_BD, layer, drawn.fresh_x, edit)
        return task.scores(out[:, None], drawn.fresh_answers[:, None])

    sweep = jax.vmap(one)(theta_LBD, jnp.arange(model.config.num_layers + 1))
    return {name: value[:, :, 0] for name, value in sweep.items()}


def predict(model: Model, task: Task, drawn: ShiftedPrompts) -> tuple[jax.Array, jax.Array]:
    """Predictions ``[B, N, O]`` for query i after i demonstrations, and theta ``[L+1, B, D]`` at the last query."""
    prompt, layout = drawn.prompt, drawn.prompt.layout
    if not drawn.separate:
        out, theta_LBND = tvp.run_prompt(model, prompt)
        return out, theta_LBND[:, :, -1]
    pairs = prompt.x.shape[1]
    shown = task.encode(layout, prompt.x, drawn.shown)[:, : len(layout.parts) * (pairs - 1)]
    out, activations = run_packed(model, task, layout, shown, drawn.queries, range(pairs), addresses=tvp.STREAM)
    reads = answers_at(layout, shown.shape[1])
    return out[:, reads], tvp.stream_at(activations, reads)[:, :, -1]


def score(model: Model, task: Task, drawn: ShiftedPrompts, edit: str) -> tuple[Scores, jax.Array]:
    """All scores of one member on `drawn`, and its task vectors theta ``[L+1, B, D]``.

    ``icl_*: [B, N]`` by number of demonstrations, ``tvp_*_by_layer: [L+1, B]`` with all demonstrations in theta,
    ``zero_shot_*: [B]``; * is "risk", and "accuracy" for tokens.
    """
    out, theta_LBD = predict(model, task, drawn)
    scores = {f"icl_{name}": value for name, value in task.scores(out, drawn.answers).items()}
    sweep = layer_sweep(model, task, theta_LBD, drawn, edit)
    scores |= {f"tvp_{name}_by_layer": value for name, value in sweep.items()}
    bare = tvp.zero_shot(model, task, drawn.prompt.layout, drawn.fresh_x)
    blind = task.scores(bare[:, None], drawn.fresh_answers[:, None])
    return scores | {f"zero_shot_{name}": value[:, 0] for name, value in blind.items()}, theta_LBD


def prompts_first(scores: Scores) -> Scores:
    """The same scores with the axis of the prompts in front: ``[B, N]``, ``[B, L+1]`` and ``[B]``."""
    return {name: value.T if name.endswith("_by_layer") else value for name, value in scores.items()}
