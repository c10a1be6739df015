"""SITE, soft injection (Park et al. 2026): each head's mean, mixed in by a learned share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.methods.base import RunContext
from tvjax.methods.trained import FastSettings, Trained
from tvjax.nn.answers import Questions
from tvjax.nn.decoder import DecoderConfig
from tvjax.vectors.adapters import Adapter, Change, Frozen, Queries, of_task
from tvjax.vectors.edits import HEADS, edit_at


@dataclasses.dataclass(frozen=True)
class SoftInjection(Adapter):
    """At the last token a head gives ``(1 - alpha) * its own + alpha * mean``, alpha in [0, 1] learned for each head.

    ``frozen["heads"] [tasks, L, H, C]`` are the means at the last tokens of few-shot prompts. alpha is the sigmoid of a
    parameter that begins at zero, one for each of `tasks`, of which another task gets the mean. [ours]
    """

    target: DecoderConfig
    tasks: int

    @property
    def from_last(self) -> bool:
        return True

    def init(self, key: jax.Array, frozen: Frozen) -> Any:
        return {"alpha": jnp.zeros((self.tasks, self.target.num_layers, self.target.num_heads))}

    def read(self, params: Any, frozen: Frozen, queries: Queries, scale_L: jax.Array, key: jax.Array | None) -> Any:
        return jax.nn.sigmoid(of_task(params["alpha"], queries.task_B)), frozen["heads"][queries.task_B]

    def change(self, params: Any, frozen: Frozen, reading: Any, q: Questions) -> Change:
        alpha_BLH, mean_BLHC = reading
        share = alpha_BLH.swapaxes(0, 1)[:, :, None, :, None]
        here_BT = jnp.arange(q.tokens.ids_BT.shape[1])[None] == q.last_B[:, None]
        here = jnp.broadcast_to(here_BT[None, :, :, None, None], (self.target.num_layers, *here_BT.shape, 1, 1))
        added = share * mean_BLHC.swapaxes(0, 1)[:, :, None]
        return Change(frozen["target"], edit_at(HEADS, added, keep=1 - share, here=here))


def _means(context: RunContext, own: FastSettings) -> Frozen:
    """What the heads give at the last tokens of few-shot prompts, a mean for each task."""
    bench = context.benches[0]
    return {"heads": jnp.stack([jnp.asarray(bench.shown(name)["heads"]) for name in context.tasks])}


METHOD = Trained(
    name="soft_injection",
    label="SITE",
    knows="task",
    source="SITE, mean outputs of all heads mixed in by learned shares: Park et al. (2026, arXiv 2507.20906).",
    settings=FastSettings,
    adapter=lambda context, own: SoftInjection(context.target.config, len(context.trained)),
    frozen=_means,
)
