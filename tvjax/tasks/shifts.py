"""Shifts: prompts unlike those of training, after Garg et al. (2022) or, if need be, of our definition [ours].

A shift changes one thing about how prompts are drawn: the task, x, the answers that are shown, or the number of pairs.
`shifts_for` lists the shifts that a family can have. `draw` draws from a shift. `NO_SHIFT` is the training
distribution.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tvjax.tasks import geometries
from tvjax.tasks.base import RealTask, Task
from tvjax.tasks.geometries import Geometry
from tvjax.tasks.prompt import Layout, Prompt

REAL_LABEL_NOISE = 0.5
"""Standard deviation of the label-noise shift, in units of the family's `answer_rms`."""
TOKEN_LABEL_NOISE = 0.2
"""Share of labels that the label-noise shift replaces by a uniform token, or sign."""


@dataclasses.dataclass(frozen=True)
class Shift:
    """What differs from training. Hashable, so that it can be a static argument.

    geometry: draws x.
    separate: whether the queries are not x.
    input_scale: factor of x; f is asked at the scaled x.
    output_scale: factor of f(x).
    noisy: whether the labels shown are corrupted.
    lengthened: factor of the number of demonstrations.
    held_out: whether the tasks are the held-out ones.
    """

    name: str
    summary: str
    geometry: Geometry = geometries.same
    separate: bool = False
    input_scale: float = 1.0
    output_scale: float = 1.0
    noisy: bool = False
    lengthened: int = 1
    held_out: bool = False

    def added_noise(self, task: Task) -> float:
        """Noise of the shown labels beyond the family's own: a standard deviation, or for labels a probability."""
        if not self.noisy:
            return 0.0
        if isinstance(task, RealTask) and not task.has_labels:
            return REAL_LABEL_NOISE * task.answer_rms
        return TOKEN_LABEL_NOISE


@struct.dataclass
class ShiftedPrompts:
    """Prompts of a shift, with their queries and answers.

    prompt: its N pairs are the demonstrations.
    shown: their answers as the prompt's inputs show them, ``[B, N, Y]`` or ``[B, N]``; they differ from prompt.targets
    only if the shift corrupts labels.
    queries: ``[B, N, X]`` or ``[B, N]``; query i is asked after the first i demonstrations.
    answers: f(queries), ``[B, N, Y]`` or ``[B, N]``, with the family's own label noise and no other.
    fresh_x: ``[B, X]`` or ``[B]``, one more query a prompt, for task-vector prompting: from the distribution of the
    queries, independent of them.
    fresh_answers: f(fresh_x), ``[B, Y]`` or ``[B]``.

    separate: whether queries are not prompt.x. If True, an evaluator must put queries[:, i] in the place of x_i, one
    slot at a time. If False, queries are prompt.x and answers are prompt.targets.
    """

    prompt: Prompt
    shown: jax.Array
    queries: jax.Array
    answers: jax.Array
    fresh_x: jax.Array
    fresh_answers: jax.Array
    separate: bool = struct.field(pytree_node=False)


NO_SHIFT = Shift("in_distribution", "as in training")

_SCALES = (("0.33", 1 / 3), ("0.5", 0.5), ("2", 2.0), ("3", 3.0))
_INPUT_SCALES = tuple(Shift(f"input_scale_{name}", f"x times {name}", input_scale=scale) for name, scale in _SCALES)
_OUTPUT_SCALES = tuple(Shift(f"output_scale_{name}", f"y times {name}", output_scale=scale) for name, scale in _SCALES)
_QUADRANTS = Shift(
    "quadrants", "demonstrations in one orthant, queries in the opposite one", geometries.quadrants, separate=True
)
_WIDE = (
    Shift("skewed_covariance", "covariance of x with eigenvalues in proportion to 1/i", geometries.skewed),
    Shift("half_subspace", "demonstrations span half of the input space", geometries.half_subspace, separate=True),
    Shift("orthogonal_query", "queries orthogonal to all demonstrations", geometries.orthogonal_query, separate=True),
)
_SINGLE_INPUT = (
    Shift("repeated_query", "the query is one of the demonstrations", geometries.repeated_query, separate=True),
    Shift("label_noise", "labels shown are noisy, answers asked for are not", noisy=True),
)
_HELD_OUT_PAIRS = Shift(
    "held_out_pairs", "queries never shown with this task", geometries.held_out_pairs, separate=True
)
_LONGER = Shift("more_demonstrations", "twice the demonstrations of training", lengthened=2)
_HELD_OUT_TASKS = Shift("held_out_tasks", "tasks kept out of training", held_out=True)


def shifts_for(task: Task, demonstrations: int, max_pairs: int | None = None) -> tuple[Shift, ...]:
    """The shifts that apply to a family trained on `demonstrations`, `NO_SHIFT` not among them.

    max_pairs: the most pairs (demonstrations and the last query) that the decoder has positions for; None: no limit.

    Shifts of x's geometry need real inputs; subspaces need two input dimensions. Scaled answers must not be labels.
    Shifts of one query or one label need a family whose answer depends on one x (regression, token offset). Held-out
    shifts need a split.
    """
    shifts: list[Shift] = []
    if isinstance(task, RealTask):
        shifts += (*_INPUT_SCALES, *(() if task.has_labels else _OUTPUT_SCALES), _QUADRANTS)
        shifts += _WIDE if task.input_width >= 2 else ()
    if task.single_input and demonstrations:
        shifts += _SINGLE_INPUT
    limits = [limit for limit in (max_pairs, task.pair_limit()) if limit is not None]
    if demonstrations and all(_LONGER.lengthened * demonstrations + 1 <= limit for limit in limits):
        shifts.append(_LONGER)
    if task.has_held_out:
        shifts.append(_HELD_OUT_TASKS)
    if task.has_held_out_pairs:
        shifts.append(_HELD_OUT_PAIRS)
    return tuple(shifts)


def draw(shift: Shift, task: Task, layout: Layout, key: jax.Array, batch: int, demonstrations: int) -> ShiftedPrompts:
    """Prompts of a shift, for a model trained on `demonstrations`: ``N = shift.lengthened * demonstrations + 1`` pairs.

    Pure in key; everything else but the key is static under jit.
    """
    task_key, x_key, shown_key, answer_key, fresh_key, noise_key = jax.random.split(key, 6)
    parameters = task.parameters(task_key, batch, held_out=shift.held_out)
    inputs = shift.geometry(task, x_key, parameters, shift.lengthened * demonstrations + 1)
    x, queries, fresh_x = (_scale(values, shift.input_scale) for values in inputs)

    def ask(key: jax.Array, x: jax.Array) -> jax.Array:
        return _scale(task.answers(key, parameters, x), shift.output_scale)

    targets = ask(shown_key, x)
    noise = shift.added_noise(task)
    shown = task.corrupt(noise_key, targets, noise) if noise else targets
    return ShiftedPrompts(
        prompt=dataclasses.replace(task.prompt(layout, parameters, x, shown), targets=targets),
        shown=shown,
        queries=queries,
        answers=ask(answer_key, queries) if shift.separate else targets,
        fresh_x=fresh_x,
        fresh_answers=ask(fresh_key, fresh_x[:, None])[:, 0],
        separate=shift.separate,
    )


def oracle_knows(shift: Shift, task: Task) -> dict[str, Any]:
    """The keyword arguments of the family's oracle under `shift`, hashable.

    The oracle knows which tasks there are (training or held out), how noisy the shown labels are and, for held-out
    pairs, that the queries are held out. It does not know scales or the geometry of x. Least squares and ridge need not
    know them. For a sinusoid or a finite pool scaled outputs are impossible, so the oracle fails as a Bayes observer of
    the family would.
    """
    queries: dict[str, Any] = {"held_out_queries": True} if shift.geometry is geometries.held_out_pairs else {}
    return {"noise": shift.added_noise(task), "held_out": shift.held_out, **queries}


def oracle_scores(
    shift: Shift, task: Task, shifted: ShiftedPrompts, oracle: Callable[..., jax.Array] | None = None
) -> dict[str, jax.Array]:
    """Scores of the family's oracle on every query, ``{'risk': [B, N], ...}``; raises UserError if it has none.

    oracle: `task.oracle` compiled, with the arguments of `oracle_knows`.
    """
    oracle = oracle or functools.partial(task.oracle, **oracle_knows(shift, task))
    return task.scores(oracle(shifted.prompt.x, shifted.shown, shifted.queries), shifted.answers)


def reference_scores(
    shift: Shift, task: Task, shifted: ShiftedPrompts, oracle: Callable[..., jax.Array] | None = None
) -> dict[str, jax.Array]:
    """What models are measured against: ``{'oracle_risk': [B, N], 'prior_risk': [B], ...}``.

    oracle: as in `oracle_scores`.

    The prior is the oracle without demonstrations. A family without an oracle has no oracle scores, and its prior
    answers 0, the mean (`Task.centred`).
    """
    if task.has_oracle:
        scores = oracle_scores(shift, task, shifted, oracle)
        oracle_parts = {f"oracle_{name}": value for name, value in scores.items()}
    else:
        scores, oracle_parts = task.scores(jnp.zeros_like(shifted.answers), shifted.answers), {}
    return oracle_parts | {f"prior_{name}": value[:, 0] for name, value in scores.items()}


def _scale(values: jax.Array, factor: float) -> jax.Array:
    return values if factor == 1 else values * factor
