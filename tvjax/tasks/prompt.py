"""Prompts: how demonstrations and queries lie in one sequence.

A prompt of N pairs holds N queries: by causality query i (0-based) follows exactly i demonstrations, so one sequence
gives the risk for 0..N-1 of them. In layout `xzy` a query is read at z, one learned placeholder; in `xy` at x itself.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tvjax.nn.show import brief

X, Y, Z = range(3)
NUM_KINDS = 3


@dataclasses.dataclass(frozen=True)
class Layout:
    """The order of the parts of one demonstration, and which of them is read for the answer."""

    name: str
    parts: tuple[int, ...]
    reads: int

    @property
    def offset(self) -> int:
        """Where in a demonstration the answer is read: at the last position of `reads`."""
        return len(self.parts) - 1 - self.parts[::-1].index(self.reads)

    def wide(self, tokens: int) -> "Layout":
        """The same order for an x of several tokens."""
        parts = (part for kind in self.parts for part in (kind,) * (tokens if kind == X else 1))
        return Layout(self.name, tuple(parts), self.reads)

    def length(self, pairs: int) -> int:
        """T for `pairs` pairs. The sequence ends at the last query: its answer is not shown."""
        return len(self.parts) * (pairs - 1) + self.offset + 1

    def queries(self, pairs: int) -> slice:
        """The positions of the queries, as a static slice: cheaper than a gather, forward and backward."""
        return slice(self.offset, self.length(pairs), len(self.parts))


LAYOUTS = {"xzy": Layout("xzy", (X, Z, Y), Z), "xy": Layout("xy", (X, Y), X)}


@struct.dataclass
class Prompt:
    """N pairs a prompt, as every task gives them.

    inputs: ``[B, T, features]`` real numbers or ``[B, T]`` token ids, for the decoder's front end.
    x: ``[B, N, X]`` or ``[B, N]``, pair by pair; ``[B, N, W]`` if an x is several tokens.
    targets: ``[B, N, Y]`` or ``[B, N]``, pair by pair.
    parameters: the task's own, each ``[B, ...]``.
    """

    inputs: jax.Array
    x: jax.Array
    targets: jax.Array
    parameters: dict[str, jax.Array]
    layout: Layout = struct.field(pytree_node=False)

    __repr__ = brief

    @property
    def queries(self) -> slice:
        """Positions at which the answers are read, one a pair."""
        return self.layout.queries(self.x.shape[1])


def encode_real(layout: Layout, x_BNX: jax.Array, y_BNY: jax.Array) -> jax.Array:
    """Features ``[B, T, X + Y + kinds]``: x and y in channels of their own, then what the position is, one-hot.

    So a linear front end gives x and y their own embeddings, and z one learned vector [ours].
    """
    batch, pairs, width = x_BNX.shape
    zeros_x, zeros_y = jnp.zeros_like(x_BNX), jnp.zeros_like(y_BNY)
    values = {X: (x_BNX, zeros_y), Y: (zeros_x, y_BNY), Z: (zeros_x, zeros_y)}
    parts = []
    for part in layout.parts:
        kind = jnp.broadcast_to(jax.nn.one_hot(part, NUM_KINDS, dtype=x_BNX.dtype), (batch, pairs, NUM_KINDS))
        parts.append(jnp.concatenate([*values[part], kind], axis=-1))
    return jnp.stack(parts, axis=2).reshape(batch, -1, width + y_BNY.shape[-1] + NUM_KINDS)[:, : layout.length(pairs)]


def encode_tokens(layout: Layout, x: jax.Array, y_BN: jax.Array, placeholder: int) -> jax.Array:
    """Token ids ``[B, T]`` of x ``[B, N]``, or ``[B, N, W]`` in a wide layout; z is the id `placeholder`."""
    batch, pairs = y_BN.shape
    y_BN1 = y_BN[..., None]
    values: dict[int, Any] = {X: x.reshape(batch, pairs, -1), Y: y_BN1, Z: jnp.full_like(y_BN1, placeholder)}
    ids = jnp.concatenate([values[part] for part in dict.fromkeys(layout.parts)], axis=2)
    return ids.reshape(batch, -1)[:, : layout.length(pairs)]
