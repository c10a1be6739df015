"""What an ATV run is asked to do: its settings, read from a config and checked against each other."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tvjax.errors import reject
from tvjax.experiments.bench import VectorConfig, check_vectors
from tvjax.experiments.settings import (
    at_least,
    build,
    check_mesh,
    check_micro_batches,
    check_seeds,
    check_training,
    coerce,
    group,
    groups,
)
from tvjax.experiments.text_data import DataConfig
from tvjax.experiments.text_model import TextModelSettings
from tvjax.experiments.tvp_settings import MeshConfig
from tvjax.nn.decoder import DecoderConfig, Precision
from tvjax.nn.lora import sites
from tvjax.tasks.text import Template
from tvjax.train.loop import TrainConfig
from tvjax.train.state import OptimizerConfig

PROMPTED = ("zero_shot", "few_shot", "bm25_shot")
VECTORS = ("vector", "function_vector", "elicit")
TRAINED = ("static", "i2cl", "lora", "prefix", "atv_last", "atv_all", "atv_shown")
METHODS = (*PROMPTED, *VECTORS, *TRAINED)
WHAT = ("target", "generator", "training", "data", "tasks")
HOW = ("atv", "baselines", "vectors", "rates", "train", "optimizer", "evaluation", "sensitivity", "mesh")


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
    below: int = 1
    template: tuple[str, ...] = ()
    demonstrations: int = 6
    draws: int = 8


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
class ATVConfig:
    """The choices of the method: layers (empty: 1..L), lambda (one, or one for each of the layers), and the rest."""

    layers: tuple[int, ...] = ()
    scale: tuple[float, ...] = (1.0,)
    learned_scale: bool = False
    rank: int = 0
    start: Literal["uniform", "zero"] = "uniform"
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """LoRA's rank and the prefix's length (0: as many trained numbers as ATV has), LoRA's sites, ELICIT's choices."""

    lora_rank: int = 0
    lora_sites: tuple[str, ...] = ("query", "value")
    prefix_length: int = 0
    elicit_vectors: Literal["vector", "function_vector"] = "function_vector"
    elicit_threshold: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rates:
    """Peak learning rates of what is trained."""

    atv: float
    static: float
    i2cl: float
    lora: float
    prefix: float


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
    """The examples that are trained on: at most so many of a task, in micro-batches, shuffled or task by task."""

    batch: int
    examples: int = 90
    micro_batches: int = 1
    shuffled: bool = True
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How many questions of a task validate and test."""

    dev: int = 20
    test: int = 100
    batch: int = 128


@dataclasses.dataclass(frozen=True)
class SensitivityConfig:
    """ATV trained again with other lambdas, subsets of layers and numbers of examples, one seed of each."""

    method: Literal["atv_last", "atv_all", "atv_shown"] = "atv_last"
    scales: tuple[float, ...] = ()
    layers: tuple[tuple[int, ...], ...] = ()
    examples: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class ATVSettings:
    """The whole experiment, checked."""

    target: TargetConfig
    generator: GeneratorConfig
    data: DataConfig
    tasks: TaskNames
    templates: tuple[Template, ...]
    methods: tuple[str, ...]
    atv: ATVConfig
    baselines: BaselineConfig
    vectors: VectorConfig
    rates: Rates
    examples: ExampleConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    evaluation: EvaluationConfig
    sensitivity: SensitivityConfig
    mesh: MeshConfig

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ATVSettings":
        """Read a config. Raises `UserError` with one line for the first thing that is wrong."""
        groups(config, WHAT + HOW, also=("templates", "methods"))
        train = dict(group(config["train"], "config.train"))
        own = {f.name for f in dataclasses.fields(ExampleConfig)}
        mine = {name: train.pop(name) for name in list(train) if name in own}
        kinds = {
            "target": TargetConfig,
            "generator": GeneratorConfig,
            "data": DataConfig,
            "tasks": TaskNames,
            "atv": ATVConfig,
            "baselines": BaselineConfig,
            "vectors": VectorConfig,
            "rates": Rates,
            "optimizer": OptimizerConfig,
            "evaluation": EvaluationConfig,
            "sensitivity": SensitivityConfig,
            "mesh": MeshConfig,
        }
        s = cls(
            **{name: build(kind, config[name], f"config.{name}") for name, kind in kinds.items()},
            train=build(TrainConfig, train, "config.train"),
            examples=build(ExampleConfig, mine, "config.train"),
            templates=_templates(config.get("templates")),
            methods=coerce(config.get("methods"), tuple[str, ...], "config.methods"),
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
    if not s.methods or len(set(s.methods)) < len(s.methods):
        raise reject("config.methods", s.methods, "different methods, at least one")
    for name in s.methods:
        if name not in METHODS:
            raise reject("config.methods", name, ", ".join(METHODS))
    needed = s.baselines.elicit_vectors
    if "elicit" in s.methods and needed not in s.methods[: s.methods.index("elicit")]:
        raise reject("config.methods", s.methods, f"{needed} before elicit, which is made of it")
    if s.sensitivity.scales + s.sensitivity.layers + s.sensitivity.examples and s.sensitivity.method not in s.methods:
        raise reject("config.sensitivity.method", s.sensitivity.method, "one of config.methods")


def _check_method(s: ATVSettings) -> None:
    a, g, b = s.atv, s.generator, s.baselines
    at_least(0, "config.atv", rank=a.rank)
    if not 0 <= a.dropout < 1:
        raise reject("config.atv.dropout", a.dropout, "0 up to, not including, 1")
    if len(set(a.layers)) < len(a.layers) or any(layer < 1 for layer in a.layers):
        raise reject("config.atv.layers", a.layers, "different layers, numbered from 1; (): all")
    for one in s.sensitivity.layers:
        if not one or len(set(one)) < len(one):
            raise reject(
                "config.sensitivity.layers", s.sensitivity.layers, "different layers, at least one in each entry"
            )
    if not a.scale or (a.layers and len(a.scale) not in (1, len(a.layers))):
        raise reject("config.atv.scale", a.scale, "one number, or one for each of config.atv.layers")
    at_least(1, "config.generator", below=g.below, demonstrations=g.demonstrations, draws=g.draws)
    if len(g.template) not in (0, 3, 4):
        accepted = "(before, between, after), with or without a start, or (): as the target's"
        raise reject("config.generator.template", g.template, accepted)
    at_least(0, "config.baselines", lora_rank=b.lora_rank, prefix_length=b.prefix_length)
    check_vectors(s.vectors)
    at_least(0, "config.sensitivity", scales=min(s.sensitivity.scales, default=0))
    at_least(1, "config.sensitivity", examples=min(s.sensitivity.examples, default=1))


def _check_training(s: ATVSettings) -> None:
    e, v = s.examples, s.evaluation
    check_training(s.train, s.optimizer, e.batch, ("accuracy", "accuracy_first"))
    at_least(1, "config.train", examples=e.examples)
    check_micro_batches(e.batch, e.micro_batches)
    check_seeds("config.train.seeds", e.seeds)
    at_least(1, "config.evaluation", dev=v.dev, test=v.test, batch=v.batch)
    for name, rate in dataclasses.asdict(s.rates).items():
        if rate <= 0:
            raise reject(f"config.rates.{name}", rate, "more than 0")
    check_mesh(s.mesh, ("member", len(e.seeds), "seeds"), ("data", e.batch // e.micro_batches, "examples a batch"))


def check_model(s: ATVSettings, c: DecoderConfig) -> None:
    """What can be checked only when the target is known. Raises `UserError`."""
    for name, layers in (("atv.layers", s.atv.layers), *(("sensitivity.layers", one) for one in s.sensitivity.layers)):
        if any(not 1 <= layer <= c.num_layers for layer in layers):
            raise reject(f"config.{name}", layers, f"layers in 1..{c.num_layers}")
        if s.atv.layers and not set(layers) <= set(s.atv.layers):
            raise reject(f"config.{name}", layers, f"layers of config.atv.layers = {s.atv.layers}")
    if len(s.atv.scale) not in (1, len(s.atv.layers or range(c.num_layers))):
        raise reject("config.atv.scale", s.atv.scale, f"one number, or one for each of the {c.num_layers} layers")
    if s.generator.kind == "target" and not s.generator.below < c.num_layers:
        raise reject("config.generator.below", s.generator.below, f"1..{c.num_layers - 1}, blocks of the target")
    for site in s.baselines.lora_sites:
        if site not in sites(c):
            raise reject("config.baselines.lora_sites", site, ", ".join(sites(c)))
