"""Probes of task vectors: can the task be read from theta, does theta hold its dummy query too, whose answer does it
give in another prompt, what does a mix of two say, and which map does it carry? [ours]

theta^l is h^l at the last query after K demonstrations; that query is a dummy, its answer is never shown. P prompts, S
dummy queries, M members. Prompt by prompt, B is a prompt of another task than A's.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.evals import geometry, prompting
from tvjax.evals.statistics import with_interval
from tvjax.nn.model import Model, forward
from tvjax.parallel.mesh import compiler_options
from tvjax.tasks import NO_SHIFT, Layout, Prompt, RealTask, ShiftedPrompts, StringTask, Task, draw
from tvjax.vectors import tvp
from tvjax.vectors.packed import answers_at, run_packed

DUMMIES = 8
AVERAGES = (1, 2, 4, 8)
"""Over how many dummy queries theta is averaged."""
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""alpha in alpha theta_A + (1 - alpha) theta_B."""
QUERIES = 8
"""Fresh x' for each input dimension from whose answers a map is fitted."""
DRAWS = 2
"""The stream of an evaluation's seed that the probes draw from; training evaluates on 0 and `Measure` on 1."""
CHUNK = 64
"""Prompts that are probed at once: a whole prompt is run for every layer, so that fewer fit than in an evaluation."""

Scores = dict[str, jax.Array]


def after_dummies(model: Model, task: Task, prompt: Prompt, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Answers ``[B, S, O]`` to dummy queries, each at the end of the same demonstrations, and theta ``[L+1, B, S, D]``.

    queries: ``[B, S, X]`` or ``[B, S]``. The last query of `prompt` itself is not used.
    """
    demonstrations = prompt.x.shape[1] - 1
    shown = prompt.inputs[:, : len(prompt.layout.parts) * demonstrations]
    counts = (demonstrations,) * queries.shape[1]
    out, states = run_packed(model, task, prompt.layout, shown, queries, counts, tvp.STREAM)
    reads = answers_at(prompt.layout, shown.shape[1])
    return out[:, reads], tvp.stream_at(states, reads)


def averaged(model: Model, task: Task, theta_LBSD: jax.Array, drawn: ShiftedPrompts, edit: str) -> Scores:
    """Scores ``{'risk': [U, L+1, B], ...}`` of TVP with the mean of the first n of theta, for each n of `AVERAGES`."""
    means_ULBD = jnp.stack([theta_LBSD[:, :, :count].mean(2) for count in AVERAGES])
    return jax.vmap(lambda theta_LBD: prompting.layer_sweep(model, task, theta_LBD, drawn, edit))(means_ULBD)


def swapped(model: Model, inputs: jax.Array, theta_LBD: jax.Array, edit: str) -> jax.Array:
    """Answers ``[L+1, B, O]`` at the end of whole prompts, `inputs`, with another's theta^l there at layer l."""
    layers = jnp.arange(model.config.num_layers + 1)
    return jax.vmap(lambda theta_BD, layer: tvp.answer_with(model, inputs, theta_BD, layer, edit))(theta_LBD, layers)


def superposed(
    model: Model,
    task: Task,
    layout: Layout,
    first_BD: jax.Array,
    second_BD: jax.Array,
    layer: Any,
    x: jax.Array,
    edit: str,
) -> jax.Array:
    """Zero-shot answers ``[U, B, O]`` with ``alpha first + (1 - alpha) second`` at `layer`, for alpha in `SHARES`."""

    def one(share: jax.Array) -> jax.Array:
        theta_BD = share * first_BD + (1 - share) * second_BD
        return tvp.prompt_with(model, task, layout, theta_BD, layer, x, edit)

    return jax.vmap(one)(jnp.array(SHARES))


def answered(
    model: Model,
    task: Task,
    layout: Layout,
    theta_BD: jax.Array,
    layer: Any,
    x_BNX: jax.Array,
    edit: str,
) -> jax.Array:
    """TVP's answers ``[B, N, O]`` to N queries of each prompt with its theta at `layer`."""
    count = x_BNX.shape[1]
    flat = (jnp.repeat(theta_BD, count, axis=0), x_BNX.reshape(-1, x_BNX.shape[-1]))
    out = tvp.prompt_with(model, task, layout, flat[0], layer, flat[1], edit)
    return out.reshape(*x_BNX.shape[:2], -1)


def others(parameters: Mapping[str, np.ndarray]) -> np.ndarray:
    """For each prompt the next one, around the end, whose task differs ``[P]`` (any other, if none does)."""
    size = len(next(iter(parameters.values())))
    flat = np.concatenate([np.asarray(p, np.float64).reshape(size, -1) for p in parameters.values()], axis=1)
    ahead = (np.arange(size)[:, None] + np.arange(1, size + 1)[None]) % size
    differs = (flat[ahead] != flat[:, None]).any(-1)
    return ahead[np.arange(size), differs.argmax(1)]


def draw_questions(task: Task, drawn: ShiftedPrompts, key: jax.Array) -> dict[str, Any]:
    """What the probes ask of these prompts, and the right answers: arrays that lead with B, for `run`.

    The first dummy query is the prompt's own last query. A family of strings is asked dummy queries alone: an x of one
    task is none that another task would write. Superpositions are asked for an x' of A in even rows and of B in odd
    rows. Swaps are asked for B's own query in even rows and for an x' of A in its place in odd rows. So neither task is
    favoured if a family holds out pairs of x and task.
    """
    dummy_key, vector_key, prompt_key, first_key, second_key, map_key = jax.random.split(key, 6)
    parameters, x = drawn.prompt.parameters, drawn.prompt.x
    fresh = task.inputs(dummy_key, parameters, DUMMIES - 1)
    questions: dict[str, Any] = {"dummies": jnp.concatenate([x[:, -1:], fresh], axis=1)}
    if isinstance(task, StringTask):
        return questions
    other = others(jax.device_get(parameters))
    theirs = {name: value[other] for name, value in parameters.items()}

    def answer(key: jax.Array, parameters: Any, x: jax.Array) -> jax.Array:
        return task.answers(key, parameters, x[:, None])[:, 0]

    even = (jnp.arange(len(other)) % 2 == 0).reshape(-1, *[1] * (x.ndim - 2))
    swap_x = jnp.where(even, x[other, -1], drawn.fresh_x)
    mix_x = jnp.where(even, drawn.fresh_x, drawn.fresh_x[other])
    questions |= {
        "other": jnp.asarray(other),
        "swap_inputs": task.encode(drawn.prompt.layout, x[other].at[:, -1].set(swap_x), drawn.prompt.targets[other]),
        "swap": {"vector": answer(vector_key, parameters, swap_x), "prompt": answer(prompt_key, theirs, swap_x)},
        "mix_x": mix_x,
        "mix": {"first": answer(first_key, parameters, mix_x), "second": answer(second_key, theirs, mix_x)},
    }
    if isinstance(task, RealTask) and task.num_outputs > 1:
        questions["map_x"] = task.inputs(map_key, parameters, QUERIES * task.input_width)
    return questions


def run(
    model: Model,
    task: Task,
    drawn: ShiftedPrompts,
    asks: dict[str, Any],
    layers: Mapping[str, Any],
    edit: str,
) -> dict[str, Any]:
    """All probes of one member on `drawn`, as arrays that lead with B.

    asks: what `draw_questions` returns for the same prompts.
    layers: ``prescribed`` and ``best``, which may be traced.
    """
    prompt, layout = drawn.prompt, drawn.prompt.layout
    _, theta_LBSD = after_dummies(model, task, prompt, asks["dummies"])
    averages = averaged(model, task, theta_LBSD, drawn, edit)
    arrays: dict[str, Any] = {
        "theta": jnp.moveaxis(theta_LBSD, 0, 2),
        "averaging": {name: jnp.moveaxis(value, 2, 0) for name, value in averages.items()},
    }
    if "other" not in asks:
        return arrays
    other, theta_LBD = asks["other"], theta_LBSD[:, :, 0]
    inputs = asks["swap_inputs"]
    crossed = swapped(model, inputs, theta_LBD, edit)
    uncrossed, _ = forward(model, inputs, at=slice(inputs.shape[1] - 1, inputs.shape[1]))
    arrays["swap"] = {}
    for kind, answers in asks["swap"].items():
        arrays["swap"] |= {f"{kind}_{name}": value for name, value in _scored(task, crossed, answers).items()}
        plain = _scored(task, uncrossed[None, :, 0], answers)
        arrays["swap"] |= {f"unedited_{kind}_{name}": value[:, 0] for name, value in plain.items()}
    of = {name: jnp.take(theta_LBD, layer, axis=0) for name, layer in layers.items()}
    pair = (of["prescribed"], of["prescribed"][other])
    mixes = superposed(model, task, layout, *pair, layers["prescribed"], asks["mix_x"], edit)
    arrays["superposition"] = _mixed(task, mixes, asks["mix"])
    if "map_x" in asks:
        arrays["map"] = {
            name: answered(model, task, layout, of[name], layers[name], asks["map_x"], edit) for name in of
        }
    return arrays


def _scored(task: Task, out_UBO: jax.Array, right: jax.Array, *, each: bool = False) -> Scores:
    """Scores ``{'risk': [B, U], ...}`` of the answers with each vector.

    right: the right answers, the same for all vectors ``[B, ...]``, or if `each`, those of each vector ``[U, B, ...]``.
    """
    one = lambda out_BO, right_B: task.scores(out_BO[:, None], right_B[:, None])  # noqa: E731
    scores = jax.vmap(one, in_axes=(0, 0 if each else None))(out_UBO, right)
    return {name: value[:, :, 0].T for name, value in scores.items()}


def _mixed(task: Task, out_UBO: jax.Array, answers: Mapping[str, jax.Array]) -> Scores:
    """Scores of superpositions against either task and, of real answers, against the mix of the two."""
    scores: Scores = {}
    for kind, right in answers.items():
        scores |= {f"{kind}_{name}": value for name, value in _scored(task, out_UBO, right).items()}
    if isinstance(task, RealTask):
        shares_U11 = jnp.array(SHARES)[:, None, None]
        mixes_UBO = shares_U11 * answers["first"][None] + (1 - shares_U11) * answers["second"][None]
        scores["mixture_risk"] = _scored(task, out_UBO, mixes_UBO, each=True)["risk"]
    return scores


def measure(
    model: Model,
    task: Task,
    layout: Layout,
    demonstrations: int,
    layers: Mapping[str, Any],
    seen: Mapping[str, Any],
    *,
    edit: str,
    prompts: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The probes of a population, one entry of a summary a member, each number beside its 90% bootstrap interval.

    What each entry holds: `entry`.

    model: its parameters lead with the member axis.
    layers: ``prescribed`` and ``best``, each ``[M]``.
    seen: theta ``[M, P, L+1, D]`` and the parameters of its tasks, of the prompts of a `Measure`.
    prompts: how many are drawn for the probes that run the model.
    """

    def members(model: Model, layers: Any, drawn: ShiftedPrompts, asks: Any) -> Any:
        one = lambda model, layers: run(model, task, drawn, asks, layers, edit)  # noqa: E731
        return jax.vmap(one, spmd_axis_name="member")(model, layers)

    program = jax.jit(members, compiler_options=compiler_options())
    traced = {name: jnp.asarray(value) for name, value in layers.items()}
    key, chunks = jax.random.fold_in(jax.random.key(seed), DRAWS), -(-prompts // CHUNK)
    by_chunk: list[Any] = []
    about: list[Any] = []
    for chunk in range(chunks):
        draw_key, ask_key = jax.random.split(jax.random.fold_in(key, chunk))
        # The last chunk may have a prompt or two too many: the same size for all is one program.
        drawn = draw(NO_SHIFT, task, layout, draw_key, -(-prompts // chunks), demonstrations)
        asks = draw_questions(task, drawn, ask_key)
        by_chunk.append(jax.device_get(program(model.bare, traced, drawn, asks)))
        about.append(jax.device_get({"w": drawn.prompt.parameters["w"], "x": asks["map_x"]} if "map_x" in asks else {}))
    arrays = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1)[:, :prompts], *by_chunk)
    tasks = jax.tree.map(lambda *parts: np.concatenate(parts)[:prompts], *about)
    return [
        entry(jax.tree.map(lambda a, m=m: a[m], arrays), tasks)
        | {"decodability": geometry.decodability(seen["theta"][m], seen["parameters"])}
        for m in range(len(seen["theta"]))
    ]


def entry(arrays: Mapping[str, Any], tasks: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What a summary says of what `run` found for one member, all prompts together.

    entanglement: `geometry.entanglement`.
    averaging: TVP ``[counts, L+1]`` with the mean of theta over `counts` dummy queries.
    swap: ``[L+1]`` with theta of A at the end of B's prompt, against A's answer (`vector`) and against B's (`prompt`),
        and the same `unedited`.
    superposition: ``[shares]`` by `shares`, A's part, against A's answer (`first`), B's (`second`) and, of real
        answers, the mix of both.
    rank: `geometry.rank`, if y has several outputs.
    """
    summary: dict[str, Any] = {
        "num_prompts": len(arrays["theta"]),
        "num_dummies": DUMMIES,
        "entanglement": geometry.entanglement(np.moveaxis(arrays["theta"], 2, 0)),
        "averaging": {"counts": list(AVERAGES)},
    }
    if "superposition" in arrays:
        summary |= {"swap": {}, "superposition": {"shares": list(SHARES)}}
    for probe in ("averaging", "swap", "superposition"):
        for name, value in arrays.get(probe, {}).items():
            summary[probe] |= with_interval(name, value)
    if "map" in arrays:
        summary["rank"] = {
            layer: geometry.rank(geometry.linear_map(tasks["x"], answers), tasks["w"])
            for layer, answers in arrays["map"].items()
        }
    return summary
