"""What adaptive task vectors (ATV) can and cannot express beside LoRA and prefix tuning: docs/atv_theory.md, as tests.

A decoder takes its norms and its readout in float32, so the exact statements run on a transformer of this file, in
float64; the constructions are then repeated on the real decoder. Beyond the usual dimensions, R is the rank of a LoRA
or of a mixing, or the width of ATV's state (the statement says which), and S the length of a prefix.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax.nn.decoder import Decoder, DecoderConfig, Past
from tvjax.nn.model import Model, forward
from tvjax.nn.taps import Edit
from tvjax.vectors import edits

L, D, H, F, V, T, B = 3, 12, 2, 24, 29, 5, 64
C = D // H
EXACT = 1e-12
FEW = 3
SITES = {"query": (D, D), "key": (D, D), "value": (D, D), "out": (D, D), "up": (D, F), "down": (F, D)}


@pytest.fixture(scope="module")
def model():
    """A random pre-norm transformer, far from a tame initial scale so that each of its parts matters."""
    rng = np.random.default_rng(0)
    norm = lambda: (1 + 0.3 * rng.normal(size=D), 0.3 * rng.normal(size=D))
    blocks = []
    for _ in range(L):
        w = {name: 1.5 * rng.normal(size=shape) / shape[0] ** 0.5 for name, shape in SITES.items()}
        w |= {f"{name}_bias": 0.3 * rng.normal(size=shape[1]) for name, shape in SITES.items()}
        blocks.append(w | {"attn_norm": norm(), "mlp_norm": norm()})
    embed_VD, positions_TD = rng.normal(size=(V, D)), rng.normal(size=(T, D))
    return {
        "embed": embed_VD,
        "positions": positions_TD,
        "blocks": blocks,
        "norm": norm(),
        "readout": rng.normal(size=(D, V)),
    }


@pytest.fixture(scope="module")
def tokens_BT():
    return np.random.default_rng(1).integers(V, size=(B, T))


def layernorm(x, scale_and_bias):
    scale, bias = scale_and_bias
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale + bias


def block(w, h_BTD, prefix, write, parallel):
    """One block; `write` gives what is added to an address at the last position. Returns h^l and what stood where."""
    linear = lambda name, x: x @ w[name] + w[f"{name}_bias"]
    batch, length = h_BTD.shape[:2]
    x_BTD = layernorm(h_BTD, w["attn_norm"])
    q, k, v = (linear(name, x_BTD).reshape(batch, length, H, C) for name in ("query", "key", "value"))
    mask_TS = np.tril(np.ones((length, length), bool))
    if prefix is not None:
        k, v = (np.concatenate([np.repeat(p[None], batch, 0), x], 1) for p, x in zip(prefix, (k, v), strict=True))
        mask_TS = np.concatenate([np.ones((length, len(prefix[0])), bool), mask_TS], 1)
    logits_BHTS = np.where(mask_TS, np.einsum("bthc,bshc->bhts", q, k) / C**0.5, -np.inf)
    weights_BHTS = np.exp(logits_BHTS - logits_BHTS.max(-1, keepdims=True))
    heads_BTHC = np.einsum("bhts,bshc->bthc", weights_BHTS / weights_BHTS.sum(-1, keepdims=True), v)
    seen = {"heads": heads_BTHC.reshape(batch, length, D)}

    def tap(address, a_BTD):
        seen[address] = a_BTD
        if write is not None and (added_BD := write(address, seen)) is not None:
            a_BTD = a_BTD.copy()
            a_BTD[:, -1] += added_BD
        return a_BTD

    attn_BTD = tap("attn_out", linear("out", seen["heads"]))
    up_BTF = linear("up", layernorm(h_BTD if parallel else h_BTD + attn_BTD, w["mlp_norm"]))
    seen["hidden"] = up_BTF / (1 + np.exp(-up_BTF))
    return tap("resid", h_BTD + attn_BTD + linear("down", seen["hidden"])), seen


def run(model, tokens_BT, *, write=None, prefixes=None, parallel=False):
    """States h^0..h^L, the last position's logits, and what stood at each address before it was written.

    write(l, address, seen) gives a vector ``[B, D]`` for the last position, or None; `seen` is what block l has shown.
    """
    h_BTD = model["embed"][tokens_BT] + model["positions"]
    states, seen = [h_BTD], [None]
    for layer, w in enumerate(model["blocks"], 1):
        here = None if write is None else lambda address, seen, layer=layer: write(layer, address, seen)
        h_BTD, found = block(w, h_BTD, None if prefixes is None else prefixes[layer - 1], here, parallel)
        states.append(h_BTD)
        seen.append(found)
    logits_BV = layernorm(h_BTD[:, -1], model["norm"]) @ model["readout"]
    return SimpleNamespace(states=np.array(states), logits=logits_BV, seen=seen)


def adapted(model, rank, sites=SITES, layers=range(1, L + 1), seed=2):
    """The model with a LoRA (all positions) at `sites` of `layers`, and its factors, ``{(l, site): (A, B)}``."""
    rng, factors = np.random.default_rng(seed), {}
    blocks = [dict(w) for w in model["blocks"]]
    for layer in layers:
        for site in sites:
            fan_in, fan_out = SITES[site]
            a, b = rng.normal(size=(fan_in, rank)) / fan_in**0.5, rng.normal(size=(rank, fan_out))
            blocks[layer - 1][site] = blocks[layer - 1][site] + a @ b
            factors[layer, site] = a, b
    return {**model, "blocks": blocks}, factors


def play(vectors_LBD, scale=1.0, address="resid"):
    """The write of given vectors, data and nothing else: layer l gets scale * vectors[l - 1]."""
    return lambda layer, here, seen: scale * vectors_LBD[layer - 1] if here == address else None


def forced(model, tokens_BT, target_LBD, parallel=False):
    """The only vectors (scale 1) after which the last position holds target_LBD, the states 1..L: layer by layer."""
    vectors = []

    def write(layer, address, seen):
        if address != "resid":
            return None
        vectors.append(target_LBD[layer - 1] - seen["resid"][:, -1])
        return vectors[-1]

    run(model, tokens_BT, write=write, parallel=parallel)
    return np.array(vectors)


def gap(a, b):
    """The largest difference, relative to the largest value."""
    return np.abs(a - b).max() / np.abs(b).max()


def rank(x, tolerance=1e-9):
    s = np.linalg.svd(x, compute_uv=False)
    return int((s > tolerance * s[0]).sum())


def flat(vectors_LBD):
    """One row an input: what one linear map has to write for it, in all layers together."""
    return vectors_LBD.transpose(1, 0, 2).reshape(vectors_LBD.shape[1], -1)


def nearest(vectors_LBD, width):
    """The nearest vectors that any generator with a state of `width` can give: bias + linear map (Eckart-Young)."""
    x = flat(vectors_LBD)
    left, s, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    near = x.mean(0) + left[:, :width] * s[:width] @ right[:width]
    return near.reshape(len(x), *vectors_LBD.shape[::2]).transpose(1, 0, 2), np.sqrt((s[width:] ** 2).sum())


@pytest.fixture(scope="module", params=["lora", "prefix"])
def other(request, model, tokens_BT):
    """What ran in place of the frozen model: one with LoRA at every site and another embedding, or with a prefix."""
    if request.param == "lora":
        changed, _ = adapted(model, 2)
        changed["embed"] = model["embed"] + 0.3 * np.random.default_rng(5).normal(size=(V, D))
        return run(changed, tokens_BT)
    return run(model, tokens_BT, prefixes=np.random.default_rng(3).normal(size=(L, 2, 4, H, C)))


class TestPerInputATVDominates:
    """Statement 1."""

    @pytest.mark.parametrize("scale", [1.0, 1e-3])
    def test_the_last_position_and_its_logits_are_reproduced(self, model, tokens_BT, other, scale):
        vectors = forced(model, tokens_BT, other.states[1:, :, -1]) / scale
        ours = run(model, tokens_BT, write=play(vectors, scale))
        for layer in range(1, L + 1):
            assert gap(ours.states[layer, :, -1], other.states[layer, :, -1]) < EXACT, f"layer {layer}"
        assert gap(ours.logits, other.logits) < EXACT
        assert gap(run(model, tokens_BT).logits, other.logits) > 0.1

    def test_the_other_positions_stay_those_of_the_frozen_model(self, model, tokens_BT, other):
        plain = run(model, tokens_BT)
        ours = run(model, tokens_BT, write=play(forced(model, tokens_BT, other.states[1:, :, -1])))
        np.testing.assert_array_equal(ours.states[:, :, :-1], plain.states[:, :, :-1])
        for layer in range(1, L + 1):
            for position in range(T - 1):
                assert gap(ours.states[layer, :, position], other.states[layer, :, position]) > 0.1

    def test_the_plain_difference_of_states_is_not_the_vector(self, model, tokens_BT, other):
        """What lower layers were given already goes through the block: only layer by layer does it come out right."""
        plain = run(model, tokens_BT)
        ours = run(model, tokens_BT, write=play((other.states - plain.states)[1:, :, -1]))
        assert gap(ours.states[1, :, -1], other.states[1, :, -1]) < EXACT
        assert gap(ours.logits, other.logits) > 0.1

    def test_for_the_logits_alone_one_vector_after_the_last_block_is_enough(self, model, tokens_BT, other):
        vectors = np.zeros((L, B, D))
        vectors[L - 1] = (other.states - run(model, tokens_BT).states)[L, :, -1]
        ours = run(model, tokens_BT, write=play(vectors))
        assert gap(ours.logits, other.logits) < EXACT
        assert gap(ours.states[L - 1, :, -1], other.states[L - 1, :, -1]) > 0.1

    def test_a_changed_readout_is_out_of_reach(self, model):
        """V > D: whatever the state, the logits lie in the D-dimensional image of the frozen readout."""
        rng = np.random.default_rng(6)
        state_BD = layernorm(rng.normal(size=(B, D)), model["norm"])
        image = lambda logits_BV: logits_BV - logits_BV @ np.linalg.pinv(model["readout"]) @ model["readout"]
        logits_BV = state_BD @ model["readout"]
        assert np.abs(image(logits_BV)).max() / np.abs(logits_BV).max() < EXACT
        logits_BV = logits_BV + state_BD @ rng.normal(size=(D, 1)) @ rng.normal(size=(1, V))
        assert np.abs(image(logits_BV)).max() / np.abs(logits_BV).max() > 0.05


class TestLoRAAtOneSite:
    """Statement 2. R is the LoRA's rank: u = z A is ATV's state, the expansion at that layer is B / lambda."""

    R, SCALE = 3, 1e-3

    def written(self, factors, layer, site, address):
        a, b = factors[layer, site]
        z = {"down": "hidden", "out": "heads"}[site]
        expansion = b / self.SCALE
        give = lambda seen: self.SCALE * (seen[z][:, -1] @ a @ expansion)
        return lambda here, where, seen: give(seen) if (here, where) == (layer, address) else None

    def test_the_last_mlp_output_is_matched_for_all_inputs(self, model, tokens_BT):
        changed, factors = adapted(model, self.R, ["down"], [L])
        target = run(changed, tokens_BT)
        ours = run(model, tokens_BT, write=self.written(factors, L, "down", "resid"))
        assert gap(ours.states[L, :, -1], target.states[L, :, -1]) < EXACT
        assert gap(ours.logits, target.logits) < EXACT
        assert gap(run(model, tokens_BT).logits, target.logits) > 0.1

    def test_below_the_last_block_only_a_lora_of_the_last_position_is(self, model, tokens_BT):
        """Its other positions change too, and blocks above carry that over: no linear function of this site's z."""
        changed, factors = adapted(model, self.R, ["down"], [1])
        target = run(changed, tokens_BT)
        ours = run(model, tokens_BT, write=self.written(factors, 1, "down", "resid"))
        assert gap(ours.states[1, :, -1], target.states[1, :, -1]) < EXACT
        assert gap(ours.logits, target.logits) > 0.1

    def test_the_attention_output_is_matched_where_it_is_written_not_at_the_block_output(self, model, tokens_BT):
        changed, factors = adapted(model, self.R, ["out"], [L])
        target = run(changed, tokens_BT)
        ours = run(model, tokens_BT, write=self.written(factors, L, "out", "attn_out"))
        assert gap(ours.logits, target.logits) < EXACT
        late = run(model, tokens_BT, write=self.written(factors, L, "out", "resid"))
        assert gap(late.logits, target.logits) > 0.01
        # The MLP of that block bends the change, so that no state as narrow as R does at the block output.
        vectors = forced(model, tokens_BT, target.states[1:, :, -1])
        assert rank(vectors[L - 1] - vectors[L - 1].mean(0)) == D > self.R

    def test_in_a_parallel_block_the_block_output_will_do(self, model, tokens_BT):
        changed, factors = adapted(model, self.R, ["out"], [L])
        target = run(changed, tokens_BT, parallel=True)
        ours = run(model, tokens_BT, write=self.written(factors, L, "out", "resid"), parallel=True)
        assert gap(ours.logits, target.logits) < EXACT

    @pytest.mark.parametrize("width", [1, 2, 3])
    def test_a_state_narrower_than_the_rank_leaves_an_error(self, model, tokens_BT, width):
        changed, _ = adapted(model, self.R, ["down"], [L])
        target = run(changed, tokens_BT)
        vectors = forced(model, tokens_BT, target.states[1:, :, -1])
        near, error = nearest(vectors, width)
        ours = run(model, tokens_BT, write=play(near))
        if width < self.R:
            assert error > 0.02 * np.linalg.norm(vectors)
            assert gap(ours.states[L, :, -1], target.states[L, :, -1]) > 0.01
            self.no_other_state_does_better(vectors, width, error)
        else:
            assert error < EXACT * np.linalg.norm(vectors)
            assert gap(ours.states[L, :, -1], target.states[L, :, -1]) < EXACT

    def no_other_state_does_better(self, vectors, width, error):
        x, rng = flat(vectors), np.random.default_rng(8)
        for _ in range(20):
            u_BR = np.concatenate([rng.normal(size=(B, width)), np.ones((B, 1))], 1)
            assert np.linalg.norm(x - u_BR @ np.linalg.lstsq(u_BR, x)[0]) > error


class TestRankCap:
    """Statement 3. One linear map writes all layers, so its input's width caps the rank of all layers together."""

    def test_the_vectors_of_all_layers_together_have_the_rank_of_the_state(self, model, tokens_BT):
        rng, width, scale = np.random.default_rng(4), 5, 0.3
        u_BR = np.tanh(model["embed"][tokens_BT].sum(1) @ rng.normal(size=(D, width)))
        expansion, bias_LD = rng.normal(size=(width, L * D)), rng.normal(size=(L, D))
        vectors = (u_BR @ expansion).reshape(B, L, D).transpose(1, 0, 2) + bias_LD[:, None]
        ours, plain = run(model, tokens_BT, write=play(vectors, scale)), run(model, tokens_BT)
        before = np.array([seen["resid"][:, -1] for seen in ours.seen[1:]])
        written = (ours.states[1:, :, -1] - before) / scale - bias_LD[:, None]
        assert [rank(layer) for layer in written] == [width] * L
        assert rank(flat(written)) == width
        # The cap is on what is written. What the blocks make of it is not capped.
        assert rank((ours.states - plain.states)[L, :, -1]) == D > width

    @pytest.mark.parametrize("r", [1, 2])
    def test_unrelated_loras_of_the_last_position_need_the_sum_of_their_ranks(self, model, tokens_BT, r):
        _, factors = adapted(model, r, ["down"])
        states = {}

        def lora(layer, address, seen):
            if address != "resid":
                return None
            a, b = factors[layer, "down"]
            states[layer] = seen["hidden"][:, -1] @ a
            return states[layer] @ b

        target = run(model, tokens_BT, write=lora)
        u_BR = np.concatenate([states[layer] for layer in range(1, L + 1)], axis=1)
        expansion = np.zeros((L * r, L, D))
        for layer in range(L):
            expansion[layer * r : (layer + 1) * r, layer] = factors[layer + 1, "down"][1]
        ours = run(model, tokens_BT, write=play(np.einsum("br,rld->lbd", u_BR, expansion)))
        assert gap(ours.states[1:, :, -1], target.states[1:, :, -1]) < EXACT
        assert gap(ours.logits, target.logits) < EXACT

        vectors = forced(model, tokens_BT, target.states[1:, :, -1])
        assert rank(flat(vectors) - flat(vectors).mean(0)) == L * r
        near, error = nearest(vectors, L * r - 1)
        assert error > 0.01 * np.linalg.norm(vectors)
        ours = run(model, tokens_BT, write=play(near))
        assert gap(ours.states[1:, :, -1], target.states[1:, :, -1]) > 0.01

    def test_a_lora_of_all_positions_forces_more_than_the_sum_of_its_ranks(self, model, tokens_BT):
        """The last position also reads the other positions' changes, which a write at the last one has to stand for."""
        changed, _ = adapted(model, 1, ["down"])
        vectors = forced(model, tokens_BT, run(changed, tokens_BT).states[1:, :, -1])
        ranks = [rank(layer - layer.mean(0)) for layer in vectors]
        assert ranks == [1, D, D]
        assert rank(flat(vectors) - flat(vectors).mean(0)) == 1 + 2 * D


class TestStaticEdits:
    """Statement 4. R is the rank of the mixing and of the LoRA; z is what a linear map y = z W + b reads."""

    R = 2

    @pytest.fixture
    def rng(self):
        return np.random.default_rng(7)

    def test_low_rank_mixing_is_lora_up_to_the_bias(self, rng):
        w, b, c = rng.normal(size=(D, D)), rng.normal(size=D), rng.normal(size=D)
        z, u, v = rng.normal(size=(B, D)), rng.normal(size=(self.R, D)), rng.normal(size=(D, self.R))
        y = z @ w + b
        mixed, lora = y + y @ v @ u + c, z @ (w + (w @ v) @ u) + b
        assert rank(w @ v @ u) == self.R
        assert gap(mixed - lora, np.broadcast_to(b @ v @ u + c, (B, D))) < EXACT  # one vector for all inputs: the bias
        assert np.abs(mixed - lora).min(0).max() > 0.1
        a = rng.normal(size=(D, self.R))  # and back: any LoRA of this site is a mixing of the same rank
        back = np.linalg.solve(w, a)
        assert gap(y + y @ back @ u - b @ back @ u, z @ (w + a @ u) + b) < 1e-10

    @pytest.mark.parametrize(("fan_in", "fan_out"), [(F, D), (D, F)])
    def test_where_widths_differ_it_is_the_wider_side_that_must_be_mixed(self, rng, fan_in, fan_out):
        w, z = rng.normal(size=(fan_in, fan_out)), rng.normal(size=(B, fan_in))
        a, b = rng.normal(size=(fan_in, self.R)), rng.normal(size=(self.R, fan_out))
        target, inverse = z @ (w + a @ b), np.linalg.pinv(w)
        after = z @ w + (z @ w) @ (inverse @ a) @ b
        before = (z + z @ a @ (b @ inverse)) @ w
        good, bad = (before, after) if fan_in > fan_out else (after, before)
        assert gap(good, target) < EXACT
        assert gap(bad, target) > 0.05

    def test_the_affine_edit_of_a_tap_has_the_rank_of_what_it_does_not_keep(self, rng):
        w, z, some = rng.normal(size=(D, D)), rng.normal(size=(B, D)), np.ones((1, D))
        some[0, : self.R] = 0.5
        for keep, expected in ((some, self.R), (rng.uniform(0.1, 0.9, (1, D)), D)):
            edit = Edit(keep=keep, add=rng.normal(size=(1, D)))
            change = edit(z @ w) - z @ w - edit.add
            assert rank(change) == expected
            assert gap(z @ w @ np.diag(keep[0] - 1), change) < EXACT

    def difference(self, z, rows):
        """The least |z A B - v| of a rank-1 LoRA with B = v over `rows` of z, relative to |v|; and its A."""
        a = np.linalg.lstsq(z[:rows], np.ones(rows))[0]
        return np.abs(z[:rows] @ a - 1).max(), a

    def test_a_static_vector_is_a_rank_one_lora_on_as_many_inputs_as_z_is_wide(self, rng):
        z, v = rng.normal(size=(F + 1, F)), rng.normal(size=D)
        for rows in (1, F // 2, F):
            worst, a = self.difference(z, rows)
            assert worst < 1e-10
            assert gap(z[:rows] @ np.outer(a, v), np.broadcast_to(v, (rows, D))) < 1e-10
            assert np.abs(z[F] @ a - 1) > 0.01
        assert self.difference(z, F + 1)[0] > 0.01

    def test_beyond_that_only_if_the_inputs_avoid_general_position(self, rng, model, tokens_BT):
        """On one hyperplane off the origin the vector is a rank-1 LoRA everywhere: what a LayerNorm's bias allows."""
        z = rng.normal(size=(B, F))
        z[:, 0] = 3.0
        assert self.difference(z, B)[0] < EXACT
        w = model["blocks"][L - 1]
        scale, bias = w["attn_norm"]
        a, b = (1 / scale) / (bias / scale).sum(), rng.normal(size=D)
        changed = {**model, "blocks": [*model["blocks"][: L - 1], {**w, "value": w["value"] + np.outer(a, b)}]}
        ours, plain = (run(m, tokens_BT).seen[L]["attn_out"] for m in (changed, model))
        assert gap(ours - plain, np.broadcast_to(b @ w["out"], (B, T, D))) < 1e-11

    def test_a_lora_is_no_static_vector(self, rng):
        z = rng.normal(size=(B, F))
        change = z @ rng.normal(size=(F, 1)) @ rng.normal(size=(1, D))
        assert np.linalg.norm(change - change.mean(0)) > 0.9 * np.linalg.norm(change)


class Attention:
    """One attention head at the last position of one layer; inputs are the states of their tokens, the last shared."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.query, self.key, self.value = self.rng.normal(size=(3, D, D)) / D**0.5
        self.last_D = self.rng.normal(size=D)
        self.q_D = self.last_D @ self.query

    def context(self):
        return np.concatenate([self.rng.normal(size=(T - 1, D)), self.last_D[None]])

    def prefix(self, length, scale=1.0):
        return self.rng.normal(size=(length, D)), scale * self.rng.normal(size=(length, D))

    def out(self, x_TD, prefix=None, *, softmax=True):
        """The head's output and the attention mass of the context (the sum of its unnormalized weights)."""
        q_D = x_TD[-1] @ self.query
        keys, values = x_TD @ self.key, x_TD @ self.value
        mass = np.exp(keys @ q_D).sum()
        if prefix is not None:
            keys, values = np.concatenate([prefix[0], keys]), np.concatenate([prefix[1], values])
        weights = np.exp(keys @ q_D) if softmax else keys @ q_D
        return weights @ values / (weights.sum() if softmax else 1), mass

    def pair(self, equal_mass):
        """Two inputs with the same last query; of equal mass if they differ only where it does not look for tokens."""
        first = self.context()
        change = 2 * self.rng.normal(size=(T, D))
        change[-1] = 0
        if equal_mass:
            direction = self.key @ self.q_D
            change -= np.outer(change @ direction, direction) / (direction @ direction)
        return first, first + change


class TestPrefixWithLinearAttention:
    """Statement 5, first half. S, the length of the prefix, is also the width of ATV's state."""

    S = 3

    def test_a_prefix_is_an_atv_of_its_length(self):
        head = Attention()
        keys, values = head.prefix(self.S)
        inputs = [head.rng.normal(size=(T, D)) for _ in range(B)]
        shift = np.array(
            [head.out(x, (keys, values), softmax=False)[0] - head.out(x, softmax=False)[0] for x in inputs]
        )
        u_BS = np.array([x[-1] @ head.query @ keys.T for x in inputs])
        assert gap(u_BS @ values, shift) < EXACT
        assert rank(shift) == self.S

    def test_inputs_with_the_same_last_query_get_the_same_shift(self):
        head = Attention()
        first, second = head.pair(equal_mass=False)
        for length in (1, 2, 8):
            prefix = head.prefix(length)
            shifts = [head.out(x, prefix, softmax=False)[0] - head.out(x, softmax=False)[0] for x in (first, second)]
            assert gap(*shifts) < EXACT
        # Two wanted shifts: the best common one is halfway. ATV takes u = +1 or -1, one for each input.
        wanted = head.rng.normal(size=(2, D))
        middle, half = wanted.mean(0), (wanted[0] - wanted[1]) / 2
        least = min(
            np.linalg.norm(wanted - common, axis=1).max() for common in middle + head.rng.normal(size=(500, 1, D))
        )
        assert least > np.linalg.norm(wanted - middle, axis=1).max() > (1 - EXACT) * np.linalg.norm(half)
        assert gap(np.array([[1.0], [-1.0]]) @ half[None] + middle, wanted) < EXACT

    def test_softmax_attention_takes_the_rank_bound_away(self):
        """One prefix token shifts by a (p - h), both of which depend on the whole input: no ATV of rank 1."""
        head = Attention()
        prefix = head.prefix(1)
        inputs = [head.rng.normal(size=(T, D)) for _ in range(B)]
        shift = np.array([head.out(x, prefix)[0] - head.out(x)[0] for x in inputs])
        assert rank(shift - shift.mean(0)) == D


class TestPrefixWithSoftmaxAttention:
    """Statement 5, second half: targets twice as far apart as the outputs, T1 - T2 = 2 (h1 - h2)."""

    MASSES = np.geomspace(1e-5, 1e5, 401)
    """Of the prefix: with the mean of its values, all that it does to inputs with one query."""

    def best(self, a, h, targets):
        """The least largest error that a prefix with weights a = (a1, a2) leaves, and the mean p which leaves it."""
        missing = [targets[i] - (1 - a[i]) * h[i] for i in range(2)]  # what a_i p should be
        w = a[1] * missing[0] - a[0] * missing[1]
        return np.linalg.norm(w) / sum(a), (missing[0] - w / sum(a)) / a[0]

    def formula(self, a, h, targets):
        """The same error, from the two outputs' distance and the displacement of their middle."""
        apart, moved = h[0] - h[1], (targets[0] + targets[1] - h[0] - h[1]) / 2
        return np.linalg.norm((sum(a) + 2 * a[0] * a[1]) * apart / 2 + (a[1] - a[0]) * moved) / sum(a)

    def errors(self, head, inputs, targets, prefix):
        return np.array([np.linalg.norm(head.out(x, prefix)[0] - t) for x, t in zip(inputs, targets, strict=True)])

    def token(self, head, mass, p):
        """A prefix of one token that has this attention mass and this value."""
        return head.q_D[None] * np.log(mass) / (head.q_D @ head.q_D), p[None]

    def least(self, head, inputs, targets):
        """The least largest error over all prefixes, which have two degrees of freedom: their mass and p."""
        h, z = zip(*(head.out(x) for x in inputs), strict=True)
        least = np.inf
        for mass in self.MASSES:
            a = [mass / (mass + z[0]), mass / (mass + z[1])]
            error, p = self.best(a, h, targets)
            reached = self.errors(head, inputs, targets, self.token(head, mass, p))
            np.testing.assert_allclose(reached, error, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(error, self.formula(a, h, targets), rtol=1e-6, atol=1e-9)
            for other in p + 0.1 / max(a) * head.rng.normal(size=(5, D)):  # p is the best one for this mass
                assert self.errors(head, inputs, targets, self.token(head, mass, other)).max() > reached.max()
            least = min(least, reached.max())
        for length in (1, 2, 5):  # longer prefixes are nothing more
            for _ in range(300):
                prefix = head.prefix(length, scale=head.rng.choice([1.0, 5.0]))
                mass = np.exp(prefix[0] @ head.q_D).sum()
                reached = self.errors(head, inputs, targets, prefix).max()
                assert reached > (1 - EXACT) * self.best([mass / (mass + z[0]), mass / (mass + z[1])], h, targets)[0]
                least = min(least, reached)
        return least

    @pytest.fixture(params=[True, False], ids=["equal_mass", "unequal_mass"])
    def setting(self, request):
        head = Attention()
        inputs = head.pair(request.param)
        h, z = (np.array(x) for x in zip(*(head.out(x) for x in inputs), strict=True))
        assert (gap(*z) < EXACT) if request.param else (gap(*z) > 0.1)
        assert np.linalg.norm(h[0] - h[1]) > 0.5
        return request.param, head, inputs, h, z

    def test_a_prefix_mixes_each_output_with_one_common_vector(self, setting):
        _, head, inputs, h, z = setting
        keys, values = head.prefix(4)
        weights = np.exp(keys @ head.q_D)
        p, mass = weights @ values / weights.sum(), weights.sum()
        for i, x in enumerate(inputs):
            a = mass / (mass + z[i])
            assert gap(head.out(x, (keys, values))[0], (1 - a) * h[i] + a * p) < EXACT

    def test_spread_about_their_middle_every_prefix_leaves_half_the_distance(self, setting):
        """Whatever the masses, where the middle moves at right angles to h1 - h2 (by nothing, for one)."""
        _, head, inputs, h, _ = setting
        apart, sideways = h[0] - h[1], head.rng.normal(size=D)
        sideways -= (sideways @ apart) / (apart @ apart) * apart
        for moved in (np.zeros(D), sideways):
            targets = h.mean(0) + moved + np.array([apart, -apart])
            assert gap(targets[0] - targets[1], 2 * apart) < EXACT
            self.bound_holds(head, inputs, targets, np.linalg.norm(apart) / 2)

    def bound_holds(self, head, inputs, targets, bound):
        assert (1 - EXACT) * bound < self.least(head, inputs, targets)
        vectors = targets - [head.out(x)[0] for x in inputs]
        middle, half = vectors.mean(0), (vectors[0] - vectors[1]) / 2
        ours = np.array([head.out(x)[0] for x in inputs]) + middle + np.array([[1.0], [-1.0]]) @ half[None]
        assert gap(ours, targets) < EXACT  # ATV of rank 1 and a bias

    @pytest.mark.parametrize("seed", range(3))
    def test_at_equal_mass_that_holds_for_all_such_targets_and_no_larger_bound_does(self, seed):
        head = Attention(seed)
        inputs = head.pair(equal_mass=True)
        h = np.array([head.out(x)[0] for x in inputs])
        bound = np.linalg.norm(h[0] - h[1]) / 2
        targets = 2 * h + 3 * head.rng.normal(size=(1, D))
        self.bound_holds(head, inputs, targets, bound)
        assert self.least(head, inputs, targets) < 1.001 * bound

    def test_at_unequal_mass_a_prefix_reaches_some_such_targets(self):
        """A common p pulls the two by different weights, and so can also pull them apart."""
        head = Attention()
        inputs = head.pair(equal_mass=False)
        h, z = (np.array(x) for x in zip(*(head.out(x) for x in inputs), strict=True))
        mass = z.mean()
        a = mass / (mass + z)
        common = (a[1] * (1 + a[0]) * h[0] - a[0] * (1 + a[1]) * h[1]) / (a[0] - a[1])
        targets = 2 * h + common
        assert gap(targets[0] - targets[1], 2 * (h[0] - h[1])) < EXACT
        moved = (sum(a) + 2 * a[0] * a[1]) / (a[0] - a[1]) * (h[0] - h[1]) / 2  # the middle, along h1 - h2
        assert gap(targets.mean(0) - h.mean(0), moved) < EXACT
        _, p = self.best(a, h, targets)
        bound = np.linalg.norm(h[0] - h[1]) / 2
        assert self.errors(head, inputs, targets, self.token(head, mass, p)).max() < 1e-12 * bound

    def test_the_sum_of_two_heads_escapes_it_even_at_equal_mass(self):
        """Heads that nearly cancel, of which the prefix mutes one more than the other, end twice as far apart."""
        heads = Attention(0), Attention(1)
        heads[1].last_D, heads[1].q_D = heads[0].last_D, heads[0].last_D @ heads[1].query
        first, change = heads[0].context(), 2 * heads[0].rng.normal(size=(T, D))
        change[-1] = 0
        directions = np.array([head.key @ head.q_D for head in heads])
        inputs = first, first + change - change @ np.linalg.pinv(directions) @ directions
        (h1, z1), (h2, z2) = ([np.array(x) for x in zip(*map(head.out, inputs), strict=True)] for head in heads)
        assert max(gap(*z1), gap(*z2)) < EXACT
        apart, other = h1[0] - h1[1], h2[0] - h2[1]
        project = -0.9 * np.outer(other, apart) / (other @ other)  # the second head's output projection
        plain = h1 + h2 @ project
        assert gap(plain[0] - plain[1], 0.1 * apart) < 1e-10
        targets = 2 * plain + heads[0].rng.normal(size=(1, D))

        a = 0.08, 0.2  # (1 - 0.08) - 0.9 (1 - 0.2) = 2 (1 - 0.9)
        p = (targets[0] - (1 - a[0]) * h1[0] - (1 - a[1]) * h2[0] @ project) / a[0]
        prefixes = [
            self.token(head, w / (1 - w) * z[0], v)
            for head, w, z, v in zip(heads, a, (z1, z2), (p, np.zeros(D)), strict=True)
        ]
        for x, target in zip(inputs, targets, strict=True):
            out1, out2 = (head.out(x, prefix)[0] for head, prefix in zip(heads, prefixes, strict=True))
            assert gap(out1 + out2 @ project, target) < 1e-10


@pytest.fixture(scope="module")
def decoder_and_tokens():
    config = DecoderConfig(L, D, H, V, inputs="tokens", vocab_size=V, max_positions=T)
    decoder = Decoder(config)
    tokens = jax.random.randint(jax.random.key(0), (FEW, T), 0, V)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), tokens)["params"]
    rng = np.random.default_rng(9)
    draw = lambda s: jnp.asarray(0.5 * rng.normal(size=s.shape), s.dtype)
    return decoder, jax.tree.map(draw, shapes), tokens


class TestTheRealDecoder:
    """The constructions once more, in float32 and with the project's own edits."""

    def place(self, decoder, vectors, scale=1.0, address="blocks/resid"):
        write = edits.add(vectors, layers=range(1, L + 1), scale=scale, address=address)
        return edits.place(write, decoder.config, jnp.arange(T)[None])

    @pytest.mark.parametrize("kind", ["blocks", "prefix"])
    def test_the_last_position_of_another_model_is_reproduced(self, decoder_and_tokens, kind):
        decoder, params, tokens = decoder_and_tokens
        scale, shape = 1e-3, (L, FEW, D)

        def states(params, vectors, past=None):
            tree = self.place(decoder, vectors, scale)
            model = Model(params, decoder.config)
            out, found = forward(model, tokens, edits=tree, addresses=("blocks/resid",), past=past)
            return np.asarray(out), np.asarray(found["blocks/resid"])

        rng, vectors = np.random.default_rng(10), np.zeros(shape, np.float32)
        if kind == "blocks":
            change = lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32)
            changed = {**params, "blocks": jax.tree.map(change, params["blocks"])}
            target, target_LBTD = states(changed, vectors)
        else:
            past = jnp.asarray(rng.normal(size=(2, L, FEW, H, 3, C)), jnp.float32)
            target, target_LBTD = states(params, vectors, Past(*past, jnp.zeros((FEW, 3), jnp.int32)))
        plain, plain_LBTD = states(params, vectors)
        for layer in range(L):
            here = states(params, vectors)[1][layer, :, -1]
            vectors[layer] = (target_LBTD[layer, :, -1] - here) / scale
        ours, ours_LBTD = states(params, vectors)
        assert gap(ours_LBTD[:, :, -1], target_LBTD[:, :, -1]) < 1e-5
        assert gap(ours[:, -1], target[:, -1]) < 1e-5
        np.testing.assert_array_equal(ours_LBTD[:, :, :-1], plain_LBTD[:, :, :-1])
        assert gap(ours[:, -1], plain[:, -1]) > 0.1
        assert gap(ours[:, :-1], target[:, :-1]) > 0.1

    def test_a_lora_of_the_last_attention_output_is_a_linear_map_of_the_heads(self, decoder_and_tokens):
        decoder, params, tokens = decoder_and_tokens
        rng, scale = np.random.default_rng(11), 1e-3
        a, b = rng.normal(size=(D, 2)), rng.normal(size=(2, D))

        def answers(params, vectors):
            tree = self.place(decoder, vectors, scale, "blocks/attn_out")
            out, found = forward(Model(params, decoder.config), tokens, edits=tree, addresses=("blocks/heads",))
            return np.asarray(out[:, -1]), found["blocks/heads"][-1, :, -1].reshape(FEW, D)

        vectors = np.zeros((L, FEW, D), np.float32)
        kernel = params["blocks"]["out"]["kernel"]
        changed = {**params["blocks"]["out"], "kernel": kernel.at[-1].add((a @ b).reshape(kernel.shape[1:]))}
        target, _ = answers({**params, "blocks": {**params["blocks"], "out": changed}}, vectors)
        plain, z = answers(params, vectors)
        vectors[-1] = np.asarray(z) @ a @ (b / scale)
        assert gap(answers(params, vectors)[0], target) < 1e-5
        assert gap(plain, target) > 0.1
