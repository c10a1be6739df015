"""The families of Garg et al. (2022): each is the function it is named for, of unit variance, and ends where x does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax.errors import UserError
from tvjax.tasks import LAYOUTS, DecisionTree, Linear, LinearClassification, Quadratic, ReLUNetwork

LAYOUT = LAYOUTS["xzy"]
WIDTH, BATCH, PAIRS = 5, 6, 7


def linear(p, x):
    return sum(p["w"][j] * x[j] for j in range(WIDTH))


def quadratic(p, x):
    return sum(p["w"][j] * x[j] * x[j] for j in range(WIDTH))


def network(p, x):
    total = 0.0
    for f in range(len(p["outer"])):
        before = sum(p["inner"][j, f] * x[j] for j in range(WIDTH))
        total += p["outer"][f] * (before if before > 0 else 0.0)
    return total


def tree(p, x):
    """By halving the leaves under a node, level by level: nodes of a level stand side by side, as their leaves do."""
    low, high, first, place = 0, len(p["leaf"]), 0, 0
    while high - low > 1:
        above = x[p["coordinate"][first + place]] > 0
        middle = (low + high) // 2
        low, high = (middle, high) if above else (low, middle)
        first, place = 2 * first + 1, 2 * place + int(above)
    return p["leaf"][low]


def sign(p, x):
    return 1.0 if linear(p, x) > 0 else -1.0


FAMILIES = {
    "linear": (Linear, linear),
    "quadratic": (Quadratic, quadratic),
    "network": (functools.partial(ReLUNetwork, hidden_width=9), network),
    "tree": (functools.partial(DecisionTree, depth=3), tree),
    "stump": (functools.partial(DecisionTree, depth=1), tree),
    "classification": (LinearClassification, sign),
}


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def sample(task, key, batch, pairs, active=None):
    return task.sample(key, batch, pairs - 1, LAYOUT, active_X=active)


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


class TestEveryFunction:
    def test_answers_are_the_function(self, family):
        kind, function = family
        prompt = sample(kind(input_width=WIDTH), jax.random.key(1), BATCH, PAIRS)
        x, y = np.asarray(prompt.x, float), np.asarray(prompt.targets)
        p = {name: np.asarray(value) for name, value in prompt.parameters.items()}
        expected = [[function({k: v[b] for k, v in p.items()}, x[b, i]) for i in range(PAIRS)] for b in range(BATCH)]
        np.testing.assert_allclose(y[..., 0], expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("width", [1, 6])
    def test_answers_have_mean_0_and_unit_variance(self, family, width):
        y = sample(family[0](input_width=width), jax.random.key(0), 20_000, 4).targets
        # Heavy tails: y of a quadratic in one input has the fourth moment 35, which 20,000 tasks leave at some 3%.
        np.testing.assert_allclose(jnp.square(y).mean(), 1, rtol=0.1 if width == 1 else 0.05)
        np.testing.assert_allclose(y.mean(0), 0, atol=0.04)
        np.testing.assert_allclose(family[0](input_width=width).answer_rms, 1)

    def test_inputs_are_unit_normal(self, family):
        x = np.asarray(sample(family[0](input_width=WIDTH), jax.random.key(0), 5000, 3).x)
        np.testing.assert_allclose(np.einsum("bnx,bnz->xz", x, x) / 15_000, np.eye(WIDTH), atol=0.04)

    def test_blanked_inputs_are_0_and_say_nothing(self, family):
        """What the curriculum leaves out: parameters of those inputs make no difference, those of the others do."""
        kind, function = family
        task, active = kind(input_width=WIDTH), jnp.array([1.0, 1.0, 0.0, 0.0, 0.0])
        prompt = sample(task, jax.random.key(2), 64, PAIRS, active)
        assert not np.asarray(prompt.x)[..., 2:].any() and np.asarray(prompt.x)[..., :2].all()
        p = {name: np.asarray(value) for name, value in prompt.parameters.items()}
        x = np.asarray(prompt.x, float)
        expected = [[function({k: v[b] for k, v in p.items()}, x[b, i]) for i in range(PAIRS)] for b in range(64)]
        np.testing.assert_allclose(prompt.targets[..., 0], expected, rtol=1e-4, atol=1e-5)
        full = sample(task, jax.random.key(2), 64, PAIRS)
        np.testing.assert_array_equal(prompt.x[..., :2], full.x[..., :2])
        assert (np.asarray(prompt.targets) != np.asarray(full.targets)).any()

    def test_tasks_of_a_batch_differ(self, family):
        p = sample(family[0](input_width=WIDTH), jax.random.key(0), 50, 2).parameters
        assert all(len(np.unique(np.asarray(v).reshape(50, -1), axis=0)) > 3 for v in p.values())

    def test_noise_is_added_to_the_function(self, family):
        kind, _ = family
        prompt = sample(kind(input_width=WIDTH, noise=0.4), jax.random.key(0), 5000, 3)
        clean = kind(input_width=WIDTH).answers(jax.random.key(0), prompt.parameters, prompt.x)
        error = np.asarray(prompt.targets - clean)
        if kind is LinearClassification:
            assert set(np.unique(prompt.targets)) == {-1.0, 1.0}
            np.testing.assert_allclose((error != 0).mean(), 0.2, atol=0.01)
        else:
            np.testing.assert_allclose(error.std(), 0.4, rtol=0.02)
            np.testing.assert_allclose(error.mean(), 0, atol=0.02)

    def test_an_oracle_is_there_or_refuses(self, family):
        kind, function = family
        task = kind(input_width=WIDTH)
        assert task.centred
        assert task.has_oracle == (function in (linear, quadratic))
        if not task.has_oracle:
            prompt = sample(task, jax.random.key(0), 2, 3)
            with pytest.raises(
                UserError, match=r"^config\.task\.name: given .*; accepted: a family that has an oracle$"
            ):
                task.oracle(prompt.x, prompt.targets, prompt.x)


class TestQuadraticOracle:
    def test_solves_it_after_as_many_demonstrations_as_inputs(self):
        prompt = sample(Quadratic(input_width=3), jax.random.key(0), 2000, 6)
        predictions = Quadratic(input_width=3).oracle(prompt.x, prompt.targets, prompt.x)
        risk = jnp.square(predictions - prompt.targets).mean((0, 2))
        assert 1.2 > risk[0] > risk[1] > risk[2] > 1e-2
        assert jnp.median(jnp.square(predictions - prompt.targets)[:, 3]) < 1e-8
        assert risk[5] < 1e-3

    def test_knows_the_noise(self):
        """The posterior mean in float64: a Gaussian prior of variance 1 / 3d, a Gaussian likelihood."""
        task = Quadratic(input_width=3, noise=0.3)
        prompt = sample(task, jax.random.key(0), 5, 6)
        ours = task.oracle(prompt.x, prompt.targets, prompt.x, noise=0.4)
        for b in range(5):
            features, y = np.square(np.asarray(prompt.x[b, :5], float)), np.asarray(prompt.targets[b, :5, 0], float)
            covariance = features @ features.T / 9 + 0.25 * np.eye(5)
            expected = np.square(np.asarray(prompt.x[b, 5], float)) @ features.T / 9 @ np.linalg.solve(covariance, y)
            np.testing.assert_allclose(ours[b, 5, 0], expected, rtol=1e-3, atol=1e-4)


class TestDecisionTree:
    def test_nodes_ask_for_every_input_alike(self):
        coordinate = np.asarray(DecisionTree(input_width=4).parameters(jax.random.key(0), 4000)["coordinate"])
        assert coordinate.shape == (4000, 15)
        share = (coordinate[..., None] == np.arange(4)).mean(0)
        np.testing.assert_allclose(share, 1 / 4, atol=0.03)

    def test_only_signs_matter(self):
        task = DecisionTree()
        prompt = sample(task, jax.random.key(0), 50, 5)
        np.testing.assert_array_equal(task.function(prompt.parameters, 7 * prompt.x), prompt.targets)
        assert (np.asarray(task.function(prompt.parameters, -prompt.x)) != np.asarray(prompt.targets)).all()


def test_the_sign_of_a_prediction_is_what_counts_as_accuracy():
    predictions, targets = jnp.array([[[0.1], [-3.0], [0.0], [2.0]]]), jnp.array([[[1.0], [1.0], [-1.0], [1.0]]])
    scores = LinearClassification().scores(predictions, targets)
    np.testing.assert_array_equal(scores["accuracy"], [[1.0, 0.0, 0.5, 1.0]])
    np.testing.assert_allclose(scores["risk"], [[0.81, 16.0, 1.0, 1.0]], rtol=1e-6)
