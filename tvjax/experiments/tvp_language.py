"""The TVP-loss as a fine-tuning objective of a language model on text tasks, of which some are held out. [ours]

Members are fine-tuned from one model with and without the TVP-loss, on the train split of the train tasks. Then they
and the model itself are asked the test split of all tasks: zero-shot, few-shot, and with vectors (`measured`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tvjax.errors import reject
from tvjax.evals.statistics import bootstrap, macro
from tvjax.experiments import rundir
from tvjax.experiments.bench import Bench, best_layer
from tvjax.experiments.task_vectors import open_model
from tvjax.experiments.text_data import keep_tasks
from tvjax.experiments.text_prompts import tables
from tvjax.experiments.tvp_language_settings import BASE, TVPLanguageSettings
from tvjax.experiments.tvp_language_tuning import TuningExperiment
from tvjax.files import write_json
from tvjax.nn.model import Model
from tvjax.parallel.mesh import make_mesh
from tvjax.tasks.text import TextTask
from tvjax.train.loop import Trainer
from tvjax.train.state import in_float32
from tvjax.vectors import origin, store

KINDS = ("zero_shot", "single_vector", "vector", "best_vector", "few_shot")
Right = dict[str, dict[str, np.ndarray]]
"""Whether each question is answered right, ``{kind: {task: [n]}}``; of kind "by_layer" ``[n, L+1]``."""


def _tasks(s: TVPLanguageSettings, folder: Path) -> dict[str, TextTask]:
    """The tasks of the run, those that are trained on first."""
    known = s.data.of_run(folder)
    for group, names in s.tasks.groups.items():
        for name in names:
            if name not in known:
                raise reject(f"config.tasks.{group}", name, f"tasks of config.data: {', '.join(known)}")
    return {name: known[name] for names in s.tasks.groups.values() for name in names}


def make_experiment(s: TVPLanguageSettings, tasks: Mapping[str, TextTask], model: Model) -> TuningExperiment:
    """What is trained: the model, on the train split of the train tasks and on nothing else."""
    shown = {name: TextTask(name, tasks[name].split("train")) for name in s.tasks.train}
    arrays = tables(shown, s.template, model.source.tokenizer, s.demonstrations)
    config = dataclasses.replace(model.config, unroll=0)
    return TuningExperiment(s, config, model.params, arrays)


def make_trainer(s: TVPLanguageSettings, experiment: TuningExperiment, mesh: Mesh | None = None) -> Trainer:
    """The programs that fine-tune the population on `mesh` or that of the settings."""
    mesh, p = mesh or make_mesh(**dataclasses.asdict(s.mesh)), s.population
    return Trainer(experiment, s.train, s.optimizer, mesh, p.name, p.hyper, jax.random.key(s.vectors.seed))


def members_of(s: TVPLanguageSettings) -> list[dict[str, Any]]:
    """Name and settings of the base model and of every member; base has the layer of the first with a TVP-loss."""
    spread = s.population.spread()
    members = [{name: values[m] for name, values in spread.items()} for m in range(len(s.population.name))]
    layer = next((e["prescribed_layer"] for e in members if e["tvp_weight"]), members[0]["prescribed_layer"])
    return [dict.fromkeys(spread) | {"name": BASE, "prescribed_layer": layer}, *members]


def measured(bench: Bench, layer: int, keep: float, single: int) -> tuple[Right, dict[str, np.ndarray], dict[str, int]]:
    """Which questions of the test split are answered right; by task the vectors ``[L+1, D]`` and the layer best on dev.

    vector: the mean state at the last token of few-shot prompts (Hendel et al. 2023), written at the last token of the
    zero-shot prompt, at `layer`; best_vector: at the layer best on the dev split; single_vector: the state of one
    prompt, the mean over `single` prompts. keep: 0 replaces the state, 1 adds to it.
    """
    right: Right = {kind: {} for kind in (*KINDS, "by_layer")}
    vectors: dict[str, np.ndarray] = {}
    best: dict[str, int] = {}
    for name in bench.tasks:
        asked = bench.sample(name, "test")
        said = bench.accepted(name, asked)
        states_PLD = bench.few_shot_states(name)
        vectors[name] = states_PLD.mean(0)
        by_layer = {s: bench.asked_with(name, s, vectors[name], bench.layers, keep) for s in ("dev", "test")}
        best[name] = best_layer(by_layer["dev"])
        alone = bench.asked_with(name, "test", states_PLD[:single, layer], [layer] * single, keep)
        right["zero_shot"][name] = bench.right(bench.zero_shot(asked), said)
        right["few_shot"][name] = bench.right(bench.few_shot(name, asked), said)
        right["single_vector"][name] = alone.mean(1)
        right["vector"][name] = by_layer["test"][:, layer]
        right["best_vector"][name] = by_layer["test"][:, best[name]]
        right["by_layer"][name] = by_layer["test"]
    return right, vectors, best


def _means(s: TVPLanguageSettings, per_task: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """The macro average of each kind over the tasks of each group: ``{group: {kind: mean, kind_ci: interval}}``."""
    found: dict[str, dict[str, Any]] = {group: {} for group in s.tasks.groups}
    for group, names in s.tasks.groups.items():
        for kind in KINDS:
            found[group][kind], found[group][f"{kind}_ci"] = macro([per_task[kind][name] for name in names])
    return found


def _entry(s: TVPLanguageSettings, about: Mapping[str, Any], right: Right, best: Mapping[str, int]) -> dict[str, Any]:
    """What the summary says of a member."""
    means = _means(s, right)
    for group, names in s.tasks.groups.items():
        layers = range(right["by_layer"][names[0]].shape[1])
        rows = [macro([right["by_layer"][name][:, layer] for name in names]) for layer in layers]
        means[group] |= {"vector_by_layer": [r[0] for r in rows], "vector_by_layer_ci": [r[1] for r in rows]}
    numbers = {kind: {task: bootstrap(values) for task, values in right[kind].items()} for kind in KINDS}
    return {
        **about,
        "accuracy": {kind: {task: float(mean) for task, (mean, _) in e.items()} for kind, e in numbers.items()},
        "accuracy_ci": {kind: {task: ci.tolist() for task, (_, ci) in e.items()} for kind, e in numbers.items()},
        "vector_by_layer": {task: values.mean(0).tolist() for task, values in right["by_layer"].items()},
        "best_layer": dict(best),
        "means": means,
    }


def _differences(s: TVPLanguageSettings, members: list[dict[str, Any]], rights: list[Right]) -> list[dict[str, Any]]:
    """Members against each other on the same questions: the macro averages of what one has more, with paired intervals.

    With a TVP-loss against without one where all but the TVP-loss is the same, and each against the model itself.
    """
    pairs = [
        (a, b)
        for a, one in enumerate(members)
        for b, other in enumerate(members)
        if one["tvp_weight"]
        and other["tvp_weight"] == 0
        and all(one[name] == other[name] for name in ("seed", "learning_rate"))
    ]
    found = []
    for a, b in [*pairs, *((m, 0) for m in range(1, len(members)))]:
        gaps = {k: {task: rights[a][k][task] - rights[b][k][task] for task in rights[a][k]} for k in KINDS}
        found.append({"of": members[a]["name"], "minus": members[b]["name"], **_means(s, gaps)})
    return found


def _open(config: Mapping[str, Any], s: TVPLanguageSettings, say: Callable[[str], None]) -> Model:
    """The model as it is tuned and asked: it computes in config.model.dtype, and its parameters are float32."""
    chosen = dataclasses.replace(s.model, dtype="float32" if s.model.dtype else "")  # nothing is rounded on the way
    model = open_model(config, chosen, say)
    decoder = dataclasses.replace(model.config, dtype=s.model.dtype or model.config.dtype, param_dtype="float32")
    return dataclasses.replace(model, params=in_float32(model.params), config=decoder)


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Fine-tune (or with mode "eval" only load) what `config` asks for in `folder`, ask it, return the summary.

    Raises `UserError` for a config, a model, tasks or a folder that does not fit, `RunError` where it cannot go on.
    """
    s = TVPLanguageSettings.from_config(config)
    tasks = _tasks(s, folder)
    rundir.prepare(folder, config, new=mode == "train")
    keep_tasks(tasks, folder, say)
    model = _open(config, s, say)
    s.check_model(model.config)
    bench = Bench(model, s.vectors, s.template, tasks)
    experiment = make_experiment(s, tasks, model)
    tuned = rundir.trained_state(make_trainer(s, experiment), folder, mode, say).params
    members, rights = members_of(s), []
    marks: dict[str, str] = {}
    for m, about in enumerate(members):
        say(f"asking {about['name']}")
        params = model.params
        if m:  # where the model itself is, so that its compiled programs serve all
            params = jax.tree.map(lambda p, base, m=m: jax.device_put(p[m - 1], base.sharding), tuned, params)
        asked = Bench(dataclasses.replace(model, params=params), s.vectors, s.template, tasks, batches=bench.batches)
        layer = about["prescribed_layer"]
        right, vectors, best = measured(asked, layer, float(s.tvp.edit == "add"), s.evaluation.single)
        rights.append(right)
        members[m] = _entry(s, about, right, best)
        store.save_vectors(
            folder / "vectors" / f"{about['name']}.safetensors",
            vectors,
            model=marks.setdefault(about["name"], origin.fingerprint(params)),
            address="embed, blocks/resid",
            layers=range(model.config.num_layers + 1),
            template=dataclasses.asdict(s.template),
            about={
                "prescribed_layer": layer,
                "edit": s.tvp.edit,
                "made_by": f"{s.vectors.prompts} prompts of {s.demonstrations} demonstrations of each task",
            },
        )
    same = origin.twins(marks)
    rundir.say_twins(same, say)
    summary = {
        "experiment": "tvp_language",
        "model": {"path": str(model.source.path), "model_type": model.source.values["model_type"]},
        "num_layers": model.config.num_layers,
        "num_demonstrations": s.demonstrations,
        "num_prompts": s.vectors.prompts,
        "num_single": s.evaluation.single,
        "num_questions": {name: len(bench.sample(name, "test")) for name in tasks},
        "steps": s.train.steps,
        "edit": s.tvp.edit,
        "tasks": {group: list(names) for group, names in s.tasks.groups.items()},
        "members": members,
        "differences": _differences(s, members, rights),
        "identical_members": same,
    }
    write_json(folder / "eval" / "summary.json", summary)
    return summary
