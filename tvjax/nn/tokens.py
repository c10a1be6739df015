"""Token ids of prompts of unequal lengths, padded on either side: the answer does not depend on which."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tvjax.errors import reject
from tvjax.nn.decoder import PADDING


@struct.dataclass
class Tokens:
    """ids_BT: token ids, anything at padding; valid_BT: True where a token stands. Both may have more leading axes.

    start_B: the position of each prompt's first token, where others stand before it (None: 0).
    """

    ids_BT: jax.Array
    valid_BT: jax.Array
    start_B: jax.Array | None = None

    @property
    def positions_BT(self) -> jax.Array:
        """0, 1, .. (from its `start_B`) along each prompt's own tokens, `PADDING` elsewhere: padding shifts nothing."""
        places_BT = jnp.cumsum(self.valid_BT, axis=-1) - 1
        if self.start_B is not None:
            places_BT = places_BT + self.start_B[..., None]
        return jnp.where(self.valid_BT, places_BT, PADDING)

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
    longest = max((len(p) for p in prompts), default=0)
    if not prompts or min(len(p) for p in prompts) == 0:
        raise reject("prompts", list(prompts)[:1], "at least one prompt, each of at least one token")
    if length and longest > length:
        raise reject("length", length, f"{longest} or more, the tokens of the longest prompt")
    ids, valid = np.zeros((2, len(prompts), length or longest), np.int32)
    for row, prompt in enumerate(prompts):
        start = 0 if side == "right" else ids.shape[1] - len(prompt)
        ids[row, start : start + len(prompt)] = prompt
        valid[row, start : start + len(prompt)] = 1
    return Tokens(jnp.asarray(ids), jnp.asarray(valid.astype(bool)))
