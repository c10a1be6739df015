"""Whether a language model gives an answer, token for token: what greedy decoding would say, found in one pass."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from tvjax.errors import UserError
from tvjax.nn.decoder import Past
from tvjax.nn.decoding import before
from tvjax.nn.model import Model, forward
from tvjax.nn.pretrained import Tokenizer
from tvjax.nn.tokens import Tokens, pad


@struct.dataclass
class Questions:
    """Prompts with the answers behind them, padded on the right.

    last_B: the index of each prompt's last token, which the answer's first token is read from.
    answers_BA: the tokens of the answers.
    real_BA: which tokens of the answers there are.
    """

    tokens: Tokens
    last_B: jax.Array
    answers_BA: jax.Array
    real_BA: jax.Array


def questions(
    tokenizer: Tokenizer, prompts: Sequence[str], answers: Sequence[str], *, length: int = 0, width: int = 0
) -> Questions:
    """Prompts and answers as `Questions`, with room for `length` tokens and answers of `width` (0: what they need).

    Both are cut into tokens together. Raises `UserError` if a token would hold the end of a prompt and the
    beginning of its answer, and for a tokenizer that puts tokens behind every text.
    """
    tokenizer.check_open()
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


def from_last(model: Model, q: Questions) -> tuple[Past, Questions]:
    """What stands before each prompt's last token, read once, and the questions from that token on.

    It does not depend on what is written at that token or later: many such edits cost as many tokens as the answers
    have, and no gradient of one goes through what stands before.
    """
    past, last_B1, start_B1 = before(model.bare, q.tokens.ids_BT, q.tokens.positions_BT, q.last_B)
    ids_BA = jnp.concatenate([last_B1, q.answers_BA[:, :-1]], axis=1)
    valid_BA = jnp.concatenate([jnp.ones_like(last_B1, bool), q.real_BA[:, :-1]], axis=1)
    tokens = Tokens(ids_BA, valid_BA, start_B1[:, 0])
    return past, Questions(tokens, jnp.zeros_like(q.last_B), q.answers_BA, q.real_BA)


def earlier(q: Questions, back_B: np.ndarray) -> Questions:
    """The same questions, asked from `back_B` tokens before each prompt's last one.

    What stands between the two becomes the beginning of the answers, ``[B, A + max(back_B)]``. [ours]
    """
    ids_BT, valid_BT = np.asarray(q.tokens.ids_BT), np.asarray(q.tokens.valid_BT)
    last_B = np.asarray(q.last_B) - back_B
    at_BA = last_B[:, None] + 1 + np.arange(q.answers_BA.shape[1] + int(back_B.max()))[None]
    there_BA = np.minimum(at_BA, ids_BT.shape[1] - 1)
    real_BA = np.take_along_axis(valid_BT, there_BA, 1) & (at_BA == there_BA)
    answers_BA = np.where(real_BA, np.take_along_axis(ids_BT, there_BA, 1), 0)
    return Questions(q.tokens, jnp.asarray(last_B), jnp.asarray(answers_BA), jnp.asarray(real_BA))


def logits(model: Model, q: Questions, edits: Any = None, past: Past | None = None) -> jax.Array:
    """What is said of each token of the answers, with those before it in place: ``[B, A, V]``."""
    length = q.tokens.ids_BT.shape[1]
    at_BA = jnp.minimum(q.last_B[:, None] + jnp.arange(q.answers_BA.shape[1])[None], length - 1)
    positions_BT = q.tokens.positions_BT
    return forward(model, q.tokens.ids_BT, edits=edits, at=at_BA, positions_BT=positions_BT, past=past)[0]


def likeliest(model: Model, q: Questions, edits: Any = None, past: Past | None = None) -> jax.Array:
    """The likeliest token at each place of the answers, with those before it in place: ``[B, A]``."""
    return logits(model, q, edits, past).argmax(-1)


def judged(model: Model, q: Questions, edits: Any = None, past: Past | None = None) -> tuple[jax.Array, jax.Array]:
    """Whether each answer's first token, and whether all of it, is right, ``[B, 2]``; and its `risk`, ``[B]``."""
    out_BAV = logits(model, q, edits, past)
    right_BA = (out_BAV.argmax(-1) == q.answers_BA) | ~q.real_BA
    risk_BA = optax.softmax_cross_entropy_with_integer_labels(out_BAV, q.answers_BA) * q.real_BA
    return jnp.stack([right_BA[:, 0], right_BA.all(1)], axis=1), risk_BA.sum(1) / q.real_BA.sum(1)


def correct(model: Model, q: Questions, edits: Any = None, past: Past | None = None) -> jax.Array:
    """Whether each answer is, token for token, the likeliest continuation of its prompt: ``[B]`` of bool.

    Each token of an answer is read with those before it in place, so this is what greedy decoding would say.
    """
    return judged(model, q, edits, past)[0][:, 1]


def risk(model: Model, q: Questions, edits: Any = None, past: Past | None = None) -> jax.Array:
    """The cross-entropy of each answer, nats a token: ``[B]``."""
    return judged(model, q, edits, past)[1]
