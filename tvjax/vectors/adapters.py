"""Ways to change what a frozen decoder does with a query that are trained: ATV, and those that it is compared with.

An adapter is a frozen dataclass of settings with three pure functions: `init` makes its parameters, `read` makes of
queries what it makes of them once (ATV: their vectors), and `change` says what becomes of the decoder for prompts that
ask those queries: other parameters, edits, or a past. All get `given`, the arrays that nobody trains: the frozen
parameters are ``given["target"]``. A new way to make trained vectors is a class here.
"""

import dataclasses
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from tvjax.nn.answers import Questions
from tvjax.nn.decoder import Decoder, DecoderConfig, Past
from tvjax.nn.lora import apply_lora, init_lora
from tvjax.nn.model import cut, forward
from tvjax.nn.prefix import past_of_prefix, start_prefix
from tvjax.nn.taps import Edit
from tvjax.vectors.atv import Expansion, Positions, dropped, inject, read_query

Given = dict[str, Any]


@struct.dataclass
class Queries:
    """What an adapter may read: inputs ``[B, T]`` (or ``[B, T, I]``) at `positions_BT`, the last token at `last_B`.

    task_B: the number of each query's task, those that are trained on first. state_BS: what a generator that stays as
    it is has read of them (`ATV.state`), where that is known.
    """

    inputs: jax.Array
    positions_BT: jax.Array
    last_B: jax.Array
    task_B: jax.Array
    state_BS: jax.Array | None = None


@struct.dataclass
class Change:
    """What becomes of a decoder: its parameters, what is written into it, and what stands before its prompts."""

    params: Any
    edits: Any = None
    past: Past | None = None


class Adapter(Protocol):
    """What is trained; the training loop and the evaluation know no more of it. scale_N: ATV's lambda, a layer each."""

    @property
    def from_last(self) -> bool:
        """Whether nothing before a prompt's last token changes: then that is read once, with no gradient."""

    def init(self, key: jax.Array, given: Given) -> Any:
        """Fresh parameters."""

    def read(self, params: Any, given: Given, queries: Queries, scale_N: jax.Array, key: jax.Array | None) -> Any:
        """What is made of queries, once for all prompts that ask them; with a `key` as in training (dropout)."""

    def change(self, params: Any, given: Given, made: Any, q: Questions) -> Change:
        """What becomes of the decoder for the prompts `q` of the queries that `made` was made of."""


@dataclasses.dataclass(frozen=True)
class ATV:
    """Adaptive task vectors.

    generator: the decoder that reads queries and is trained from ``given["generator"]`` (from scratch where that is
    not there); None: the first `below` blocks of the target read them, and stay as they are. learned_scale: whether a
    factor of each layer's lambda is trained too.
    """

    target: DecoderConfig
    generator: DecoderConfig | None
    layers: tuple[int, ...]
    positions: Positions = "last"
    rank: int = 0
    start: Literal["uniform", "zero"] = "uniform"
    dropout: float = 0.0
    learned_scale: bool = False
    below: int = 1

    @property
    def from_last(self) -> bool:
        return self.positions == "last"

    @property
    def expansion(self) -> Expansion:
        return Expansion(len(self.layers), self.target.width, self.rank, self.start, self.target.matmul_precision)

    def init(self, key: jax.Array, given: Given) -> Any:
        """The generator as it is given, or fresh where none is, and a fresh expansion."""
        generator_key, expansion_key = jax.random.split(key)
        params: dict[str, Any] = {}
        if self.generator is not None:
            fresh = dataclasses.replace(self.generator, unroll=1)
            shape = (1, 2) if fresh.inputs == "tokens" else (1, 2, given["input_width"])
            blank = jnp.zeros(shape, jnp.int32 if fresh.inputs == "tokens" else jnp.float32)
            params["generator"] = given.get("generator") or Decoder(fresh).init(generator_key, blank)["params"]
        width = (self.generator or self.target).width
        params["expansion"] = self.expansion.init(expansion_key, jnp.zeros((1, width)))["params"]
        if self.learned_scale:
            params["scale"] = jnp.ones(len(self.layers))
        return params

    def read(self, params: Any, given: Given, queries: Queries, scale_N: jax.Array, key: jax.Array | None) -> jax.Array:
        """The vectors, lambda multiplied in: ``[B, N, D]``."""
        u_BS = self.state(params, given, queries, key) if queries.state_BS is None else queries.state_BS
        v_BND: Any = self.expansion.apply({"params": params["expansion"]}, u_BS.astype(jnp.float32))
        return v_BND * (scale_N * params.get("scale", 1.0))[None, :, None]

    def state(self, params: Any, given: Given, queries: Queries, key: jax.Array | None) -> jax.Array:
        """u: the generator's state at each query's last token, ``[B, S]``."""
        inputs, positions_BT, last_B = queries.inputs, queries.positions_BT, queries.last_B
        if self.generator is None:
            first, _ = cut(Decoder(self.target), given["target"], self.below)
            found = forward(
                *first,
                inputs,
                addresses=("blocks/resid",),
                layers=(self.below,),
                read_BN=last_B[:, None],
                at=slice(0, 1),
                positions_BT=positions_BT,
            )[1]
            return found["blocks/resid"][0, :, 0]
        noise = None
        if self.dropout and key is not None:
            noise = dropped(key, self.generator, self.dropout, *inputs.shape[:2])
        return read_query(Decoder(self.generator), params["generator"], inputs, positions_BT, last_B, noise)

    def change(self, params: Any, given: Given, made: jax.Array, q: Questions) -> Change:
        return Change(given["target"], inject(made, self.layers, self.positions, self.target, q))


@dataclasses.dataclass(frozen=True)
class StaticVectors:
    """A learned vector a layer for each of `tasks`, which no query changes; another task gets their mean. [ours]

    tasks = 1 is one vector for everything: an adaptive vector that does not adapt.
    """

    target: DecoderConfig
    layers: tuple[int, ...]
    tasks: int
    positions: Positions = "last"

    @property
    def from_last(self) -> bool:
        return self.positions == "last"

    def init(self, key: jax.Array, given: Given) -> Any:
        return {"vectors": jnp.zeros((self.tasks, len(self.layers), self.target.width))}

    def read(self, params: Any, given: Given, queries: Queries, scale_N: jax.Array, key: jax.Array | None) -> jax.Array:
        return of_task(params["vectors"], queries.task_B) * scale_N[None, :, None]

    def change(self, params: Any, given: Given, made: jax.Array, q: Questions) -> Change:
        return Change(given["target"], inject(made, self.layers, self.positions, self.target, q))


@dataclasses.dataclass(frozen=True)
class I2CL:
    """Implicit in-context learning (Li et al. 2025): summaries of demonstrations, weighed by learned scalars.

    At every token and layer attention and MLP give ``keep * a + add * summary``, with four scalars a layer for each of
    `tasks` (another task gets their mean). ``given["summaries"] = {"attn_out", "mlp_out": [tasks, L, D]}`` are means
    over demonstrations, read one by one at their last tokens. Its noise in training is left out. [ours]
    """

    target: DecoderConfig
    tasks: int
    from_last = False

    def init(self, key: jax.Array, given: Given) -> Any:
        start = jnp.array([[1.0, 0.1]])  # keep, add
        shape = (self.tasks, self.target.num_layers, 2)
        return {name: jnp.broadcast_to(start, shape) for name in ("attn_out", "mlp_out")}

    def read(self, params: Any, given: Given, queries: Queries, scale_N: jax.Array, key: jax.Array | None) -> Any:
        made = {}
        for name, weights in params.items():
            weights_BL2 = of_task(weights, queries.task_B)
            added_BLD = weights_BL2[:, :, 1:] * given["summaries"][name][queries.task_B]
            made[name] = (weights_BL2[:, :, 0], added_BLD)
        return made

    def change(self, params: Any, given: Given, made: Any, q: Questions) -> Change:
        tree = {
            name: Edit(keep_BL.T[:, :, None, None], added_BLD.swapaxes(0, 1)[:, :, None])
            for name, (keep_BL, added_BLD) in made.items()
        }
        return Change(given["target"], {"blocks": tree})


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2021) of the kernels `sites`: one for all queries."""

    target: DecoderConfig
    rank: int
    sites: tuple[str, ...] = ("query", "value")
    from_last = False

    def init(self, key: jax.Array, given: Given) -> Any:
        return init_lora(key, self.target, self.sites, self.rank)

    def read(self, params: Any, given: Given, queries: Queries, scale_N: jax.Array, key: jax.Array | None) -> None:
        return None

    def change(self, params: Any, given: Given, made: None, q: Questions) -> Change:
        return Change(apply_lora(given["target"], params, self.target.matmul_precision))


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Prefix tuning (Li and Liang 2021): keys and values before every prompt, from those of ``given["words"] [P]``."""

    target: DecoderConfig
    from_last = False

    def init(self, key: jax.Array, given: Given) -> Any:
        return start_prefix(Decoder(self.target), given["target"], given["words"])

    def read(self, params: Any, given: Given, queries: Queries, scale_N: jax.Array, key: jax.Array | None) -> None:
        return None

    def change(self, params: Any, given: Given, made: None, q: Questions) -> Change:
        return Change(given["target"], past=past_of_prefix(params, self.target, q.last_B.shape[0]))


def of_task(table: jax.Array, task_B: jax.Array) -> jax.Array:
    """The row ``[B, ...]`` of each task, or for a task beyond the table, the mean of all rows."""
    known_B = (task_B < table.shape[0]).reshape(-1, *[1] * (table.ndim - 1))
    return jnp.where(known_B, table[jnp.minimum(task_B, table.shape[0] - 1)], table.mean(0, keepdims=True))
