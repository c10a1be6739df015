"""A small language model trained here, on prompts of text tasks: something to look for task vectors in, offline.

It sees prompts of K + 1 pairs of one task and learns to give every answer, the first without a demonstration. It is
trained on all pairs of its tasks, as a pretrained model has seen what its words mean; the splits are for what is done
with it afterwards.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tvjax.errors import reject
from tvjax.evals.statistics import with_interval
from tvjax.experiments import rundir
from tvjax.experiments.base import Config, Experiment, PlanConfig, one_step
from tvjax.experiments.models import FOLDER
from tvjax.experiments.text_model.settings import TextModelSettings
from tvjax.files import write_json, write_whole
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model
from tvjax.nn.pretrained import Tokenizer
from tvjax.nn.pretrained.tokenizer import train_tokenizer
from tvjax.nn.pretrained.weights import save_folder
from tvjax.parallel import processes
from tvjax.parallel.mesh import make_mesh, shard_batch
from tvjax.tasks.text import Template, TextTask
from tvjax.text.data import keep_tasks
from tvjax.text.prompts import answer_scores, ask, blank_tables, draw_prompts, tables
from tvjax.train.log import mean_name
from tvjax.train.loop import Trainer
from tvjax.train.state import Hyper


def corpus(tasks: Mapping[str, TextTask], template: Template) -> list[str]:
    """The texts that the tokenizer is trained on: every pair, as a prompt shows it."""
    return [template.prompt([pair], "") for task in tasks.values() for pair in task.pairs]


@dataclasses.dataclass(frozen=True, eq=False)
class TextModelExperiment:
    """The mean cross-entropy of the tokens of all answers of a prompt."""

    settings: TextModelSettings
    config: DecoderConfig
    arrays: Mapping[str, np.ndarray]

    @property
    def batch(self) -> int:
        """Examples of a step."""
        return self.settings.train.batch

    def init(self, key: jax.Array, data: Any) -> Any:
        """Fresh parameters."""
        decoder = Decoder(dataclasses.replace(self.config, unroll=1))
        return decoder.init(key, jnp.zeros((1, 2), jnp.int32))["params"]

    def data(self) -> dict[str, jax.Array]:
        """The tables of pairs."""
        return {name: jnp.asarray(a) for name, a in self.arrays.items()}

    def draw(self, data: Any, key: jax.Array, batch: int) -> jax.Array:
        """Prompts ``[B, N, W + A]`` of N = K + 1 pairs of one task each, no pair twice, -1 where there is no token."""
        most = int(self.arrays["count"].max())
        return draw_prompts(data, key, batch, self.settings.train.demonstrations + 1, most)[1]

    def scores(self, params: Any, prompts: jax.Array) -> dict[str, jax.Array]:
        """For each pair of each prompt, its answer's risk (nats a token) and whether all of it is right: ``[B, N]``.

        prompts: those of `draw`, ``[B, N, W + A]``.
        """
        return answer_scores(Model(params, self.config), ask(prompts, self.arrays))[0]

    def loss(
        self, params: Any, data: Any, key: jax.Array, step: jax.Array, hyper: Hyper
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean risk over prompts and pairs."""
        scores = self.scores(params, shard_batch(self.draw(data, key, self.settings.train.batch)))
        return scores["risk"].mean(), {mean_name("icl", name): value.mean() for name, value in scores.items()}

    def evaluate(self, params: Any, data: Any, key: jax.Array, hyper: Hyper) -> dict[str, jax.Array]:
        """Risk and accuracy by number of demonstrations, on fresh prompts."""
        scores = self.scores(params, self.draw(data, key, self.settings.evaluation.prompts))
        return {name: value.mean(0) for name, value in scores.items()}


def make_trainer(experiment: TextModelExperiment, evaluation_key: jax.Array, mesh: Mesh) -> Trainer:
    """The programs that train the model."""
    s = experiment.settings
    hyper = {"seed": jnp.array([s.train.seed]), "learning_rate": jnp.array([s.train.learning_rate])}
    return Trainer(experiment, s.train, s.optimizer, mesh, ("model",), hyper, evaluation_key)


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train (or with mode "eval" only load) the model, write it to ``model/`` and measure it; return the summary.

    Raises `UserError` for a config or a folder that does not fit, `RunError` if the run cannot go on.
    """
    s = TextModelSettings.from_config(config)
    if processes.count() > 1:
        raise reject("processes", processes.count(), f"1: train the model in {folder} alone, then start all again")
    tasks = s.data.of_run(folder)
    rundir.prepare(folder, config, new=mode == "train")
    keep_tasks(tasks, folder, say)
    path = folder / FOLDER / "tokenizer.json"
    if not path.is_file():
        write_whole(path, train_tokenizer(corpus(tasks, s.template), s.model.vocab_size))
    tokenizer = Tokenizer(path.parent)
    arrays = tables(tasks, s.template, tokenizer, s.train.demonstrations)
    if "several" in arrays:
        count = int((arrays["several"] > 1).sum())
        say(f"{count} inputs have several right answers: accuracy is how often the one that is drawn is given")
    experiment = TextModelExperiment(s, s.decoder(tokenizer.size), arrays)
    evaluation_key = jax.random.key(s.train.seed + 1)
    trainer = make_trainer(experiment, evaluation_key, make_mesh())
    state = rundir.trained_state(trainer, folder, mode, say)
    params = jax.tree.map(lambda p: p[0], state.params)
    save_folder(folder / FOLDER, experiment.config, params)
    prompts = experiment.draw(experiment.data(), jax.random.fold_in(evaluation_key, 1), s.evaluation.prompts)
    scores = jax.device_get(jax.jit(experiment.scores)(params, prompts))
    summary = {
        "experiment": "text_model",
        "tasks": {name: len(task.pairs) for name, task in tasks.items()},
        "num_layers": s.model.num_layers,
        "num_demonstrations": s.train.demonstrations,
        "vocabulary": tokenizer.size,
        "num_prompts": s.evaluation.prompts,
        **with_interval("risk", scores["risk"]),
        **with_interval("accuracy", scores["accuracy"]),
    }
    write_json(folder / "eval" / "summary.json", summary)
    return summary


def planned(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """What a plan compiles."""
    s = TextModelSettings.from_config(one_step(config))
    arrays = blank_tables(c.query_tokens, c.answer_tokens)
    return make_trainer(TextModelExperiment(s, s.decoder(s.model.vocab_size), arrays), jax.random.key(0), mesh)


EXPERIMENT = Experiment(name="text_model", run=run, settings=TextModelSettings.from_config, trainer=planned)
