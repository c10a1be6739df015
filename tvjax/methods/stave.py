"""STAVE (Ding, Shi and Zhang 2026): two vectors in the embeddings, learned with demonstrations and without."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.methods.base import RunContext
from tvjax.methods.trained import FastSettings, Trained
from tvjax.nn.answers import Questions
from tvjax.nn.decoder import DecoderConfig
from tvjax.vectors.adapters import Adapter, Change, Frozen, Queries, of_task
from tvjax.vectors.edits import edit_at


@dataclasses.dataclass(frozen=True)
class Stave(Adapter):
    """To the input embeddings of a prompt two vectors are added, each over the root of the number of its tokens.

    ``cue`` is added at the prompt's last token and at those of the answer cue before it, ``rest`` at all tokens before
    these; both begin at zero. Both belong to one of `tasks`; another task gets the means. Nothing is added behind the
    prompt, where the answer stands. [ours: the last sentence, and what the other tasks get]

    cue: how many tokens end the prompt from the answer cue on.
    """

    target: DecoderConfig
    tasks: int
    cue: int

    def init(self, key: jax.Array, frozen: Frozen) -> Any:
        return {name: jnp.zeros((self.tasks, self.target.width)) for name in ("cue", "rest")}

    def read(self, params: Any, frozen: Frozen, queries: Queries, scale_L: jax.Array, key: jax.Array | None) -> Any:
        return {name: of_task(table, queries.task_B) for name, table in params.items()}

    def change(self, params: Any, frozen: Frozen, reading: Any, q: Questions) -> Change:
        ids_BT, at_BT = q.tokens.ids_BT, jnp.arange(q.tokens.ids_BT.shape[1])[None]
        before_BT = (at_BT <= q.last_B[:, None]) & q.tokens.valid_BT
        cue_BT = before_BT & (at_BT > q.last_B[:, None] - self.cue)
        added_BTD = jnp.zeros((*ids_BT.shape, self.target.width))
        for name, where_BT in (("cue", cue_BT), ("rest", before_BT & ~cue_BT)):
            count_B = jnp.maximum(where_BT.sum(1), 1)
            share_BT = where_BT / jnp.sqrt(count_B)[:, None]
            added_BTD += share_BT[..., None] * reading[name][:, None]
        return Change(frozen["target"], edit_at("embed", added_BTD, keep=1.0))


def _cue(context: RunContext) -> int:
    """The tokens of the answer cue: of several templates, of the one that has the fewest."""
    tokenizer = context.target.source.tokenizer
    return min(len(tokenizer.encode([bench.template.between], special=False)[0]) or 1 for bench in context.benches)


METHOD = Trained(
    name="stave",
    label="STAVE",
    knows="task",
    source="STAVE, two vectors in the input embeddings, learned on prompts with and without demonstrations: Ding, Shi"
    " and Zhang (2026).",
    settings=FastSettings,
    adapter=lambda context, own: Stave(context.target.config, len(context.trained), _cue(context)),
    shots=True,
)
