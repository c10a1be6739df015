"""Do demonstrations add up? theta of a whole prompt against sums and combinations of theta of each demonstration.

That an n-shot function vector is nearly a linear combination of vectors of the single examples was reported of language
models (Wang et al. 2026, arXiv 2605.16591, of which we could read the abstract alone). Here theta_j is the state at the
same last query after demonstration j alone, theta_K that after all K demonstrations, and theta_0 that after none. What
is made of the theta_j is ours:

- sum: theta_0 + sum_j (theta_j - theta_0)
- mean: sum_j theta_j / K
- weighted: b + sum_j a_j theta_j, with the b and the a_j that fit all prompts best
- best: the same b, with the a_j that fit this one prompt best
- other_sum, other_best: as sum and best, of the demonstrations of another prompt and task; what any vectors get

Fits are made on prompts 0, 2, .., and all is measured on prompts 1, 3, ..: only the a_j of best and other_best are
fitted to what they are measured on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.evals import prompting
from tvjax.evals.probes import others
from tvjax.evals.recovery import explained
from tvjax.evals.statistics import with_interval
from tvjax.nn.model import Model, forward
from tvjax.parallel.mesh import compiler_options
from tvjax.tasks import NO_SHIFT, Layout, Prompt, RealTask, ShiftedPrompts, StringTask, Task, draw
from tvjax.vectors import tvp

WHOLE = "theta"
"""The name of theta_K itself among the combinations."""
DRAWS = 4
"""The stream of an evaluation's seed; see `probes.DRAWS`."""
QUERIES = 32
"""The queries of real x at which the oracle's predictions stand for what is known of the task."""
CUT = 1e-8
"""Second moments of this share of the greatest are rounding, and get no weight."""

States = Mapping[str, Any]
"""``none`` and ``all``, what is held after none and after all of the demonstrations, and ``alone``, after each of them
alone, with one more axis of N demonstrations before the last."""


def states(model: Model, task: Task, prompt: Prompt) -> dict[str, jax.Array]:
    """Theta at the last query: ``none`` and ``all``, ``[L+1, B, D]`` each, and ``alone``, ``[L+1, B, N, D]``."""
    batch, shown = prompt.x.shape[0], prompt.x.shape[1] - 1
    _, all_LBND = tvp.run_prompt(model, prompt)
    at = slice(prompt.layout.offset, prompt.layout.length(1))
    _, bare = forward(model, task.zero_shot(prompt.layout, prompt.x[:, -1]), addresses=tvp.STREAM, at=at)
    x, y = (flat_pairs(values) for values in (prompt.x, prompt.targets))
    rows = {name: jnp.repeat(value, shown, axis=0) for name, value in prompt.parameters.items()}
    _, alone_LBND = tvp.run_prompt(model, task.prompt(prompt.layout, rows, x, y))
    alone = alone_LBND[:, :, -1].reshape(all_LBND.shape[0], batch, shown, -1)
    return {"none": tvp.stream_at(bare, at)[:, :, 0], "alone": alone, "all": all_LBND[:, :, -1]}


def flat_pairs(values: jax.Array) -> jax.Array:
    """Each of a prompt's pairs but the last, with the last behind it: of ``[B, N, ...]`` ``[B (N - 1), 2, ...]``."""
    last = jnp.broadcast_to(values[:, -1:], values[:, :-1].shape)
    return jnp.stack([values[:, :-1], last], axis=2).reshape(-1, 2, *values.shape[2:])


def oracle_states(task: Task, drawn: ShiftedPrompts, key: jax.Array) -> dict[str, jax.Array]:
    """What the oracle predicts at fixed queries, as `states` of one layer: numbers, or probabilities of tokens."""
    x, y = drawn.prompt.x, drawn.prompt.targets
    if isinstance(task, RealTask):
        grid = task.inputs(key, {name: value[:1] for name, value in drawn.prompt.parameters.items()}, QUERIES)[0]
    else:
        grid = jnp.arange(task.decoder_inputs()["num_outputs"])

    def after(x: jax.Array, y: jax.Array) -> jax.Array:
        """The predictions after all pairs but the last, ``[B, D]``."""

        def one(query: jax.Array) -> jax.Array:
            out = task.oracle(x, y, jnp.broadcast_to(query, x.shape))[:, -1]
            return out if isinstance(task, RealTask) else jnp.exp(out)

        return jnp.moveaxis(jax.lax.map(one, grid), 0, 1).reshape(len(x), -1)

    pairs = [jnp.moveaxis(flat_pairs(v).reshape(len(v), -1, 2, *v.shape[2:]), 1, 0) for v in (x, y)]
    alone_NBD = jax.lax.map(lambda pair: after(*pair), tuple(pairs))
    found = {"none": after(x[:, -1:], y[:, -1:]), "alone": alone_NBD.swapaxes(0, 1), "all": after(x, y)}
    return {name: value[None] for name, value in found.items()}


def combinations(states: States, other_P: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Each combination of one layer, ``{name: [P, D]}`` with theta_K as `WHOLE`, and sum_j a_j of `weighted`.

    states: ``none`` and ``all``, ``[P, D]``, and ``alone``, ``[P, N, D]``.
    other_P: for each prompt one of another task.
    """
    none_PD, alone_PND, all_PD = (np.asarray(states[name], np.float64) for name in ("none", "alone", "all"))
    # Less the first prompt's, so that what never varies is 0 and not a rounding.
    centred_PND, wanted_PD = (part - part[:1] for part in (alone_PND, all_PD))
    middle_D = all_PD[0] + wanted_PD[::2].mean(0)
    centred_PND, wanted_PD = (part - part[::2].mean(0, keepdims=True) for part in (centred_PND, wanted_PD))

    def moments(centred_PND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each prompt those of theta_j among each other ``[P, N, N]``, and with theta_K ``[P, N]``."""
        return centred_PND @ centred_PND.swapaxes(1, 2), (centred_PND @ wanted_PD[..., None])[..., 0]

    def fitted(moment: np.ndarray, along: np.ndarray) -> np.ndarray:
        return (np.linalg.pinv(moment, rcond=CUT, hermitian=True) @ along[..., None])[..., 0]

    moment_PNN, along_PN = moments(centred_PND)
    weights_N = fitted(moment_PNN[::2].sum(0), along_PN[::2].sum(0))
    found = {WHOLE: all_PD, "mean": alone_PND.mean(1)}
    found["weighted"] = middle_D[None] + np.einsum("n,pnd->pd", weights_N, centred_PND)
    change_PD = (alone_PND - none_PD[:, None]).sum(1)
    for kind, order_P in (("", np.arange(len(other_P))), ("other_", other_P)):
        weights_PN = fitted(*moments(centred_PND[order_P]))
        found[f"{kind}sum"] = none_PD + change_PD[order_P]
        found[f"{kind}best"] = middle_D[None] + np.einsum("pn,pnd->pd", weights_PN, centred_PND[order_P])
    return found, float(weights_N.sum())


def compared(found: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Of each combination ``[P, D]`` but `WHOLE` what it has of theta_K on prompts 1, 3, .., with 90% intervals.

    explained: the share of the variance of theta_K over prompts (`recovery.explained`). cosine: with theta_K.
    centred_cosine: the same of both less their means over prompts; it does not count what all prompts share.
    """
    scores: dict[str, dict[str, Any]] = {}
    whole_PD = found[WHOLE][1::2] - found[WHOLE][:1]
    for name, combined_PD in found.items():
        if name == WHOLE:
            continue
        near_PD = combined_PD[1::2] - found[WHOLE][:1]
        value, ends = explained(whole_PD, near_PD)
        apart = [part - part.mean(0, keepdims=True) for part in (whole_PD, near_PD)]
        scores[name] = {"explained": value, "explained_ci": ends}
        scores[name] |= with_interval("cosine", _cosine(found[WHOLE][1::2], combined_PD[1::2]))
        scores[name] |= with_interval("centred_cosine", _cosine(*apart))
    return scores


def _cosine(first_PD: np.ndarray, second_PD: np.ndarray) -> np.ndarray:
    """Prompt by prompt ``[P]``; 0 if either is 0."""
    lengths_P = np.linalg.norm(first_PD, axis=1) * np.linalg.norm(second_PD, axis=1)
    return (first_PD * second_PD).sum(1) / np.maximum(lengths_P, np.finfo(float).tiny)


def prompted(
    model: Model, task: Task, combined: Mapping[str, jax.Array], drawn: ShiftedPrompts, edit: str
) -> dict[str, dict[str, jax.Array]]:
    """Scores ``{name: {'risk': [L+1, P], ...}}`` of TVP with each combination ``[L+1, P, D]`` for theta_K."""
    one = lambda theta_LPD: prompting.layer_sweep(model, task, theta_LPD, drawn, edit)  # noqa: E731
    scores = jax.lax.map(one, jnp.stack(list(combined.values())))
    return {name: {score: value[i] for score, value in scores.items()} for i, name in enumerate(combined)}


def measure(
    model: Model, task: Task, layout: Layout, demonstrations: int, *, edit: str, prompts: int, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Of each member what its combinations have of theta_K, and the same of the oracle's predictions.

    Of a member, by combination, ``[L+1]`` each: ``explained_by_layer``, ``cosine_by_layer``,
    ``centred_cosine_by_layer`` (see `compared`), and ``tvp_risk_by_layer`` (of tokens also ``tvp_accuracy_by_layer``)
    of TVP with the combination in the place of theta_K, beside that of theta_K itself, `WHOLE`. ``weighted`` has
    ``total_weight_by_layer``, sum_j a_j: it is K of a sum and 1 of a mean. Of the oracle, whose right combination is
    known, the same without layers, intervals and TVP. Both are {} for a family of strings, and the second for a family
    without an oracle.

    model: its parameters lead with the member axis.
    demonstrations: K, 2 or more.
    prompts: 4 or more.
    """
    members = len(jax.tree.leaves(model.params)[0])
    if isinstance(task, StringTask):
        return [{} for _ in range(members)], {}
    draw_key, grid_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), DRAWS))
    drawn = draw(NO_SHIFT, task, layout, draw_key, prompts, demonstrations)
    other_P = others(jax.device_get(drawn.prompt.parameters))

    @jax.jit
    def predicted(drawn: ShiftedPrompts) -> dict[str, jax.Array]:
        return oracle_states(task, drawn, grid_key)

    def read(model: Model, prompt: Prompt) -> dict[str, jax.Array]:
        return jax.vmap(lambda model: states(model, task, prompt), spmd_axis_name="member")(model)

    def asked(model: Model, combined: Any, drawn: ShiftedPrompts) -> Any:
        one = lambda model, combined: prompted(model, task, combined, drawn, edit)  # noqa: E731
        return jax.vmap(one, spmd_axis_name="member")(model, combined)

    of_model = jax.device_get(jax.jit(read, compiler_options=compiler_options())(model.bare, drawn.prompt))
    table = [
        [
            combinations({name: part[m, layer] for name, part in of_model.items()}, other_P)
            for layer in range(model.config.num_layers + 1)
        ]
        for m in range(members)
    ]
    combined = {
        name: np.stack([[layer[name][1::2] for layer, _ in row] for row in table]).astype(np.float32)
        for name in table[0][0][0]
    }
    measured = jax.tree.map(lambda a: a[1::2], drawn)
    scores = jax.device_get(jax.jit(asked, compiler_options=compiler_options())(model.bare, combined, measured))
    entries = [_entry(row, jax.tree.map(lambda a, m=m: a[m], scores)) for m, row in enumerate(table)]
    if not task.has_oracle:
        return entries, {}
    known = {name: part[0] for name, part in jax.device_get(predicted(drawn)).items()}
    found, total = combinations(known, other_P)
    oracle = {
        name: {field: value for field, value in numbers.items() if not field.endswith("_ci")}
        for name, numbers in compared(found).items()
    }
    oracle["weighted"]["total_weight"] = total
    return entries, oracle


def _entry(layers: Sequence[tuple[dict[str, np.ndarray], float]], scores: Mapping[str, Any]) -> dict[str, Any]:
    """What `measure` says of one member. scores: `prompted`."""
    like = [compared(found) for found, _ in layers]
    entry: dict[str, Any] = {name: {} for name in layers[0][0]}
    for name, numbers in entry.items():
        for field in like[0].get(name, {}):
            stem, end = (field.removesuffix("_ci"), "_ci") if field.endswith("_ci") else (field, "")
            numbers[f"{stem}_by_layer{end}"] = [layer[name][field] for layer in like]
        for score, value_LP in scores[name].items():
            numbers |= with_interval(f"tvp_{score}_by_layer", value_LP.T)
    entry["weighted"]["total_weight_by_layer"] = [total for _, total in layers]
    return entry
