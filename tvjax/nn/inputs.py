"""Prompts as a user has them - texts, token ids, features - as a decoder's inputs, checked against the model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import reject
from tvjax.nn.decoder import PADDING
from tvjax.nn.model import Model
from tvjax.nn.selection import Own, finite, host
from tvjax.nn.tokens import Tokens, pad, tokens_of
from tvjax.tasks.prompt import Prompt

Prompts = Prompt | Tokens | jax.Array | Sequence[Any] | str


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Prompts as a decoder reads them.

    values: token ids ``[B, T]`` or real features ``[B, T, X]``.
    positions_BT: of their tokens (None: 0, 1, ..).
    """

    values: jax.Array
    positions_BT: Any

    @property
    def batch(self) -> int:
        """B, how many prompts there are."""
        return len(self.values)

    @property
    def all_positions_BT(self) -> Any:
        """The positions, of one row if no prompt is padded."""
        return np.arange(self.values.shape[1])[None] if self.positions_BT is None else self.positions_BT

    def own(self, field: str = "positions") -> Own:
        """Where the tokens of each prompt stand."""
        return Own.of(self.all_positions_BT, self.batch, field)


def inputs_of(model: Model, prompts: Prompts) -> Inputs:
    """Prompts for `model`. Texts, and lists of ids of unequal lengths, are padded on the left.

    Raises `UserError` for prompts that are empty, are not of the model's kind or width, or are longer than its table of
    positions, and for a token that it does not have.
    """
    if not isinstance(model, Model):
        raise reject("model", model, "what tvjax.load gives")
    if isinstance(prompts, Prompt):
        prompts = prompts.inputs
    if model.config.inputs == "real":
        inputs = Inputs(_features(prompts, model.params["front"]["kernel"].shape[0]), None)
    else:
        texts = texts_of(prompts)
        tokens = tokens_of(_encoded(model, texts) if texts else prompts, model.config.vocab_size)
        valid = host(tokens.valid_BT)
        plain = tokens.start_B is None and valid is not None and bool(valid.all())
        positions_BT: Any = None if plain else tokens.positions_BT
        if not plain and valid is not None and tokens.start_B is None:  # of numpy: they can be looked at in jit too
            positions_BT = np.where(valid, np.cumsum(valid, -1) - 1, PADDING).astype(np.int32)
        inputs = Inputs(tokens.ids_BT, positions_BT)
    check_length(model, inputs)
    return inputs


def texts_of(prompts: Any, field: str = "prompts") -> list[str]:
    """Texts as a list; it is empty if `prompts` are none. Raises `UserError` if only some of them are texts."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, np.ndarray) and prompts.dtype.kind == "U":
        return prompts.reshape(-1).tolist()
    if not isinstance(prompts, Sequence):
        return []
    texts = [text for text in prompts if isinstance(text, str)]
    if texts and len(texts) < len(prompts):
        raise reject(field, prompts, "texts alone, or token ids alone")
    return texts


def check_length(model: Model, inputs: Inputs, new_tokens: int = 0) -> None:
    """Raise `UserError` for more tokens, `new_tokens` included, than a learned table has positions."""
    positions, limit = host(inputs.all_positions_BT), model.config.max_positions
    if model.config.positions != "learned" or positions is None:
        return
    length = int(np.where(positions == PADDING, -1, positions).max()) + 1
    if length + max(new_tokens - 1, 0) > limit:
        field, value = ("max_new_tokens", new_tokens) if new_tokens else ("prompts", f"{length} tokens")
        raise reject(field, value, f"prompts and new tokens within the model's {limit} positions")


def _encoded(model: Model, texts: list[str]) -> Tokens:
    tokenizer, size = getattr(model.source, "tokenizer", None), model.config.vocab_size
    if tokenizer is None:
        raise reject("prompts", "texts", "token ids, since this model has no tokenizer")
    rows = tokenizer.encode(texts)
    for number, row in enumerate(rows):
        if not row:
            raise reject(f"prompts[{number}]", texts[number], "a text of at least one token")
        if max(row) >= size:
            accepted = f"texts of the model's {size} tokens (the tokenizer calls this one {max(row)})"
            raise reject(f"prompts[{number}]", tokenizer.token(max(row)), accepted)
    return pad(rows)


def _features(prompts: Any, width: int) -> jax.Array:
    accepted = f"a Prompt, or real features [B, T, {width}], since this model reads no tokens"
    if isinstance(prompts, Tokens) or texts_of(prompts):
        raise reject("prompts", "texts or tokens", accepted)
    values = finite("prompts", prompts)
    if values.ndim != 3 or values.shape[-1] != width or not values.size:
        raise reject("prompts", f"shape {list(values.shape)}", accepted)
    return jnp.asarray(values)
