"""Task-vector prompting: read theta where the demonstrations end, write it into a zero-shot prompt, and its loss.

Yang et al. (2025) describe the TVP-loss; their code is not public. The definitions here are ours
(docs/definitions.md): theta_i^l = h^l at query i, TVP(theta, l, x') = the answer of the zero-shot prompt [x', z] with
h^l at z replaced by theta, and the loss is the mean of loss(TVP(theta_i, l*, x'_i), f(x'_i)) over i in S.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tvjax.nn.model import Model, cut, forward
from tvjax.settings import setting
from tvjax.tasks.base import Task
from tvjax.tasks.prompt import Layout, Prompt
from tvjax.vectors import edits
from tvjax.vectors.packed import answers_at, run_packed

STREAM = ("embed", "blocks/resid")
EXTRA = {"vector": "tvp", "demonstrations": "query"}
"""The name of what is trained beside the ICL loss, by `TVPConfig.answered_from`."""


@dataclasses.dataclass(frozen=True)
class TVPConfig:
    """The choices of the TVP-loss, each a field so that it can be ablated. All are ours."""

    demonstrations: tuple[int, ...] = setting((), "S: numbers of demonstrations after which theta is trained; (): 1..K")
    query: Literal["fresh", "shared"] = setting("fresh", "fresh: an x' for each position in S; shared: one a prompt")
    edit: Literal["replace", "add"] = setting("replace", "theta replaces the state at z, or is added to it: add")
    gradient: bool = setting(True, "whether the gradient flows through theta into its prompt")
    start_step: int = setting(0, "the TVP-loss is off before this step", least=0)
    answered_from: Literal["vector", "demonstrations"] = setting(
        "vector", "vector: the TVP-loss; demonstrations: a control for what it costs, the same x' in the prompt itself"
    )
    schedule: Literal["constant", "up", "down"] = setting(
        "constant", "of tvp_weight, from start_step to the last step: up from 0 to it, or down from it to 0, in a line"
    )

    def share(self, step: jax.Array, steps: int) -> jax.Array:
        """The share of tvp_weight that counts at `step` (from 0) of `steps`, in [0, 1]."""
        along = jnp.clip((step - self.start_step) / max(steps - 1 - self.start_step, 1), 0.0, 1.0)
        share = {"constant": jnp.ones_like(along), "up": along, "down": 1.0 - along}[self.schedule]
        return jnp.where(step >= self.start_step, share, 0.0)


def stream_at(activations: dict[str, jax.Array], positions: slice) -> jax.Array:
    """h^0..h^L at `positions`, ``[L+1, B, N, D]``, from activations at the addresses `STREAM`."""
    embed, resid = activations["embed"][:, positions], activations["blocks/resid"][:, :, positions]
    return jnp.concatenate([embed[None], resid])


def run_prompt(model: Model, prompt: Prompt) -> tuple[jax.Array, jax.Array]:
    """Predictions ``[B, N, O]`` at every query and the states theta ``[L+1, B, N, D]`` there."""
    out, activations = forward(model, prompt.inputs, addresses=STREAM, at=prompt.queries)
    return out, stream_at(activations, prompt.queries)


def prompt_with(
    model: Model,
    task: Task,
    layout: Layout,
    theta_BD: jax.Array,
    layer: Any,
    x_B: jax.Array,
    edit: str = "replace",
    lowest: int = 0,
) -> jax.Array:
    """TVP(theta, l, x'): predictions ``[B, O]`` of the zero-shot prompts of x' with theta written at h^`layer`.

    layer: 0..L, which may be traced, so that one program serves every layer.
    x_B: x', ``[B, X]`` or ``[B]``.
    lowest: a layer that `layer` is known not to lie below saves work: what z held up to there is replaced, so the
        blocks up to there read x' alone.
    """
    inputs, more = task.zero_shot(layout, x_B), {}
    if lowest and edit == "replace" and layout.offset:
        below, model = cut(model, lowest)
        _, activations = forward(below, inputs[:, : layout.offset], addresses=("blocks/resid",))
        h_BTD = jnp.concatenate(
            [activations["blocks/resid"][-1], theta_BD[:, None].astype(activations["blocks/resid"].dtype)], 1
        )
        layer, more = layer - lowest, edits.edit_at("embed", h_BTD)
    return answer_with(model, inputs, theta_BD, layer, edit, more)


def answer_with(
    model: Model,
    inputs: jax.Array,
    theta_BD: jax.Array,
    layer: Any,
    edit: str = "replace",
    more: edits.Tree | None = None,
) -> jax.Array:
    """Predictions ``[B, O]`` at the last position of `inputs`, with theta written there at h^`layer` (may be traced).

    more: what is written at whole addresses, in the place of what stands in the tree for these addresses.
    """
    last = inputs.shape[1] - 1
    tree = edits.affine(
        theta_BD[None, :, None],
        keep=float(edit == "add"),
        at_layer=edits.at_layer(layer, model.config.num_layers),
        at_position=(jnp.arange(last + 1) == last)[None],
    )
    out, _ = forward(model, inputs, edits=tree | (more or {}), at=slice(last, last + 1))
    return out[:, 0]


def zero_shot(model: Model, task: Task, layout: Layout, x_B: jax.Array) -> jax.Array:
    """Predictions ``[B, O]`` of the zero-shot prompts of x', unedited."""
    out, _ = forward(model, task.zero_shot(layout, x_B), at=slice(layout.offset, layout.length(1)))
    return out[:, 0]


def positions(config: TVPConfig, pairs: int) -> tuple[int, ...]:
    """S for prompts of `pairs` pairs: the queries, by number of demonstrations before them, that the loss reads."""
    return config.demonstrations or tuple(range(1, pairs))


def theta_of(config: TVPConfig, theta_LBND: jax.Array, layer: Any) -> jax.Array:
    """The theta ``[B, |S|, D]`` that the loss reads: at entry `layer`, which may be traced, of the queries in S.

    Without `config.gradient` theta is a constant.
    """
    chosen = positions(config, theta_LBND.shape[2])
    if chosen == tuple(range(chosen[0], chosen[-1] + 1)):
        theta_LBSD = theta_LBND[:, :, chosen[0] : chosen[-1] + 1]
    else:
        theta_LBSD = theta_LBND[:, :, jnp.array(chosen)]
    theta_BSD = jax.lax.dynamic_index_in_dim(theta_LBSD, layer, axis=0, keepdims=False)
    return theta_BSD if config.gradient else jax.lax.stop_gradient(theta_BSD)


def tvp_scores(
    model: Model,
    task: Task,
    prompt: Prompt,
    theta_LBND: jax.Array,
    layer: Any,
    queries: tuple[jax.Array, jax.Array],
    config: TVPConfig,
    lowest: int = 0,
) -> dict[str, jax.Array]:
    """Scores ``{'risk': [B, |S|], ...}`` of TVP at `layer` for every position in S: their mean is the TVP-loss.

    queries: those that `draw_queries` drew, and their answers.
    lowest: that of `prompt_with`.
    """
    theta_BSD = theta_of(config, theta_LBND, layer)
    x, y = queries
    flat_theta, flat_x = (a.reshape(-1, *a.shape[2:]) for a in (theta_BSD, x))
    out = prompt_with(model, task, prompt.layout, flat_theta, layer, flat_x, config.edit, lowest)
    return task.scores(out.reshape(*x.shape[:2], -1), y)


def run_with_queries(
    model: Model,
    task: Task,
    prompt: Prompt,
    queries: tuple[jax.Array, jax.Array],
    config: TVPConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The control: predictions ``[B, N, O]`` at the prompt's queries, and scores ``[B, |S|]`` of those of the TVP-loss.

    The x' are those of `tvp_scores`, and each is answered after the demonstrations that its theta would have been made
    of: as many tokens and as many answers, and no vector. [ours]
    """
    x, y = queries
    chosen = positions(config, prompt.x.shape[1])
    out, _ = run_packed(model, task, prompt.layout, prompt.inputs, x, chosen)
    return out[:, prompt.queries], task.scores(out[:, answers_at(prompt.layout, prompt.inputs.shape[1])], y)


def draw_queries(
    task: Task, prompt: Prompt, key: jax.Array, config: TVPConfig, active_X: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """An x' for each position in S, and its answer."""
    count = len(positions(config, prompt.x.shape[1]))
    x, y = task.draw_pairs(key, prompt.parameters, count if config.query == "fresh" else 1, active_X)
    if config.query == "shared":
        x, y = jnp.repeat(x, count, axis=1), jnp.repeat(y, count, axis=1)
    return x, y
