"""Token ids of prompts of unequal lengths, padded on either side: the answer does not depend on which."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tvjax.errors import reject
from tvjax.nn.decoder import PADDING
from tvjax.nn.selection import flags_in, host
from tvjax.nn.show import brief


@struct.dataclass
class Tokens:
    """Prompts of unequal lengths in one array.

    ids_BT: token ids, anything at padding; it may have more leading axes.
    valid_BT: True where a token stands; of the same axes.
    start_B: the position of each prompt's first token, if others stand before it (None: 0).
    """

    ids_BT: jax.Array
    valid_BT: jax.Array
    start_B: jax.Array | None = None

    __repr__ = brief

    @property
    def positions_BT(self) -> jax.Array:
        """0, 1, .. (from its `start_B`) along each prompt's own tokens, `PADDING` elsewhere: padding shifts nothing."""
        order_BT = jnp.cumsum(self.valid_BT, axis=-1) - 1
        if self.start_B is not None:
            order_BT = order_BT + self.start_B[..., None]
        return jnp.where(self.valid_BT, order_BT, PADDING)

    @property
    def last_B(self) -> jax.Array:
        """The index in T of each prompt's last token."""
        length = self.valid_BT.shape[-1]
        return length - 1 - jnp.argmax(self.valid_BT[..., ::-1], axis=-1)

    @property
    def count_B(self) -> jax.Array:
        """How many tokens each prompt has."""
        return self.valid_BT.sum(-1)


def pad(prompts: Sequence[Sequence[int]], *, side: Literal["left", "right"] = "left", length: int = 0) -> Tokens:
    """Lists of ids as one array of `length` positions (0: as the longest). Raises `UserError` for an empty one."""
    if side not in ("left", "right"):
        raise reject("side", side, "'left' or 'right'")
    rows = [_row(f"prompts[{number}]", prompt) for number, prompt in enumerate(prompts)]
    longest = max(map(len, rows), default=0)
    if not rows:
        raise reject("prompts", prompts, "at least one prompt")
    if length and longest > length:
        raise reject("length", length, f"{longest} or more, the tokens of the longest prompt")
    ids, valid = np.zeros((2, len(rows), length or longest), np.int32)
    for number, row in enumerate(rows):
        start = 0 if side == "right" else ids.shape[1] - len(row)
        ids[number, start : start + len(row)] = row
        valid[number, start : start + len(row)] = 1
    return Tokens(jnp.asarray(ids), jnp.asarray(valid.astype(bool)))


def _row(field: str, prompt: Sequence[int]) -> np.ndarray:
    try:
        row = np.asarray(prompt)
    except (TypeError, ValueError):  # traced ids, lists in it of unequal lengths
        raise reject(field, prompt, "ids, which are ints, of at least one token") from None
    if (
        row.ndim != 1
        or not row.size
        or row.dtype.kind not in "iu"
        or flags_in(prompt)
        or (row.astype(np.int32) != row).any()
    ):
        raise reject(field, prompt, "ids, which are ints, of at least one token")
    return row


def tokens_of(prompts: Any, size: int) -> Tokens:
    """`Tokens`, an array of ids ``[B, T]``, or lists of ids, as `Tokens` for a model that has `size` tokens.

    Lists of unequal lengths are padded on the left. At padding any id may stand. Raises `UserError` for what is no id,
    for an id that is not there, naming the prompt and the index, and for a prompt without tokens.
    """
    if (
        isinstance(prompts, list | tuple)
        and len({len(p) for p in prompts if isinstance(p, list | tuple) or getattr(p, "ndim", 0) > 0}) > 1
    ):
        prompts = pad(prompts)
    tokens = prompts if isinstance(prompts, Tokens) else None
    ids_BT: Any = _ids(prompts if tokens is None else tokens.ids_BT)
    valid_BT: Any = np.ones(ids_BT.shape, bool) if tokens is None else tokens.valid_BT
    valid_BT = valid_BT if isinstance(valid_BT, jax.Array) else np.asarray(valid_BT)
    if valid_BT.shape != ids_BT.shape or valid_BT.dtype != bool:
        shown = f"valid_BT of {valid_BT.dtype}, shape {list(valid_BT.shape)}"
        raise reject("prompts", shown, f"bools of shape {list(ids_BT.shape)}, as ids_BT")
    ids, valid = host(ids_BT), host(valid_BT)
    if ids is not None and valid is not None:
        for prompt in np.flatnonzero(~valid.any(1))[:1]:
            raise reject(f"prompts[{prompt}]", "padding alone", "at least one token")
        outside = (ids < 0) | (ids >= size)
        for prompt, index in np.argwhere(outside & valid)[:1]:
            raise reject(f"prompts[{prompt}][{index}]", int(ids[prompt, index]), f"token ids 0..{size - 1}")
        ids_BT = np.where(valid, ids, 0) if outside.any() else ids_BT
    return Tokens(jnp.asarray(ids_BT), valid_BT, None if tokens is None else _start(tokens.start_B, len(ids_BT)))


def _start(start_B: Any, batch: int) -> Any:
    """`start_B` if it is None, or ints ``[B]``, none of them below 0."""
    if start_B is None:
        return None
    shown = start_B if isinstance(start_B, jax.Array) else np.asarray(start_B)
    values = host(shown)
    if shown.shape != (batch,) or shown.dtype.kind not in "iu" or (values is not None and (values < 0).any()):
        raise reject("prompts", f"start_B {start_B!r}", f"ints [B = {batch}], 0 or more, or None")
    return jnp.asarray(shown)


def _ids(prompts: Any) -> Any:
    """An array of ints ``[B, T]``, still of the dtype that it has."""
    accepted = "token ids [B, T], which are ints; one prompt is [[5, 9, ..]], or ids[None]"
    try:
        array = prompts if isinstance(prompts, jax.Array) else np.asarray(prompts)
    except jax.errors.TracerArrayConversionError:
        array = jnp.asarray(prompts)
    except (TypeError, ValueError, OverflowError):
        raise reject("prompts", prompts, accepted) from None
    if flags_in(prompts):
        raise reject("prompts", "bools among ids", accepted)
    if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
        raise reject("prompts", f"{array.dtype} of shape {list(array.shape)}", accepted)
    return array
