"""What a TVP run is asked to do: its settings, read from a config and checked against each other."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.errors import reject
from tvjax.experiments.checks import check_micro_batches, check_training
from tvjax.nn.decoder import FAMILY_FIELDS, DecoderConfig
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import at_least, build, check_mesh, check_seed, coerce, group, groups
from tvjax.tasks import FAMILIES, LAYOUTS, Layout, RealTask, Shift, Task, shifts_for
from tvjax.train.loop import TrainConfig
from tvjax.train.state import Hyper, OptimizerConfig
from tvjax.vectors import tvp

GROUPS = ("task", "prompt", "curriculum", "model", "tvp", "population", "train", "optimizer", "evaluation", "mesh")
LARGEST = 2**20
"""Of any size of a model: products of larger ones overflow in the compiler, which then ends the process."""


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """The shape of a prompt: its layout, and K, the number of demonstrations."""

    layout: str
    demonstrations: int


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A curriculum's quantity: `start`, plus `increment` every `interval` steps, up to its whole size.

    An interval of 0 is no curriculum.
    """

    start: int = 1
    increment: int = 1
    interval: int = 0

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

    name: tuple[str, ...]
    seed: tuple[int, ...]
    tvp_weight: tuple[float, ...]
    prescribed_layer: tuple[int, ...]
    learning_rate: tuple[float, ...]

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
class EvaluationConfig:
    """How much to measure: prompts of each evaluation during training and after it, the shifts, and the probes.

    probe_prompts: those of the probes that run the model.
    """

    training_prompts: int
    prompts: int
    seed: int = 0
    shifts: bool = True
    probes: bool = False
    probe_prompts: int = 256


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
    batch: int
    micro_batches: int
    train: TrainConfig
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
        groups(config, GROUPS)
        values = dict(group(config["task"], "config.task"))
        family = values.pop("name", None)
        if family not in FAMILIES:
            raise reject("config.task.name", family, f"one of {', '.join(FAMILIES)}")
        task = build(FAMILIES[family], values, "config.task")
        if not (task.has_oracle or task.centred):
            raise reject("config.task", values, f"settings of {family} for which it has an oracle: see its docstring")
        train = dict(group(config["train"], "config.train"))
        batch = coerce(train.pop("batch", None), int, "config.train.batch")
        micro_batches = coerce(train.pop("micro_batches", 1), int, "config.train.micro_batches")
        settled = {f.name: f.default for f in dataclasses.fields(DecoderConfig) if f.name in FAMILY_FIELDS}
        settled |= task.decoder_inputs()
        settings = cls(
            task_name=family,
            task=task,
            prompt=build(PromptConfig, config["prompt"], "config.prompt"),
            curriculum=build(CurriculumConfig, config["curriculum"], "config.curriculum"),
            decoder=build(DecoderConfig, config["model"], "config.model", **settled),
            tvp=build(tvp.TVPConfig, config["tvp"], "config.tvp"),
            population=build(PopulationConfig, config["population"], "config.population"),
            batch=batch,
            micro_batches=micro_batches,
            train=build(TrainConfig, train, "config.train"),
            optimizer=build(OptimizerConfig, config["optimizer"], "config.optimizer"),
            evaluation=build(EvaluationConfig, config["evaluation"], "config.evaluation"),
            mesh=build(MeshConfig, config["mesh"], "config.mesh"),
        )
        for check in (_check_prompt, _check_model, _check_measures, _check_population):
            check(settings)
        return settings


def _check_prompt(s: TVPSettings) -> None:
    if s.prompt.layout not in LAYOUTS:
        raise reject("config.prompt.layout", s.prompt.layout, f"one of {', '.join(LAYOUTS)}")
    at_least(1, "config.prompt", demonstrations=s.prompt.demonstrations)
    needed, places = s.layout.length(s.prompt.demonstrations + 1), s.decoder.max_positions
    if s.decoder.positions == "learned" and needed > places:
        raise reject(
            "config.prompt.demonstrations",
            s.prompt.demonstrations,
            f"a prompt that fits config.model.max_positions = {places}; this one has {needed} positions",
        )
    check_tvp(s.tvp, s.prompt.demonstrations)
    for name, ramp in (("dimensions", s.curriculum.dimensions), ("pairs", s.curriculum.pairs)):
        at_least(0, f"config.curriculum.{name}", interval=ramp.interval)
        at_least(1, f"config.curriculum.{name}", start=ramp.start, increment=ramp.increment)
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
            if name == "learning_rate" and value <= 0:
                raise reject(f"{path}.{name}", value, "more than 0")
            if name == "tvp_weight" and value < 0:
                raise reject(f"{path}.{name}", value, "0 or more")
            if name == "seed":
                check_seed(f"{path}.{name}", value)
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
    at_least(0, "config.tvp", start_step=config.start_step)


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
    check_places(s.mesh, s.population, s.batch // s.micro_batches, s.decoder)


def _check_measures(s: TVPSettings) -> None:
    e, path = s.evaluation, "config.evaluation"
    at_least(1, path, training_prompts=e.training_prompts)
    at_least(2 if e.probes else 1, path, prompts=e.prompts, probe_prompts=e.probe_prompts)
    check_seed("config.evaluation.seed", s.evaluation.seed)
    check_training(s.train, s.optimizer, s.batch)
    check_micro_batches(s.batch, s.micro_batches)
