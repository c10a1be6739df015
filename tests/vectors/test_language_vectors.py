"""Vectors of language models: each is what its definition says, computed here in the plainest way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.nn.golden import GOLDEN, make
from tvjax.nn.answers import Questions, correct, risk
from tvjax.nn.pretrained import load_model
from tvjax.nn.tokens import pad
from tvjax.parallel.batches import Batches
from tvjax.vectors.above import alike, head_attributions, head_effects, likeliest
from tvjax.vectors.from_prompts import last_states_and_heads
from tvjax.vectors.function_vectors import function_vector, strongest
from tvjax.vectors.learned import learn, lowest, upper

ANSWERS = ([3, 17], [41], [8, 9])
PLENTY = Batches(memory=4.0, most=64)


@functools.cache
def golden(name):
    return load_model(GOLDEN / name, unroll=1)


def asked():
    """The golden prompts with answers of one and two tokens."""
    answers = pad(ANSWERS, side="right")
    last_B = jnp.array([len(prompt) - 1 for prompt in make.PROMPTS])
    whole = [[*p, *a] for p, a in zip(make.PROMPTS, ANSWERS, strict=True)]
    return Questions(pad(whole, side="right"), last_B, answers.ids_BT, answers.valid_BT)


def chances(model, ids, edits=None):
    """The probabilities of the token after `ids`, one prompt without padding."""
    return np.asarray(jax.nn.softmax(tvjax.run(model, jnp.array([ids]), edits=edits)[0, -1]))


@pytest.mark.parametrize("name", ["gemma2"])
class TestAnswers:
    def test_the_risk_is_that_of_each_token_with_those_before_it(self, name):
        model = golden(name)
        found = risk(model, asked())
        for prompt, answer, value in zip(make.PROMPTS, ANSWERS, found, strict=True):
            tokens = [-np.log(chances(model, prompt + answer[:n])[token]) for n, token in enumerate(answer)]
            np.testing.assert_allclose(value, np.mean(tokens), rtol=1e-4)

    def test_right_is_every_token_the_likeliest(self, name):
        model = golden(name)
        q = asked()
        said = [int(chances(model, prompt).argmax()) for prompt in make.PROMPTS]
        one = q.real_BA.at[:, 1:].set(False)
        right = q.replace(answers_BA=q.answers_BA.at[:, 0].set(jnp.array(said)), real_BA=one)
        assert correct(model, right).all()
        assert not correct(model, right.replace(answers_BA=right.answers_BA + 1)).any()


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gemma2"])  # of gemma2, blocks of two kinds
class TestFunctionVectors:
    def test_heads_are_read_at_the_last_token_of_each_prompt(self, name):
        model = golden(name)
        found = last_states_and_heads(model, pad(make.PROMPTS, side="right"))["heads"]
        for number, prompt in enumerate(make.PROMPTS):
            alone = tvjax.capture(model, jnp.array([prompt]), ["blocks/heads"])["blocks/heads"][:, 0, -1]
            np.testing.assert_allclose(found[number], alone, atol=1e-5)

    def test_the_indirect_effect_is_what_one_head_put_in_changes(self, name):
        model = golden(name)
        layers, heads = model.config.num_layers, model.config.num_heads
        mean_LHC = jax.random.normal(jax.random.key(0), (layers, heads, model.config.channels))
        few = Batches(4.0, most=2)
        effects = few(jax.jit(head_effects), (), (model.bare, mean_LHC), asked())
        effects = np.asarray(effects).mean(0)
        for layer, head in [(0, 0), (1, 3), (layers - 1, 1)]:
            vectors = jnp.zeros((heads, model.config.channels)).at[head].set(mean_LHC[layer, head])
            write = tvjax.replace(vectors, layers=layer + 1, address="blocks/heads", heads=(head,))
            change = [
                chances(model, prompt, write)[answer[0]] - chances(model, prompt)[answer[0]]
                for prompt, answer in zip(make.PROMPTS, ANSWERS, strict=True)
            ]
            np.testing.assert_allclose(effects[layer, head], np.mean(change), atol=1e-5)
        assert np.abs(effects).min() > 0

    def test_the_attribution_is_the_slope_of_the_effect(self, name):
        """Of a mean that hardly differs from what the heads hold, the effect itself."""
        model = golden(name)
        c = model.config
        held = last_states_and_heads(model, pad(make.PROMPTS[:1], side="right"))["heads"][0]
        q = jax.tree.map(lambda a: a[:1], asked())
        near = held + 1e-3 * jax.random.normal(jax.random.key(0), held.shape)
        slope, effect = (np.asarray(f(model.bare, near, q))[0] for f in (head_attributions, head_effects))
        assert slope.shape == (c.num_layers, c.num_heads) and np.abs(effect).max() > 1e-7
        np.testing.assert_allclose(slope, effect, atol=0.05 * np.abs(effect).max())

    def test_all_heads_of_a_layer_sum_to_what_attention_adds(self, name):
        model, ids = golden(name), jnp.array([make.PROMPTS[0]])
        found = tvjax.capture(model, ids, ["blocks/heads", "blocks/attn_out"], positions="last")
        heads_LHC = np.asarray(found["blocks/heads"])[:, 0, 0]
        for layer in range(model.config.num_layers):
            every = [(layer, head) for head in range(model.config.num_heads)]
            bias = model.params["blocks"]["out"].get("bias", np.zeros((model.config.num_layers, 1)))[layer]
            if model.config.post_norms:
                continue
            expected = found["blocks/attn_out"][layer, 0, 0] - bias
            np.testing.assert_allclose(function_vector(model.params, heads_LHC, every), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gemma2"])
class TestAbove:
    def test_it_is_what_the_whole_prompt_says_with_the_write_in_it(self, name):
        """At every layer, replaced and added, each place of an answer with those before it in place."""
        model, q = golden(name), asked()
        layers = range(model.config.num_layers + 1)
        vectors = 3 * jax.random.normal(jax.random.key(0), (len(layers), 2, model.config.width))
        keep = jnp.array([[0.0, 1.0]] * len(layers))
        found = np.asarray(likeliest(model, vectors, jnp.array(layers), keep, q))
        assert found.shape == (3, len(layers), 2, 2)
        for number, (prompt, answer) in enumerate(zip(make.PROMPTS, ANSWERS, strict=True)):
            for layer in layers:
                for n, write in enumerate((tvjax.replace, tvjax.add)):
                    edits = write(vectors[layer, n], layers=layer, positions=len(prompt) - 1)
                    for place in range(len(answer)):
                        token = int(chances(model, prompt + answer[:place], edits).argmax())
                        assert found[number, layer, n, place] == token, (layer, n, place)
        assert len(np.unique(found[:, :, :, 0])) > 5, "writes that change nothing would not tell"

    def test_a_model_of_low_precision_is_asked_too(self, name):
        model = load_model(GOLDEN / name, unroll=1, dtype="bfloat16")
        c, q = model.config, asked()
        vectors, keep = jnp.zeros((2, 1, c.width)), jnp.ones((2, 1))
        found = jax.eval_shape(likeliest, model.bare, vectors, jnp.array([0, 1]), keep, q)
        assert found.shape == (3, 2, 1, 2)
        means = jnp.zeros((c.num_layers, c.num_heads, c.channels))
        found = jax.eval_shape(head_effects, model.bare, means, q)
        assert found.shape == (3, c.num_layers, c.num_heads)

    def test_blocks_of_two_kinds_are_known(self, name):
        c = golden(name).config
        assert alike(c, 100) is (name != "gemma2") and alike(c, 1)


def test_the_strongest_heads_are_those_of_the_greatest_effect():
    effects = np.array([[0.1, -0.9, 0.3], [0.2, 0.5, 0.0]])
    assert strongest(effects, 3) == [(1, 1), (0, 2), (1, 0)]
    assert set(strongest(effects, 10)) == {(1, 1), (0, 2), (1, 0), (0, 0)}, (
        "none that lowers the chance, or has no part"
    )


class TestLearned:
    def learned(self, layers, batches=PLENTY, rate=0.1, cut=True, epochs=1, decay=0.0, first=None):
        model = golden("llama3")
        rows = jnp.asarray(np.random.default_rng(0).integers(0, 3, (epochs, 40 // epochs, 3)))
        start = lowest(min(layers), model.config.num_layers) if cut else 0
        first = jnp.zeros(model.config.width) if first is None else first
        fixed = (model.bare, upper(model, start), asked(), rows, jnp.asarray(rate), jnp.asarray(decay), first)
        by_epoch = np.asarray(batches(learn, (), fixed, jnp.array(layers)))
        return by_epoch if epochs > 1 else by_epoch[:, 0]

    def with_vector(self, vector, layer):
        model, q = golden("llama3"), asked()
        write = tvjax.add(jnp.asarray(vector), layers=int(layer), positions=np.asarray(self.places(q)))
        tree = tvjax.vectors.edits.place(write, model.config, q.tokens.positions_BT)
        return float(risk(model, q, tree).mean())

    def places(self, q):
        return jnp.arange(q.tokens.ids_BT.shape[1])[None] == q.last_B[:, None]

    def test_it_answers_better_than_no_vector_at_every_layer(self):
        model = golden("llama3")
        layers = range(model.config.num_layers + 1)
        before = float(risk(model, asked()).mean())
        for layer, vector in zip(layers, self.learned(layers), strict=True):
            np.testing.assert_allclose(self.with_vector(0 * vector, layer), before, rtol=1e-5)
            assert self.with_vector(vector, layer) < 0.8 * before

    def test_a_layer_does_not_depend_on_those_beside_it(self):
        np.testing.assert_allclose(self.learned([2])[0], self.learned(range(4))[2], atol=1e-4)

    def test_epochs_are_moments_of_one_way(self):
        """The last is what the steps in one part end at; the others are on the way to it."""
        by_epoch = self.learned([2], epochs=4)[0]
        np.testing.assert_allclose(by_epoch[-1], self.learned([2])[0], atol=1e-5)
        away = np.linalg.norm(by_epoch - by_epoch[-1], axis=-1)
        assert (np.diff(away) < 0).all() and away[0] > 0

    def test_it_begins_where_it_is_told_and_is_decayed(self):
        """Of AdamW: without a gradient's help a vector shrinks by rate * decay a step."""
        first = 5 * jnp.ones(golden("llama3").config.width)
        plain, decayed = (self.learned([2], rate=1e-3, first=first, decay=decay)[0] for decay in (0.0, 10.0))
        assert np.abs(plain - 5).max() <= 0.04 + 1e-3
        np.testing.assert_allclose(np.mean(decayed) / np.mean(plain), (1 - 1e-2) ** 40, rtol=0.02)

    def test_the_blocks_below_do_not_matter(self):
        """Those above alone are run, from what stands below: the same vectors as from the whole model."""
        assert lowest(2, golden("llama3").config.num_layers) == 2
        for layer in (2, 3):
            np.testing.assert_allclose(self.learned([layer]), self.learned([layer], cut=False), atol=1e-4)

    def test_the_first_step_goes_down_the_gradient_by_the_rate(self):
        """Adam's first step is the rate against the gradient's sign, here taken through the public way to write."""
        model, q = golden("llama3"), asked()
        rows, zero = jnp.arange(3)[None, None], jnp.zeros(model.config.width)
        fixed = (model.bare, model.bare, q, rows, jnp.asarray(0.01), jnp.asarray(0.0), zero)
        step = PLENTY(learn, (), fixed, jnp.array([2]))[0, 0]
        where = self.places(q)

        def loss(vector):
            write = tvjax.add(vector, layers=2, positions=np.asarray(where))
            tree = tvjax.vectors.edits.place(write, model.config, q.tokens.positions_BT)
            return risk(model, q, tree).mean()

        gradient = jax.grad(loss)(jnp.zeros(model.config.width))
        np.testing.assert_allclose(step, -0.01 * np.sign(gradient), rtol=1e-3)
