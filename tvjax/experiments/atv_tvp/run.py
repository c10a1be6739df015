"""ATV on a TVP-trained model: does a writer that never sees theta find it again? [ours: neither paper has this]

The target is a frozen member of a TVP run, whose true task is known. The writer reads the same prompt as the target, k
demonstrations and a query, and writes the vector that stands in theta's place (`atv_tvp_writer`). It is trained on the
risk of the answer to a fresh query alone; then its vectors are compared with theta, and with the task.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tvjax.errors import UserError
from tvjax.evals import recovery
from tvjax.evals.measure import CHUNK
from tvjax.evals.statistics import with_interval
from tvjax.experiments import rundir
from tvjax.experiments.atv_tvp.settings import ATVTVPSettings
from tvjax.experiments.atv_tvp.writer import Target, WriterExperiment
from tvjax.experiments.base import Config, Experiment, PlanConfig, loader_of, named, one_step
from tvjax.experiments.identity import A_RUN
from tvjax.files import read_json, user_path, write_json
from tvjax.nn.model import Model
from tvjax.parallel import processes
from tvjax.parallel.mesh import make_mesh
from tvjax.tasks import NO_SHIFT, draw, reference_scores
from tvjax.train.loop import Trainer
from tvjax.vectors import origin, store


def open_target(s: ATVTVPSettings, say: Callable[[str], None]) -> Target:
    """The frozen member, whose run is trained first, once, if there is none."""
    values, settings = s.target_config(), s.target_settings()
    folder = user_path(s.target.run or s.target.trained, "config.target." + ("run" if s.target.run else "trained"))
    if not s.target.run:
        where = {"field": "config.training", "names": "config.target.trained"}
        rundir.run_once(named("tvp").run, values, folder, say, what="the target", **where)
    member = s.member(settings)
    name = settings.population.name[member]
    load = loader_of(values)
    assert load is not None
    model = load(folder, values, name)
    # Off the mesh on which they were restored: they go where the writers are.
    model = jax.tree.map(jnp.asarray, jax.device_get(model.bare))
    return Target(settings, model, name, settings.population.spread()["prescribed_layer"][member])


def _keep_target(folder: Path, target: Target) -> str:
    """The target's fingerprint, kept in the run. Raises `UserError` if its writers had another target."""
    path, fingerprint = folder / "target.json", origin.fingerprint(target.model.params)
    if path.is_file():
        before = read_json(path, A_RUN).get("fingerprint")
        if before != fingerprint:
            raise UserError(f"{path}: the writers' target was {before}; given {fingerprint}; accepted: the same one")
    write_json(path, {"member": target.name, "fingerprint": fingerprint})
    return fingerprint


def measure(experiment: WriterExperiment, params_M: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What P fresh prompts show: the references and task parameters ``[P, ...]``, and `score`'s arrays.

    The prompts are those of a TVP run's own evaluation with the same seed.
    """
    t, e = experiment.target.settings, experiment.settings.evaluation
    key, chunks = jax.random.fold_in(jax.random.key(e.seed), 1), -(-e.prompts // CHUNK)
    score = jax.jit(experiment.score)
    references = jax.jit(lambda drawn: reference_scores(NO_SHIFT, t.task, drawn))
    tasks, measured = [], []
    for chunk in range(chunks):
        size = -(-e.prompts // chunks)
        drawn = draw(NO_SHIFT, t.task, t.layout, jax.random.fold_in(key, chunk), size, t.prompt.demonstrations)
        tasks.append(jax.device_get({"references": references(drawn), "task": drawn.prompt.parameters}))
        seen = jax.device_get(score(params_M, experiment.data(), drawn))
        seen["members"] = jax.tree.map(lambda a: a.swapaxes(0, 1), seen["members"])
        measured.append(seen)
    return tuple(jax.tree.map(lambda *parts: np.concatenate(parts)[: e.prompts], *trees) for trees in (tasks, measured))


def _with_ci(name: str, estimate: tuple[float, list[float]]) -> dict[str, Any]:
    return {name: estimate[0], f"{name}_ci": estimate[1]}


def _decoded(name: str, vectors_PD: np.ndarray, task: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """R^2 of each parameter of the task, read off the vectors by a linear map, on the prompts that did not make it."""
    estimates = {part: recovery.explained(*recovery.mapped(vectors_PD, value)) for part, value in task.items()}
    return {name: {p: e[0] for p, e in estimates.items()}, f"{name}_ci": {p: e[1] for p, e in estimates.items()}}


def _member(seed: int, m: int, measured: dict[str, Any], task: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the summary says of one writer."""
    members, theta_PD, theta = measured["members"], measured["vectors"], measured["theta"]
    vectors_PD = members["vectors"][:, m]
    entry: dict[str, Any] = {"name": f"seed_{seed}", "seed": seed}
    for kind in ("written", "shuffled"):
        for name, value in members[kind].items():
            entry |= with_interval(f"{kind}_{name}", value[:, m])
    entry |= with_interval("risk_minus_theta", members["written"]["risk"][:, m] - theta["risk"])
    entry |= _with_ci("explained_variance", recovery.explained(theta_PD, vectors_PD))
    centred = (a - a.mean(0, keepdims=True) for a in (theta_PD, vectors_PD))
    entry |= _with_ci("centred_explained_variance", recovery.explained(*centred))
    entry |= _with_ci("linear_explained_variance", recovery.explained(*recovery.mapped(vectors_PD, theta_PD)))
    return entry | _decoded("task_r2", vectors_PD, task)


def summarize(experiment: WriterExperiment, tasks: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """`eval/summary.json` of what `measure` found."""
    s, target = experiment.settings, experiment.target
    t, task = target.settings, recovery.readable(tasks["task"])
    summary: dict[str, Any] = {
        "experiment": "atv_tvp",
        "task": t.task_name,
        "layout": t.prompt.layout,
        "risk_unit": t.task.risk_unit,
        "num_layers": t.decoder.num_layers,
        "prescribed_layer": target.layer,
        "num_demonstrations": t.prompt.demonstrations,
        "num_prompts": s.evaluation.prompts,
        "objective": s.writer.objective,
        "trained_after": list(s.positions(t)),
        "target": {
            "run": s.target.run or s.target.trained,
            "member": target.name,
            "fingerprint": origin.fingerprint(target.model.params),
        },
    }
    for name, value in tasks["references"].items():
        summary |= with_interval(name, value)
    for name, value in measured["zero_shot"].items():
        summary |= with_interval(f"zero_shot_{name}", value[:, 0])
    for name, value in measured["theta"].items():
        summary |= with_interval(f"theta_{name}", value)
    summary |= _decoded("theta_task_r2", measured["vectors"], task)
    predicted = recovery.mapped(np.concatenate(list(task.values()), axis=1), measured["vectors"])
    summary |= _with_ci("theta_explained_by_task", recovery.explained(*predicted))
    return summary | {"members": [_member(seed, m, measured, task) for m, seed in enumerate(s.train.seeds)]}


def _write(
    experiment: WriterExperiment, tasks: dict[str, Any], measured: dict[str, Any], folder: Path, fingerprint: str
) -> None:
    """vectors/*.safetensors: theta with the tasks behind it, and each writer's vectors, of the same prompts."""
    target = experiment.target
    count, task_name = target.settings.prompt.demonstrations, target.settings.task_name
    source = f"extraction after {count} demonstrations of task {task_name}, layout {target.settings.prompt.layout}"
    parameters = {f"task.{name}": value for name, value in tasks["task"].items()}
    files = {"theta": ({"theta": measured["vectors"], **parameters}, source)}
    for m, seed in enumerate(experiment.settings.train.seeds):
        source = f"ATV trained for {experiment.settings.writer.objective}, seed {seed}, of the prompts of theta"
        files[f"seed_{seed}"] = ({"written": measured["members"]["vectors"][:, m]}, source)
    for name, (arrays, source) in files.items():
        path = folder / "vectors" / f"{name}.safetensors"
        store.save_vectors(path, arrays, model=fingerprint, layers=target.layer, about={"made_by": source})


def make_trainer(experiment: WriterExperiment, mesh: Mesh | None = None) -> Trainer:
    """The programs that train the writers, one a seed, on `mesh` or that of the settings."""
    s = experiment.settings
    hyper = {"seed": jnp.array(s.train.seeds), "learning_rate": jnp.full(len(s.train.seeds), s.train.learning_rate)}
    mesh = mesh or make_mesh(**dataclasses.asdict(s.mesh))
    names = tuple(f"seed_{seed}" for seed in s.train.seeds)
    key = jax.random.fold_in(jax.random.key(s.evaluation.seed), 0)
    return Trainer(experiment, s.train, s.optimizer, mesh, names, hyper, key)


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train writers (or with mode "eval" only load them) for the target, measure them, and return the summary.

    Raises `UserError` for a config, a target or a folder that does not fit, `RunError` if the run cannot go on.
    """
    s = ATVTVPSettings.from_config(config)
    s.target_settings()  # before anything is written
    rundir.prepare(folder, config, new=mode == "train")
    target = open_target(s, say)
    fingerprint = _keep_target(folder, target)
    experiment = WriterExperiment(s, target)
    trainer = make_trainer(experiment)
    say(f"{mode}: {len(s.train.seeds)} writers for member {target.name} of {s.target.run or s.target.trained}")
    state = rundir.trained_state(trainer, folder, mode, say)
    say("evaluating")
    with jax.set_mesh(processes.own(trainer.mesh)):
        tasks, measured = measure(experiment, state.params)
    summary = summarize(experiment, tasks, measured)
    _write(experiment, tasks, measured, folder, fingerprint)
    write_json(folder / "eval" / "summary.json", summary)
    return summary


def planned(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """What a plan compiles."""
    s = ATVTVPSettings.from_config(one_step(config))
    t = s.target_settings()
    model = Model(jax.eval_shape(t.init, jax.random.key(0)), t.decoder)
    member = s.member(t)
    target = Target(t, model, t.population.name[member], t.population.spread()["prescribed_layer"][member])
    return make_trainer(WriterExperiment(s, target), mesh)


EXPERIMENT = Experiment(name="atv_tvp", run=run, settings=ATVTVPSettings.from_config, trainer=planned)
