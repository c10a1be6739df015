"""Function vectors: the summed outputs of the heads that carry tasks (Todd et al. 2024)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import reject
from tvjax.methods.vector import TaskVectors, VectorMethod
from tvjax.nn.decoder import DecoderConfig
from tvjax.settings import setting
from tvjax.text.bench import Bench, room
from tvjax.vectors.above import head_attributions, head_effects, loops
from tvjax.vectors.function_vectors import function_vector, strongest

EFFECTS = {"patching": jax.jit(head_effects), "gradient": jax.jit(head_attributions)}
"""How a head's indirect effect is found: by putting in each head's mean, or to first order, by one backward pass."""


@dataclasses.dataclass(frozen=True)
class FunctionVectorSettings:
    """The fields of config.function_vector."""

    heads: int = setting(10, "heads that are summed (Todd et al. 2024 take 10 of GPT-J's)", least=1)
    shuffled_prompts: int = setting(25, "prompts of a task on which each head's indirect effect is measured", least=1)
    scales: tuple[float, ...] = setting(
        (1.0, 2.0, 4.0), "factors of which the dev split chooses one, with the layer", above=0, entries=1, distinct=True
    )
    chosen_by: Literal["patching", "gradient"] = setting(
        "patching", "a head's effect: patching puts its mean in, gradient estimates that to first order"
    )


Heads = list[tuple[int, int]]
"""Heads as (block, head), both from 0."""


def means_and_heads(
    bench: Bench, own: FunctionVectorSettings, method: str
) -> tuple[Mapping[str, np.ndarray], Heads, dict[str, Any]]:
    """Of each task what the heads write on average ``[L, H, C]``, the heads of the greatest effect, and their effects.

    The effect is averaged over tasks. A head that lowers the answer's probability is not among them. Found once for all
    methods of the same settings.

    method: whose ticks are counted.
    """
    means = {name: bench.shown(name)["heads"] for name in bench.tasks}

    found: list[np.ndarray] = []

    def effects() -> np.ndarray:
        """Of each head, ``[L, H]``."""
        for name in bench.seen:
            pairs = bench.queries(name, own.shuffled_prompts)
            q = bench.ask(bench.few_shot(name, pairs, shuffled=True), [y for _, y in pairs])
            fixed = (bench.model.bare, jnp.asarray(means[name]))
            times = loops(bench.layers[1:], bench.model.config.num_layers)
            effect_BLH = bench.batches(EFFECTS[own.chosen_by], (), fixed, q, loops=times)
            found.append(np.asarray(effect_BLH, np.float32).mean(0))
            bench.tick(method)
        return np.asarray(np.mean(found, 0))

    effect_LH = bench.once(("effects", own.shuffled_prompts, own.chosen_by), effects)
    for _ in bench.seen[len(found) :]:  # known before: done at once
        bench.tick(method)
    chosen = strongest(effect_LH, own.heads)
    about = {
        "indirect_effect": effect_LH.tolist(),
        "heads": [{"layer": layer + 1, "head": head} for layer, head in chosen],
    }
    return means, chosen, about


def make(bench: Bench, own: FunctionVectorSettings) -> TaskVectors:
    """The summed output of the heads of the greatest indirect effect (Todd et al. 2024)."""
    means, chosen, about = means_and_heads(bench, own, "function_vector")
    sum_of = functools.partial(function_vector, bench.model.params, heads=chosen)
    return TaskVectors({name: np.tile(sum_of(mean), (len(bench.layers), 1)) for name, mean in means.items()}, about)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionVector(VectorMethod):
    """The method, which knows how many heads there are."""

    def check(self, own: FunctionVectorSettings, c: DecoderConfig) -> None:
        """Raise `UserError` for more heads than the target has."""
        if own.heads > c.num_layers * c.num_heads:
            raise reject(f"config.{self.group}.heads", own.heads, f"1..{c.num_layers * c.num_heads}, all heads")


def making(bench: Bench, own: FunctionVectorSettings) -> tuple[int, float]:
    """The work of `make`: a part is a task."""
    c = bench.model.config
    shown = room(int(5.0 * bench.config.demonstrations) + 8)
    return len(bench.seen), own.shuffled_prompts * (
        shown + (c.num_layers * c.num_heads / 2 if own.chosen_by == "patching" else 3)
    )


METHOD = FunctionVector(
    name="function_vector",
    label="function vector",
    source="Function vectors, the mean outputs of the heads that raise the right answer's probability most in prompts"
    " with shuffled labels, summed and added to the state: Todd et al. (2024).",
    settings=FunctionVectorSettings,
    make=make,
    keep=1.0,
    scales=lambda own: own.scales,
    making=making,
)
