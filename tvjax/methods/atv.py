"""Adaptive task vectors (Kang et al. 2025): a small model reads the query and writes a vector for every layer."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import reject
from tvjax.methods.base import Kind, MethodResult, RunContext, Written
from tvjax.methods.trained import Trained, TrainedSettings
from tvjax.nn.answers import Questions
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model, cut, forward
from tvjax.settings import setting
from tvjax.text.adapting import AdapterExperiment
from tvjax.text.examples import Examples
from tvjax.vectors.adapters import Adapter, Change, Frozen, Queries
from tvjax.vectors.atv import Expansion, Positions, dropped, inject, read_query


@dataclasses.dataclass(frozen=True)
class ATV(Adapter):
    """Adaptive task vectors.

    generator: the decoder that reads queries and is trained from ``frozen["generator"]`` (from scratch if that is not
        there); None: the first `below` blocks of the target read queries, and stay as they are.
    learned_scale: whether a factor of each layer's lambda is trained too.
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
    def reads_frozen(self) -> bool:
        return self.generator is None

    @property
    def expansion(self) -> Expansion:
        return Expansion(len(self.layers), self.target.width, self.rank, self.start, self.target.matmul_precision)

    def init(self, key: jax.Array, frozen: Frozen) -> Any:
        """The generator as it is given, or fresh if none is, and a fresh expansion."""
        generator_key, expansion_key = jax.random.split(key)
        params: dict[str, Any] = {}
        if self.generator is not None:
            fresh = dataclasses.replace(self.generator, unroll=1)
            shape = (1, 2) if fresh.inputs == "tokens" else (1, 2, frozen["input_width"])
            blank = jnp.zeros(shape, jnp.int32 if fresh.inputs == "tokens" else jnp.float32)
            params["generator"] = frozen.get("generator") or Decoder(fresh).init(generator_key, blank)["params"]
        width = (self.generator or self.target).width
        params["expansion"] = self.expansion.init(expansion_key, jnp.zeros((1, width)))["params"]
        if self.learned_scale:
            params["scale"] = jnp.ones(len(self.layers))
        return params

    def read(
        self, params: Any, frozen: Frozen, queries: Queries, scale_L: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """The vectors, lambda multiplied in: ``[B, L, D]``, for `layers`."""
        u_BD = self.state(params, frozen, queries, key) if queries.state_BD is None else queries.state_BD
        v_BLD: Any = self.expansion.apply({"params": params["expansion"]}, u_BD.astype(jnp.float32))
        return v_BLD * (scale_L * params.get("scale", 1.0))[None, :, None]

    def state(self, params: Any, frozen: Frozen, queries: Queries, key: jax.Array | None) -> jax.Array:
        """u: the generator's state at each query's last token, ``[B, D]``."""
        inputs, positions_BT, last_B = queries.inputs, queries.positions_BT, queries.last_B
        if self.generator is None:
            first, _ = cut(frozen["target"], self.below)
            states = forward(
                first,
                inputs,
                addresses=("blocks/resid",),
                layers=(self.below,),
                read_BS=last_B[:, None],
                at=slice(0, 1),
                positions_BT=positions_BT,
            )[1]
            return states["blocks/resid"][0, :, 0]
        noise = None
        if self.dropout and key is not None:
            noise = dropped(key, self.generator, self.dropout, *inputs.shape[:2])
        return read_query(Model(params["generator"], self.generator), inputs, positions_BT, last_B, noise)

    def change(self, params: Any, frozen: Frozen, reading: jax.Array, q: Questions) -> Change:
        return Change(frozen["target"], inject(reading, self.layers, self.positions, self.target, q))


@dataclasses.dataclass(frozen=True)
class ATVMethodSettings(TrainedSettings):
    """The fields of config.atv."""

    layers: tuple[int, ...] = setting((), "that are written to, from 1; (): all", least=1, distinct=True)
    scale: tuple[float, ...] = setting((1.0,), "lambda: one, or one for each of the layers", entries=1)
    learned_scale: bool = setting(False, "whether a factor of each layer's lambda is trained")
    rank: int = setting(0, "of a bottleneck in the expansion; 0: none", least=0)
    start: Literal["uniform", "zero"] = setting(
        "uniform", "how the expansion begins: zero, uniform (as PyTorch's linear layers)"
    )
    dropout: float = setting(0.0, "of the generator", least=0, below=1)


GROUP = "atv"


def layers(context: RunContext) -> tuple[int, ...]:
    """The layers that ATV writes to."""
    return context.own[GROUP].layers or tuple(range(1, context.target.config.num_layers + 1))


def scale(method: Any, context: RunContext) -> np.ndarray:
    """lambda, for each of `layers`: ``[L]``."""
    return np.broadcast_to(np.array(context.own[GROUP].scale, np.float32), len(layers(context)))


def size(context: RunContext) -> int:
    """How many numbers ATV trains: what LoRA and the prefix are made as large as."""
    shapes = jax.eval_shape(adapter(context, context.own[GROUP]).init, jax.random.key(0), context.frozen)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def adapter(context: RunContext, own: ATVMethodSettings, positions: Positions = "last") -> ATV:
    """The adapter of a run's settings."""
    return ATV(
        context.target.config,
        context.generator,
        layers(context),
        positions=positions,
        rank=own.rank,
        start=own.start,
        dropout=own.dropout,
        learned_scale=own.learned_scale,
        below=context.below,
    )


@functools.partial(jax.jit, static_argnums=0)
def written(adapter: Adapter, params: Any, scale_L: jax.Array, frozen: Frozen, examples: Examples) -> jax.Array:
    """The vectors that one member of ATV writes for each example, lambda multiplied in: ``[I, L, D]``."""
    queries, _ = examples.rows(jnp.arange(examples.task_I.shape[0]))
    return jnp.asarray(adapter.read(params, frozen, queries, scale_L, None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ATVMethod(Trained):
    """The method; it also says what it writes."""

    kind: Kind = "atv"
    settings: type = ATVMethodSettings
    group: str = GROUP
    scale = scale

    def check(self, own: ATVMethodSettings, c: DecoderConfig) -> None:
        """Raise `UserError` for layers that the target has not, and for another number of lambdas than of layers."""
        if any(layer > c.num_layers for layer in own.layers):
            raise reject("config.atv.layers", own.layers, f"layers in 1..{c.num_layers}")
        count = len(own.layers or range(c.num_layers))
        if len(own.scale) not in (1, count):
            raise reject("config.atv.scale", own.scale, f"one number, or one for each of the {count} layers")

    def add(
        self, context: RunContext, result: MethodResult, experiment: AdapterExperiment, params: Any, scale_ML: jax.Array
    ) -> None:
        """How many tokens the generator reads, and what the first member writes for the test queries."""
        examples, adapter = context.examples[self.reads]["test"], experiment.adapter
        assert isinstance(adapter, ATV)
        result.generator_tokens = float(np.mean(np.asarray(examples.readings.last_B)[examples.first_of_question] + 1))
        fixed = (jax.tree.map(lambda p: p[0], params), scale_ML[0], experiment.frozen)
        vectors = context.batches(written, (adapter,), fixed, examples)
        by_task = context.by_task(np.asarray(vectors, np.float32), examples)
        result.written = Written(by_task, adapter.layers, adapter.positions)


SOURCE = (
    "ATV: Kang et al., Adaptive Task Vectors for Large Language Models (2025); adding at the last token is the paper's,"
    " at all tokens the released code's."
)
LAST = ATVMethod(name="atv_last", label="ATV, last token", knows="query", source=SOURCE, adapter=adapter)
ALL = ATVMethod(
    name="atv_all",
    label="ATV, all tokens",
    knows="query",
    source=SOURCE,
    adapter=functools.partial(adapter, positions="all"),
)
SHOWN = ATVMethod(
    name="atv_shown",
    label="ATV that reads demonstrations",
    knows="demonstrations",
    source="ATV that reads demonstrations is how it is done here.",
    adapter=adapter,
    reads="shown",
)
