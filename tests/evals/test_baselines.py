"""Baselines are what they are named for, see no pair too many, and cost no more than they may."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax import tasks
from tvjax.evals import baselines
from tvjax.tasks import LAYOUTS, DecisionTree, Linear, LinearClassification, RegBench, TokenOffset

P, N, X = 6, 9, 3


@pytest.fixture(scope="module")
def pairs():
    """Unrelated x and y."""
    random = np.random.default_rng(0)
    return random.normal(size=(P, N, X)), random.normal(size=(P, N, 1))


def one(name, x, y):
    return baselines.predict([name], x, y)[name]


class TestKnownAnswers:
    def test_least_squares_solves_a_noiseless_line_after_as_many_demonstrations_as_inputs(self, pairs):
        x, w = pairs[0], np.random.default_rng(1).normal(size=(P, X, 1))
        y = x @ w
        predictions = one("least_squares", x, y)
        np.testing.assert_allclose(predictions[:, X:], y[:, X:], atol=1e-8)
        assert (np.abs(predictions[:, :X] - y[:, :X]) > 1e-3).all()

    def test_least_squares_is_of_least_norm(self, pairs):
        x, y = pairs
        for b in range(P):
            for i in range(1, N):
                w = np.linalg.lstsq(x[b, :i], y[b, :i], rcond=None)[0]
                np.testing.assert_allclose(one("least_squares", x, y)[b, i], x[b, i] @ w, atol=1e-6)

    def test_nearest_neighbours_by_brute_force(self, pairs):
        x, y = pairs
        predictions = one("nearest_neighbours", x, y)
        for b in range(P):
            for i in range(1, N):
                far = [sum((x[b, i, k] - x[b, j, k]) ** 2 for k in range(X)) for j in range(i)]
                nearest = sorted(range(i), key=far.__getitem__)[:3]
                np.testing.assert_allclose(predictions[b, i, 0], sum(y[b, j, 0] for j in nearest) / len(nearest))

    def test_averaging(self, pairs):
        x, y = pairs
        for i in range(1, N):
            w = sum(y[:, j] * x[:, j] for j in range(i)) / i
            np.testing.assert_allclose(one("averaging", x, y)[:, i, 0], (w * x[:, i]).sum(-1))

    def test_lasso_is_at_the_least_of_its_objective(self, pairs):
        """By its conditions: the gradient is alpha times the sign of a weight, or smaller where the weight is 0."""
        x, y = pairs[0][:, :6], pairs[1][:, :6]
        for alpha in (0.1, 0.01, 0.001):
            # The weights, read off by asking the units in the place of the next x.
            asked = [np.concatenate([x, np.broadcast_to(unit, (P, 1, X))], 1) for unit in np.eye(X)]
            w = np.stack([one(f"lasso_{alpha:g}", q, pairs[1][:, :7])[:, 6, 0] for q in asked], -1)
            gradient = np.einsum("pix,pi->px", x, y[..., 0] - np.einsum("pix,px->pi", x, w)) / 6
            assert (np.abs(gradient) <= alpha + 2e-3).all()
            np.testing.assert_allclose(gradient[w != 0], (alpha * np.sign(w))[w != 0], atol=2e-3)
            assert alpha < 0.1 or (w == 0).any()

    def test_a_greedy_tree_answers_what_it_was_shown(self, pairs):
        x, y = pairs[0].copy(), pairs[1]
        x[:, N - 1] = x[:, 2]
        np.testing.assert_allclose(one("greedy_tree", x, y)[:, N - 1], y[:, 2])

    def test_a_greedy_tree_of_signs_finds_the_tree_once_it_has_seen_each_leaf(self):
        """A tree of x itself splits between the demonstrations, not at 0, and now and then takes the wrong side."""
        random = np.random.default_rng(0)
        x = random.normal(size=(20, 24, 2))
        x[:, :4] = np.abs(x[:, :4]) * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
        y = (np.sign(x[..., :1]) + 0.3 * np.sign(x[..., 1:])) * random.normal(size=(20, 1, 1))
        of_signs, of_x = (np.abs(one(name, x, y) - y)[:, 4:].max() for name in ("greedy_tree_of_signs", "greedy_tree"))
        assert of_signs < 1e-9 and of_x > 0.1


@pytest.mark.parametrize("name", [name for name in baselines.BASELINES if name != "trigram"])
class TestEveryBaseline:
    def test_entry_i_sees_the_pairs_before_it_and_no_more(self, name, pairs):
        x, y = pairs
        whole, changed_x, changed_y = one(name, x, y), x.copy(), y.copy()
        assert whole.shape == (P, N, 1) and np.isfinite(whole).all() and not whole[:, 0].any()
        changed_y[:, 4:] += 3.0
        changed_x[:, 5:] -= 1.0
        changed = one(name, changed_x, changed_y)
        np.testing.assert_array_equal(changed[:, :5], whole[:, :5])
        assert (changed[:, 5:] != whole[:, 5:]).any((1, 2)).all()

    def test_the_same_pairs_give_the_same_numbers_whatever_stands_beside_them(self, name, pairs):
        x, y = pairs
        np.testing.assert_array_equal(one(name, x, y), one(name, x, y))
        np.testing.assert_allclose(one(name, x[2:4], y[2:4]), one(name, x, y)[2:4], rtol=1e-9, atol=1e-12)

    def test_no_more_is_predicted_than_may_be(self, name, monkeypatch):
        random = np.random.default_rng(0)
        x, y = random.normal(size=(30, 41, 2)), random.normal(size=(30, 41, 1))
        estimate, _ = baselines.BASELINES[name]
        monkeypatch.setitem(baselines.BASELINES, name, (estimate, 100))
        tried = ~np.isnan(one(name, x, y)[..., 0])
        counts = np.flatnonzero(tried.any(0))
        assert len(counts) == baselines.MOST_COUNTS and {0, 40} <= set(counts)
        assert np.diff(counts).max() <= 2
        assert tried[:4, counts].all() and not tried[4:].any()


class TestSummary:
    def sample(self, task, prompts, pairs):
        prompt = task.sample(jax.random.key(0), prompts, pairs - 1, LAYOUTS["xzy"])
        return np.asarray(prompt.x), np.asarray(prompt.targets)

    def test_holds_the_means_of_those_tried_and_nothing_else(self, monkeypatch):
        monkeypatch.setattr(baselines, "MOST_COUNTS", 5)
        monkeypatch.setitem(baselines.BASELINES, "lasso_0.1", (baselines.BASELINES["lasso_0.1"][0], 20))
        task = Linear(input_width=X, nonzero=1)
        x, y = self.sample(task, 6, 9)
        found = baselines.summary(task, x, y)
        assert tuple(found) == task.baselines
        entry = found["lasso_0.1"]
        expected = np.square(one("lasso_0.1", x, y) - y)[:4].mean((0, 2))
        assert entry["num_prompts"] == 4 and found["averaging"]["num_prompts"] == 6
        assert entry["risk"][1::2] == [None] * 4 and entry["risk_ci"][1::2] == [[None, None]] * 4
        np.testing.assert_allclose(entry["risk"][::2], expected[::2], rtol=1e-5)
        limits = np.array(entry["risk_ci"][::2])
        assert (limits[:, 0] <= entry["risk"][::2]).all() and (limits[:, 1] >= entry["risk"][::2]).all()

    def test_each_output_is_predicted_by_itself(self, pairs, monkeypatch):
        x, two = pairs[0], np.concatenate([pairs[1], 2 * pairs[1][::-1]], axis=-1)
        for name in ("least_squares", "nearest_neighbours", "averaging"):
            both = one(name, x, two)
            assert both.shape == (P, N, 2)
            for output in range(2):
                np.testing.assert_array_equal(
                    both[..., output : output + 1], one(name, x, two[..., output : output + 1])
                )
        monkeypatch.setitem(baselines.BASELINES, "averaging", (baselines.averaging, 4 * N))
        assert (~np.isnan(one("averaging", x, two))).all((1, 2)).tolist() == [True, True, False, False, False, False]
        found = baselines.summary(
            Linear(input_width=X, outputs=2), *self.sample(Linear(input_width=X, outputs=2), 400, 5)
        )
        assert found["nearest_neighbours"]["risk"][0] == pytest.approx(1, abs=0.2)

    def test_labels_have_accuracies(self):
        found = baselines.summary(LinearClassification(), *self.sample(LinearClassification(), 200, 5))
        assert set(found) == {"nearest_neighbours", "averaging"}
        assert found["averaging"]["accuracy"][0] == 0.5
        assert 0.6 < found["averaging"]["accuracy"][4] < 1

    def test_tokens_have_none(self):
        assert baselines.summary(TokenOffset(), *self.sample(TokenOffset(), 4, 3)) == {}

    def test_each_family_names_baselines_that_there_are(self):
        each = [tasks.family(name)() for name in tasks.names()]
        each += [Linear(nonzero=2), Linear(noise=0.1), Linear(pool=3)]
        assert all(set(task.baselines) <= set(baselines.BASELINES) for task in each)
        assert "greedy_tree" in DecisionTree().baselines and "lasso_0.01" in Linear(nonzero=1).baselines
        assert "least_squares" in Linear(noise=0.1).baselines and "least_squares" not in Linear().baselines


class TestTrigram:
    """Symbols 0..2, the bar 3 and the blank 4."""

    def test_it_counts_what_followed_the_last_two(self):
        x = np.array([[[4, 3, 0], [3, 0, 1], [3, 0, 1], [4, 4, 3]]])
        y = np.array([[1, 2, 2, 0]])
        said = lambda *query: baselines.trigram(x, y, np.array([query]), 5)[0]
        smooth = lambda counts: (np.array(counts) + 0.1) / (np.sum(counts) + 0.5)
        np.testing.assert_allclose(said(3, 0, 1), smooth([0, 0, 2, 0, 0]))  # 0 1 was followed by 2 twice
        np.testing.assert_allclose(said(3, 2, 1), smooth([0, 0, 2, 0, 0]))  # 2 1 never was: after 1 alone
        np.testing.assert_allclose(said(4, 4, 3), smooth([4, 0, 0, 0, 0]))  # a word's first symbol
        np.testing.assert_allclose(said(3, 1, 2), smooth([4, 3, 2, 0, 0]))  # nothing followed 2: all symbols count

    def test_it_beats_guessing_and_sees_only_what_stands_before(self):
        task = RegBench(automata=40, held_out_automata=5, word=5)
        prompt = jax.jit(lambda key: task.sample(key, 64, 12, LAYOUTS["xzy"].wide(5)))(jax.random.key(0))
        x, y = np.asarray(prompt.x), np.asarray(prompt.targets)
        found = baselines.predict(("trigram",), x, y, task.vocab_size)["trigram"]
        scores = task.scores(jnp.asarray(found), prompt.targets)
        accuracy = scores["accuracy"].mean(0)
        assert accuracy[0] < 0.3 < 0.6 < accuracy[-1]
        other = y.copy()
        other[:, 6:] = 0
        again = baselines.predict(("trigram",), x, other, task.vocab_size)["trigram"]
        np.testing.assert_array_equal(found[:, :7], again[:, :7])
        assert (found[:, 7:] != again[:, 7:]).any()
