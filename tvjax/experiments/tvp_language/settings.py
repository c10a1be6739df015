"""What a TVP run on text tasks is asked to do: its settings, read from a config and checked against each other."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tvjax.errors import reject
from tvjax.experiments.models import TextSettings, check_small
from tvjax.experiments.population import PopulationConfig, check_members, check_population_mesh, check_tvp
from tvjax.nn.decoder import DecoderConfig
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import parts, setting
from tvjax.tasks.text import Template
from tvjax.text.bench import VectorConfig
from tvjax.text.data import DataConfig
from tvjax.train.state import OptimizerConfig, TrainConfig
from tvjax.vectors.tvp import TVPConfig

BASE = "base"
"""The name of the model before it is fine-tuned, beside those of the members."""


@dataclasses.dataclass(frozen=True)
class TaskNames:
    """Tasks that are fine-tuned on and asked, and tasks that are only asked."""

    train: tuple[str, ...] = setting(about="fine-tuned on, and asked")
    heldout: tuple[str, ...] = setting(about="only asked")

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Both groups by name."""
        return {"train": self.train, "heldout": self.heldout}


@dataclasses.dataclass(frozen=True)
class TunedConfig(PopulationConfig):
    """Members that are fine-tuned. answered_from: from what those with a tvp_weight answer the fresh pairs.

    "vector" is the TVP-loss; "demonstrations" is the control for what it costs: the same pairs, asked in the prompt.
    """

    answered_from: tuple[Literal["vector", "demonstrations"], ...] = setting(
        ("vector",), "vector: the TVP-loss; demonstrations: the control for what it costs, the same pairs in the prompt"
    )

    @property
    def extra(self) -> str:
        """From what fresh pairs are answered beside the ICL loss; "" if no member has a weight."""
        spread = self.spread()
        rows = zip(spread["tvp_weight"], spread["answered_from"], strict=True)
        return next((source for weight, source in rows if weight), "")

    def parts(self, at_once: int) -> list["TunedConfig"]:
        """The members that train side by side, `at_once` at a time; 0: all."""
        spread, size = self.spread(), at_once or len(self.name)
        return [
            dataclasses.replace(self, **{name: values[begin : begin + size] for name, values in spread.items()})
            for begin in range(0, len(self.name), size)
        ]


@dataclasses.dataclass(frozen=True)
class AskingConfig:
    """How much is asked."""

    training_prompts: int = setting(about="of each evaluation during training", least=1)
    single: int = setting(5, "vectors of one prompt each that every question is asked with", least=1)
    layers: tuple[int, ...] = setting((), "where vectors are written, beside the members' own layers; (): all, from 0")
    shifts: int = setting(60, "most questions of a task asked under each shift; 0: no shifts", least=0)
    template: tuple[str, str, str] = setting(
        ("", ":", "\n"), "(before, between, after) of another way to show pairs, which nothing is trained on"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningConfig(TrainConfig):
    """How members are fine-tuned."""

    batch: int = setting(about="prompts a step", least=1)
    demonstrations: int = setting(
        about="K: a prompt shows one more pair, and every answer counts; also of k-shot prompts", least=1
    )
    at_once: int = setting(0, "members that train side by side, and are asked before the next ones; 0: all", least=0)
    unroll: int = setting(
        0, "layers compiled one by one, of each loop over them; 0: all, slow to compile and fast to run", least=0
    )
    export: tuple[str, ...] = setting((), "names of members that are written to models/NAME, Hugging Face folders")


@dataclasses.dataclass(frozen=True)
class TVPLanguageSettings(TextSettings):
    """The whole experiment, checked as far as it can be before the model is there."""

    tasks: TaskNames
    data: DataConfig
    template: Template
    tvp: TVPConfig
    population: TunedConfig
    train: TuningConfig
    optimizer: OptimizerConfig
    vectors: VectorConfig
    evaluation: AskingConfig
    mesh: MeshConfig

    @property
    def layers(self) -> tuple[int, ...]:
        """The prescribed layers of all members, each once, in order."""
        return tuple(sorted(set(self.population.prescribed_layer)))

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the fields, of which k is that of config.train."""
        settled: dict[str, dict[str, Any]] = {"vectors": {"demonstrations": 1}, "tvp": {"answered_from": "vector"}}
        built = parts(cls, config, ("training",), **settled)
        shown = built["train"].demonstrations
        vectors = dataclasses.replace(built["vectors"], demonstrations=shown)
        return {**built, "vectors": vectors, "training": config.get("training")}

    def check(self, path: str) -> None:
        """Raise `UserError` for groups that do not fit each other, as far as that is known without the model."""
        _check(self)
        if not self.model.path:
            check_members(self.population, _check_base(self))

    def check_model(self, decoder: DecoderConfig) -> None:
        """Raise `UserError` for members or a mesh that do not fit the model, or a folder of a dtype not to tune in."""
        _check_dtype(self, decoder.dtype)
        check_members(self.population, decoder.num_layers)
        if self.train.unroll > decoder.num_layers:
            raise reject(
                "config.train.unroll", self.train.unroll, f"0 (all layers) to num_layers = {decoder.num_layers}"
            )
        if any(not 0 <= layer <= decoder.num_layers for layer in self.evaluation.layers):
            raise reject("config.evaluation.layers", self.evaluation.layers, f"layers 0..{decoder.num_layers}; (): all")
        for part in self.population.parts(self.train.at_once):
            check_population_mesh(self.mesh, part, self.train.batch, decoder)


def _check_dtype(s: TVPLanguageSettings, computes: str) -> None:
    """`computes`: the dtype of activations, and so of the gradients in between; those of float16 vanish below 6e-8."""
    if computes == "float16":
        value = s.model.dtype or f"'', and so the folder's {computes}"
        raise reject("config.model.dtype", value, "float32 or bfloat16: small gradients are 0 in float16")


def _check(s: TVPLanguageSettings) -> None:
    _check_dtype(s, s.model.dtype)
    for name, tasks in s.tasks.groups.items():
        if not tasks or len(set(tasks)) < len(tasks):
            raise reject(f"config.tasks.{name}", tasks, "different names of tasks, at least one")
    for task in s.tasks.heldout:
        if task in s.tasks.train:
            raise reject("config.tasks.heldout", task, "tasks that are not in config.tasks.train")
    if BASE in s.population.name:
        raise reject("config.population.name", BASE, "other names: this is the model before it is fine-tuned")
    _check_parts(s)
    check_tvp(s.tvp, s.train.demonstrations)
    if not 1 <= s.evaluation.single <= s.vectors.prompts:
        accepted = f"1 to config.vectors.prompts = {s.vectors.prompts}"
        raise reject("config.evaluation.single", s.evaluation.single, accepted)


def _check_parts(s: TVPLanguageSettings) -> None:
    """Members that train side by side run one program: what is asked beside the ICL loss is the same."""
    for part in s.population.parts(s.train.at_once):
        spread = part.spread()
        rows = zip(spread["tvp_weight"], spread["answered_from"], strict=True)
        if len({source for weight, source in rows if weight}) > 1:
            accepted = "one for all that train side by side (config.train.at_once = 1: each member alone)"
            raise reject("config.population.answered_from", s.population.answered_from, accepted)
    for name in s.train.export:
        if name not in s.population.name:
            raise reject("config.train.export", name, f"names of members: {', '.join(s.population.name)}")


def _check_base(s: TVPLanguageSettings) -> int:
    """L of the small model of config.training, which must not know the held-out tasks."""
    base = check_small(s.training, "config.training")
    seen = base.data.tasks or s.tasks.heldout  # no names are all tasks
    for task in s.tasks.heldout:
        if task in seen:
            raise reject("config.training.data.tasks", base.data.tasks, f"names of tasks without the held-out {task}")
    layers: int = base.model.num_layers
    return layers
