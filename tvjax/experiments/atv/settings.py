"""What an ATV run is asked to do: its settings, read from a config and checked against each other."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tvjax import methods
from tvjax.errors import reject
from tvjax.experiments.models import check_small
from tvjax.methods import METHODS
from tvjax.methods.atv import ATVMethod
from tvjax.methods.base import Method, QuestionConfig
from tvjax.nn.decoder import DecoderConfig, Precision
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import Settings, build, check_mesh, coerce, group, parts, setting
from tvjax.tasks.text import Template
from tvjax.text.adapting import ExampleConfig
from tvjax.text.bench import VectorConfig
from tvjax.text.data import DataConfig
from tvjax.train.state import OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """The frozen model."""

    path: str = setting(
        "", "a Hugging Face folder, a GGUF file, smollm2, ORG/NAME of the hub; '': that of config.training.target"
    )
    dtype: Literal["", "float32", "bfloat16", "float16"] = setting(
        "", "of its parameters and activations; '': that of the folder's tensors; what is trained is float32 always"
    )
    matmul_precision: Precision = setting("highest", "of all products in the run: highest, high, default")
    trained: str = setting("runs/text_model", "where the small model is, or is trained once; used if path is ''")
    remat: Literal["none", "full", "dots"] = setting(
        "none", "activations that the backward pass computes again: none, full, dots (all but products)"
    )


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """What reads queries."""

    kind: Literal["model", "target"] = setting(
        "model", "model: one of its own, trained on; target: the target's first blocks, frozen"
    )
    path: str = setting("", "as config.target.path, e.g. GPT-2's folder; '': config.training.generator's")
    trained: str = setting("runs/atv_generator", "where the small one is, or is trained once")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of its activations; its parameters are float32")
    below: int = setting(1, "blocks of the target that read a query, where kind is target", least=1)
    template: tuple[str, ...] = setting((), "(before, between, after), how it is shown a query; (): as the target is")
    demonstrations: int = setting(6, "those that it reads in atv_shown", least=1)
    draws: int = setting(8, "choices of them for each example", least=1)


@dataclasses.dataclass(frozen=True)
class TaskNames:
    """Tasks that are trained on and asked."""

    seen: tuple[str, ...] = setting(about="trained on and asked; their queries tell them apart")
    ambiguous: tuple[str, ...] = setting((), "trained on and asked, though they share their inputs")
    unseen: tuple[str, ...] = setting((), "only asked")

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The groups that have tasks, by name."""
        groups = {"seen": self.seen, "ambiguous": self.ambiguous, "unseen": self.unseen}
        return {group: names for group, names in groups.items() if names}

    @property
    def trained(self) -> tuple[str, ...]:
        return self.seen + self.ambiguous

    @property
    def all(self) -> tuple[str, ...]:
        return self.trained + self.unseen


@dataclasses.dataclass(frozen=True)
class SensitivityConfig:
    """ATV trained again with other lambdas, subsets of layers and numbers of examples, one seed of each."""

    method: str = setting("atv_last", "one of config.methods that is an ATV")
    scales: tuple[float, ...] = setting((), "lambda", least=0)
    layers: tuple[tuple[int, ...], ...] = setting((), "subsets")
    examples: tuple[int, ...] = setting((), "most examples of a task", least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ATVTraining(ExampleConfig, TrainConfig):
    """How all that is trained is trained."""

    SCORES = ("accuracy", "accuracy_first")


@dataclasses.dataclass(frozen=True)
class ATVSettings(Settings):
    """The whole experiment, checked.

    own: the settings of methods, by group.
    training: config.training.
    """

    target: TargetConfig
    generator: GeneratorConfig
    data: DataConfig
    tasks: TaskNames
    vectors: VectorConfig
    train: ATVTraining
    optimizer: OptimizerConfig
    evaluation: QuestionConfig
    sensitivity: SensitivityConfig
    mesh: MeshConfig
    templates: tuple[Template, ...]
    methods: tuple[Method, ...]
    own: Mapping[str, Any]
    training: Any

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the fields, with those of the methods."""
        also = ("training", "templates", "methods", *methods.groups())
        # Vectors are made for each seed, and asked as config.evaluation says.
        built = parts(cls, config, also, vectors=dict.fromkeys(("seed", "batch", "questions"), 1))
        evaluation, train = built["evaluation"], built["train"]
        built["vectors"] = dataclasses.replace(
            built["vectors"], seed=train.seeds[0], batch=evaluation.batch, questions=evaluation.test
        )
        return {
            **built,
            "templates": _templates(config.get("templates")),
            "methods": methods.chosen(config.get("methods")),
            "own": methods.own_settings(config),
            "training": config.get("training"),
        }

    def check(self, path: str) -> None:
        """Raise `UserError` for groups that do not fit each other, as far as that is known without the models."""
        s = self
        _check_tasks(s)
        _check_method(s)
        e = s.train
        check_mesh(s.mesh, ("member", len(e.seeds), "seeds"), ("data", e.batch // e.micro_batches, "examples a batch"))
        _check_training(s)


def _check_training(s: ATVSettings) -> None:
    """What is trained first, if no model is named: the target on the data of the run, and the generator."""
    training = group(s.training, "config.training") if s.training is not None else {}
    if not s.target.path:
        path = "config.training.target"
        trained_on = build(DataConfig, group(training.get("target"), path).get("data", {}), f"{path}.data")
        for field in ("path", "tfds"):
            value = getattr(s.data, field)
            if value and getattr(trained_on, field) != value:
                accepted = f"that of config.training.target.data.{field} too, or a model in config.target.path"
                raise reject(f"config.data.{field}", value, accepted)
    for part in ("target", "generator"):
        if not getattr(s, part).path and (part == "target" or s.generator.kind == "model"):
            check_small(training.get(part), f"config.training.{part}")


def _templates(values: Any) -> tuple[Template, ...]:
    rows = coerce(values, tuple[tuple[str, ...], ...], "config.templates")
    if not rows or any(len(row) not in (3, 4) for row in rows):
        raise reject("config.templates", values, "at least one (before, between, after) or (before, .., start)")
    return tuple(Template(*row) for row in rows)


def _check_tasks(s: ATVSettings) -> None:
    names = s.tasks.all
    if not s.tasks.seen:
        raise reject("config.tasks.seen", s.tasks.seen, "at least one task")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise reject("config.tasks", twice, "different tasks in seen, ambiguous and unseen")
    methods.check_order(s.methods, s.own)
    of = s.sensitivity
    known = [name for name, method in METHODS.items() if isinstance(method, ATVMethod)]
    if of.scales + of.layers + of.examples:
        known = [method.name for method in s.methods if isinstance(method, ATVMethod)]
    if of.method not in known:
        accepted = f"one of config.methods that is an ATV: {', '.join(known)}"
        raise reject("config.sensitivity.method", of.method, accepted)


def _check_method(s: ATVSettings) -> None:
    g = s.generator
    for one in s.sensitivity.layers:
        if not one or len(set(one)) < len(one):
            raise reject(
                "config.sensitivity.layers", s.sensitivity.layers, "different layers, at least one in each entry"
            )
    if len(g.template) not in (0, 3, 4):
        accepted = "(before, between, after), with or without a start, or (): as the target's"
        raise reject("config.generator.template", g.template, accepted)


def check_model(s: ATVSettings, c: DecoderConfig) -> None:
    """What can be checked only when the target is known. Raises `UserError`."""
    for method in (*s.methods, METHODS["atv_last"]):  # as large as which others are made
        method.check(s.own[method.group], c)
    written = s.own["atv"].layers or range(1, c.num_layers + 1)
    for one in s.sensitivity.layers:
        if not set(one) <= set(written):
            raise reject(
                "config.sensitivity.layers", one, f"layers of config.atv.layers: {', '.join(map(str, written))}"
            )
    if s.generator.kind == "target" and not s.generator.below < c.num_layers:
        raise reject("config.generator.below", s.generator.below, f"1..{c.num_layers - 1}, blocks of the target")
