"""The distance of next-token distributions and the identity margin, exact where the model is made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.handmade import token_offset
from tests.nn.golden import make
from tests.vectors.test_language_vectors import asked, chances, golden
from tvjax.nn.answers import Questions
from tvjax.nn.tokens import Tokens
from tvjax.tasks import TokenOffset
from tvjax.vectors.above import alone, written
from tvjax.vectors.next_token import Reference, d_ntp, judge, margin

SIZE, ODDS = 5, 3.0
"""Words of the hand-made model, and how much likelier than another it makes its answer: 3/7 against 1/7."""


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def drawn(seed, *shape):
    return log_softmax(np.random.default_rng(seed).normal(size=shape) * 3)


class TestDistance:
    def test_it_is_the_divergence_from_k_shot(self):
        p, q = drawn(0, 4, 30), drawn(1, 4, 30)
        np.testing.assert_allclose(d_ntp(p, q), (np.exp(p) * (p - q)).sum(-1), rtol=1e-5)
        assert np.abs(np.asarray(d_ntp(p, q)) - np.asarray(d_ntp(q, p))).min() > 0.01, "the order of the two counts"

    def test_of_the_same_distribution_it_is_0_and_never_less(self):
        p = jnp.asarray(drawn(2, 50, 1000), jnp.float32)
        near = d_ntp(p, p + 1e-7 * jnp.asarray(drawn(3, 50, 1000), jnp.float32))
        assert (near >= 0).all() and near.max() < 1e-5 and not d_ntp(p, p).any()

    def test_words_that_k_shot_never_says_do_not_count(self):
        never = jnp.array([[np.log(0.5), np.log(0.5), -np.inf]])
        np.testing.assert_allclose(d_ntp(never, np.log([[0.25, 0.25, 0.5]])), [np.log(2)], rtol=1e-6)
        np.testing.assert_allclose(d_ntp(never, never), [0])


class TestMargin:
    def test_it_is_the_likeliest_answer_less_the_likeliest_rival(self):
        q = np.log([[0.1, 0.5, 0.2, 0.15, 0.05]] * 4)
        own, rivals = np.array([[1, -1], [0, 2], [4, -1], [1, 2]]), np.array([[2, -1], [3, 1], [0, 3], [-1, -1]])
        found = np.asarray(margin(q, own, rivals))
        np.testing.assert_allclose(found[:3], [0.3, -0.3, -0.1], atol=1e-6)
        assert np.isnan(found[3]), "no rival, no margin"

    def test_one_word_of_padding_is_no_answer(self):
        q = np.log([[0.9, 0.1]])
        np.testing.assert_allclose(margin(q, np.array([[1, -1]]), np.array([[0, -1]])), [-0.8], atol=1e-6)


@pytest.fixture(scope="module")
def model():
    """It adds what the demonstrations add, and says so with odds of 3 to 1 against each other word."""
    made = token_offset(TokenOffset(SIZE, offsets=(1, 3), held_out_offsets=()), places=9)
    answer = made.params["readout"]["kernel"] * (np.log(ODDS) / 30.0)
    return made.replace(params={**made.params, "readout": {"kernel": answer}})


def prompts(*rows):
    """Prompts x z y .. x z of pairs and a query, each with the answer x + 1 behind it."""
    texts = [[token for x, y in pairs for token in (x, SIZE, y)] + [query, SIZE] for pairs, query in rows]
    ids = jnp.array([[*text, 0] for text in texts])
    answers = jnp.array([[(query + 1) % SIZE] for _, query in rows])
    valid = jnp.ones(ids.shape, bool)
    return Questions(Tokens(ids, valid), jnp.full(len(rows), ids.shape[1] - 2), answers, jnp.ones_like(answers, bool))


def held(state_BD, *pairs):
    own, rivals = (jnp.array([[one[side]] for one in pairs]) for side in (0, 1))
    return Reference(own, rivals, state_BD)


class TestByHand:
    """Two tasks with the same inputs: to add 1, and to add 3. What the model says is known exactly."""

    ADD_1, ADD_3 = ([(0, 1), (2, 3)], 4), ([(0, 3), (2, 0)], 4)
    TOKENS = (0, 2)
    """What to say of 4, by the one and the other."""

    def test_the_margin_of_the_task_that_is_shown_and_of_the_other(self, model):
        q = prompts(self.ADD_1, self.ADD_3)
        unread = jnp.full((2, model.config.width), jnp.nan)
        said, state_BD = alone(model.bare, (q, held(unread, self.TOKENS, self.TOKENS)))
        np.testing.assert_array_equal(said.tokens_BA[:, 0], self.TOKENS)
        np.testing.assert_allclose(said.margin_B, [2 / 7, -2 / 7], atol=1e-5)
        np.testing.assert_allclose(said.d_ntp_B, 0, atol=1e-6)
        crossed = held(state_BD[::-1], self.TOKENS, self.TOKENS)
        far, _ = alone(model.bare, (q, crossed))
        np.testing.assert_allclose(far.d_ntp_B, 2 / 7 * np.log(ODDS), rtol=1e-4)

    def test_a_vector_carries_the_identity_of_its_task(self, model):
        """h^2 is the task: that of adding 3, written where 1 is shown, turns the margin round, and back."""
        q = prompts(self.ADD_1, self.ADD_3)
        unread = jnp.full((2, model.config.width), jnp.nan)
        _, state_BD = alone(model.bare, (q, held(unread, self.TOKENS, self.TOKENS)))
        theta_SD = jnp.stack([self.theta(model, row) for row in (self.ADD_1, self.ADD_3)])
        bare = prompts(([], 4))
        for shown, sign in ((0, 1), (1, -1)):
            known = held(state_BD[:1], self.TOKENS)
            said = written(model.bare, theta_SD[shown][None, None], jnp.array([2]), jnp.zeros((1, 1)), (bare, known))
            np.testing.assert_allclose(said.margin_B[0, 0, 0], sign * 2 / 7, atol=1e-5)
            expected = 0 if shown == 0 else 2 / 7 * np.log(ODDS)
            np.testing.assert_allclose(said.d_ntp_B[0, 0, 0], expected, atol=1e-5)

    def theta(self, model, row):
        ids = prompts(row).tokens.ids_BT[:, :-1]
        return tvjax.capture(model, ids, "blocks/resid", layers=2, positions="last")["blocks/resid"][0, 0, 0]


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gemma2"])
class TestGolden:
    """Each prompt held against what another one says, on models of three kinds."""

    OWN, RIVALS = [[3, -1], [41, 5], [8, -1]], [[5, 17], [9, -1], [-1, -1]]

    def test_it_is_what_plain_logits_give(self, name):
        model, q = golden(name), asked()
        unread = jnp.full((3, model.config.width), jnp.nan)
        own, rivals = jnp.array(self.OWN), jnp.array(self.RIVALS)
        said, state_BD = alone(model.bare, (q, Reference(own, rivals, unread)))
        np.testing.assert_allclose(said.d_ntp_B, 0, atol=1e-5)
        far, _ = alone(model.bare, (q, Reference(own, rivals, state_BD[::-1])))
        p = [chances(model, prompt).astype(float) for prompt in make.PROMPTS]
        for number, (other, q_V) in enumerate(zip(p[::-1], p, strict=True)):
            np.testing.assert_allclose(far.d_ntp_B[number], (other * np.log(other / q_V)).sum(), rtol=1e-3, atol=1e-5)
        for number, q_V in enumerate(p[:2]):
            greatest = [max(q_V[token] for token in side[number] if token >= 0) for side in (self.OWN, self.RIVALS)]
            np.testing.assert_allclose(far.margin_B[number], greatest[0] - greatest[1], atol=1e-5)
        assert np.isnan(far.margin_B[2])

    def test_no_distribution_is_kept(self, name):
        model, q = golden(name), asked()
        c = model.config
        unread = jnp.full((3, c.width), jnp.nan)
        known = Reference(jnp.array(self.OWN), jnp.array(self.RIVALS), unread)
        vectors, keep = jnp.zeros((2, 1, c.width)), jnp.ones((2, 1))
        found = jax.eval_shape(written, model.bare, vectors, jnp.array([0, 1]), keep, (q, known))
        assert [a.shape for a in found] == [(3, 2, 1, 2), (3, 2, 1), (3, 2, 1)]
        assert c.num_outputs not in sum((a.shape for a in jax.tree.leaves(found)), ())


def test_nothing_is_compared_without_a_reference():
    said = judge(None, None)(jnp.zeros((2, 3, 4)))
    assert said.tokens_BA.shape == (2, 3) and said.d_ntp_B is None and said.margin_B is None
