"""Learned vectors (Yang, Cho, Ding and Inoue 2026): a vector of each task, found by gradient descent, and added.

Theirs begins at random, is decayed, and stops by the accuracy on held-out questions:
``start=0.1 decay=0.01 rate=0.001 epochs=10 patience=2 layers=(MIDDLE,)``. The defaults are [ours].
"""

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
    steps: int = setting(100, "of AdamW in all", least=0)
    rate: float = setting(0.03, "learning rate", above=0)
    batch: int = setting(16, "zero-shot prompts a step", least=1)
    start: float = setting(0.0, "the vector begins uniform in +-start", least=0)
    decay: float = setting(0.0, "weight decay", least=0)
    epochs: int = setting(1, "equal parts of the steps; dev chooses after which of them the vector is taken", least=1)
    patience: int = setting(0, "epochs without a better one, after which later ones do not count; 0: all do", least=0)


def make(bench: Bench, own: LearnedVectorSettings) -> TaskVectors:
    """A vector learned by gradient descent on zero-shot prompts of the train split, at some layers."""
    vectors, used, count = {}, {}, bench.config.questions
    for name in bench.tasks:
        known = bench.paired(name, bench.sample(name, "train"))
        pairs = [known[i % len(known)] for i in range(count)]  # as many for each task: one program for all
        drawn = bench.random(name, "learned").choice(len(known), own.steps * own.batch)
        q = bench.ask(bench.zero_shot(pairs), [y for _, y in pairs])
        rows = jnp.asarray(drawn.reshape(own.epochs, own.steps // own.epochs, own.batch))
        used[name] = list(own.layers) or preferred(bench, name)
        vectors[name] = np.zeros((len(bench.layers), bench.model.config.width), np.float32)
        for layer in used[name]:
            first = bench.random(name, "start", layer).uniform(-own.start, own.start, bench.model.config.width)
            by_epoch = learn(bench, q, rows, layer, own, first)
            vectors[name][layer] = by_epoch[_epoch(bench, name, by_epoch, layer, own.patience)]
        bench.tick("learned_vector")
    return TaskVectors(vectors, {"learned_layers": used}, used)


def preferred(bench: Bench, name: str) -> list[int]:
    """The layer that the dev split prefers for the state vector, and the middle one."""
    states_LD = bench.shown(name)["states"][1:]
    dev = bench.swept(name, "dev", states_LD, bench.layers[1:], 0.0, (1.0,))
    return sorted({1 + best_layer_and_scale(dev)[0], (bench.model.config.num_layers + 1) // 2})


def _epoch(bench: Bench, name: str, by_epoch: np.ndarray, layer: int, patience: int) -> int:
    """The epoch after which the dev split prefers the vector."""
    count = len(by_epoch)
    if count == 1:
        return 0
    dev = bench.swept(name, "dev", by_epoch, [layer] * count, 1.0, (1.0,))
    return best_epoch((dev.first.mean(0) + 1e-3 * dev.whole.mean(0))[:, 0], patience)


def best_epoch(accuracies: np.ndarray, patience: int) -> int:
    """The first of the best, of those up to the one that ends a row of `patience` without a better one (0: of all)."""
    best = 0
    for epoch, accuracy in enumerate(accuracies):
        if accuracy > accuracies[best]:
            best = epoch
        elif patience and epoch - best >= patience:
            break
    return best


def learn(
    bench: Bench, q: Questions, rows: jax.Array, layer: int, own: LearnedVectorSettings, first_D: np.ndarray
) -> np.ndarray:
    """The vector that is learned at a layer, after each epoch ``[E, D]``: `learned.learn`. rows: ``[E, steps, B]``."""
    model = bench.model.bare
    above = learned.upper(model, learned.lowest(layer, model.config.num_layers))
    fixed = (model, above, q, rows, jnp.asarray(own.rate), jnp.asarray(own.decay), jnp.asarray(first_D, jnp.float32))
    return np.asarray(bench.batches(learned.learn, (), fixed, jnp.array([layer])))[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedVector(VectorMethod):
    """The method, whose layers are those of the target."""

    def check(self, own: LearnedVectorSettings, c: DecoderConfig) -> None:
        """Raise `UserError` for a layer that the target has not."""
        if max(own.layers, default=0) > c.num_layers:
            raise reject("config.learned_vector.layers", own.layers, f"layers 1..{c.num_layers}")
        if own.steps % own.epochs:
            raise reject("config.learned_vector.epochs", own.epochs, f"a divisor of steps = {own.steps}")


def _making(bench: Bench, own: LearnedVectorSettings) -> tuple[int, float]:
    trained = own.steps * own.batch * 4.0 * (len(own.layers) or 2)
    return len(bench.tasks), trained + bench.config.questions * bench.model.config.num_layers / 2


METHOD = LearnedVector(
    name="learned_vector",
    label="learned vector",
    source="Learned vectors, trained on zero-shot prompts and added to the state: Yang, Cho, Ding and Inoue (2026,"
    " arXiv 2509.24169), by settings that are ours unless the config says theirs.",
    settings=LearnedVectorSettings,
    make=make,
    keep=1.0,
    making=_making,
    trainable=lambda config: config.width,
)
