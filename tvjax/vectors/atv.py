"""Adaptive task vectors (Kang et al. 2025): what a small model makes of a query becomes a vector for every layer.

    u = the generator's state at the query's last token, after its final norm    [B, D of the generator]
    v = u W + b                                                                  [B, L, D]
    h^l <- h^l + lambda^l v^l     for the chosen L layers, at the prompt's last token (paper) or at all (released code)

The frozen model is a function of these writes alone: they are data, and what made them is trained through them.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from tvjax.nn.answers import Questions
from tvjax.nn.decoder import DecoderConfig, Norm
from tvjax.nn.model import Model, forward
from tvjax.vectors.edits import Tree, edit_at, merge

Positions = Literal["last", "all"]


class Expansion(nn.Module):
    """``v = u W + b``, ``[B, D of the generator] -> [B, L, D]``: one map to the vectors of all `layers` together.

    rank: of a bottleneck before it (0: none).
    start: "uniform" in +-1/sqrt(D of the generator), kernel and bias, as PyTorch's linear layers begin and so the
        released code; or "zero", from which nothing is changed at first.
    precision: of products.
    """

    layers: int
    width: int
    rank: int = 0
    start: Literal["uniform", "zero"] = "uniform"
    precision: str | None = None

    @nn.compact
    def __call__(self, u_BD: jax.Array) -> jax.Array:
        dense = functools.partial(nn.Dense, precision=self.precision)
        if self.rank:
            u_BD = dense(self.rank, use_bias=False, name="down", kernel_init=_uniform(u_BD.shape[-1]))(u_BD)
        init = nn.initializers.zeros if self.start == "zero" else _uniform(u_BD.shape[-1])
        v = dense(self.layers * self.width, name="up", kernel_init=init, bias_init=init)(u_BD)
        return v.reshape(-1, self.layers, self.width)


def _uniform(fan_in: int) -> Any:
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def read_query(
    model: Model,
    inputs: jax.Array,
    positions_BT: jax.Array,
    last_B: jax.Array,
    dropout: Any = None,
) -> jax.Array:
    """The state ``[B, D]`` of each query's last token after the final norm. dropout: the edits tree of `dropped`."""
    _, states = forward(
        model,
        inputs,
        edits=dropout,
        addresses=("blocks/resid",),
        layers=(model.config.num_layers,),
        read_BS=last_B[:, None],
        at=slice(0, 1),
        positions_BT=positions_BT,
    )
    return jnp.asarray(Norm(model.config).apply({"params": model.params["norm"]}, states["blocks/resid"][0, :, 0]))


def dropped(key: jax.Array, c: DecoderConfig, rate: float, batch: int, length: int) -> Tree:
    """Dropout as an edits tree: of the embedding and of what attention and the MLPs add, as GPT-2 is trained.

    A state is kept, and scaled by 1 / (1 - rate), or put to zero. That of the attention's weights has no address.
    """
    embed, attn, mlp = jax.random.split(key, 3)

    def mask(address: str, key: jax.Array, *lead: int) -> Tree:
        keep = jax.random.bernoulli(key, 1 - rate, (*lead, batch, length, c.width)) / (1 - rate)
        return edit_at(address, jnp.zeros((*lead, 1, 1, 1)), keep=keep)

    blocks = mask("blocks/attn_out", attn, c.num_layers), mask("blocks/mlp_out", mlp, c.num_layers)
    return merge(mask("embed", embed), *blocks)


def inject(
    vectors_BLD: jax.Array,
    layers: tuple[int, ...],
    positions: Positions,
    c: DecoderConfig,
    q: Questions,
    *,
    rescaled: bool = False,
) -> Tree:
    """The edits tree that adds a vector (``lambda^l v^l``) to h^l, for `layers`, in prompts with answers behind them.

    vectors_BLD: of `layers` alone.
    positions: "last", the prompt's last token, whose state the answer's first token is read from; or "all" tokens,
        those of the answer too, as when they are generated one by one.
    rescaled: whether states keep their lengths.
    """
    count, batch, length = c.num_layers, *q.tokens.ids_BT.shape
    added_LBD = jnp.zeros((count, batch, c.width)).at[jnp.array(layers) - 1].set(vectors_BLD.swapaxes(0, 1))
    here = None  # padding is seen by nobody: what is added there does not matter
    if positions == "last":
        here_BT = jnp.arange(length)[None] == q.last_B[:, None]
        here = jnp.broadcast_to(here_BT[None, :, :, None], (count, batch, length, 1))
    return edit_at("blocks/resid", added_LBD[:, :, None], keep=1.0, here=here, rescaled=rescaled)
