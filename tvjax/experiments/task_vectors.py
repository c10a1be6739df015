"""Task vectors of a language model on text tasks: how well they replace demonstrations, and at which layer.

For each task, a vector is the mean over prompts of the state at the last token of k demonstrations and a query whose
answer is not shown (Hendel et al. 2023). It replaces the state at the last token of zero-shot prompts. The layer is
chosen on the dev split, everything else is measured on the test split; demonstrations are of the train split.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import UserError, reject
from tvjax.evals.answers import Questions, correct, questions
from tvjax.evals.statistics import with_interval
from tvjax.experiments import rundir, text_model
from tvjax.experiments.settings import at_least, build, check_seed, group, groups
from tvjax.experiments.text_model import DataConfig
from tvjax.files import write_json
from tvjax.nn.decoder import Decoder
from tvjax.nn.model import Model
from tvjax.nn.pretrained import Tokenizer, load_model
from tvjax.nn.tokens import pad
from tvjax.tasks.text import Pair, Template, TextTask, shots
from tvjax.vectors import store
from tvjax.vectors.from_prompts import at_last, in_batches, last_states, vocabulary


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Hugging Face folder; where it is empty, the model of the run `trained`, made if absent."""

    path: str = ""
    dtype: str = ""
    trained: str = "runs/text_model"


@dataclasses.dataclass(frozen=True)
class VectorConfig:
    """demonstrations: k; prompts: how many a vector is the mean of; batch: prompts in one pass (memory)."""

    demonstrations: int
    prompts: int
    seed: int = 0
    batch: int = 32
    questions: int = 100
    words: int = 8
    conflicts: int = 5


@dataclasses.dataclass(frozen=True)
class TaskVectorSettings:
    """The whole experiment, checked."""

    model: ModelConfig
    data: DataConfig
    template: Template
    vectors: VectorConfig

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TaskVectorSettings":
        """Read a config. Raises `UserError` with one line for the first thing that is wrong."""
        kinds = {"model": ModelConfig, "data": DataConfig, "template": Template, "vectors": VectorConfig}
        groups(config, kinds, also=("training",))
        s = cls(**{name: build(kind, config[name], f"config.{name}") for name, kind in kinds.items()})
        v = s.vectors
        at_least(1, "config.vectors", demonstrations=v.demonstrations, prompts=v.prompts, batch=v.batch)
        at_least(1, "config.vectors", questions=v.questions, words=v.words, conflicts=v.conflicts)
        check_seed("config.vectors.seed", v.seed)
        if not s.model.path:
            text_model.TextModelSettings.from_config(group(config.get("training"), "config.training"))
        return s


@functools.partial(jax.jit, static_argnums=0)
def _right(decoder: Decoder, params: Any, q: Questions) -> jax.Array:
    return correct(decoder, params, q)


@functools.partial(jax.jit, static_argnums=0)
def _right_with(decoder: Decoder, params: Any, q: Questions, vectors_ND: jax.Array, layers_N: jax.Array) -> jax.Array:
    """Whether each answer is right with each vector at its layer: ``[B, N]``, one `vmap` over vectors and layers."""

    def one(vector_D: jax.Array, layer: jax.Array) -> jax.Array:
        return correct(decoder, params, q, at_last(decoder, vector_D, layer, q.last_B, q.tokens.ids_BT.shape[1]))

    return jax.vmap(one, out_axes=1)(vectors_ND, layers_N)


_states = jax.jit(last_states, static_argnums=0)


class _Bench:
    """A model with everything that is asked of it: prompts of one length a kind, so that each program compiles once."""

    def __init__(self, model: Model, settings: TaskVectorSettings, tasks: Mapping[str, TextTask]) -> None:
        self.model, self.s, self.tasks = model, settings, tasks
        if model.source.tokenizer is None:
            raise UserError(f"{model.source.folder}: no tokenizer.json in it; text tasks need one")
        self.tokenizer: Tokenizer = model.source.tokenizer
        for name, task in tasks.items():
            for split, least in (("train", settings.vectors.demonstrations + 1), ("dev", 1), ("test", 1)):
                if len(task.split(split)) < least:
                    given = f"{name} with {len(task.split(split))} pairs of the {split} split"
                    raise reject("config.data.tasks", given, f"tasks that have {least} or more")
        longest = [
            max(len(ids) for ids in self.tokenizer.encode([text(x, y) for t in tasks.values() for x, y in t.pairs]))
            for text in (
                lambda x, y: settings.template.prompt([], x) + settings.template.answer(y),
                lambda x, y: settings.template.prompt([(x, y)], ""),
            )
        ]
        self.short, self.long = longest[0], longest[0] + settings.vectors.demonstrations * longest[1]
        limit = model.config.max_positions
        if model.config.positions == "learned" and self.long > limit:
            raise reject("config.vectors.demonstrations", settings.vectors.demonstrations, f"prompts of {limit} tokens")
        answers = [settings.template.answer(y) for t in tasks.values() for _, y in t.pairs]
        self.width = 2 + max(len(ids) for ids in self.tokenizer.encode(answers, special=False))

    def random(self, *what: Any) -> np.random.Generator:
        """Randomness that depends on the seed and on what it is for, not on what was drawn before."""
        return np.random.default_rng([self.s.vectors.seed, *"/".join(map(str, what)).encode()])

    def ask(self, prompts: Sequence[str], outputs: Sequence[str], length: int) -> Questions:
        answers = [self.s.template.answer(y) for y in outputs]
        return questions(self.tokenizer, prompts, answers, length=length, width=self.width)

    def few_shot(self, name: str, asked: Sequence[Pair], *, shuffled: bool = False) -> list[str]:
        """A prompt with demonstrations of the train split for each pair that is asked."""
        train, k = self.tasks[name].split("train"), self.s.vectors.demonstrations
        random = self.random(name, "shots")
        return [self.s.template.prompt(shots(random, train, k, apart_from=x, shuffled=shuffled), x) for x, _ in asked]

    def right(self, prompts: Sequence[str], outputs: Sequence[str]) -> np.ndarray:
        """Whether each prompt is answered right: ``[B]``."""
        q = self.ask(prompts, outputs, self.long)
        run = functools.partial(_right, self.model.decoder, self.model.params)
        return np.asarray(in_batches(run, q, self.s.vectors.batch), float)

    def right_with(
        self, prompts: Sequence[str], outputs: Sequence[str], vectors_ND: np.ndarray, layers: Sequence[int], length: int
    ) -> np.ndarray:
        """The same with each of some vectors at its layer: ``[B, N]``."""
        q = self.ask(prompts, outputs, length)

        def run(batch: Questions) -> jax.Array:
            return _right_with(
                self.model.decoder, self.model.params, batch, jnp.asarray(vectors_ND), jnp.asarray(list(layers))
            )

        return np.asarray(in_batches(run, q, max(1, self.s.vectors.batch // len(layers))), float)

    def vectors(self, name: str, *, shuffled: bool = False) -> np.ndarray:
        """The task's mean state at every layer, ``[L+1, D]``, over prompts with queries of the train split."""
        train = self.tasks[name].split("train")
        chosen = self.random(name, "queries").choice(len(train), self.s.vectors.prompts)
        prompts = self.few_shot(name, [train[i] for i in chosen], shuffled=shuffled)
        tokens = pad(self.tokenizer.encode(prompts), side="right", length=self.long)
        run = functools.partial(_states, self.model.decoder, self.model.params)
        return np.asarray(in_batches(run, tokens, self.s.vectors.batch)).mean(0)

    def sample(self, name: str, split: str) -> tuple[Pair, ...]:
        """At most `questions` pairs of a split."""
        return self.tasks[name].split(split)[: self.s.vectors.questions]

    def measure(self, name: str) -> tuple[dict[str, Any], np.ndarray]:
        """What the summary says of a task, and its vectors."""
        layers = range(self.model.config.num_layers + 1)
        dev, test = self.sample(name, "dev"), self.sample(name, "test")
        bare, said = [self.s.template.prompt([], x) for x, _ in test], [y for _, y in test]
        theta, mixed = self.vectors(name), self.vectors(name, shuffled=True)
        bare_dev, said_dev = [self.s.template.prompt([], x) for x, _ in dev], [y for _, y in dev]
        by_layer = {
            "dev": self.right_with(bare_dev, said_dev, theta, layers, self.short),
            "test": self.right_with(bare, said, theta, layers, self.short),
        }
        # Not layer 0: the embedding of the last token is the same in every prompt, its "vector" changes nothing.
        layer = 1 + int(by_layer["dev"].mean(0)[1:].argmax())
        control = self.right_with(bare, said, mixed[[layer]], [layer], self.short)[:, 0]
        top = np.asarray(vocabulary(self.model.decoder, self.model.params, jnp.asarray(theta[[layer]])))[0]
        words = np.argsort(-top)[: self.s.vectors.words]
        entry = {
            "pairs": {split: len(asked) for split, asked in (("dev", dev), ("test", test))},
            "layer": layer,
            **with_interval("zero_shot", self.right(bare, said)),
            **with_interval("few_shot", self.right(self.few_shot(name, test), said)),
            **with_interval("shuffled_shot", self.right(self.few_shot(name, test, shuffled=True), said)),
            **with_interval("vector", by_layer["test"][:, layer]),
            **with_interval("shuffled_vector", control),
            **{f"vector_by_layer_{split}": values.mean(0).tolist() for split, values in by_layer.items()},
            "words": [self.tokenizer.decode([i]) for i in words],
        }
        return entry, theta

    def conflict(self, shown: str, moved: str, theta_D: np.ndarray, layer: int) -> dict[str, Any] | None:
        """Prompts that demonstrate `shown`, with the vector of `moved` written in: whose answers do they give?

        Of the inputs of the test split that both tasks have and answer differently; None where there are too few.
        """
        other = dict(self.sample(moved, "test"))
        asked = [(x, y) for x, y in self.sample(shown, "test") if other.get(x, y) != y]
        if len(asked) < self.s.vectors.conflicts:
            return None
        prompts = self.few_shot(shown, asked)
        answers = {"shown": [y for _, y in asked], "moved": [other[x] for x, _ in asked]}
        entry: dict[str, Any] = {"shown": shown, "moved": moved, "pairs": len(asked), "layer": layer}
        for whose, outputs in answers.items():
            with_vector = self.right_with(prompts, outputs, theta_D[None], [layer], self.long)[:, 0]
            entry |= with_interval(f"says_{whose}", with_vector)
            entry |= with_interval(f"says_{whose}_without", self.right(prompts, outputs))
        return entry


METHODS = ("zero_shot", "few_shot", "shuffled_shot", "vector", "shuffled_vector")


def _model(config: Mapping[str, Any], s: TaskVectorSettings, say: Callable[[str], None]) -> Model:
    """The model that the settings name; a small one is trained first, once, where they name none."""
    if s.model.path:
        return load_model(Path(s.model.path), dtype=s.model.dtype or None)
    folder = Path(s.model.trained)
    if not (folder / "eval" / "summary.json").is_file():
        say(f"training the small model of config.training in {folder}: this is done once")
        text_model.run(config["training"], folder, "train", say)
    return load_model(folder / text_model.MODEL, dtype=s.model.dtype or None)


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure task vectors of a model in `folder`: eval/summary.json, vectors/*.safetensors; return the summary.

    Raises `UserError` for a config, a model or a folder of tasks that does not fit. There is nothing to train but the
    small model, so both modes do the same.
    """
    s = TaskVectorSettings.from_config(config)
    tasks = s.data.read()
    rundir.prepare(folder, config, new=mode == "train")
    model = _model(config, s, say)
    bench = _Bench(model, s, tasks)
    entries: dict[str, Any] = {}
    thetas: dict[str, np.ndarray] = {}
    for name in tasks:
        entries[name], thetas[name] = bench.measure(name)
        e = entries[name]
        say(
            f"{name}: zero-shot {e['zero_shot']:.2f}, {s.vectors.demonstrations}-shot {e['few_shot']:.2f}, "
            f"vector {e['vector']:.2f} at layer {e['layer']}"
        )
        about = {
            "model": store.fingerprint(model.params),
            "address": "embed, blocks/resid",
            "position": "the last token of the prompt",
            "layer": e["layer"],
            "made_by": f"mean over {s.vectors.prompts} prompts of {s.vectors.demonstrations} demonstrations of {name}",
        }
        store.save_vectors(folder / "vectors" / f"{name}.safetensors", {"theta": thetas[name]}, about=about)
    conflicts = [
        bench.conflict(a, b, thetas[b][entries[b]["layer"]], entries[b]["layer"])
        for a in tasks
        for b in tasks
        if a != b
    ]
    summary = {
        "experiment": "task_vectors",
        "model": {"path": str(model.source.folder), "model_type": model.source.values["model_type"]},
        "num_layers": model.config.num_layers,
        "num_demonstrations": s.vectors.demonstrations,
        "num_prompts": s.vectors.prompts,
        "mean": {method: float(np.mean([e[method] for e in entries.values()])) for method in METHODS},
        "tasks": entries,
        "conflicts": [entry for entry in conflicts if entry],
    }
    write_json(folder / "eval" / "summary.json", summary)
    return summary
