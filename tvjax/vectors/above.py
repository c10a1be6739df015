"""What a write at a prompt's last token changes, and nothing else: the blocks above it, from that token on.

What stands before the last token is read once (`from_last`), and so is what is below the write. The layer is data: one
program serves all layers, and a write at layer l costs L - l blocks.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.nn.answers import Questions, from_last
from tvjax.nn.decoder import DecoderConfig, Past
from tvjax.nn.model import Model, forward
from tvjax.vectors.edits import HEADS, edit_at
from tvjax.vectors.from_prompts import at_last
from tvjax.vectors.next_token import Reference, Said, judge
from tvjax.vectors.tvp import STREAM, stream_at


def alike(c: DecoderConfig, reach: int) -> bool:
    """Whether all blocks are one function of their parameters, for positions that look back by less than `reach`."""
    return not c.rotaries and len({window if 0 < window < reach else 0 for window in c.windows}) <= 1


def states(model: Model, past: Past, q: Questions) -> tuple[jax.Array, jax.Array]:
    """h^0..h^L of the tokens of `q` behind `past`, ``[L+1, B, A, D]``, and what is said of them, ``[B, A, V]``."""
    positions_BT = q.tokens.positions_BT
    out, activations = forward(model, q.tokens.ids_BT, addresses=STREAM, positions_BT=positions_BT, past=past)
    return stream_at(activations, slice(None)), out


def _block(
    model: Model, past: Past, q: Questions, index: Any, h_BAD: jax.Array, tree: Any
) -> tuple[jax.Array, jax.Array]:
    """The readout and the state after block `index` (from 0) alone, of `h_BAD` before it. tree: edits in this block."""
    config = dataclasses.replace(model.config.between(0, 1), unroll=1)
    cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=index, slice_size=1)
    one = Model({**model.params, "blocks": jax.tree.map(cut, model.params["blocks"])}, config)
    past = Past(cut(past.keys), cut(past.values), past.positions_BS)
    tree = edit_at("embed", h_BAD) | tree
    positions_BT = q.tokens.positions_BT
    address = "blocks/resid"
    out, activations = forward(
        one, q.tokens.ids_BT, edits=tree, addresses=(address,), positions_BT=positions_BT, past=past
    )
    return out, activations[address][0]


def read_out(model: Model, past: Past, q: Questions, h_BAD: jax.Array, layer: Any) -> jax.Array:
    """What is said where h^`layer` (0..L, may be traced) is `h_BAD`: ``[B, A, V]``. For blocks that are `alike`."""
    top = model.config.num_layers - 1

    def body(index: jax.Array, h_BAD: jax.Array) -> jax.Array:
        """One block more."""
        return _block(model, past, q, index, h_BAD, {})[1]

    h_BAD = jax.lax.fori_loop(layer, top, body, h_BAD)
    last = layer > top  # nothing is left to run: the state is that which is read out
    written = edit_at("blocks/resid", h_BAD[None], here=jnp.asarray(last).reshape(1, 1, 1, 1))
    return _block(model, past, q, top, h_BAD, written)[0]


def loops(layers: Sequence[int], num_layers: int) -> float:
    """How often the loop of `read_out` runs, on average over `layers`: what `flops` cannot see in a program."""
    return sum(max(0, num_layers - 1 - layer) for layer in layers) / len(layers)


def alone(model: Model, asked: tuple[Questions, Reference]) -> tuple[Said, jax.Array]:
    """What is said with nothing written, and h^L at each prompt's last token, ``[B, D]``, from which it is read out.

    Where the reference has no state, as for k-shot prompts, they are held against that state.
    """
    q, reference = asked
    past, q = from_last(model, q)
    h_LBAD, out = states(model, past, q)
    state_BD = h_LBAD[-1, :, 0]
    known_BD = jnp.where(jnp.isnan(reference.state_BD), state_BD, reference.state_BD)
    return judge(model, dataclasses.replace(reference, state_BD=known_BD))(out), state_BD


def likeliest(model: Model, vectors_LUD: jax.Array, layers_L: jax.Array, keep_LU: jax.Array, q: Questions) -> jax.Array:
    """The likeliest token at each place of the answers with each vector in place, ``[B, L, U, A]``; as `written`."""
    return written(model, vectors_LUD, layers_L, keep_LU, (q, None)).tokens_BA


def written(
    model: Model,
    vectors_LUD: jax.Array,
    layers_L: jax.Array,
    keep_LU: jax.Array,
    asked: tuple[Questions, Reference | None],
) -> Said:
    """What is said of the answers with each vector in place, ``[B, L, U, ...]``.

    The state h at the last token, at layer ``layers_L[l]`` (0..L), becomes ``keep_LU[l, u] h + vectors_LUD[l, u]``. An
    answer is read with its own tokens before each place, so that its first place is what the vector alone brings.
    """
    q, reference = asked
    said = judge(model, reference)
    past, q = from_last(model, q)
    h_LBAD, _ = states(model, past, q)
    length = q.tokens.ids_BT.shape[1]
    whole = not alike(model.config, past.positions_BS.shape[1] + length)

    def at_layer(row: tuple[jax.Array, jax.Array, jax.Array]) -> Said:
        """All vectors of one layer."""
        vectors_UD, layer, keep_U = row
        h_BAD = h_LBAD[layer]

        def one(vector_D: jax.Array, keep: jax.Array) -> Said:
            """One of them."""
            if whole:
                tree = at_last(model.config, vector_D, layer, q.last_B, length, keep)
                ids_BT, positions_BT = q.tokens.ids_BT, q.tokens.positions_BT
                out = forward(model, ids_BT, edits=tree, positions_BT=positions_BT, past=past)[0]
            else:
                new_BD = keep.astype(h_BAD.dtype) * h_BAD[:, 0] + vector_D.astype(h_BAD.dtype)[None]
                out = read_out(model, past, q, h_BAD.at[:, 0].set(new_BD), layer)
            return said(out)

        return jax.vmap(one)(vectors_UD, keep_U)

    by_layer = jax.lax.map(at_layer, (vectors_LUD, layers_L, keep_LU))
    return jax.tree.map(lambda a: jnp.moveaxis(a, 2, 0), by_layer)


def head_effects(model: Model, mean_LHC: jax.Array, q: Questions) -> jax.Array:
    """By how much each head's mean, put in its place at the last token, raises the chance of the answer: ``[B, L, H]``.

    Of an answer of several tokens the first counts.
    """
    layers, heads, _ = mean_LHC.shape
    past, q = from_last(model, Questions(q.tokens, q.last_B, q.answers_BA[:, :1], q.real_BA[:, :1]))
    h_LBAD, out = states(model, past, q)
    whole = not alike(model.config, past.positions_BS.shape[1] + 1)

    def chance(out_BAV: jax.Array) -> jax.Array:
        """Of each answer's first token: ``[B]``."""
        return jnp.take_along_axis(jax.nn.softmax(out_BAV[:, 0]), q.answers_BA, axis=1)[:, 0]

    def in_block(index: jax.Array) -> jax.Array:
        """The heads of one block, one at a time: ``[H, B]``."""

        def one(head: jax.Array) -> jax.Array:
            """One of them."""
            here = (jnp.arange(heads) == head)[None, None, None, :, None]
            if whole:
                here = here & (jnp.arange(layers) == index)[:, None, None, None, None]
                tree = edit_at(HEADS, mean_LHC[:, None, None], here=here)
                ids_BT, positions_BT = q.tokens.ids_BT, q.tokens.positions_BT
                return chance(forward(model, ids_BT, edits=tree, positions_BT=positions_BT, past=past)[0])
            tree = edit_at(HEADS, mean_LHC[index][None, None, None], here=here)
            _, h_BAD = _block(model, past, q, index, h_LBAD[index], tree)
            return chance(read_out(model, past, q, h_BAD, index + 1))

        return jax.vmap(one)(jnp.arange(heads))

    chance_LHB = jax.lax.map(in_block, jnp.arange(layers))
    return (chance_LHB - chance(out)[None, None]).transpose(2, 0, 1)


def head_attributions(model: Model, mean_LHC: jax.Array, q: Questions) -> jax.Array:
    """`head_effects` to first order, ``[B, L, H]``: the gradient of the chance along what putting a mean in changes.

    All heads from one backward pass, where `head_effects` takes a pass a head. [ours: Pham et al. (2026) choose heads
    by gradients too, by a rule that could not be read]
    """
    past, q = from_last(model, Questions(q.tokens, q.last_B, q.answers_BA[:, :1], q.real_BA[:, :1]))

    def chance(added_LBHC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Summed over prompts, with what each head holds."""
        tree = edit_at(HEADS, added_LBHC[:, :, None], keep=1.0)
        ids_BT, positions_BT = q.tokens.ids_BT, q.tokens.positions_BT
        out, activations = forward(model, ids_BT, edits=tree, addresses=(HEADS,), positions_BT=positions_BT, past=past)
        chances_B = jnp.take_along_axis(jax.nn.softmax(out[:, 0]), q.answers_BA, axis=1)[:, 0]
        return chances_B.sum(), activations[HEADS][:, :, 0]

    layers, heads, channels = mean_LHC.shape
    nothing = jnp.zeros((layers, len(q.last_B), heads, channels), mean_LHC.dtype)
    slope_LBHC, heads_LBHC = jax.grad(chance, has_aux=True)(nothing)
    return ((mean_LHC[:, None] - heads_LBHC) * slope_LBHC).sum(-1).swapaxes(0, 1)
