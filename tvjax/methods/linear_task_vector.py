"""Linear task vectors (Kwon et al. 2026): a linear map of the last state, so that what is added adapts to the query."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.methods.vector import Layer, TaskVectors, VectorMethod, at_one_layer
from tvjax.nn.answers import Questions, from_last
from tvjax.nn.model import Model
from tvjax.settings import setting
from tvjax.tasks.text import some
from tvjax.text.bench import Bench
from tvjax.text.measures import Asked
from tvjax.vectors.above import alike, read_out, states
from tvjax.vectors.from_prompts import vocabulary
from tvjax.vectors.next_token import Reference, Said, judge


@dataclasses.dataclass(frozen=True)
class LinearSettings:
    """The fields of config.linear_task_vector."""

    anchors: int = setting(
        256, "most inputs of the train split, without their answers, that the map is fitted to", least=1
    )
    shots: int = setting(30, "most demonstrations, at most half of the inputs: one prompt for all anchors", least=1)
    ridge: float = setting(5.0, "penalty on the map's squares", above=0)


def make(bench: Bench, own: LinearSettings) -> TaskVectors:
    """The ridge map ``[D, D]`` from h^L of an anchor alone to what demonstrations before it add to h^L."""
    maps = {}
    for name in bench.tasks:
        pairs = bench.paired(name, bench.tasks[name].questions("train"))
        order = [pairs[i] for i in bench.random(name, "anchors").permutation(len(pairs))]
        count = min(own.shots, len(order) // 2)
        shown, anchors = order[:count], some(order[count:], own.anchors)
        bare = bench.states(bench.zero_shot(anchors))[:, -1]
        led = bench.states([bench.template.prompt(shown, x) for x, _ in anchors])[:, -1]
        maps[name] = fitted(bare, led - bare, own.ridge)
        bench.tick("linear_task_vector")
    return TaskVectors(maps)


def fitted(states_PD: np.ndarray, added_PD: np.ndarray, ridge: float) -> np.ndarray:
    """W ``[D, D]`` of least ``|h W - added|^2 + ridge |W|^2``, in float64, by the smaller of the two systems."""
    h, added = states_PD.astype(np.float64), added_PD.astype(np.float64)
    if len(h) < h.shape[1]:
        return (h.T @ np.linalg.solve(h @ h.T + ridge * np.eye(len(h)), added)).astype(np.float32)
    return np.linalg.solve(h.T @ h + ridge * np.eye(h.shape[1]), h.T @ added).astype(np.float32)


@jax.jit
def mapped(model: Model, map_DD: jax.Array, scale_U: jax.Array, asked: tuple[Questions, Reference | None]) -> Said:
    """What is said at each place of the answers with ``scale h W`` added to h^L there: ``[B, U, ...]``."""
    q, reference = asked
    said = judge(model, reference)
    past, q = from_last(model, q)
    h_BAD = states(model, past, q)[0][-1]
    layers, reach = model.config.num_layers, past.positions_BS.shape[1] + q.tokens.ids_BT.shape[1]

    def one(scale: jax.Array) -> Said:
        """Of one scale, ``[B, ...]``."""
        new_BAD = h_BAD + (scale * (h_BAD.astype(jnp.float32) @ map_DD)).astype(h_BAD.dtype)
        if alike(model.config, reach):
            return said(read_out(model, past, q, new_BAD, layers))
        flat = vocabulary(model, new_BAD.reshape(-1, new_BAD.shape[-1]))
        return said(flat.reshape(*new_BAD.shape[:2], -1))

    return jax.tree.map(lambda a: a.swapaxes(0, 1), jax.lax.map(one, scale_U))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearTaskVector(VectorMethod):
    """The method, whose map stands at the last layer."""

    stored: bool = False

    def shape(self, bench: Bench) -> tuple[int, ...]:
        """Of the map."""
        return (bench.model.config.width,) * 2

    def layers(self, bench: Bench, result: TaskVectors, name: str) -> list[Layer]:
        """The last."""
        return [bench.model.config.num_layers]

    def said(self, bench: Bench, asked: Asked, vectors_LD: np.ndarray, layers: object, scales: object) -> Said:
        """What is said with the map, times each scale: ``[rows, 1, scales, ...]``."""
        fixed = (bench.model.bare, jnp.asarray(vectors_LD), jnp.asarray(scales, jnp.float32))
        return at_one_layer(bench.batches(mapped, (), fixed, (asked.q, asked.reference), loops=0))

    def query_flops(self, bench: Bench, tokens: float) -> float:
        """FLOPs of the matrix products that answer a query of so many tokens, with those of the map."""
        return super().query_flops(bench, tokens) + 2.0 * bench.model.config.width**2


def _making(bench: Bench, own: LinearSettings) -> tuple[int, float]:
    return len(bench.tasks), own.anchors * (5.0 * own.shots + 16)


METHOD = LinearTaskVector(
    name="linear_task_vector",
    label="linear task vector",
    source="Linear task vectors, a ridge map from the last state of a query alone to what demonstrations add to it:"
    " Kwon, Choi and Sohn (2026, arXiv 2605.20730).",
    settings=LinearSettings,
    make=make,
    making=_making,
)
