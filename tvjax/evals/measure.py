"""Measure a trained population on the training distribution and under every shift: the numbers of a summary."""

import functools
from typing import Any

import jax
import numpy as np

from tvjax.evals import prompting
from tvjax.evals.statistics import with_interval
from tvjax.nn.model import Model
from tvjax.tasks import Layout, Shift, ShiftedPrompts, Task, draw, oracle_knows, reference_scores
from tvjax.tasks.trial import check_oracle

CHUNK = 256
"""Prompts that are evaluated at once: what bounds the memory of an evaluation."""


class Measure:
    """Scores a population on prompts of any shift. Shifts of equal shapes share their compiled programs.

    model: its parameters lead with the member axis.
    prompts: P, how many of each shift.
    seed: the same gives every member and every shift the same base draws.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        layout: Layout,
        demonstrations: int,
        *,
        edit: str,
        prompts: int,
        seed: int,
    ):
        self._model, self._task, self._layout, self._demonstrations = model.bare, task, layout, demonstrations
        self._prompts, self._chunks = prompts, -(-prompts // CHUNK)
        self._key = jax.random.fold_in(jax.random.key(seed), 1)
        self._oracles: dict[tuple[Any, ...], Any] = {}

        def score(model: Model, drawn: ShiftedPrompts) -> Any:
            def member(model: Model) -> Any:
                scores, theta_LBD = prompting.score(model, task, drawn, edit)
                return prompting.prompts_first(scores), theta_LBD.swapaxes(0, 1)

            return jax.vmap(member, spmd_axis_name="member")(model)

        self._score = jax.jit(score)

    def __call__(self, shift: Shift) -> tuple[dict[str, Any], dict[str, Any]]:
        """The entry of a summary for `shift`, and what was seen.

        theta ``[M, P, L+1, D]``, parameters ``[P, ...]``, x ``[P, N, X]`` or ``[P, N]`` and the answers shown with it.
        """
        seen = [self._chunk(shift, chunk) for chunk in range(self._chunks)]
        tasks = jax.tree.map(lambda *parts: np.concatenate(parts)[: self._prompts], *(s[0] for s in seen))
        members = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1)[:, : self._prompts], *(s[1] for s in seen))
        entry: dict[str, Any] = {
            "summary": shift.summary,
            "num_demonstrations": tasks["x"].shape[1] - 1,
        }
        for name, value in tasks["references"].items():
            entry |= with_interval(name, value)
        scores, theta = members
        count = next(iter(scores.values())).shape[0]
        entry["members"] = [
            {k: v for name, value in scores.items() for k, v in with_interval(name, value[m]).items()}
            for m in range(count)
        ]
        return entry, {"theta": theta, **{name: tasks[name] for name in ("parameters", "x", "shown")}}

    def _chunk(self, shift: Shift, chunk: int) -> tuple[Any, Any]:
        size = -(-self._prompts // self._chunks)
        key = jax.random.fold_in(self._key, chunk)
        # Not under jit: sixteen shifts would be sixteen slow compilations; one by one, their operations are shared.
        drawn = draw(shift, self._task, self._layout, key, size, self._demonstrations)
        tasks = {
            "parameters": drawn.prompt.parameters,
            "x": drawn.prompt.x,
            "shown": drawn.shown,
            "references": self._references(shift, drawn),
        }
        return jax.device_get((tasks, self._score(self._model, drawn)))

    def _references(self, shift: Shift, drawn: ShiftedPrompts) -> dict[str, jax.Array]:
        """Scores ``[B, N]`` of the oracle, if there is one, and ``[B]`` of the prior."""
        task, knows = self._task, oracle_knows(shift, self._task)
        name = tuple(sorted(knows.items()))
        if name not in self._oracles:
            self._oracles[name] = jax.jit(functools.partial(task.oracle, **knows))

        def oracle(*pairs: jax.Array) -> jax.Array:
            predictions: jax.Array = self._oracles[name](*pairs)
            check_oracle(task, predictions)
            return predictions

        return reference_scores(shift, task, drawn, oracle)
