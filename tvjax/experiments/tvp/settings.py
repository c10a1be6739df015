"""What a TVP run is asked to do: its settings, read from a config and checked against each other."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tvjax import tasks
from tvjax.errors import one_of, reject
from tvjax.experiments.population import PopulationConfig, check_members, check_population_mesh, check_tvp
from tvjax.nn.decoder import FAMILY_FIELDS, Decoder, DecoderConfig
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import SEED, Checked, Settings, at_least, build, group, parts, setting
from tvjax.tasks import LAYOUTS, Layout, RealTask, Task
from tvjax.train.state import BatchConfig, OptimizerConfig, TrainConfig
from tvjax.vectors import tvp

LARGEST = 2**20
"""Of any size of a model: products of larger ones overflow in the compiler, which then ends the process."""


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """The shape of a prompt."""

    layout: str = setting(about="order of a demonstration: xzy (read at the placeholder z) or xy (read at x)")
    demonstrations: int = setting(about="K, demonstrations before the last query", least=1)


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A curriculum's quantity: `start`, plus `increment` every `interval` steps, up to its whole size."""

    start: int = setting(1, "at the first step", least=1)
    increment: int = setting(1, "what is added", least=1)
    interval: int = setting(0, "steps between two increments; 0: no curriculum", least=0)

    def mask(self, size: int, step: jax.Array) -> jax.Array:
        """1 for the first entries that are in use at `step`, 0 for the rest: ``[size]``."""
        if not self.interval:
            return jnp.ones(size)
        return (jnp.arange(size) < self.start + self.increment * (step // self.interval)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """What grows during training: input dimensions that are not zero, and pairs that count in the loss."""

    dimensions: Ramp = dataclasses.field(default_factory=Ramp)
    pairs: Ramp = dataclasses.field(default_factory=Ramp)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Checked):
    """How much is measured."""

    training_prompts: int = setting(about="of each evaluation during training", least=1)
    prompts: int = setting(about="of the evaluation at the end", least=1)
    seed: int = setting(0, "of these prompts", **SEED)
    shifts: bool = setting(True, "whether prompts are shifted too")
    probes: bool = setting(False, "whether vectors are probed")
    probe_prompts: int = setting(256, "of the probes that run the model", least=1)
    additivity: bool = setting(False, "whether they ask, too, if the vectors of single demonstrations add up")

    def check(self, path: str) -> None:
        """Raise `UserError` for too few prompts if vectors are probed, and for a part of the probes without them."""
        for name in ("prompts", "probe_prompts"):
            if self.probes and getattr(self, name) < 2:
                raise reject(f"{path}.{name}", getattr(self, name), "2 or more")
        if self.additivity and not self.probes:
            raise reject(f"{path}.additivity", True, f"False, or {path}.probes=True")
        if self.additivity and self.probe_prompts < 4:
            raise reject(f"{path}.probe_prompts", self.probe_prompts, "4 or more, for additivity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TVPTraining(BatchConfig, TrainConfig):
    """How a population is trained."""


@dataclasses.dataclass(frozen=True)
class TVPSettings(Settings):
    """The whole experiment, checked: every value here is known to fit the others."""

    task_name: str
    task: Task
    prompt: PromptConfig
    curriculum: CurriculumConfig
    decoder: DecoderConfig
    tvp: tvp.TVPConfig
    population: PopulationConfig
    train: TVPTraining
    optimizer: OptimizerConfig
    evaluation: EvaluationConfig
    mesh: MeshConfig

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters of one member, from the layers rolled up: the same numbers, in a program of one block."""
        decoder = Decoder(dataclasses.replace(self.decoder, unroll=1))
        return decoder.init(key, self.task.sample(key, 1, self.prompt.demonstrations, self.layout).inputs)["params"]

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.prompt.layout].wide(self.task.x_tokens)

    @property
    def shifts(self) -> "tuple[tasks.Shift, ...]":
        """The shifts that are evaluated: those for which there are positions."""
        pairs, limit = None, self.decoder.max_positions
        if self.decoder.positions == "learned":
            pairs = next(n for n in range(limit + 1, 0, -1) if self.layout.length(n) <= limit)
        return tasks.shifts_for(self.task, self.prompt.demonstrations, pairs) if self.evaluation.shifts else ()

    def active_inputs(self, step: jax.Array) -> jax.Array | None:
        """The mask ``[X]`` of the input dimensions in use at `step`; None if all are, always."""
        ramp = self.curriculum.dimensions
        return ramp.mask(self.task.input_width, step) if ramp.interval and isinstance(self.task, RealTask) else None

    def trial(self) -> None:
        """Try the family with shapes alone (`tasks.try_family`)."""
        tasks.try_family(self.task_name, self.task, self.layout, self.prompt.demonstrations, self.shifts)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the fields: the family of config.task decides which config.model there can be."""
        built = parts(cls, config, also=("task", "model"), apart=("decoder",))
        values = dict(group(config.get("task"), "config.task"))
        family = values.pop("name", None)
        if family not in tasks.names():
            raise reject("config.task.name", family, one_of(tasks.names()))
        task = build(tasks.family(family), values, "config.task")
        if not (task.has_oracle or task.centred):
            accepted = f"settings of {family} with which it has an `oracle`, or is `centred`: see its docstring"
            raise reject("config.task", values, accepted)
        settled = {f.name: f.default for f in dataclasses.fields(DecoderConfig) if f.name in FAMILY_FIELDS}
        settled |= task.decoder_inputs()
        decoder = build(DecoderConfig, config.get("model"), "config.model", **settled)
        return {**built, "task_name": family, "task": task, "decoder": decoder}

    def check(self, path: str) -> None:
        """Raise `UserError` for groups that do not fit each other."""
        for check in (_check_prompt, _check_model, _check_population):
            check(self)


def _check_prompt(s: TVPSettings) -> None:
    if s.prompt.layout not in LAYOUTS:
        raise reject("config.prompt.layout", s.prompt.layout, f"one of {', '.join(LAYOUTS)}")
    needed, limit = s.layout.length(s.prompt.demonstrations + 1), s.decoder.max_positions
    if s.decoder.positions == "learned" and needed > limit:
        raise reject(
            "config.prompt.demonstrations",
            s.prompt.demonstrations,
            f"a prompt that fits config.model.max_positions = {limit}; this one has {needed} positions",
        )
    if s.evaluation.additivity and s.prompt.demonstrations < 2:
        raise reject("config.evaluation.additivity", True, "False, or 2 demonstrations or more")
    check_tvp(s.tvp, s.prompt.demonstrations)
    if s.curriculum.dimensions.interval and s.decoder.inputs != "real":
        raise reject(
            "config.curriculum.dimensions.interval", s.curriculum.dimensions.interval, "0: tokens have no dimensions"
        )


def _check_model(s: TVPSettings) -> None:
    d, path = s.decoder, "config.model"
    at_least(2, path, num_layers=d.num_layers)
    at_least(1, path, width=d.width, num_heads=d.num_heads)
    sizes = ("num_kv_heads", "head_width", "hidden_width", "max_positions", "unroll")
    at_least(0, path, **{name: getattr(d, name) for name in sizes})
    for name in ("num_layers", "width", "num_heads", *sizes):
        if getattr(d, name) > LARGEST:
            raise reject(f"{path}.{name}", getattr(d, name), f"at most {LARGEST}")
    if not d.head_width and d.width % d.num_heads:
        raise reject(f"{path}.num_heads", d.num_heads, f"a divisor of width = {d.width}")
    if d.num_heads % d.kv_heads:
        raise reject(f"{path}.num_kv_heads", d.num_kv_heads, f"a divisor of num_heads = {d.num_heads}")
    if d.positions == "rotary" and d.channels % 2:
        raise reject(
            f"{path}.positions", d.positions, f"an even number of channels a head for rotary; here {d.channels}"
        )
    if d.tied_readout:
        raise reject(f"{path}.tied_readout", True, "False: the readout of a synthetic task has outputs of its own")
    for name in ("norm_epsilon", "rotary_base"):
        if getattr(d, name) <= 0:
            raise reject(f"{path}.{name}", getattr(d, name), "more than 0")
    if d.dtype not in ("float32", "bfloat16"):
        raise reject(f"{path}.dtype", d.dtype, "float32 or bfloat16")
    if d.param_dtype != "float32":
        raise reject(f"{path}.param_dtype", d.param_dtype, f"float32, as all that trains; {path}.dtype is computed in")
    if d.unroll > d.num_layers:
        raise reject(f"{path}.unroll", d.unroll, f"0 (all layers) to num_layers = {d.num_layers}")


def _check_population(s: TVPSettings) -> None:
    check_members(s.population, s.decoder.num_layers)
    check_population_mesh(s.mesh, s.population, s.train.batch // s.train.micro_batches, s.decoder)
