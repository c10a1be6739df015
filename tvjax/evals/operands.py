"""Which function does a vector hold that was made of few different inputs? The identity margin. [ours]

That function vectors made of demonstrations with few distinct operands pass checks of accuracy and yet hold another
function of the family was reported of a language model (2026, shift-by-k on months). Here it is asked of token
families whose tasks can be listed (`Task.every_task`), so that the function is known. The prompts of a vector draw all
their x from a pool of so many tokens; the vector is then asked every x of its task, zero-shot.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.evals.statistics import with_interval
from tvjax.nn.model import Model
from tvjax.parallel.mesh import compiler_options
from tvjax.tasks import Layout, Parameters, Task
from tvjax.vectors import tvp

POOLS = (12, 9, 6, 4)
"""Numbers of different tokens that the prompts of a vector draw from."""
REPEATS = 8
"""Pools of each size for each task."""
PROMPTS = 16
"""Prompts that a vector is the mean of; an even number, for halves."""
DRAWS = 3
"""The stream of an evaluation's seed; see `probes.DRAWS`."""


def tokens_of(task: Task, every: Parameters, key: jax.Array, vocab_size: int) -> np.ndarray:
    """Which tokens each task is shown with, ``[n, V]`` of bool: those among a great many that it draws."""
    drawn = np.asarray(task.inputs(key, every, 64 * vocab_size))
    return (drawn[:, :, None] == np.arange(vocab_size)).any(1)


def draw_pools(random: np.random.Generator, allowed_NV: np.ndarray, size: int) -> np.ndarray:
    """`REPEATS` pools of `size` different tokens of each task, of those that are allowed: ``[REPEATS, n, size]``."""
    luck = random.random((REPEATS, *allowed_NV.shape)) - allowed_NV
    return np.argsort(luck, axis=-1)[..., :size]


def vectors(
    model: Model, task: Task, layout: Layout, every: Parameters, pool_NS: jax.Array, key: jax.Array, demonstrations: int
) -> jax.Array:
    """Of each task theta at the last queries of `PROMPTS` prompts with x of its pool: ``[L+1, n, PROMPTS, D]``."""
    count, size = pool_NS.shape
    index_key, answer_key = jax.random.split(key)
    rows = {name: jnp.repeat(value, PROMPTS, axis=0) for name, value in every.items()}
    index = jax.random.randint(index_key, (count * PROMPTS, demonstrations + 1), 0, size)
    x = jnp.take_along_axis(jnp.repeat(pool_NS, PROMPTS, axis=0), index, axis=1)
    _, theta_LBND = tvp.run_prompt(model, task.prompt(layout, rows, x, task.answers(answer_key, rows, x)))
    return theta_LBND[:, :, -1].reshape(theta_LBND.shape[0], count, PROMPTS, -1)


def margins(
    model: Model, task: Task, layout: Layout, theta_LND: jax.Array, answers_NV: jax.Array, edit: str
) -> tuple[jax.Array, jax.Array]:
    """The identity margin of each task's vector at each layer and x, and whether it answers right: ``[L+1, n, V]``.

    The margin is P(the task's answer) less the greatest P of the other tasks' answers to the same x that differ.

    answers_NV: of every task to every x.
    """
    tasks, size = answers_NV.shape
    x_B = jnp.tile(jnp.arange(size), tasks)

    def one(theta_ND: jax.Array, layer: jax.Array) -> jax.Array:
        out = tvp.prompt_with(model, task, layout, jnp.repeat(theta_ND, size, axis=0), layer, x_B, edit)
        return out.reshape(tasks, size, -1)

    logits_LNVO = jax.vmap(one)(theta_LND, jnp.arange(len(theta_LND)))
    said_LNVO = jax.nn.softmax(logits_LNVO, axis=-1)
    to_all = jnp.broadcast_to(answers_NV.T[None], (tasks, size, tasks))  # [of, x, by]
    at = jnp.broadcast_to(to_all[None], (len(theta_LND), *to_all.shape))
    said_LNVN = jnp.take_along_axis(said_LNVO, at, axis=-1)
    own = jnp.take_along_axis(said_LNVO, jnp.broadcast_to(answers_NV[None, ..., None], at[..., :1].shape), axis=-1)[
        ..., 0
    ]
    rival = jnp.where((to_all == answers_NV[..., None])[None], 0.0, said_LNVN).max(-1)
    return own - rival, logits_LNVO.argmax(-1) == answers_NV[None]


def of_vectors(
    model: Model,
    task: Task,
    layout: Layout,
    every: Parameters,
    pool_NS: jax.Array,
    asked: dict[str, jax.Array],
    key: jax.Array,
    demonstrations: int,
    edit: str,
) -> dict[str, jax.Array]:
    """What is measured of one pool of each task, ``[n, L+1]`` each: see `measure`.

    asked: ``answers`` of every task to every x, and ``allowed``, which x are asked, both ``[n, V]``.
    """
    theta_LNPD = vectors(model, task, layout, every, pool_NS, key, demonstrations)
    inside = (pool_NS[:, :, None] == jnp.arange(asked["allowed"].shape[1])[None, None]).any(1)
    where = {"": asked["allowed"], "_inside": inside, "_outside": asked["allowed"] & ~inside}

    def over(values_LNV: jax.Array, which_NV: jax.Array) -> jax.Array:
        return ((values_LNV * which_NV[None]).sum(-1) / jnp.maximum(which_NV.sum(-1), 1)[None]).T

    found: dict[str, jax.Array] = {}
    for kind, theta_LND in (("", theta_LNPD.mean(2)), ("single_", theta_LNPD[:, :, 0])):
        margin, right = margins(model, task, layout, theta_LND, asked["answers"], edit)
        found[f"{kind}margin_by_layer"] = over(margin, where[""])
        for name, which in where.items():
            found[f"{kind}accuracy{name}_by_layer"] = over(right, which)
    halves = theta_LNPD.reshape(*theta_LNPD.shape[:2], 2, -1, theta_LNPD.shape[-1]).mean(3)
    first, second = halves[:, :, 0], halves[:, :, 1]
    lengths = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(second, axis=-1)
    found["split_half_by_layer"] = ((first * second).sum(-1) / jnp.maximum(lengths, 1e-30)).T
    return found


def measure(
    model: Model,
    task: Task,
    layout: Layout,
    demonstrations: int,
    *,
    edit: str,
    seed: int,
    pools: Sequence[int] = POOLS,
) -> list[dict[str, Any]]:
    """By the size of the pools, ``{"12": {..}, ..}`` of each member; {} for a family whose tasks cannot be listed.

    ``margin_by_layer [L+1]``: the identity margin of the mean of theta over `PROMPTS` prompts, over all x of the task.
    ``accuracy_by_layer``, ``accuracy_inside_by_layer``, ``accuracy_outside_by_layer``: its answers to all x, to those
    of the pool, and to the others. ``single_...``: the same of theta of one prompt. ``split_half_by_layer``: the cosine
    of the means over the two halves of the prompts. All are means over tasks and pools, with 90% bootstrap intervals.

    model: its parameters lead with the member axis.
    pools: numbers of different tokens; those of which a task has fewer are left out.
    """
    every = task.every_task()
    members = len(jax.tree.leaves(model.params)[0])
    if every is None:
        return [{} for _ in range(members)]
    clean = dataclasses.replace(task, noise=0.0) if getattr(task, "noise", 0.0) else task  # type: ignore[call-arg]
    size = task.decoder_inputs()["num_outputs"]
    token_key, answer_key, prompt_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), DRAWS), 3)
    allowed = tokens_of(task, every, token_key, size)
    grid = jnp.broadcast_to(jnp.arange(size), allowed.shape)
    asked = {"answers": clean.answers(answer_key, every, grid), "allowed": jnp.asarray(allowed)}

    def program(model: Model, pool_RNS: jax.Array, keys: jax.Array) -> dict[str, jax.Array]:
        """Of each member, ``[M, R, n, L+1]``."""

        def member(model: Model) -> dict[str, jax.Array]:
            args = (model, task, layout, every)
            rest = (demonstrations, edit)
            one = lambda drawn: of_vectors(*args, drawn[0], asked, drawn[1], *rest)  # noqa: E731
            return jax.lax.map(one, (pool_RNS, keys))

        return jax.vmap(member, spmd_axis_name="member")(model)

    jitted = jax.jit(program, compiler_options=compiler_options())
    entries: list[dict[str, Any]] = [{} for _ in range(members)]
    for pool in pools:
        if pool > int(allowed.sum(1).min()):
            continue
        random = np.random.default_rng([seed, pool])
        keys = jax.random.split(jax.random.fold_in(prompt_key, pool), REPEATS)
        found = jax.device_get(jitted(model.bare, jnp.asarray(draw_pools(random, allowed, pool)), keys))
        for m, entry in enumerate(entries):
            entry[str(pool)] = {
                k: v
                for name, values in found.items()
                for k, v in with_interval(name, values[m].reshape(-1, values.shape[-1])).items()
            }
    return entries
