"""The decoder: what stands at its addresses, what each part of its config does, and what it may not see."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax.errors import UserError
from tvjax.nn.attention import attention
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import ADDRESSES, ATTENTION, Model, forward
from tvjax.nn.rotary import frequencies, rotate

# Layers rolled up, which compiles in a third of the time.
BASE = DecoderConfig(num_layers=3, width=16, num_heads=4, num_outputs=2, max_positions=12, unroll=1)
UNASKED = tuple(address for address in ADDRESSES if address not in ATTENTION)
"""All that is read without a change of how attention is computed."""
VARIANTS = {
    "base": {},
    "rmsnorm": {"norm": "rmsnorm"},
    "rotary": {"positions": "rotary"},
    "no positions": {"positions": "none"},
    "gated": {"mlp": "gated_silu"},
    "grouped": {"num_kv_heads": 2},
    "no bias": {"bias": False},
    "widths": {"head_width": 6, "hidden_width": 24},
    "tokens": {"inputs": "tokens", "vocab_size": 7},
    "tied": {"inputs": "tokens", "vocab_size": 7, "tied_readout": True},
}


def readout(model, inputs, **options):
    return forward(model, inputs, **options)[0]


@functools.cache
def made(changes):
    return make(**dict(changes))


def make(**changes):
    config = dataclasses.replace(BASE, **changes)
    key = jax.random.key(0)
    if config.inputs == "tokens":
        inputs = jax.random.randint(key, (3, 9), 0, config.vocab_size)
    else:
        inputs = jax.random.normal(key, (3, 9, 5))
    params = jax.jit(Decoder(config).init)(jax.random.key(1), inputs)["params"]
    noise = lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape)
    return Model(jax.tree.map(noise, params), config), inputs


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
class TestEveryVariant:
    def test_every_address_has_its_shape(self, changes):
        model, inputs = made(tuple(changes.items()))
        c = model.config
        out, found = forward(model, inputs, addresses=ADDRESSES)
        assert out.shape == (3, 9, c.vocab_size if c.tied_readout else 2)
        assert {name: a.shape for name, a in found.items()} == {
            "embed": (3, 9, 16),
            "blocks/resid": (3, 3, 9, 16),
            "blocks/attn_out": (3, 3, 9, 16),
            "blocks/mlp_out": (3, 3, 9, 16),
            "blocks/heads": (3, 3, 9, 4, c.channels),
            "blocks/queries": (3, 3, 9, 4, c.channels),
            "blocks/mlp_hidden": (3, 3, 9, c.hidden),
            "blocks/keys": (3, 3, 9, c.kv_heads, c.channels),
            "blocks/values": (3, 3, 9, c.kv_heads, c.channels),
            "blocks/attn_logits": (3, 3, 9, 4, 9),
            "blocks/attn_patterns": (3, 3, 9, 4, 9),
            "final_norm": (3, 9, 16),
            "logits": out.shape,
        }

    def test_the_stream_is_the_sum_of_what_is_written_to_it(self, changes):
        model, inputs = made(tuple(changes.items()))
        _, found = forward(model, inputs, addresses=UNASKED)
        written = found["blocks/attn_out"] + found["blocks/mlp_out"]
        stream = found["embed"][None] + jnp.cumsum(written, axis=0)
        np.testing.assert_allclose(found["blocks/resid"], stream, atol=1e-5)

    def test_queries_ask_the_keys_for_what_heads_hold(self, changes):
        """Softmax of q k / sqrt(C) over what came before, times v, written out."""
        model, inputs = made(tuple(changes.items()))
        c = model.config
        _, found = forward(model, inputs, addresses=UNASKED)
        repeat = c.num_heads // c.kv_heads
        k, v = (jnp.repeat(found[f"blocks/{name}"], repeat, axis=3) for name in ("keys", "values"))
        logits = jnp.einsum("lbthc,lbshc->lbhts", found["blocks/queries"], k) / c.channels**0.5
        weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((1, 1, 1, 9, 9), bool)), logits, -jnp.inf))
        np.testing.assert_allclose(found["blocks/heads"], jnp.einsum("lbhts,lbshc->lbthc", weights, v), atol=1e-5)

    def test_the_last_map_of_the_mlp_makes_its_output(self, changes):
        model, inputs = made(tuple(changes.items()))
        _, found = forward(model, inputs, addresses=UNASKED)
        down = model.params["blocks"]["down"]
        out = jnp.einsum("lbtf,lfd->lbtd", found["blocks/mlp_hidden"], down["kernel"])
        out = out + (down["bias"][:, None, None] if "bias" in down else 0.0)
        np.testing.assert_allclose(found["blocks/mlp_out"], out, atol=1e-5)

    def test_nothing_sees_the_future(self, changes):
        model, inputs = made(tuple(changes.items()))
        cut = 4
        if model.config.inputs == "tokens":
            other = inputs.at[:, cut + 1 :].set((inputs[:, cut + 1 :] + 1) % 7)
            first, second = (readout(model, i) for i in (inputs, other))
            np.testing.assert_array_equal(first[:, : cut + 1], second[:, : cut + 1])
            assert np.abs(first[:, cut + 1 :] - second[:, cut + 1 :]).max() > 1e-4
            return
        grad = jax.jit(jax.grad(lambda i: readout(model, i)[:, cut].sum()))(inputs)
        assert np.all(grad[:, cut + 1 :] == 0)
        assert np.abs(grad[:, : cut + 1]).max(axis=(0, 2)).min() > 0

    def test_unrolled_is_the_same_function(self, changes):
        model, inputs = made(tuple(changes.items()))
        unrolled = model.replace(config=dataclasses.replace(model.config, unroll=0))
        expected = readout(model, inputs)
        np.testing.assert_allclose(readout(unrolled, inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["base", "everything else", "tied"])
def test_rolled_and_rematerialized_have_the_same_gradients(name):
    both = {"positions": "rotary", "norm": "rmsnorm", "mlp": "gated_silu", "num_kv_heads": 2, "bias": False}
    model, inputs = made(tuple((VARIANTS | {"everything else": both})[name].items()))

    def value_and_grad(**how):
        c = dataclasses.replace(model.config, **how)
        return jax.jit(jax.value_and_grad(lambda p: jnp.square(readout(Model(p, c), inputs)).mean()))(model.params)

    expected = value_and_grad()
    for how in ({"unroll": 2}, {"remat": "full"}, {"remat": "dots"}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), value_and_grad(**how), expected
        )


def test_position_slice_reads_the_same_numbers():
    model, inputs = make()
    whole = readout(model, inputs)
    np.testing.assert_allclose(readout(model, inputs, at=slice(1, None, 3)), whole[:, 1::3], rtol=1e-6)


def test_models_of_one_config_share_a_program_whatever_their_source():
    model, inputs = make()
    run = jax.jit(readout)
    for source in (None, {"of": []}, object()):  # not all of them can be hashed
        run(model.replace(source=source).bare, inputs)
    assert run._cache_size() == 1
    run(model.replace(config=dataclasses.replace(model.config, norm_epsilon=0.1)).bare, inputs)
    assert run._cache_size() == 2, "another model of the same shapes"


def test_vmap_over_a_model_is_over_its_members():
    model, inputs = make()
    members = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), model)
    both = jax.vmap(readout, (0, None))(members, inputs)
    for m in range(2):
        alone = readout(jax.tree.map(lambda p, m=m: p[m], members), inputs)
        np.testing.assert_allclose(both[m], alone, rtol=1e-4, atol=1e-5)


def test_rotary_scores_depend_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    score = lambda i, j: jnp.sum(
        rotate(q, jnp.array([[i]]), frequencies(8, 100.0)) * rotate(k, jnp.array([[j]]), frequencies(8, 100.0))
    )
    np.testing.assert_allclose(score(5, 2), score(9, 6), rtol=1e-5)
    assert abs(score(5, 2) - score(5, 3)) > 1e-3


def test_unknown_address_is_refused_by_name():
    model, inputs = make()
    with pytest.raises(UserError, match="blocks/residual"):
        forward(model, inputs, addresses=["blocks/residual"])


@pytest.mark.parametrize("unroll", [0, 1])
def test_what_is_not_asked_for_is_not_stored(unroll):
    config = dataclasses.replace(BASE, num_layers=8, width=64, unroll=unroll, max_positions=64)
    decoder, inputs = Decoder(config), jnp.zeros((32, 64, 5))
    params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), inputs))["params"]

    def bytes_of(addresses):
        run = jax.jit(lambda p, i: forward(Model(p, config), i, addresses=addresses))
        program = run.lower(params, inputs).compile()
        memory = program.memory_analysis()
        return memory.output_size_in_bytes + memory.temp_size_in_bytes

    nothing, one, everything = (bytes_of(a) for a in ((), ("blocks/resid",), ADDRESSES))
    layers = 8 * 32 * 64 * 64 * 4
    assert nothing < one - 0.9 * layers, "the stream is stored although nobody asked for it"
    assert one < everything - 2.5 * layers, "asking for one address stores the others"


class TestAttention:
    def draw(self, heads=4, groups=2, length=6):
        keys = jax.random.split(jax.random.key(0), 3)
        shapes = ((2, length, heads, 8), (2, length, groups, 8), (2, length, groups, 8))
        return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]

    def oracle(self, q, k, v, mask):
        """Softmax attention one head, one query at a time, in float64 numpy."""
        q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
        out = np.zeros(q.shape)
        for b, t, h in np.ndindex(*q.shape[:3]):
            g = h * k.shape[2] // q.shape[2]
            seen = np.flatnonzero(mask[b % len(mask), t])
            weights = np.exp(k[b, seen, g] @ q[b, t, h] / np.sqrt(q.shape[-1]))
            out[b, t, h] = weights @ v[b, seen, g] / weights.sum()
        return out

    @pytest.mark.parametrize("length", [6, 65])  # the longer one is cut into two blocks
    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_causal_attention_is_the_textbook_formula(self, groups, length):
        q, k, v = self.draw(groups=groups, length=length)
        causal = np.tril(np.ones((1, length, length), bool))
        np.testing.assert_allclose(attention(q, k, v), self.oracle(q, k, v, causal), atol=1e-5)

    def test_a_mask_decides_who_sees_whom(self):
        q, k, v = self.draw()
        mask = np.random.default_rng(0).random((2, 6, 6)) < 0.5
        mask |= np.eye(6, dtype=bool)
        np.testing.assert_allclose(attention(q, k, v, jnp.array(mask)), self.oracle(q, k, v, mask), atol=1e-5)

    @pytest.mark.parametrize("cap", [0.0, 5.0])
    def test_a_query_that_sees_nothing_gets_zeros_and_moves_nothing(self, cap):
        mask = jnp.tril(jnp.ones((1, 6, 6), bool)).at[0, 2].set(False)
        blind = lambda q, k, v: attention(q, k, v, mask, cap=cap)[:, 2]
        out, pull = jax.vjp(blind, *self.draw())
        for array in (out, *pull(jnp.ones_like(out))):
            np.testing.assert_array_equal(array, 0)

    def test_large_logits_stay_finite_with_their_gradients(self):
        q, k, v = (1e3 * a for a in self.draw())
        value, grads = jax.value_and_grad(lambda q, k, v: attention(q, k, v).sum(), argnums=(0, 1, 2))(q, k, v)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)

    @pytest.mark.parametrize("length", [1, 2, 6, 65])
    def test_gradients_match_those_of_the_plain_formula(self, length):
        q, k, v = self.draw(length=length)

        def plain(q, k, v):
            k, v = (jnp.repeat(a, 2, axis=2) for a in (k, v))
            logits = jnp.einsum("bthc,bshc->bhts", q, k) / jnp.sqrt(8.0)
            causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
            return jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(jnp.where(causal, logits, -1e30)), v)

        weights = jax.random.normal(jax.random.key(5), (2, length, 4, 8))
        loss = lambda f: lambda q, k, v: (f(q, k, v) * weights).sum()
        expected = jax.grad(loss(plain), argnums=(0, 1, 2))(q, k, v)
        for a, b in zip(jax.grad(loss(attention), argnums=(0, 1, 2))(q, k, v), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
