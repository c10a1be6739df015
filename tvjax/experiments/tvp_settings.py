"""What a TVP run is asked to do: its settings, read from a config and checked against each other."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.errors import reject
from tvjax.nn.decoder import FAMILY_FIELDS, DecoderConfig
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import SEED, Checked, at_least, build, check_mesh, group, parts, setting
from tvjax.tasks import FAMILIES, LAYOUTS, Layout, RealTask, Shift, Task, shifts_for
from tvjax.train.loop import BatchConfig, TrainConfig
from tvjax.train.state import Hyper, OptimizerConfig
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
class PopulationConfig:
    """The members that train side by side: tuples with one entry a member, or one entry for all."""

    name: tuple[str, ...] = setting(about="of letters, digits and _ . + -")
    seed: tuple[int, ...] = setting(about="of initial parameters and batches; members of one seed share both", least=0)
    tvp_weight: tuple[float, ...] = setting(about="lambda in ICL loss + lambda * TVP-loss", least=0)
    prescribed_layer: tuple[int, ...] = setting(about="l*, 1..L-1")
    learning_rate: tuple[float, ...] = setting(about="peak", above=0)

    def spread(self) -> dict[str, tuple[Any, ...]]:
        """Every field with one entry a member; a tuple of one entry stands for all members."""
        size = len(self.name)
        spread = {}
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if len(values) not in (1, size):
                entries = f"1 entry or {size}" if size > 1 else "1 entry"
                raise reject(f"config.population.{field.name}", values, f"{entries}, one for each name, {self.name}")
            spread[field.name] = values * size if len(values) == 1 else values
        return spread

    @property
    def hyper(self) -> Hyper:
        """The members' own numbers, arrays ``[M]``."""
        spread = self.spread().items()
        return {name: jnp.array(values) for name, values in spread if not isinstance(values[0], str)}


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Checked):
    """How much is measured."""

    training_prompts: int = setting(about="of each evaluation during training", least=1)
    prompts: int = setting(about="of the evaluation at the end", least=1)
    seed: int = setting(0, "of these prompts", **SEED)
    shifts: bool = setting(True, "whether prompts are shifted too")
    probes: bool = setting(False, "whether vectors are probed")
    probe_prompts: int = setting(256, "of the probes that run the model", least=1)

    def check(self, path: str) -> None:
        """Raise `UserError` for a single prompt where vectors are probed."""
        for name in ("prompts", "probe_prompts"):
            if self.probes and getattr(self, name) < 2:
                raise reject(f"{path}.{name}", getattr(self, name), "2 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TVPTraining(BatchConfig, TrainConfig):
    """How a population is trained."""


@dataclasses.dataclass(frozen=True)
class TVPSettings:
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

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.prompt.layout].wide(self.task.x_tokens)

    @property
    def shifts(self) -> tuple[Shift, ...]:
        """The shifts that are evaluated: those for which there are positions."""
        pairs, places = None, self.decoder.max_positions
        if self.decoder.positions == "learned":
            pairs = next(n for n in range(places + 1, 0, -1) if self.layout.length(n) <= places)
        return shifts_for(self.task, self.prompt.demonstrations, pairs) if self.evaluation.shifts else ()

    def active_inputs(self, step: jax.Array) -> jax.Array | None:
        """The mask ``[X]`` of the input dimensions in use at `step`; None where all are, always."""
        ramp = self.curriculum.dimensions
        return ramp.mask(self.task.input_width, step) if ramp.interval and isinstance(self.task, RealTask) else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TVPSettings":
        """Read a config. Raises `UserError` with one line for the first thing that is wrong."""
        built = parts(cls, config, also=("task", "model"), apart=("decoder",))
        values = dict(group(config.get("task"), "config.task"))
        family = values.pop("name", None)
        if family not in FAMILIES:
            raise reject("config.task.name", family, f"one of {', '.join(FAMILIES)}")
        task = build(FAMILIES[family], values, "config.task")
        if not (task.has_oracle or task.centred):
            raise reject("config.task", values, f"settings of {family} for which it has an oracle: see its docstring")
        settled = {f.name: f.default for f in dataclasses.fields(DecoderConfig) if f.name in FAMILY_FIELDS}
        settled |= task.decoder_inputs()
        decoder = build(DecoderConfig, config.get("model"), "config.model", **settled)
        settings = cls(task_name=family, task=task, decoder=decoder, **built)
        for check in (_check_prompt, _check_model, _check_population):
            check(settings)
        return settings


def _check_prompt(s: TVPSettings) -> None:
    if s.prompt.layout not in LAYOUTS:
        raise reject("config.prompt.layout", s.prompt.layout, f"one of {', '.join(LAYOUTS)}")
    needed, places = s.layout.length(s.prompt.demonstrations + 1), s.decoder.max_positions
    if s.decoder.positions == "learned" and needed > places:
        raise reject(
            "config.prompt.demonstrations",
            s.prompt.demonstrations,
            f"a prompt that fits config.model.max_positions = {places}; this one has {needed} positions",
        )
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


def check_members(population: PopulationConfig, num_layers: int) -> None:
    """Raise `UserError` for the first value that no member of a population on `num_layers` layers can have."""
    path, last, names = "config.population", num_layers - 1, population.name
    if (
        not names
        or len(set(names)) < len(names)
        or not all(re.fullmatch(r"[\w.+-]+", n) and n[0] != "." for n in names)
    ):
        raise reject(f"{path}.name", names, "different names, one a member, of letters, digits and _ . + -")
    for name, values in population.spread().items():
        for value in values:
            if name == "prescribed_layer" and not 1 <= value <= last:
                raise reject(
                    f"{path}.prescribed_layer",
                    value,
                    f"1..{last}: layer 0 holds no task yet, and at layer {last + 1} nothing after it can see the query",
                )
    _check_weights(population)
    _check_different(population)


def _check_weights(population: PopulationConfig) -> None:
    """Refuse one tvp_weight for all where a member's name says another: `icl` is the ICL loss alone, `tvp` is not."""
    names, weights = population.name, population.tvp_weight
    if len(weights) == 1 < len(names):
        for name in names:
            arm = re.split(r"[^a-z]", name.lower())[0]
            if arm in ("icl", "tvp") and (arm == "icl") == (weights[0] > 0):
                accepted = (
                    f"{len(names)} entries, one for each of {', '.join(names)}: one for all is that of {name} too"
                )
                raise reject("config.population.tvp_weight", weights, f"{accepted}, which its name denies")


def _check_different(population: PopulationConfig) -> None:
    """Refuse two members of which every number is the same: they would be one model, trained and shown twice."""
    spread = population.spread()
    fields = [name for name in spread if name != "name"]
    seen: dict[tuple[Any, ...], str] = {}
    for name, *numbers in zip(*(spread[field] for field in ("name", *fields)), strict=True):
        first = seen.setdefault(tuple(numbers), name)
        if first != name:
            shared = ", ".join(f"{field} {value}" for field, value in zip(fields, numbers, strict=True))
            field = next((f for f in ("tvp_weight", *fields) if len(getattr(population, f)) == 1), "tvp_weight")
            accepted = (
                f"values in which the members {first} and {name} differ: both have {shared}, and so are one model"
            )
            raise reject(f"config.population.{field}", getattr(population, field), accepted)


def check_tvp(config: tvp.TVPConfig, demonstrations: int) -> None:
    """Raise `UserError` for a TVP-loss that prompts of `demonstrations` demonstrations cannot have."""
    for count in config.demonstrations:
        if not 0 <= count <= demonstrations:
            raise reject("config.tvp.demonstrations", config.demonstrations, f"numbers in 0..{demonstrations}")


def check_places(mesh: MeshConfig, population: PopulationConfig, batch: int, decoder: DecoderConfig) -> None:
    """Raise `UserError` for a mesh that does not divide the population, a batch of prompts or the decoder."""
    check_mesh(
        mesh,
        ("member", len(population.name), "members"),
        ("data", batch, "prompts a batch"),
        ("tensor", decoder.kv_heads, "key/value heads"),
        ("tensor", decoder.hidden, "hidden channels"),
    )


def _check_population(s: TVPSettings) -> None:
    check_members(s.population, s.decoder.num_layers)
    check_places(s.mesh, s.population, s.train.batch // s.train.micro_batches, s.decoder)
