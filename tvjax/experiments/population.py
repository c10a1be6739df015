"""The members of a population that trains with the TVP-loss, and checks of them against a model and a mesh."""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp

from tvjax.errors import reject
from tvjax.nn.decoder import DecoderConfig
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import check_mesh, setting
from tvjax.train.state import Hyper
from tvjax.vectors import tvp


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
    """Refuse one tvp_weight for all if a member's name contradicts it: `icl` is the ICL loss alone, `tvp` is not."""
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
    """Refuse two members with the same numbers: they would be one model, trained and shown twice."""
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


def check_population_mesh(mesh: MeshConfig, population: PopulationConfig, batch: int, decoder: DecoderConfig) -> None:
    """Raise `UserError` for a mesh that does not divide the population, a batch of prompts or the decoder."""
    check_mesh(
        mesh,
        ("member", len(population.name), "members"),
        ("data", batch, "prompts a batch"),
        ("tensor", decoder.kv_heads, "key/value heads"),
        ("tensor", decoder.hidden, "hidden channels"),
    )
