"""The TVP-loss as a fine-tuning objective of a language model on text tasks, of which some are held out. [ours]

Members are fine-tuned from one model with and without the TVP-loss, on the train split of the train tasks. Then they
and the model itself are asked the test split of all tasks (`measures.measured`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tvjax import remote
from tvjax.errors import UserError
from tvjax.experiments import rundir
from tvjax.experiments.base import Config, Experiment, PlanConfig, one_step
from tvjax.experiments.models import open_model, shape_named
from tvjax.experiments.progress import Progress, aloud
from tvjax.experiments.tvp_language import measures
from tvjax.experiments.tvp_language.settings import BASE, TVPLanguageSettings
from tvjax.experiments.tvp_language.tuning import TuningExperiment
from tvjax.files import read_json, write_json
from tvjax.memory import give_back
from tvjax.nn.model import Model
from tvjax.nn.pretrained import save_model
from tvjax.nn.pretrained.weights import abstract_params
from tvjax.parallel import processes
from tvjax.parallel.mesh import make_mesh
from tvjax.tasks.text import Template, TextTask
from tvjax.text.bench import SINK, Bench
from tvjax.text.data import keep_tasks
from tvjax.text.prompts import blank_tables, tables
from tvjax.train.loop import Trainer
from tvjax.train.state import in_float32
from tvjax.vectors import origin, store


def make_experiment(s: TVPLanguageSettings, tasks: Mapping[str, TextTask], model: Model) -> TuningExperiment:
    """What is trained: the model, on the train split of the train tasks and on nothing else."""
    shown = {name: TextTask(name, tasks[name].split("train")) for name in s.tasks.train}
    arrays = tables(shown, s.template, model.source.tokenizer, s.train.demonstrations)
    config = dataclasses.replace(model.config, unroll=s.train.unroll)
    return TuningExperiment(s, config, model.params, arrays)


def make_trainer(s: TVPLanguageSettings, experiment: TuningExperiment, mesh: Mesh | None = None) -> Trainer:
    """The programs that fine-tune the population on `mesh` or that of the settings."""
    mesh, p = mesh or make_mesh(**dataclasses.asdict(s.mesh)), s.population
    return Trainer(experiment, s.train, s.optimizer, mesh, p.name, p.hyper, jax.random.key(s.vectors.seed))


def part_folder(folder: Path, names: Sequence[str], parts: int) -> Path:
    """Where members that train side by side have their metrics and checkpoints: the run's folder, if they are all."""
    return folder if parts == 1 else folder / "parts" / names[0]


def members_of(s: TVPLanguageSettings) -> list[dict[str, Any]]:
    """Name and settings of the base model and of every member; base has the layer of the first with a TVP-loss."""
    spread = s.population.spread()
    members = [{name: values[m] for name, values in spread.items()} for m in range(len(s.population.name))]
    layer = next((e["prescribed_layer"] for e in members if e["tvp_weight"]), members[0]["prescribed_layer"])
    return [dict.fromkeys(spread) | {"name": BASE, "prescribed_layer": layer}, *members]


def _open(s: TVPLanguageSettings, say: Callable[[str], None]) -> Model:
    """The model as it is tuned and asked: it computes in config.model.dtype, and its parameters are float32."""
    chosen = dataclasses.replace(s.model, dtype="float32" if s.model.dtype else "")  # nothing is rounded on the way
    model = open_model(chosen, s.training, say)
    decoder = dataclasses.replace(model.config, dtype=s.model.dtype or model.config.dtype, param_dtype="float32")
    return dataclasses.replace(model, params=in_float32(model.params), config=decoder)


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = aloud) -> dict[str, Any]:
    """Fine-tune (or with mode "eval" only load) what `config` asks for in `folder`, ask it, return the summary.

    Members train `config.train.at_once` at a time, and are asked before the next ones are trained. What they answer is
    kept, and not asked again in mode "train". Raises `UserError` for a config, a model, tasks or a folder that does not
    fit, `RunError` if the run cannot go on.
    """
    s = TVPLanguageSettings.from_config(config)
    tasks = s.data.of_groups(folder, s.tasks.groups)
    rundir.prepare(folder, config, new=mode == "train")
    keep_tasks(tasks, folder, say)
    model = _open(s, say)
    s.check_model(model.config)
    with Progress(say) as progress:
        return _Study(s, folder, mode, model, tasks, progress).run()


class _Study:
    """One run: the model, and what its members answer."""

    def __init__(
        self,
        s: TVPLanguageSettings,
        folder: Path,
        mode: str,
        model: Model,
        tasks: Mapping[str, TextTask],
        progress: Progress,
    ) -> None:
        self.s, self.folder, self.mode, self.model, self.tasks, self.progress = s, folder, mode, model, tasks, progress
        self.bench = Bench(model, s.vectors, s.template, tasks)
        self.members = {about["name"]: about for about in members_of(s)}
        self.marks: dict[str, str] = {}
        self.rights: dict[str, measures.Right] = {}
        self.best: dict[str, dict[str, int]] = {}

    @property
    def layers(self) -> list[int]:
        """Where vectors are written."""
        return sorted({*(self.s.evaluation.layers or self.bench.layers), *self.s.layers})

    def run(self) -> dict[str, Any]:
        """The summary, of answers that are kept or asked now."""
        s, say = self.s, self.progress.say
        sink = self.bench.sink()
        if sink:
            say(f"warning: the query {sink!r} {SINK}; config.template.start puts one before it")
        todo = [name for name in self.members if self.mode != "train" or not self._answers(name).is_file()]
        self.progress.plan({"task": len(self.tasks) * len(todo)}, {"task": 1.0})
        self._ask(BASE, self.model.params)
        parts = s.population.parts(s.train.at_once)
        for part in parts:
            if (self.mode == "train" or len(parts) > 1) and all(self._kept(name) for name in part.name):
                continue
            where = part_folder(self.folder, part.name, len(parts))
            self._tune(dataclasses.replace(s, population=part), where)
            if len(parts) > 1:  # of many large models there is no room for all
                processes.on_first((remote.there(where) / remote.CHECKPOINTS).rmtree)
        same = origin.twins(self.marks)
        rundir.say_twins(same, say)
        groups, rights = s.tasks.groups, self.rights
        arms = measures.arms(list(self.members.values()))
        members = [
            {**measures.entry(groups, about, [rights[name]]), "best_layer": self.best[name]}
            for name, about in self.members.items()
        ]
        summary = {
            "experiment": "tvp_language",
            "model": {"path": str(self.model.source.path), "model_type": self.model.source.values["model_type"]},
            "num_layers": self.model.config.num_layers,
            "layers": self.layers,
            "num_demonstrations": s.train.demonstrations,
            "num_prompts": s.vectors.prompts,
            "num_single": s.evaluation.single,
            "num_questions": {name: len(self.bench.sample(name, "test")) for name in self.tasks},
            "steps": s.train.steps,
            "batch": s.train.batch,
            "edit": s.tvp.edit,
            "query_first": bool(sink),
            "tasks": {group: list(names) for group, names in groups.items()},
            "members": members,
            "arms": [measures.entry(groups, arm, [rights[name] for name in arm["members"]]) for arm in arms],
            "differences": measures.differences(groups, arms, rights, self.layers),
            "identical_members": same,
        }
        write_json(self.folder / "eval" / "summary.json", summary)
        return summary

    def _answers(self, name: str) -> Path:
        return self.folder / "eval" / "members" / f"{name}.json"

    def _kept(self, name: str) -> bool:
        """Whether a member was asked, by this run before it ended; its answers are read."""
        path = self._answers(name)
        if not path.is_file():
            return False
        try:
            known = read_json(path, "accepted: none, or one that a run wrote")
            right = {
                kind: {task: np.array(values, float) for task, values in e.items()}
                for kind, e in known["right"].items()
            }
            self.marks[name], self.best[name], self.rights[name] = known["model"], known["best_layer"], right
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path}: not what a run wrote; remove it to have {name} trained and asked again") from None
        return True

    def _tune(self, s: TVPLanguageSettings, folder: Path) -> None:
        """Fine-tune some members and ask them."""
        names = ", ".join(s.population.name)
        self.progress.say(f"fine-tuning {names}" if self.mode == "train" else f"loading {names}")
        experiment = make_experiment(s, self.tasks, self.model)
        tuned = rundir.trained_state(make_trainer(s, experiment), folder, self.mode, self.progress.say).params
        give_back(cycles=True)  # a trainer is in a circle with its programs
        for number, name in enumerate(s.population.name):
            # Where the model itself is, so that its compiled programs serve all.
            params = jax.tree.map(
                lambda p, base, n=number: jax.device_put(p[n], base.sharding), tuned, self.model.params
            )
            if name in s.train.export:  # first: a member that was asked is not loaded again
                save_model(dataclasses.replace(self.model, params=params), self.folder / "models" / name)
            self._ask(name, params)

    def _ask(self, name: str, params: Any) -> None:
        """Ask a member all tasks and keep what it answers, and its vectors."""
        if self.mode == "train" and self._kept(name):
            return
        self.progress.say(f"asking {name}")
        s, about, model = self.s, self.members[name], dataclasses.replace(self.model, params=params)
        bench = Bench(model, s.vectors, s.template, self.tasks, batches=self.bench.batches)
        right, vectors, best = measures.measured(
            bench,
            about["prescribed_layer"],
            self.layers,
            float(s.tvp.edit == "add"),
            s.evaluation.single,
            Template(*s.evaluation.template),
            s.evaluation.shifts,
            done=lambda: self.progress.tick("task"),
        )
        self.marks[name], self.best[name], self.rights[name] = origin.fingerprint(params), best, right
        store.save_vectors(
            self.folder / "vectors" / f"{name}.safetensors",
            vectors,
            model=self.marks[name],
            address="embed, blocks/resid",
            layers=range(self.model.config.num_layers + 1),
            template=dataclasses.asdict(s.template),
            about={
                "prescribed_layer": about["prescribed_layer"],
                "edit": s.tvp.edit,
                "made_by": f"{s.vectors.prompts} prompts of {s.train.demonstrations} demonstrations of each task",
            },
        )
        answers = {kind: {task: values.tolist() for task, values in e.items()} for kind, e in right.items()}
        write_json(self._answers(name), {"model": self.marks[name], "best_layer": best, "right": answers})


def planned(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """What a plan compiles: the members that take most."""
    s = TVPLanguageSettings.from_config(one_step(config))
    decoder = shape_named(s.model.path, "config.model.path", s.model.dtype, s.training, s.train.unroll)
    precision = s.model.matmul_precision
    decoder = dataclasses.replace(decoder, param_dtype="float32", matmul_precision=precision)
    s.check_model(decoder)
    parts = s.population.parts(s.train.at_once)
    s = dataclasses.replace(s, population=max(parts, key=lambda part: bool(part.extra)))
    arrays = blank_tables(c.query_tokens, c.answer_tokens)
    return make_trainer(s, TuningExperiment(s, decoder, abstract_params(decoder), arrays), mesh)


EXPERIMENT = Experiment(name="tvp_language", run=run, settings=TVPLanguageSettings.from_config, trainer=planned)
