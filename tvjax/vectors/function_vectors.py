"""Function vectors (Todd et al. 2024): what the heads that carry a task write at the last token of a prompt.

The mean output of every head over prompts that demonstrate a task is put, one head at a time, into prompts whose
demonstrations have their outputs shuffled; the heads that raise the probability of the right answer most, over all
tasks, are those that carry tasks. Their mean outputs, through the output projection, sum to the task's vector.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.nn.answers import Questions
from tvjax.nn.decoder import Decoder, Past
from tvjax.nn.decoding import before
from tvjax.nn.model import forward
from tvjax.nn.taps import Edit
from tvjax.nn.tokens import Tokens
from tvjax.parallel.batches import Batches
from tvjax.vectors.edits import HEADS


def last_heads(decoder: Decoder, params: Any, tokens: Tokens) -> jax.Array:
    """What each head writes at each prompt's last token, ``[B, L, H, C]``."""
    _, found = forward(
        decoder,
        params,
        tokens.ids_BT,
        addresses=(HEADS,),
        read_BN=tokens.last_B[:, None],
        at=slice(0, 1),
        positions_BT=tokens.positions_BT,
    )
    return found[HEADS][:, :, 0].swapaxes(0, 1)


@functools.partial(jax.jit, static_argnums=0)
def _with_head(
    decoder: Decoder,
    params: Any,
    past: Past,
    token_B1: jax.Array,
    position_B1: jax.Array,
    answer_B: jax.Array,
    mean_LHC: jax.Array,
    head_N2: jax.Array,
) -> jax.Array:
    """The probability of each answer's first token with the mean of each head (layer, head) in place: ``[N, B]``."""
    layers, heads, _ = mean_LHC.shape

    def one(head_2: jax.Array) -> jax.Array:
        here_LH = (jnp.arange(layers) == head_2[0])[:, None] & (jnp.arange(heads) == head_2[1])[None]
        where = here_LH[:, None, None, :, None]
        tree = {"blocks": {"heads": Edit(jnp.zeros_like(where, mean_LHC.dtype), mean_LHC[:, None, None], where)}}
        out, _ = forward(decoder, params, token_B1, edits=tree, positions_BT=position_B1, past=past)
        chances_BV = jax.nn.softmax(out[:, 0])
        return jnp.take_along_axis(chances_BV, answer_B[:, None], axis=1)[:, 0]

    return jax.vmap(one)(head_N2)


def indirect_effects(decoder: Decoder, params: Any, q: Questions, mean_LHC: jax.Array, batches: Batches) -> np.ndarray:
    """By how much each head's mean, put in its place at the last token, raises the answer's probability: ``[L, H]``.

    Mean over the prompts of `q`; of an answer of several tokens, the first counts. What stands before the last token
    is read once. `batches` runs over heads.
    """
    layers, heads, _ = mean_LHC.shape
    past, token_B1, position_B1 = before(decoder, params, q.tokens.ids_BT, q.tokens.positions_BT, q.last_B)
    head_N2 = jnp.stack(jnp.meshgrid(jnp.arange(layers), jnp.arange(heads), indexing="ij"), -1).reshape(-1, 2)
    nowhere_12 = jnp.full((1, 2), -1)  # no head at all: the prompts as they are
    fixed = (params, past, token_B1, position_B1, q.answers_BA[:, 0], jnp.asarray(mean_LHC))
    chances_NB = batches(_with_head, (decoder,), fixed, jnp.concatenate([nowhere_12, head_N2]))
    return np.asarray((chances_NB[1:] - chances_NB[:1]).mean(1)).reshape(layers, heads)


def strongest(effects_LH: np.ndarray, count: int) -> list[tuple[int, int]]:
    """The `count` heads of the greatest effect, as (block, head), both from 0."""
    order = np.argsort(-effects_LH, axis=None, kind="stable")[:count]
    return [tuple(int(i) for i in np.unravel_index(place, effects_LH.shape)) for place in order]  # type: ignore[misc]


def function_vector(params: Any, mean_LHC: np.ndarray, heads: list[tuple[int, int]]) -> np.ndarray:
    """The sum of the means of `heads` through the output projection, ``[D]``; without its bias or a norm behind it."""
    kernel_LHCD = params["blocks"]["out"]["kernel"]
    return np.sum(
        [mean_LHC[layer, head] @ np.asarray(kernel_LHCD[layer, head], np.float32) for layer, head in heads], 0
    )
