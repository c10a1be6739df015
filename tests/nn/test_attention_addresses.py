"""Attention's logits and patterns, final norm and logits: what stands there, what an edit does, what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import tvjax
from tests.nn.golden import GOLDEN, make, needs_torch
from tvjax.errors import UserError
from tvjax.nn import decoder
from tvjax.nn.attention import FORBIDDEN
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.decoding import CACHE, past_of
from tvjax.nn.model import ADDRESSES, ATTENTION, READOUT, Model, forward
from tvjax.nn.pretrained import load_model
from tvjax.nn.taps import Edit
from tvjax.nn.tokens import Tokens, pad
from tvjax.vectors import edits

LOGITS, PATTERNS = ATTENTION
TOKENS = {side: pad(make.PROMPTS, side=side) for side in ("left", "right")}
STEPS = 4
# Learned positions; groups of key heads; windows in all layers; windows in some, a scale of its own and two caps.
NAMES = ("gpt2", "llama3", "mistral", "gemma2")


@functools.cache
def golden(name, unroll=1):
    return load_model(GOLDEN / name, unroll=unroll)


def softmax(a):
    weights = np.exp(a - a.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def plain_logits(model, found, valid_BT):
    """q k, scaled, capped and masked, one pair of tokens at a time, in float64; -1e30 at all that is not seen."""
    c = model.config
    q, k = (np.asarray(found[name], np.float64) for name in ("blocks/queries", "blocks/keys"))
    layers, batch, length, heads, _ = q.shape
    out = np.full((layers, batch, length, heads, length), FORBIDDEN)
    windows = c.windows or (0,) * layers
    for layer, b, t, s in np.ndindex(layers, batch, length, length):
        apart = valid_BT[b, s : t + 1].sum() - 1  # in the prompt's own tokens
        seen = valid_BT[b, t] and valid_BT[b, s] and s <= t and (not windows[layer] or apart < windows[layer])
        for h in range(heads) if seen else ():
            a = q[layer, b, t, h] @ k[layer, b, s, h * c.kv_heads // heads] * (c.attention_scale or c.channels**-0.5)
            out[layer, b, t, h, s] = c.attention_cap * np.tanh(a / c.attention_cap) if c.attention_cap else a
    return out


@pytest.mark.parametrize("side", TOKENS)
@pytest.mark.parametrize("name", NAMES)
class TestWhatStandsThere:
    def test_logits_patterns_and_heads_by_their_formulas(self, name, side):
        model, tokens = golden(name), TOKENS[side]
        names = ("blocks/queries", "blocks/keys", "blocks/values", "blocks/heads", *ATTENTION)
        found = tvjax.capture(model, tokens, names)
        real = np.asarray(tokens.valid_BT)
        expected = plain_logits(model, found, real)
        np.testing.assert_allclose(np.asarray(found[LOGITS])[:, real], expected[:, real], atol=1e-4)
        patterns = softmax(expected)
        np.testing.assert_allclose(np.asarray(found[PATTERNS])[:, real], patterns[:, real], atol=1e-5)
        assert (np.asarray(found[PATTERNS])[:, real][expected[:, real] == FORBIDDEN] == 0).all()
        v = jnp.repeat(found["blocks/values"], model.config.num_heads // model.config.kv_heads, axis=3)
        heads = np.einsum("lbths,lbshc->lbthc", patterns, np.asarray(v))
        np.testing.assert_allclose(np.asarray(found["blocks/heads"])[:, real], heads[:, real], atol=1e-4)

    def test_what_is_read_out_is_the_norm_of_the_last_state_and_its_readout(self, name, side):
        model, tokens = golden(name), TOKENS[side]
        found = tvjax.capture(model, tokens, ["blocks/resid", *READOUT])
        c, norm, h = model.config, model.params["norm"], np.asarray(found["blocks/resid"][-1], np.float64)
        h = h - h.mean(-1, keepdims=True) if c.norm == "layernorm" else h
        h = h / np.sqrt((h**2).mean(-1, keepdims=True) + c.norm_epsilon) * (np.asarray(norm["scale"]) + c.norm_offset)
        h = h + (np.asarray(norm["bias"]) if "bias" in norm else 0.0)
        np.testing.assert_allclose(found["final_norm"], h, atol=1e-4)
        table = model.params["front"]["embedding"].T if c.tied_readout else model.params["readout"]["kernel"]
        logits = h @ np.asarray(table)
        logits = c.readout_cap * np.tanh(logits / c.readout_cap) if c.readout_cap else logits
        np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
        np.testing.assert_allclose(found["logits"], tvjax.run(model, tokens), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("unroll", [0, 1, "apart"])
def test_rolled_up_unrolled_and_apart_say_the_same_as_asking_for_nothing(name, unroll, monkeypatch):
    if unroll == "apart":
        monkeypatch.setattr(decoder, "WORTH_PARTING", 0)
    model = load_model(GOLDEN / name, unroll=int(unroll != 0))
    blocks = model.for_tokens(27).params["blocks"]
    assert isinstance(blocks, tuple) == (unroll == "apart")
    real = np.asarray(TOKENS["left"].valid_BT)
    found = tvjax.capture(model, TOKENS["left"], ["blocks/resid", *ATTENTION, "logits"], layers=[3, 1, 3])
    plain = tvjax.capture(golden(name), TOKENS["left"], ["blocks/resid"])["blocks/resid"]
    whole = tvjax.capture(golden(name), TOKENS["left"], ATTENTION)
    np.testing.assert_allclose(found["blocks/resid"][:, real], plain[jnp.array([2, 0, 2])][:, real], atol=1e-4)
    np.testing.assert_allclose(found["logits"][real], tvjax.run(golden(name), TOKENS["left"])[real], atol=1e-4)
    for address in ATTENTION:
        np.testing.assert_allclose(found[address], whole[address][jnp.array([2, 0, 2])], atol=1e-4)


def test_chosen_positions_of_each_prompt_are_those():
    model, tokens, valid = golden("gemma2"), TOKENS["left"], np.asarray(TOKENS["left"].valid_BT)
    addresses = ["embed", LOGITS, *READOUT]
    whole = tvjax.capture(model, tokens, addresses)
    for positions, own in (("last", [[-1]] * 3), ([0, -2], [[0, -2]] * 3), ([[3], [1], [-1]], [[3], [1], [-1]])):
        found = tvjax.capture(model, tokens, addresses, positions=positions)
        for b, places in enumerate(own):
            at = np.flatnonzero(valid[b])[places]
            for name, a in found.items():
                inside = name.startswith("blocks/")
                expected = np.asarray(whole[name])[:, b][:, at] if inside else np.asarray(whole[name])[b, at]
                np.testing.assert_allclose(np.asarray(a)[:, b] if inside else a[b], expected, atol=1e-5)
    assert found[LOGITS].shape == (3, 3, 1, 4, 9) and found["logits"].shape == (3, 1, 64)


@needs_torch
@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_patterns_are_those_of_transformers(name):
    import torch
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / name, attn_implementation="eager").eval()
    ids, mask = make.padded("left")
    with torch.no_grad():
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        said = theirs(ids, attention_mask=mask, position_ids=position_ids, output_attentions=True)
    expected = np.stack([a.numpy() for a in said.attentions]).swapaxes(2, 3)
    found = np.asarray(tvjax.capture(golden(name), TOKENS["left"], PATTERNS)[PATTERNS])
    real = mask.bool().numpy()
    np.testing.assert_allclose(found[:, real], expected[:, real], atol=1e-5)
    assert expected.shape == (3, 3, 9, 4, 9) and np.abs(expected[:, real] - 1 / 9).max() > 0.3


class Plain:
    """GPT-2 on one prompt in numpy, in float64, with a hand at the addresses that this file is about.

    It remembers queries and keys, ``[T, H, C]``, and the states after blocks, by layer.
    """

    def __init__(self, folder):
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        self.w = {k.removeprefix("transformer."): v.astype(np.float64) for k, v in tensors.items()}
        self.queries, self.keys, self.states = {}, {}, {}

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def __call__(self, ids, hands):
        """Logits ``[T, V]``. hands: a function by address, ``hand(a, layer)``; attention's arrays are ``[T, H, T]``."""
        hand = lambda name, a, layer=0: hands[name](a, layer) if name in hands else a
        count = len(ids)
        h = self.w["wte.weight"][ids] + self.w["wpe.weight"][:count]
        for layer in (1, 2, 3):
            block = f"h.{layer - 1}"
            qkv = self.linear(self.norm(h, f"{block}.ln_1"), f"{block}.attn.c_attn")
            q, k, v = (a.reshape(count, 4, 4) for a in np.split(qkv, 3, -1))
            self.queries[layer], self.keys[layer] = q, k
            a = np.einsum("thc,shc->ths", q, k) / 2
            a = np.where(np.tril(np.ones((count, count), bool))[:, None], a, FORBIDDEN)
            patterns = hand(PATTERNS, softmax(hand(LOGITS, a, layer)), layer)
            heads = np.einsum("ths,shc->thc", patterns, v).reshape(count, 16)
            h = h + self.linear(heads, f"{block}.attn.c_proj")
            up = self.linear(self.norm(h, f"{block}.ln_2"), f"{block}.mlp.c_fc")
            gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
            h = self.states[layer] = h + self.linear(gelu, f"{block}.mlp.c_proj")
        return hand("logits", hand("final_norm", self.norm(h, "ln_f")) @ self.w["wte.weight"].T)


@pytest.mark.parametrize("side", TOKENS)
@pytest.mark.parametrize("address", [*ATTENTION, *READOUT])
@pytest.mark.parametrize("kind", ["replace", "add", "mix"])
def test_an_edit_is_what_the_plainest_computation_makes_of_it(address, kind, side):
    """Prompts of three lengths, padded, against each alone in numpy; one write at some positions, heads and layers."""
    model, plain, tokens = golden("gpt2"), Plain(GOLDEN / "gpt2"), TOKENS[side]
    random, valid, by_head = np.random.default_rng(0), np.asarray(tokens.valid_BT), address in ATTENTION
    units = {"final_norm": (16,), "logits": (64,)}
    vectors = random.normal(size=(3, *units.get(address, (4, 9)))).astype(np.float32)
    if by_head:
        vectors = np.where(valid[:, None], np.abs(vectors), FORBIDDEN if address == LOGITS else 0)
    keep, scale = {"replace": (0.0, 1.0), "add": (1.0, 0.7), "mix": (0.4, 0.6)}[kind]
    if by_head and address == LOGITS and kind != "replace":
        vectors = np.where(valid[:, None], vectors, 0)
    options = {"layers": 2, "heads": [1, 3]} if by_head else {}
    options |= {} if kind == "replace" else {"scale": scale} | ({"keep": keep} if kind == "mix" else {})
    write = getattr(tvjax, kind)(vectors, positions=[1, -1], address=address, **options)
    found = np.asarray(tvjax.run(model, tokens, edits=write))
    last = np.asarray(tvjax.run(model, tokens, edits=write, last=True))
    for b, ids in enumerate(make.PROMPTS):
        own = vectors[b][:, valid[b]] if by_head else vectors[b]

        def hand(a, layer, own=own):
            a = a.copy()
            for t in (1, len(a) - 1):
                if not by_head:
                    a[t] = keep * a[t] + scale * own
                for h in (1, 3) if by_head and layer == 2 else ():
                    a[t, h] = keep * a[t, h] + scale * own[h]
            return a

        expected, untouched = plain(ids, {address: hand}), plain(ids, {})
        np.testing.assert_allclose(found[b][valid[b]], expected, atol=2e-4)
        np.testing.assert_allclose(last[b, 0], expected[-1], atol=2e-4)
        assert np.abs(expected - untouched)[[1, -1]].max() > 0.05
        np.testing.assert_allclose(found[b][valid[b]][0], untouched[0], atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_an_edited_pattern_is_the_heads_that_it_makes(name):
    """In every family: the same as the heads' outputs, written where they stand."""
    model, tokens = golden(name), TOKENS["left"]
    c, valid = model.config, np.asarray(tokens.valid_BT)
    found = tvjax.capture(model, tokens, [PATTERNS, "blocks/values"], layers=2)
    v = jnp.repeat(found["blocks/values"][0], c.num_heads // c.kv_heads, axis=2)
    bent = np.asarray(found[PATTERNS][0]) ** 2 * np.linspace(0.5, 2, c.num_heads)[:, None]
    heads = np.einsum("bths,bshc->bthc", bent, np.asarray(v))
    ones = np.ones((c.num_layers, 1, 1, 1, 1), np.float32)
    here = (np.arange(c.num_layers) == 1).reshape(-1, 1, 1, 1, 1)
    trees = [
        {"blocks": {address.split("/")[1]: Edit(jnp.asarray(0 * ones), jnp.asarray(a[None] * ones), jnp.asarray(here))}}
        for address, a in ((PATTERNS, bent), ("blocks/heads", heads))
    ]
    by_pattern, by_heads = (np.asarray(tvjax.run(model, tokens, edits=tree))[valid] for tree in trees)
    np.testing.assert_allclose(by_pattern, by_heads, atol=2e-4)
    assert np.abs(by_heads - np.asarray(tvjax.run(model, tokens))[valid]).max() > 0.05
    read = tvjax.capture(model, tokens, [PATTERNS, "blocks/heads"], layers=2, edits=trees[0])
    np.testing.assert_allclose(read[PATTERNS][0], bent, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "qwen2_windows", "gemma2"])
def test_a_token_that_is_knocked_out_might_as_well_hold_anything(name):
    """No later token looks at the first one in any layer: what it is does not matter, and before it did."""
    model, ids = golden(name), jnp.array([[5, 9, 13, 2, 40, 33], [8, 9, 13, 2, 40, 33]])
    away = np.where(np.arange(6) == 0, FORBIDDEN, 0.0)
    write = tvjax.add(np.broadcast_to(away, (4, 6)), layers=[1, 2, 3], positions=slice(1, None), address=LOGITS)
    cut, plain = (np.asarray(tvjax.run(model, ids, edits=edit)) for edit in (write, None))
    np.testing.assert_allclose(cut[0, 1:], cut[1, 1:], atol=1e-5)
    assert np.abs(plain[0, 1:] - plain[1, 1:]).max() > 0.05
    rest = tvjax.capture(model, ids, PATTERNS, edits=write)[PATTERNS]
    np.testing.assert_array_equal(rest[:, :, 1:, :, 0], 0)
    np.testing.assert_allclose(rest.sum(-1), 1, atol=1e-5)


def test_a_token_that_may_look_at_nothing_gets_nothing_as_ever():
    model, ids = golden("llama3"), jnp.array([[5, 9, 13, 2]])
    mask = jnp.tril(jnp.ones((1, 4, 4), bool)).at[0, 2].set(False)
    out, found = forward(model, ids, addresses=(PATTERNS, "blocks/heads"), mask_BTT=mask)
    np.testing.assert_array_equal(found[PATTERNS][:, :, 2], 0)
    np.testing.assert_array_equal(found["blocks/heads"][:, :, 2], 0)
    np.testing.assert_allclose(out, forward(model, ids, mask_BTT=mask)[0], atol=1e-5)


def test_narrow_models_show_their_softmax_as_exact_as_it_is():
    """It is computed in float32, and not rounded for who reads it."""
    found = tvjax.capture(load_model(GOLDEN / "llama3", dtype="bfloat16"), TOKENS["left"], [*ATTENTION, "final_norm"])
    assert [a.dtype.name for a in found.values()] == ["float32", "float32", "bfloat16"]
    np.testing.assert_allclose(found[PATTERNS].sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_behind_a_cache_the_sources_are_those_of_the_cache_and_then_the_tokens(name):
    model, ids, first = golden(name), jnp.array([make.PROMPTS[0], make.PROMPTS[0][::-1]]), 5
    c, length = model.config, ids.shape[1]
    bend = jax.random.normal(jax.random.key(0), (c.num_layers, 2, length, c.num_heads, length))
    here = jnp.arange(length)[None, None, :, None, None] >= first
    for address in ATTENTION:
        tree = edits.edit_at(address, bend, keep=0.5, here=jnp.broadcast_to(here, (c.num_layers, 1, length, 1, 1)))
        out, whole = forward(model, ids, edits=tree, addresses=ATTENTION)
        _, cache = forward(model, ids[:, :first], addresses=CACHE)
        past = past_of(cache, jnp.arange(first)[None])
        later = edits.edit_at(address, bend[:, :, first:], keep=0.5)
        positions = jnp.arange(first, length)[None]
        rest, found = forward(
            model, ids[:, first:], edits=later, addresses=(*ATTENTION, *READOUT), positions_BT=positions, past=past
        )
        np.testing.assert_allclose(rest, out[:, first:], atol=2e-4)
        np.testing.assert_allclose(found["logits"], rest)
        for kind in ATTENTION:
            scale = np.maximum(1, np.abs(whole[kind][:, :, first:]))
            np.testing.assert_allclose(found[kind] / scale, whole[kind][:, :, first:] / scale, atol=1e-4)


@pytest.mark.parametrize("side", TOKENS)
@pytest.mark.parametrize("name", NAMES)
def test_new_tokens_show_what_they_look_at(name, side, monkeypatch):
    """Against the whole text read again without a cache; the layers of one model lie apart."""
    monkeypatch.setattr(decoder, "WORTH_PARTING", 0 if name == "llama3" else decoder.WORTH_PARTING)
    model, tokens = load_model(GOLDEN / name, unroll=1), TOKENS[side]
    made = tvjax.generate(model, tokens, max_new_tokens=STEPS, addresses=(*ATTENTION, *READOUT))
    new = np.asarray(made.ids_BT)[:, :-1]
    text = Tokens(
        jnp.concatenate([tokens.ids_BT, new], 1), jnp.concatenate([tokens.valid_BT, jnp.ones(new.shape, bool)], 1)
    )
    count = np.asarray(tokens.count_B)
    read = np.stack([count - 1 + i for i in range(STEPS)], 1)
    again = tvjax.capture(golden(name), text, (*ATTENTION, *READOUT), positions=read)
    assert made.activations["logits"].shape == (3, STEPS, 64)
    assert made.activations[PATTERNS].shape == (3, 3, STEPS, 4, 9 + STEPS - 1)
    for address, a in made.activations.items():
        np.testing.assert_allclose(a, again[address], atol=2e-4, rtol=1e-6)
    np.testing.assert_array_equal(made.activations["logits"].argmax(-1), made.ids_BT)


def test_in_generate_what_attention_is_changed_by_acts_on_the_prompt():
    """Vectors of each layer and prompt, at all positions: the first new token is read from the changed prompt."""
    model, tokens = golden("mistral"), TOKENS["left"]
    bend = 3 * np.random.default_rng(0).normal(size=(2, 3, 4, 9))
    write = tvjax.add(bend, layers=[1, 3], positions="all", address=LOGITS)
    made = tvjax.generate(
        model, tokens, max_new_tokens=2, edits=write, during="prompt", addresses=(PATTERNS, "logits"), stop=()
    )
    alone = [tvjax.add(bend[i], layers=layer, positions="all", address=LOGITS) for i, layer in enumerate((1, 3))]
    first = tvjax.run(model, tokens, edits=alone, last=True)
    np.testing.assert_allclose(made.activations["logits"][:, :1], first, atol=1e-4)
    read = tvjax.capture(model, tokens, PATTERNS, positions="last", edits=write)[PATTERNS]
    np.testing.assert_allclose(made.activations[PATTERNS][:, :, :1, :, :9], read, atol=1e-5)
    assert np.abs(first - tvjax.run(model, tokens, last=True)).max() > 0.05


def test_logits_that_are_written_decide_the_tokens():
    model, tokens = golden("llama3"), TOKENS["left"]
    push = 100 * np.eye(64, dtype=np.float32)[[3, 5, 7]]
    first = tvjax.generate(model, tokens, max_new_tokens=2, edits=tvjax.add(push, address="logits"))
    np.testing.assert_array_equal(first.ids_BT[:, 0], [3, 5, 7])
    every = tvjax.generate(model, tokens, max_new_tokens=3, edits=tvjax.add(push, address="logits", positions="all"))
    np.testing.assert_array_equal(every.ids_BT, np.repeat([[3], [5], [7]], 3, 1))
    row = np.asarray(model.params["readout"]["kernel"]).T[[9, 2, 4]]
    normed = tvjax.replace(100 * row, address="final_norm")
    said = tvjax.generate(model, tokens, max_new_tokens=1, edits=normed)
    np.testing.assert_array_equal(said.ids_BT[:, 0], (row @ np.asarray(model.params["readout"]["kernel"])).argmax(-1))


def test_a_sweep_over_heads_and_the_gradient_of_a_pattern():
    """vmap over edits knocks out one head after another; grad goes through a pattern to what made it."""
    model, ids = golden("llama3"), jnp.array([[5, 9, 13, 2, 40]])

    def without(head):
        """The logits if a head of layer 2 looks at nothing."""
        keep = 1.0 - (jnp.arange(3)[:, None] == 1) * (jnp.arange(4)[None] == head)
        tree = edits.edit_at(PATTERNS, jnp.zeros((3, 1, 1, 4, 1)), keep=keep[:, None, None, :, None])
        return forward(model, ids, edits=tree)[0]

    swept = jax.vmap(without)(jnp.arange(4))
    for head in range(4):
        write = tvjax.replace(np.zeros((4, 5)), layers=2, heads=head, positions="all", address=PATTERNS)
        np.testing.assert_allclose(swept[head], tvjax.run(model, ids, edits=write), atol=1e-5)
    silent = tvjax.replace(np.zeros((4, 4)), layers=2, heads=3, positions="all", address="blocks/heads")
    np.testing.assert_allclose(swept[3], tvjax.run(model, ids, edits=silent), atol=1e-5)

    def risk(size):
        tree = edits.edit_at(
            LOGITS, size * jnp.arange(5.0).reshape(1, 1, 1, 1, 5) * jnp.ones((3, 1, 1, 1, 1)), keep=1.0
        )
        return jnp.square(forward(model, ids, edits=tree)[0]).mean()

    slope = (risk(0.11) - risk(0.09)) / 0.02
    np.testing.assert_allclose(jax.grad(risk)(0.1), slope, rtol=0.02)


class TestCost:
    # Numbers that occur nowhere else: [.., T, H, S] is 13 x 5 x 13.
    CONFIG = DecoderConfig(
        num_layers=3, width=20, num_heads=5, num_kv_heads=1, num_outputs=2, head_width=4, max_positions=13, unroll=1
    )
    OTHERS = tuple(address for address in ADDRESSES if address not in ATTENTION)

    def lowered(self, config, batch, length, addresses=(), tree=None):
        inputs = jax.ShapeDtypeStruct((batch, length, 3), jnp.float32)
        params = jax.eval_shape(Decoder(config).init, jax.random.key(0), inputs)["params"]
        run = jax.jit(lambda p, i, e: forward(Model(p, config), i, addresses=addresses, edits=e))
        return run.lower(params, inputs, tree)

    def test_the_arrays_are_in_the_program_only_if_somebody_asks(self):
        shape = "7x13x5x13xf32"
        for unroll in (0, 1):
            config = DecoderConfig(**{**vars(self.CONFIG), "unroll": unroll})
            for addresses in ((), ("blocks/resid",), self.OTHERS):
                assert shape not in self.lowered(config, 7, 13, addresses).as_text()
            heads = edits.edit_at("blocks/heads", jnp.zeros((3, 1, 1, 1, 4)), keep=0.5)
            assert shape not in self.lowered(config, 7, 13, tree=heads).as_text()
            for address in ATTENTION:
                assert shape in self.lowered(config, 7, 13, (address,)).as_text()
                tree = edits.edit_at(address, jnp.zeros((3, 1, 1, 1, 1)), keep=0.5)
                assert shape in self.lowered(config, 7, 13, tree=tree).as_text()

    @pytest.mark.parametrize("unroll", [0, 1])
    def test_memory_is_taken_only_if_somebody_asks(self, unroll):
        config = DecoderConfig(
            num_layers=8, width=32, num_heads=8, num_outputs=2, max_positions=96, hidden_width=32, unroll=unroll
        )

        def bytes_of(addresses):
            memory = self.lowered(config, 8, 96, addresses).compile().memory_analysis()
            return memory.output_size_in_bytes + memory.temp_size_in_bytes

        one = 8 * 96 * 8 * 96 * 4
        nothing, stream, patterns, both = (
            bytes_of(a) for a in ((), ("blocks/resid",), (PATTERNS,), ("blocks/resid", *ATTENTION))
        )
        assert nothing < stream < 8 * one, "attention is stored although nobody asked for it"
        assert patterns > nothing + 7.9 * one
        assert both > stream + 2 * 7.9 * one


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m: tvjax.capture(m, [[1, 2]], "blocks/attn_pattern"), "did you mean 'blocks/attn_patterns'"),
        (lambda m: tvjax.capture(m, [[1, 2]], "blocks/logits"), "addresses: given 'blocks/logits'; accepted: one of"),
        (lambda m: tvjax.add(np.ones(16), layers=1, address="final_norm"), "layers: given 1; accepted: None at final"),
        (lambda m: tvjax.add(np.ones(16), address="blocks/resid"), "layers: given None; accepted: an int"),
        (lambda m: tvjax.add(np.ones(16)), "layers: given None; accepted: an int"),
        (lambda m: tvjax.add(np.ones(64), address="logits", heads=1), "heads: given 1; accepted: none, unless"),
        (lambda m: tvjax.add(np.ones(16), layers=1, address=LOGITS), r"vectors: given \(16,\); accepted: \[H, S\], "),
        (
            lambda m: tvjax.run(m, [[1, 2]], edits=tvjax.add(np.ones((4, 3)), layers=1, address=LOGITS)),
            r"vectors: given \(4, 3\); accepted: \[4, 2\] at the end",
        ),
        (
            lambda m: tvjax.run(m, [[1, 2]], edits=tvjax.add(np.ones(16), address="logits")),
            r"vectors: given \(16,\); accepted: \[64\] at the end",
        ),
        (lambda m: tvjax.add(np.full((4, 2), -np.inf), layers=1, address=LOGITS), "vectors: given -inf at .0, 0."),
        (
            lambda m: tvjax.add(np.ones((4, 2)), layers=1, address=LOGITS, rescaled=True),
            "rescaled: given True; accepted",
        ),
        (
            lambda m: tvjax.run(m, [[1, 2]], edits=edits.edit_at(LOGITS, jnp.ones((3, 1, 1, 1, 2)), rescaled=True)),
            "rescaled: given True; accepted",
        ),
        (
            lambda m: tvjax.run(m, [[1, 2]], edits=edits.edit_at(PATTERNS, jnp.ones((3, 1, 1, 4, 3)))),
            "edits at blocks/attn_patterns: given 'add of shape",
        ),
        (
            lambda m: tvjax.run(m, [[1, 2]], edits=edits.edit_at("logits", jnp.ones((1, 1, 63)))),
            "edits at logits: given 'add of shape",
        ),
        (
            lambda m: tvjax.generate(
                m,
                [[1, 2]],
                max_new_tokens=2,
                edits=tvjax.add(np.ones((4, 2)), layers=1, address=PATTERNS, positions="all"),
            ),
            "edits: given 'a write at blocks/attn_patterns of new tokens'; accepted: one of the prompt",
        ),
    ],
)
def test_what_is_not_there_is_refused(call, line):
    with pytest.raises(UserError, match=line) as caught:
        call(golden("llama3"))
    assert "\n" not in str(caught.value)
