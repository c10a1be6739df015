"""Whether a language model gives an answer, token for token: what greedy decoding would say, found in one pass."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from tvjax.errors import UserError
from tvjax.nn.decoder import Decoder
from tvjax.nn.model import forward
from tvjax.nn.pretrained import Tokenizer
from tvjax.nn.tokens import Tokens, pad


@struct.dataclass
class Questions:
    """Prompts with the answers behind them, padded on the right.

    last_B: the index of each prompt's last token, the one that the answer's first token is read from. answers_BA: the
    tokens of the answers, asked_BA: which of them there are.
    """

    tokens: Tokens
    last_B: jax.Array
    answers_BA: jax.Array
    asked_BA: jax.Array


def questions(
    tokenizer: Tokenizer, prompts: Sequence[str], answers: Sequence[str], *, length: int = 0, width: int = 0
) -> Questions:
    """Prompts and answers as `Questions`, with room for `length` tokens and answers of `width` (0: what they need).

    Both are cut into tokens together. Raises `UserError` where a token would hold the end of a prompt and the
    beginning of its answer.
    """
    alone = tokenizer.encode(prompts)
    whole = tokenizer.encode([p + a for p, a in zip(prompts, answers, strict=True)])
    for prompt, text, ids, more in zip(prompts, answers, alone, whole, strict=True):
        if more[: len(ids)] != ids or len(more) == len(ids):
            raise UserError(
                f"template: {prompt[-12:] + text!r} has a token that joins the prompt and its answer; accepted: a "
                "template whose `between` ends where a token ends"
            )
    width = width or max(len(w) - len(a) for w, a in zip(whole, alone, strict=True))
    rows = [w[len(a) :] for w, a in zip(whole, alone, strict=True)]
    answered = pad(rows, side="right", length=width)
    last_B = jnp.array([len(ids) - 1 for ids in alone])
    return Questions(pad(whole, side="right", length=length), last_B, answered.ids_BT, answered.valid_BT)


def _logits(decoder: Decoder, params: Any, q: Questions, edits: Any) -> jax.Array:
    """What is said of each token of the answers, with those before it in place: ``[B, A, V]``."""
    length = q.tokens.ids_BT.shape[1]
    at_BA = jnp.minimum(q.last_B[:, None] + jnp.arange(q.answers_BA.shape[1])[None], length - 1)
    return forward(decoder, params, q.tokens.ids_BT, edits=edits, at=at_BA, positions_BT=q.tokens.positions_BT)[0]


def correct(decoder: Decoder, params: Any, q: Questions, edits: Any = None) -> jax.Array:
    """Whether each answer is, token for token, the likeliest continuation of its prompt: ``[B]`` of bool.

    Each token of an answer is read with those before it in place, so this is what greedy decoding would say.
    """
    said_BA = _logits(decoder, params, q, edits).argmax(-1)
    return ((said_BA == q.answers_BA) | ~q.asked_BA).all(1)


def risk(decoder: Decoder, params: Any, q: Questions, edits: Any = None) -> jax.Array:
    """The cross-entropy of each answer, nats a token: ``[B]``."""
    logits = _logits(decoder, params, q, edits)
    risk_BA = optax.softmax_cross_entropy_with_integer_labels(logits, q.answers_BA) * q.asked_BA
    return risk_BA.sum(1) / q.asked_BA.sum(1)
