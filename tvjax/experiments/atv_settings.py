"""What an ATV run is asked to do: its settings, read from a config and checked against each other."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tvjax import methods
from tvjax.errors import reject
from tvjax.experiments.checks import check_micro_batches, check_training
from tvjax.experiments.text_data import DataConfig
from tvjax.experiments.text_model import TextModelSettings
from tvjax.methods import METHODS
from tvjax.methods.base import EvaluationConfig, Method
from tvjax.nn.decoder import DecoderConfig, Precision
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import build, check_mesh, coerce, group, groups, setting
from tvjax.tasks.text import Template
from tvjax.text.adapting import ExampleConfig
from tvjax.text.bench import VectorConfig
from tvjax.train.loop import TrainConfig
from tvjax.train.state import OptimizerConfig

MODELS = ("target", "generator", "training")
GROUPS = (*MODELS, "data", "tasks", "vectors", "train", "optimizer", "evaluation", "sensitivity", "mesh")
SETTLED = ("seed", "batch", "questions")
"""Fields of config.vectors that are those of the examples and of the evaluation."""


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """The frozen model: a Hugging Face folder; where it is empty, the small model of the run `trained`.

    dtype: of its parameters and activations; "" is that of the folder's tensors. matmul_precision: as `DecoderConfig`
    has it, of all products in the run, those of what is trained too.
    """

    path: str = ""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    matmul_precision: Precision = "highest"
    trained: str = "runs/text_model"
    remat: Literal["none", "full", "dots"] = "none"


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """What reads queries: a model of its own (a folder, or that of the run `trained`), or the target's first blocks.

    dtype: of its activations; its parameters, which are trained, are float32. template: how it is shown a query; () is
    as the target is. demonstrations: those that it reads in `atv_shown`, and
    draws: in how many choices for each example.
    """

    kind: Literal["model", "target"] = "model"
    path: str = ""
    trained: str = "runs/atv_generator"
    dtype: Literal["float32", "bfloat16"] = "float32"
    below: int = setting(1, least=1)
    template: tuple[str, ...] = ()
    demonstrations: int = setting(6, least=1)
    draws: int = setting(8, least=1)


@dataclasses.dataclass(frozen=True)
class TaskNames:
    """Tasks that are trained on and asked.

    ambiguous: those whose queries do not tell them apart. unseen: those that are only asked.
    """

    seen: tuple[str, ...]
    ambiguous: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The groups that have tasks, by name."""
        found = {"seen": self.seen, "ambiguous": self.ambiguous, "unseen": self.unseen}
        return {group: names for group, names in found.items() if names}

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


@dataclasses.dataclass(frozen=True)
class ATVSettings:
    """The whole experiment, checked."""

    target: TargetConfig
    generator: GeneratorConfig
    data: DataConfig
    tasks: TaskNames
    templates: tuple[Template, ...]
    methods: tuple[Method, ...]
    own: Mapping[str, Any]
    vectors: VectorConfig
    examples: ExampleConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    evaluation: EvaluationConfig
    sensitivity: SensitivityConfig
    mesh: MeshConfig

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ATVSettings":
        """Read a config. Raises `UserError` with one line for the first thing that is wrong."""
        groups(config, GROUPS, also=("templates", "methods", *methods.groups()))
        train = dict(group(config["train"], "config.train"))
        own = {f.name for f in dataclasses.fields(ExampleConfig)}
        mine = {name: train.pop(name) for name in list(train) if name in own}
        kinds: dict[str, Any] = {
            "target": TargetConfig,
            "generator": GeneratorConfig,
            "data": DataConfig,
            "tasks": TaskNames,
            "optimizer": OptimizerConfig,
            "evaluation": EvaluationConfig,
            "sensitivity": SensitivityConfig,
            "mesh": MeshConfig,
        }
        parts = {name: build(kind, config[name], f"config.{name}") for name, kind in kinds.items()}
        examples, asked = build(ExampleConfig, mine, "config.train"), parts["evaluation"]
        settled = dict(zip(SETTLED, (examples.seeds[0], asked.batch, asked.test), strict=True))
        s = cls(
            **parts,
            vectors=build(VectorConfig, config["vectors"], "config.vectors", **settled),
            train=build(TrainConfig, train, "config.train"),
            examples=examples,
            templates=_templates(config.get("templates")),
            methods=methods.chosen(config.get("methods")),
            own=methods.own_settings(config),
        )
        for check in (_check_tasks, _check_method, _check_training):
            check(s)
        if not s.target.path:
            trained_on = group(config["training"].get("target"), "config.training.target").get("data", {})
            for field in ("path", "tfds"):
                given = getattr(s.data, field)
                if given and trained_on.get(field) != config["data"][field]:
                    accepted = f"that of config.training.target.data.{field} too, or a model in config.target.path"
                    raise reject(f"config.data.{field}", given, accepted)
        for part in ("target", "generator"):
            needed = not getattr(s, part).path and (part == "target" or s.generator.kind == "model")
            if needed:
                TextModelSettings.from_config(group(config["training"].get(part), f"config.training.{part}"))
        return s


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
    of, known = s.sensitivity, [method.name for method in s.methods if method.kind == "atv"]
    if of.scales + of.layers + of.examples and of.method not in known:
        raise reject(
            "config.sensitivity.method", of.method, f"one of config.methods that is an ATV: {', '.join(known)}"
        )


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


def _check_training(s: ATVSettings) -> None:
    e = s.examples
    check_training(s.train, s.optimizer, e.batch, ("accuracy", "accuracy_first"))
    check_micro_batches(e.batch, e.micro_batches)
    check_mesh(s.mesh, ("member", len(e.seeds), "seeds"), ("data", e.batch // e.micro_batches, "examples a batch"))


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
