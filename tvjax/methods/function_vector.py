"""Function vectors: the summed outputs of the heads that carry tasks (Todd et al. 2024)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import reject
from tvjax.methods.vector import TaskVectors, VectorMethod
from tvjax.nn.decoder import DecoderConfig
from tvjax.settings import setting
from tvjax.text.bench import Bench, room
from tvjax.vectors.above import head_effects
from tvjax.vectors.function_vectors import function_vector, strongest

_effects = jax.jit(head_effects)


@dataclasses.dataclass(frozen=True)
class FunctionVectorSettings:
    """The fields of config.function_vector."""

    heads: int = setting(10, "heads that are summed (Todd et al. 2024 take 10 of GPT-J's)", least=1)
    shuffled_prompts: int = setting(25, "prompts of a task on which each head's indirect effect is measured", least=1)
    scales: tuple[float, ...] = setting(
        (1.0, 2.0, 4.0), "factors of which the dev split chooses one, with the layer", above=0, entries=1, distinct=True
    )


def make(bench: Bench, own: FunctionVectorSettings) -> TaskVectors:
    """The summed output of the heads of the greatest indirect effect, averaged over tasks (Todd et al. 2024).

    A head that lowers the answer's probability is not among them.
    """
    means = {name: bench.shown(name)["heads"] for name in bench.tasks}
    effects = []
    for name in bench.seen:
        pairs = bench.queries(name, own.shuffled_prompts)
        q = bench.ask(bench.few_shot(name, pairs, shuffled=True), [y for _, y in pairs])
        fixed = (bench.model.bare, jnp.asarray(means[name]))
        effects.append(np.asarray(bench.batches(_effects, (), fixed, q), np.float32).mean(0))
        bench.tick("function_vector")
    effect_LH = np.mean(effects, 0)
    chosen = strongest(effect_LH, own.heads)
    about = {
        "indirect_effect": effect_LH.tolist(),
        "heads": [{"layer": layer + 1, "head": head} for layer, head in chosen],
    }
    sum_of = functools.partial(function_vector, bench.model.params, heads=chosen)
    return TaskVectors({name: np.tile(sum_of(mean), (len(bench.layers), 1)) for name, mean in means.items()}, about)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionVector(VectorMethod):
    """The method, which knows how many heads there are."""

    def check(self, own: FunctionVectorSettings, c: DecoderConfig) -> None:
        """Raise `UserError` for more heads than the target has."""
        if own.heads > c.num_layers * c.num_heads:
            raise reject("config.function_vector.heads", own.heads, f"1..{c.num_layers * c.num_heads}, all heads")


def _making(bench: Bench, own: FunctionVectorSettings) -> tuple[int, float]:
    c = bench.model.config
    shown = room(int(5.0 * bench.config.demonstrations) + 8)
    return len(bench.seen), own.shuffled_prompts * (shown + c.num_layers * c.num_heads / 2)


METHOD = FunctionVector(
    name="function_vector",
    label="function vector",
    source="Function vectors, the mean outputs of the heads that raise the right answer's probability most in prompts"
    " with shuffled labels, summed and added to the state: Todd et al. (2024).",
    settings=FunctionVectorSettings,
    make=make,
    keep=1.0,
    scales=lambda own: own.scales,
    making=_making,
)
