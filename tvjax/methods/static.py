"""A learned vector a layer for each task, which no query changes: ATV that does not adapt. [ours]"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.methods import atv
from tvjax.methods.base import RunContext
from tvjax.methods.trained import FastSettings, Trained
from tvjax.nn.answers import Questions
from tvjax.nn.decoder import DecoderConfig
from tvjax.vectors.adapters import Adapter, Change, Frozen, Queries, of_task
from tvjax.vectors.atv import Positions, inject


@dataclasses.dataclass(frozen=True)
class StaticVectors(Adapter):
    """A learned vector a layer for each of `tasks`, which no query changes; another task gets their mean. [ours]

    tasks = 1 is one vector for everything: an adaptive vector that does not adapt.
    """

    target: DecoderConfig
    layers: tuple[int, ...]
    tasks: int
    positions: Positions = "last"

    @property
    def from_last(self) -> bool:
        return self.positions == "last"

    def init(self, key: jax.Array, frozen: Frozen) -> Any:
        return {"vectors": jnp.zeros((self.tasks, len(self.layers), self.target.width))}

    def read(
        self, params: Any, frozen: Frozen, queries: Queries, scale_L: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        return of_task(params["vectors"], queries.task_B) * scale_L[None, :, None]

    def change(self, params: Any, frozen: Frozen, reading: jax.Array, q: Questions) -> Change:
        return Change(frozen["target"], inject(reading, self.layers, self.positions, self.target, q))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static(Trained):
    """The method, which writes where ATV does, with its lambda."""

    scale = atv.scale


def _adapter(context: RunContext, own: FastSettings) -> StaticVectors:
    return StaticVectors(context.target.config, atv.layers(context), len(context.trained))


METHOD = Static(
    name="static",
    label="learned vector of each task",
    knows="task",
    source="The learned vector of each task, at all layers, is how it is done here.",
    settings=FastSettings,
    adapter=_adapter,
)
