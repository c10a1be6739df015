"""In-context routing (Li et al. 2025): a router that reads the query changes attention's logits, by few directions."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import reject
from tvjax.methods.base import MethodResult, RunContext
from tvjax.methods.trained import Trained, TrainedSettings
from tvjax.nn.answers import Questions
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.model import Model, cut, forward
from tvjax.nn.tokens import Tokens
from tvjax.settings import setting
from tvjax.vectors.adapters import Adapter, Change, Frozen, Queries
from tvjax.vectors.atv import read_query
from tvjax.vectors.edits import edit_at
from tvjax.vectors.from_prompts import read_last

ADDRESSES = ("blocks/queries", "blocks/keys")


class Router(nn.Module):
    """alpha ``[B, L, R]`` and gates in [0, 1] ``[B, L, H]`` of what was read of a query, ``[B, D]``: two linear maps.

    It begins at alpha = 0 and gates of 1/2.

    hidden: channels between the maps, with a GELU.
    precision: of products.
    """

    layers: int
    heads: int
    rank: int
    hidden: int
    precision: str | None = None

    @nn.compact
    def __call__(self, u_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
        zeros = nn.initializers.zeros
        u_BF = nn.gelu(nn.Dense(self.hidden, precision=self.precision, name="hidden")(u_BD))
        alpha = nn.Dense(self.layers * self.rank, precision=self.precision, kernel_init=zeros, name="alpha")(u_BF)
        gate = nn.Dense(self.layers * self.heads, precision=self.precision, kernel_init=zeros, name="gate")(u_BF)
        return alpha.reshape(-1, self.layers, self.rank), nn.sigmoid(gate).reshape(-1, self.layers, self.heads)


@dataclasses.dataclass(frozen=True)
class Routing(Adapter):
    """To the logit of head h of layer l, by which token t looks at token s, is added

        scale gate_lh sum_r alpha_lr (u_lr . q_lt) (w_lr . k_ls)

    with the scale of the target's attention, q_lt the queries of all heads of token t as one vector, and k_ls the keys
    of all groups of token s. The directions ``frozen["directions"] = {"queries": [L, R, H, C], "keys": [L, R, G, C]}``
    are the principal ones of queries and keys at the last tokens of few-shot prompts of several tasks. A router makes
    alpha and the gates from the query. It is trained on zero-shot prompts; the target stays as it is.

    q and k are those of a pass without the change, behind rotary positions: what is added in one layer does not change
    what is added in another. All layers and tokens are changed. Of one layer and kind the directions are of all heads
    together, centred and of unit length. The query is read by the run's generator as it is given, or by the first
    `below` blocks of the target, and not by a sentence encoder. The loss is the cross-entropy of the answers alone. The
    router's two maps and its start are ours too. [ours]

    generator: the decoder of ``frozen["generator"]``; None: the target's first `below` blocks.
    """

    target: DecoderConfig
    generator: DecoderConfig | None
    rank: int
    hidden: int
    below: int = 1

    @property
    def reads_frozen(self) -> bool:
        return True

    @property
    def router(self) -> Router:
        c = self.target
        return Router(c.num_layers, c.num_heads, self.rank, self.hidden, c.matmul_precision)

    def init(self, key: jax.Array, frozen: Frozen) -> Any:
        return self.router.init(key, jnp.zeros((1, (self.generator or self.target).width)))["params"]

    def state(self, params: Any, frozen: Frozen, queries: Queries, key: jax.Array | None) -> jax.Array:
        """The state at each query's last token behind the reader's final norm, ``[B, D]``."""
        if self.generator is None:
            reader, _ = cut(frozen["target"], self.below)
        else:
            reader = Model(frozen["generator"], self.generator)
        return read_query(reader, queries.inputs, queries.positions_BT, queries.last_B)

    def read(
        self, params: Any, frozen: Frozen, queries: Queries, scale_L: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """``scale gate alpha``: ``[B, L, H, R]``."""
        u_BD = self.state(params, frozen, queries, key) if queries.state_BD is None else queries.state_BD
        alphas_and_gates: Any = self.router.apply({"params": params}, u_BD.astype(jnp.float32))
        alpha_BLR, gate_BLH = alphas_and_gates
        scale = self.target.attention_scale or self.target.channels**-0.5
        return jnp.asarray(scale * gate_BLH[..., None] * alpha_BLR[:, :, None])

    def change(self, params: Any, frozen: Frozen, reading: jax.Array, q: Questions) -> Change:
        target, tokens, precision = frozen["target"], q.tokens, self.target.matmul_precision
        _, found = forward(target, tokens.ids_BT, addresses=ADDRESSES, at=slice(0, 1), positions_BT=tokens.positions_BT)
        asks_LBTR, told_LBSR = (
            jnp.einsum(
                "lbthc,lrhc->lbtr", found[name].astype(jnp.float32), frozen["directions"][part], precision=precision
            )
            for name, part in zip(ADDRESSES, ("queries", "keys"), strict=True)
        )
        weighed_LBTHR = asks_LBTR[:, :, :, None] * reading.swapaxes(0, 1)[:, :, None]
        added_LBTHS = jnp.einsum("lbthr,lbsr->lbths", weighed_LBTHR, told_LBSR, precision=precision)
        return Change(target, edit_at("blocks/attn_logits", added_LBTHS, keep=1.0))


@dataclasses.dataclass(frozen=True)
class RoutingSettings(TrainedSettings):
    """The fields of config.in_context_routing."""

    rank: int = setting(8, "R, principal directions of each layer", least=1)
    hidden: int = setting(64, "channels of the router between its two layers", least=1)


@jax.jit
def _last(model: Model, tokens: Tokens) -> dict[str, jax.Array]:
    """Queries and keys at each prompt's last token, ``[B, L, H or G, C]``."""
    return {name: a[:, :, 0].swapaxes(0, 1) for name, a in read_last(model, tokens, ADDRESSES).items()}


def principal(states: np.ndarray, rank: int) -> np.ndarray:
    """The `rank` principal directions of each layer, centred, of unit length: ``[P, L, ...] -> [L, R, ...]``."""
    flat_LPX = states.reshape(*states.shape[:2], -1).swapaxes(0, 1).astype(np.float64)
    directions = np.linalg.svd(flat_LPX - flat_LPX.mean(1, keepdims=True), full_matrices=False)[2][:, :rank]
    return directions.reshape(len(flat_LPX), rank, *states.shape[2:]).astype(np.float32)


def _directions(context: RunContext, own: RoutingSettings) -> Frozen:
    """The principal directions of queries and keys at the last tokens of few-shot prompts of all trained tasks."""
    bench = context.benches[0]
    prompts = [
        prompt for name in context.trained for prompt in bench.few_shot(name, bench.queries(name, bench.config.prompts))
    ]
    if own.rank >= len(prompts):
        accepted = (
            f"at most {len(prompts) - 1}: directions are of {len(prompts)} prompts, config.vectors.prompts a task"
        )
        raise reject("config.in_context_routing.rank", own.rank, accepted)
    found = bench.read(_last, prompts)
    parts = zip(("queries", "keys"), ADDRESSES, strict=True)
    return {"directions": {part: jnp.asarray(principal(found[name], own.rank)) for part, name in parts}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InContextRouting(Trained):
    """The method, whose directions are at most as many as keys have channels."""

    def check(self, own: RoutingSettings, c: DecoderConfig) -> None:
        """Raise `UserError` for more directions than there are."""
        most = c.kv_heads * c.channels
        if own.rank > most:
            raise reject("config.in_context_routing.rank", own.rank, f"at most {most}, the channels of a layer's keys")

    def run(self, context: RunContext, folder: Path) -> MethodResult:
        """As `Trained.run`, with how many tokens the reader reads."""
        result, examples = super().run(context, folder), context.examples[self.reads]["test"]
        result.generator_tokens = float(np.mean(np.asarray(examples.readings.last_B)[examples.first_of_question] + 1))
        return result


METHOD = InContextRouting(
    name="in_context_routing",
    label="in-context routing",
    knows="query",
    source="In-context routing, low-rank changes of attention's logits by a router that reads the query: Li et al."
    " (2025, arXiv 2509.22854), without its sentence encoder.",
    settings=RoutingSettings,
    adapter=lambda context, own: Routing(context.target.config, context.generator, own.rank, own.hidden, context.below),
    frozen=_directions,
)
