"""I2CL (Li et al. 2025): summaries of demonstrations, weighed by learned scalars."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.methods.base import RunContext
from tvjax.methods.trained import FastSettings, Trained
from tvjax.nn.answers import Questions
from tvjax.nn.decoder import DecoderConfig
from tvjax.vectors.adapters import Adapter, Change, Frozen, Queries, of_task
from tvjax.vectors.edits import edit_at, merge


@dataclasses.dataclass(frozen=True)
class I2CL(Adapter):
    """Implicit in-context learning (Li et al. 2025): summaries of demonstrations, weighed by learned scalars.

    At every token and layer attention and MLP give ``keep * a + add * summary``, with four scalars a layer for each of
    `tasks` (another task gets their mean). ``frozen["summaries"] = {"attn_out", "mlp_out": [tasks, L, D]}`` are means
    over demonstrations, read one by one at their last tokens. Its noise in training is left out. [ours]
    """

    target: DecoderConfig
    tasks: int

    def init(self, key: jax.Array, frozen: Frozen) -> Any:
        start = jnp.array([[1.0, 0.1]])  # keep, add
        shape = (self.tasks, self.target.num_layers, 2)
        return {name: jnp.broadcast_to(start, shape) for name in ("attn_out", "mlp_out")}

    def read(self, params: Any, frozen: Frozen, queries: Queries, scale_L: jax.Array, key: jax.Array | None) -> Any:
        reading = {}
        for name, weights in params.items():
            weights_BL2 = of_task(weights, queries.task_B)
            added_BLD = weights_BL2[:, :, 1:] * frozen["summaries"][name][queries.task_B]
            reading[name] = (weights_BL2[:, :, 0], added_BLD)
        return reading

    def change(self, params: Any, frozen: Frozen, reading: Any, q: Questions) -> Change:
        written = (
            edit_at(f"blocks/{name}", keep=keep_BL.T[:, :, None, None], add=added_BLD.swapaxes(0, 1)[:, :, None])
            for name, (keep_BL, added_BLD) in reading.items()
        )
        return Change(frozen["target"], merge(*written))


def _summaries(context: RunContext, own: FastSettings) -> Frozen:
    """What attention and MLPs add at the last tokens of demonstrations, a mean for each task: ``[tasks, L, D]``."""
    bench, summaries = context.benches[0], []
    for name in context.tasks:
        shown = bench.paired(name, bench.sample(name, "train"))[: bench.config.demonstrations]
        summaries.append(bench.summaries([bench.template.prompt([], x) + bench.template.answer(y) for x, y in shown]))
    return {"summaries": {name: jnp.stack([one[name] for one in summaries]) for name in summaries[0]}}


METHOD = Trained(
    name="i2cl",
    label="I2CL",
    knows="task",
    source="I2CL: Li et al. (2025), without its noise.",
    settings=FastSettings,
    adapter=lambda context, own: I2CL(context.target.config, len(context.trained)),
    frozen=_summaries,
)
