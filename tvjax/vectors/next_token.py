"""The distribution at an answer's first token: how far it is from that of k-shot prompts, and whose answer it says."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from tvjax.nn.answers import Questions, logits
from tvjax.nn.decoder import Past
from tvjax.nn.model import Model
from tvjax.vectors.from_prompts import vocabulary


@struct.dataclass
class Reference:
    """What the distribution at the first token of each prompt's answer is held against.

    own_BK: the tokens that right answers begin with, -1 where there are fewer than K.
    rivals_BK: the tokens that no right answer begins with, but those of other tasks to the same input; -1 likewise.
    state_BD: h^L at the last token of the k-shot prompt, of which k-shot's distribution is the readout; nan: not read.
    """

    own_BK: jax.Array
    rivals_BK: jax.Array
    state_BD: jax.Array


class Said(NamedTuple):
    """What is kept of what is said of the tokens of answers.

    tokens_BA: the likeliest at each place.
    d_ntp_B: `d_ntp` at the first place, nats.
    margin_B: `margin` there, nan where there is no rival.
    """

    tokens_BA: jax.Array
    d_ntp_B: jax.Array | None = None
    margin_B: jax.Array | None = None


def d_ntp(log_p_BV: jax.Array, log_q_BV: jax.Array) -> jax.Array:
    """KL(p || q) = sum_v p_v log(p_v / q_v), nats: ``[B]``; p is k-shot's next-token distribution, q a method's.

    After d_NTP of Kwon, Choi and Sohn (2026, arXiv 2605.20730). [ours: from its description]
    """
    p_BV = jnp.exp(log_p_BV)
    return jnp.maximum(jnp.where(p_BV > 0, p_BV * (log_p_BV - log_q_BV), 0).sum(-1), 0)  # not below 0 by rounding


def margin(log_q_BV: jax.Array, own_BK: jax.Array, rivals_BK: jax.Array) -> jax.Array:
    """The identity margin ``[B]``, in [-1, 1]: the chance of the task's answer less the greatest of a rival's.

    Of several right answers the likeliest counts. [ours] nan where there is no rival.
    """

    def greatest(tokens_BK: jax.Array) -> jax.Array:
        """The greatest chance of some tokens."""
        chance_BK = jnp.exp(jnp.take_along_axis(log_q_BV, jnp.maximum(tokens_BK, 0), axis=1))
        return jnp.where(tokens_BK >= 0, chance_BK, 0).max(-1)

    return jnp.where((rivals_BK >= 0).any(-1), greatest(own_BK) - greatest(rivals_BK), jnp.nan)


def judge(model: Model, reference: Reference | None) -> Callable[[jax.Array], Said]:
    """A function from what is said of each token of the answers, ``[B, A, V]``, to what is kept of it.

    The distributions themselves are not kept.

    model: whose k-shot prompts `reference` is of (None: nothing is compared).
    """
    if reference is None:
        return lambda out_BAV: Said(out_BAV.argmax(-1))
    log_p_BV = jax.nn.log_softmax(vocabulary(model, reference.state_BD).astype(jnp.float32))

    def said(out_BAV: jax.Array) -> Said:
        """What is kept."""
        log_q_BV = jax.nn.log_softmax(out_BAV[:, 0].astype(jnp.float32))
        near = d_ntp(log_p_BV, log_q_BV), margin(log_q_BV, reference.own_BK, reference.rivals_BK)
        return Said(out_BAV.argmax(-1), *near)

    return said


def compared(
    target: Model, model: Model, q: Questions, edits: Any, past: Past | None, reference: Reference
) -> dict[str, jax.Array | None]:
    """Of each answer whether its first token, and whether all of it, is right, with `d_ntp` and `margin`: ``[B]`` each.

    target: whose k-shot prompts `reference` is of.
    model: what is asked, with `edits` and `past`.
    """
    said = judge(target, reference)(logits(model, q, edits, past))
    right_BA = (said.tokens_BA == q.answers_BA) | ~q.real_BA
    return {"first": right_BA[:, 0], "whole": right_BA.all(1), "d_ntp": said.d_ntp_B, "margin": said.margin_B}
