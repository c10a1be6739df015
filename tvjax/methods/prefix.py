"""Prefix tuning (Li and Liang 2021): keys and values before every prompt."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.methods import atv
from tvjax.methods.base import RunContext
from tvjax.methods.trained import FastSettings, Trained
from tvjax.nn.answers import Questions
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.prefix import past_of_prefix, per_token, start_prefix
from tvjax.settings import setting
from tvjax.vectors.adapters import Adapter, Change, Frozen


@dataclasses.dataclass(frozen=True)
class Prefix(Adapter):
    """Prefix tuning (Li and Liang 2021): keys and values before every prompt, from those of ``frozen["words"] [S]``."""

    target: DecoderConfig

    def init(self, key: jax.Array, frozen: Frozen) -> Any:
        return start_prefix(frozen["target"], frozen["words"])

    def change(self, params: Any, frozen: Frozen, reading: None, q: Questions) -> Change:
        return Change(frozen["target"], past=past_of_prefix(params, self.target, q.last_B.shape[0]))


@dataclasses.dataclass(frozen=True)
class PrefixSettings(FastSettings):
    """The fields of config.prefix."""

    length: int = setting(0, "tokens; 0: as many trained numbers as ATV has", least=0)


def _words(context: RunContext, own: PrefixSettings) -> Frozen:
    """The tokens that the prefix begins as: demonstrations of all tasks that are trained on, by turns."""
    bench, each = context.benches[0], per_token(context.target.config)
    length = own.length or max(1, round(atv.size(context) / each))
    known = [bench.paired(task, bench.sample(task, "train")) for task in context.trained]
    pairs = [pair for row in itertools.zip_longest(*known) for pair in row if pair]
    ids = bench.tokenizer.encode(["".join(bench.template.prompt([pair], "") for pair in pairs)])[0]
    return {"words": jnp.asarray((ids * (1 + length // len(ids)))[:length])}


METHOD = Trained(
    name="prefix",
    label="prefix tuning",
    knows="query",
    source="Prefix tuning: Li and Liang (2021).",
    settings=PrefixSettings,
    adapter=lambda context, own: Prefix(context.target.config),
    frozen=_words,
    in_front=lambda frozen: int(frozen["words"].shape[0]),
)
