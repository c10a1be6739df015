"""What an adapter is: a way to change what a frozen decoder does with a query that is trained.

An adapter is a frozen dataclass of settings with three pure functions. `init` makes its parameters. `read` makes what
is made of queries once (ATV: the vectors of the queries). `change` says what becomes of the decoder for prompts that
ask those queries: other parameters, edits, or a past. All get `frozen`, what nobody trains: the frozen decoder is
``frozen["target"]``, a bare `Model`. Each adapter stands in the file of its method, in `tvjax.methods`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from tvjax.nn.answers import Questions
from tvjax.nn.decoder import Past
from tvjax.nn.model import Model

Frozen = dict[str, Any]


@struct.dataclass
class Queries:
    """What an adapter may read: queries.

    inputs: ``[B, T]`` (or ``[B, T, X]``).
    positions_BT: those of the tokens.
    last_B: the index in T of each query's last token.
    task_B: the number of each query's task, those that are trained on first.
    state_BD: what a model that stays as it is has read of the queries (`Adapter.state`), if that is known.
    """

    inputs: jax.Array
    positions_BT: jax.Array
    last_B: jax.Array
    task_B: jax.Array
    state_BD: jax.Array | None = None


@struct.dataclass
class Change:
    """What becomes of a decoder: itself, what is written into it, and what stands before its prompts."""

    model: Model
    edits: Any = None
    past: Past | None = None


class Adapter:
    """What is trained; the training loop and the evaluation know no more of it. scale_L: ATV's lambda, a layer each."""

    @property
    def from_last(self) -> bool:
        """Whether nothing before a prompt's last token changes: then that is read once, with no gradient."""
        return False

    @property
    def reads_frozen(self) -> bool:
        """Whether a model that stays as it is reads the queries: then `state` is computed once."""
        return False

    def init(self, key: jax.Array, frozen: Frozen) -> Any:
        """Fresh parameters."""
        raise NotImplementedError

    def state(self, params: Any, frozen: Frozen, queries: Queries, key: jax.Array | None) -> jax.Array:
        """What a model has read of queries, ``[B, D]``; only of an adapter that has a model read queries."""
        raise NotImplementedError

    def read(self, params: Any, frozen: Frozen, queries: Queries, scale_L: jax.Array, key: jax.Array | None) -> Any:
        """What is made of queries, once for all prompts that ask the queries; with a `key` as in training (dropout)."""
        return None

    def change(self, params: Any, frozen: Frozen, reading: Any, q: Questions) -> Change:
        """What becomes of the decoder for the prompts `q`. reading: what `read` returned for their queries."""
        raise NotImplementedError


def of_task(table: jax.Array, task_B: jax.Array) -> jax.Array:
    """The row ``[B, ...]`` of each task, or for a task beyond the table, the mean of all rows."""
    known_B = (task_B < table.shape[0]).reshape(-1, *[1] * (table.ndim - 1))
    return jnp.where(known_B, table[jnp.minimum(task_B, table.shape[0] - 1)], table.mean(0, keepdims=True))
