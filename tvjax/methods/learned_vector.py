"""Learned vectors: a vector of each task that gradient descent finds, added to the state. [ours]"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import reject
from tvjax.methods.vector import TaskVectors, VectorMethod
from tvjax.nn.answers import Questions
from tvjax.nn.decoder import DecoderConfig
from tvjax.settings import setting
from tvjax.text.bench import Bench, best_layer_and_scale
from tvjax.vectors import learned


@dataclasses.dataclass(frozen=True)
class LearnedVectorSettings:
    """The fields of config.learned_vector."""

    layers: tuple[int, ...] = setting(
        (), "where one is learned; (): where dev prefers state vectors, and in the middle", least=1, distinct=True
    )
    steps: int = setting(100, "of Adam", least=0)
    rate: float = setting(0.03, "learning rate", above=0)
    batch: int = setting(16, "zero-shot prompts a step", least=1)


def make(bench: Bench, own: LearnedVectorSettings) -> TaskVectors:
    """A vector learned by gradient descent on zero-shot prompts of the train split, at some layers. [ours]"""
    vectors, used, count = {}, {}, bench.config.questions
    for name in bench.tasks:
        known = bench.paired(name, bench.sample(name, "train"))
        pairs = [known[i % len(known)] for i in range(count)]  # as many for each task: one program for all
        drawn = bench.random(name, "learned").choice(len(known), own.steps * own.batch)
        q = bench.ask(bench.zero_shot(pairs), [y for _, y in pairs])
        rows = jnp.asarray(drawn.reshape(own.steps, own.batch))
        used[name] = list(own.layers) or preferred(bench, name)
        vectors[name] = np.zeros((len(bench.layers), bench.model.config.width), np.float32)
        for layer in used[name]:
            vectors[name][layer] = learn(bench, q, rows, layer, own.rate)
        bench.tick("learned_vector")
    return TaskVectors(vectors, {"learned_layers": used}, used)


def preferred(bench: Bench, name: str) -> list[int]:
    """The layer that the dev split prefers for the state vector, and the middle one."""
    states_LD = bench.shown(name)["states"][1:]
    dev = bench.swept(name, "dev", states_LD, bench.layers[1:], 0.0, (1.0,))
    return sorted({1 + best_layer_and_scale(dev)[0], (bench.model.config.num_layers + 1) // 2})


def learn(bench: Bench, q: Questions, rows: jax.Array, layer: int, rate: float) -> np.ndarray:
    """The vector ``[D]`` that is learned at a layer: `learned.learn`. rows: ``[steps, B]``."""
    model = bench.model.bare
    above = learned.upper(model, learned.lowest(layer, model.config.num_layers))
    fixed = (model, above, q, rows, jnp.asarray(rate))
    return np.asarray(bench.batches(learned.learn, (), fixed, jnp.array([layer])))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedVector(VectorMethod):
    """The method, whose layers are those of the target."""

    def check(self, own: LearnedVectorSettings, c: DecoderConfig) -> None:
        """Raise `UserError` for a layer that the target has not."""
        if max(own.layers, default=0) > c.num_layers:
            raise reject("config.learned_vector.layers", own.layers, f"layers 1..{c.num_layers}")


def _making(bench: Bench, own: LearnedVectorSettings) -> tuple[int, float]:
    trained = own.steps * own.batch * 4.0 * (len(own.layers) or 2)
    return len(bench.tasks), trained + bench.config.questions * bench.model.config.num_layers / 2


METHOD = LearnedVector(
    name="learned_vector",
    label="learned vector",
    source="Learned vectors, added to the state and trained on zero-shot prompts of the train split, are how it is done"
    " here.",
    settings=LearnedVectorSettings,
    make=make,
    keep=1.0,
    making=_making,
)
