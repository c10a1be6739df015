"""Estimators against closed forms, scikit-learn and brute force, and the oracles that families build from them."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax.errors import UserError
from tvjax.tasks import LAYOUTS, Linear, Sinusoid, TokenOffset, oracles
from tvjax.tasks.token_offset import LEAST_NOISE

LAYOUT = LAYOUTS["xzy"]
ESTIMATORS = {
    "least_squares": oracles.least_squares,
    "ridge": functools.partial(oracles.ridge, lam=0.3),
    "averaging": oracles.averaging,
    "discrete_mmse": functools.partial(oracles.discrete_mmse, pool=jnp.eye(5), noise=0.5),
}


@functools.partial(jax.jit, static_argnums=(0, 2, 3), static_argnames="held_out")
def sample(task, key, batch, demonstrations, held_out=False):
    return task.sample(key, batch, demonstrations, LAYOUT, held_out=held_out)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("noise", "held_out", "held_out_queries"))
def oracle(task, x, y, queries, **told):
    return task.oracle(x, y, queries, **told)


def arrays(batch, pairs, width, key=0):
    """Unrelated x, y and queries: nothing here is consistent with a line."""
    keys = jax.random.split(jax.random.key(key), 3)
    x, queries = (jax.random.normal(k, (batch, pairs, width)) for k in keys[:2])
    return x, jax.random.normal(keys[2], (batch, pairs, 1)), queries


def risks(predictions, targets):
    return np.square(np.asarray(predictions) - np.asarray(targets)).mean((0, 2))


@pytest.fixture(scope="module")
def noiseless():
    return sample(Linear(input_width=4), jax.random.key(0), 20_000, 8)


class TestClosedForms:
    def test_least_squares_risk_falls_by_one_dimension_a_demonstration(self, noiseless):
        risk = risks(oracles.least_squares(noiseless.x, noiseless.targets, noiseless.x), noiseless.targets)
        np.testing.assert_allclose(risk[:4], 1 - np.arange(4) / 4, rtol=0.03)
        assert risk[4] < 1e-4
        assert risk[5:].max() < 1e-8

    def test_each_of_several_outputs_is_as_well_known_as_one(self):
        task = Linear(input_width=4, outputs=3)
        prompt = sample(task, jax.random.key(0), 10_000, 6)
        predictions = oracle(task, prompt.x, prompt.targets, prompt.x)
        for output in range(3):
            risk = risks(predictions[..., output : output + 1], prompt.targets[..., output : output + 1])
            np.testing.assert_allclose(risk[:4], 1 - np.arange(4) / 4, rtol=0.05)
            assert risk[4] < 1e-4 and risk[5:].max() < 1e-8
        np.testing.assert_allclose(
            task.scores(predictions, prompt.targets)["risk"].mean(0),
            risks(predictions, prompt.targets),
            rtol=1e-4,
            atol=1e-9,
        )

    def test_averaging_risk(self, noiseless):
        """Over 20,000 draws of demonstrations, in the mean over w and the query: with y = x all unit tasks are asked
        at once, at each unit query. Drawn ones would leave the first risks, of the heaviest tails, known to 2%."""
        x, risk = noiseless.x, 0.0
        for unit in jnp.eye(4):
            query = jnp.broadcast_to(unit[None, None], x.shape)
            risk = risk + np.square(oracles.averaging(x, x, query) - query).sum(-1).mean(0) / 4
        np.testing.assert_allclose(risk[0], 1, rtol=1e-6)
        np.testing.assert_allclose(risk[1:], 5 / np.arange(1, 9), rtol=0.03)

    def test_bayes_ridge_beats_other_penalties(self):
        task = Linear(input_width=4, noise=0.5)
        prompt = sample(task, jax.random.key(1), 4000, 6)
        clean = Linear(input_width=4).answers(jax.random.key(0), prompt.parameters, prompt.x)
        bayes = risks(oracle(task, prompt.x, prompt.targets, prompt.x), clean)[1:]
        for lam in (0.25, 4.0):
            assert (bayes < risks(oracles.ridge(prompt.x, prompt.targets, prompt.x, lam), clean)[1:]).all()
        assert (bayes < risks(oracles.least_squares(prompt.x, prompt.targets, prompt.x), clean)[1:]).all()


class TestAgainstReferences:
    @pytest.mark.parametrize("lam", [1.0, 0.05])
    def test_ridge_is_scikit_learns(self, lam):
        linear_model = pytest.importorskip("sklearn.linear_model")
        x, y, queries = arrays(8, 9, 4)
        ours = np.asarray(oracles.ridge(x, y, queries, lam))
        for b, i in itertools.product(range(8), range(1, 9)):
            fit = linear_model.Ridge(alpha=lam, fit_intercept=False).fit(x[b, :i], y[b, :i, 0])
            np.testing.assert_allclose(ours[b, i, 0], fit.predict(queries[b, i : i + 1])[0], atol=1e-5)

    def test_least_squares_is_numpys_in_float64(self):
        x, y, queries = arrays(8, 9, 5)
        ours = np.asarray(oracles.least_squares(x, y, queries))
        for b, i in itertools.product(range(8), range(1, 9)):
            w = np.linalg.lstsq(np.asarray(x[b, :i], float), np.asarray(y[b, :i], float), rcond=None)[0]
            np.testing.assert_allclose(ours[b, i], np.asarray(queries[b, i], float) @ w, rtol=1e-3, atol=1e-4)

    def test_discrete_mmse_is_the_posterior_mean(self):
        x, y, queries = arrays(4, 5, 3)
        pool = jax.random.normal(jax.random.key(5), (6, 3))
        ours = np.asarray(oracles.discrete_mmse(x, y, queries, pool, 0.7))
        for b, i in itertools.product(range(4), range(5)):
            errors = np.asarray(y[b, :i], float) - np.asarray(x[b, :i], float) @ np.asarray(pool.T, float)
            posterior = np.exp(-np.square(errors).sum(0) / (2 * 0.7**2))
            expected = posterior @ np.asarray(pool @ queries[b, i], float) / posterior.sum()
            np.testing.assert_allclose(ours[b, i, 0], expected, atol=1e-5)

    def test_discrete_mmse_does_not_depend_on_how_many_prompts_go_together(self, monkeypatch):
        x, y, queries = arrays(5, 4, 3)
        pool = jax.random.normal(jax.random.key(5), (6, 3))
        whole = oracles.discrete_mmse(x, y, queries, pool, 0.7)
        monkeypatch.setattr(oracles, "_CHUNK", 2 * 4 * 6)
        np.testing.assert_allclose(oracles.discrete_mmse(x, y, queries, pool, 0.7), whole, rtol=1e-5, atol=1e-6)


class TestEveryEstimator:
    @pytest.mark.parametrize("name", ESTIMATORS)
    def test_query_i_sees_the_i_demonstrations_before_it_and_no_more(self, name):
        x, y, queries = arrays(3, 6, 5)
        full = ESTIMATORS[name](x, y, queries)
        assert full.shape == (3, 6, 1)
        changed = ESTIMATORS[name](x.at[:, 3].add(1.0), y.at[:, 3].add(3.0), queries)
        np.testing.assert_array_equal(changed[:, :4], full[:, :4])
        assert (np.abs(changed[:, 4:] - full[:, 4:]) > 1e-6).all()

    @pytest.mark.parametrize("name", ESTIMATORS)
    def test_query_need_not_be_x(self, name):
        x, y, queries = arrays(3, 6, 5)
        full = ESTIMATORS[name](x, y, queries)
        moved = ESTIMATORS[name](x, y, queries.at[:, 4].multiply(2.0))
        np.testing.assert_allclose(moved[:, 4], 2 * full[:, 4], rtol=1e-5)
        np.testing.assert_array_equal(moved[:, :4], full[:, :4])


class TestFloat32:
    def test_least_squares_of_demonstrations_in_a_subspace_stays_in_it(self):
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 8, 8)))[0]
        low = jnp.asarray(basis[..., :4], jnp.float32)
        x = jnp.einsum("bnr,bxr->bnx", jax.random.normal(jax.random.key(0), (64, 20, 4)), low)
        y = x.sum(-1, keepdims=True)
        orthogonal = jnp.broadcast_to(jnp.asarray(basis[:, None, :, 4], jnp.float32), x.shape)
        assert np.abs(oracles.least_squares(x, y, orthogonal)).max() < 1e-4
        np.testing.assert_allclose(oracles.least_squares(x, y, x)[:, 6:], y[:, 6:], atol=1e-4)

    def test_least_squares_is_equivariant_to_scale(self):
        x, y, queries = arrays(16, 9, 4)
        base = oracles.least_squares(x, y, queries)
        np.testing.assert_allclose(oracles.least_squares(1e-3 * x, 1e3 * y, 1e-3 * queries), 1e3 * base, rtol=1e-2)


class TestLinearOracle:
    def test_finite_pool_is_told_from_the_continuous_prior(self):
        task = Linear(input_width=4, pool=8)
        seen = sample(task, jax.random.key(0), 512, 4)
        unseen = sample(task, jax.random.key(0), 512, 4, held_out=True)
        assert risks(oracle(task, seen.x, seen.targets, seen.x), seen.targets)[1] < 0.02
        assert risks(oracle(task, unseen.x, unseen.targets, unseen.x), unseen.targets)[1:4].min() > 0.3
        told = oracle(task, unseen.x, unseen.targets, unseen.x, held_out=True)
        np.testing.assert_array_equal(told, oracles.least_squares(unseen.x, unseen.targets, unseen.x))

    def test_several_noisy_outputs_are_scikit_learns_ridge(self):
        linear_model = pytest.importorskip("sklearn.linear_model")
        task = Linear(input_width=3, outputs=2, noise=0.4)
        prompt = sample(task, jax.random.key(2), 5, 6)
        x, y = np.asarray(prompt.x), np.asarray(prompt.targets)
        ours = np.asarray(oracle(task, prompt.x, prompt.targets, prompt.x))
        for b, i in itertools.product(range(5), range(1, 7)):
            fit = linear_model.Ridge(alpha=3 * 0.4**2, fit_intercept=False).fit(x[b, :i], y[b, :i])
            np.testing.assert_allclose(ours[b, i], fit.predict(x[b, i : i + 1])[0], atol=1e-5)
        assert not ours[:, 0].any()

    def test_added_noise_joins_the_familys_own(self):
        x, y, queries = arrays(4, 6, 4)
        ours = Linear(noise=0.3).oracle(x, y, queries, noise=0.4)
        np.testing.assert_allclose(ours, oracles.ridge(x, y, queries, 0.25 * 4), rtol=1e-5)


class TestSinusoidOracle:
    def risk(self, task, prompt, **told):
        return risks(oracle(task, prompt.x, prompt.targets, prompt.x, **told), prompt.targets)

    def test_starts_at_the_prior_and_ends_at_what_the_grid_resolves(self):
        task = Sinusoid()
        prompt = sample(task, jax.random.key(0), 256, 12)
        risk = self.risk(task, prompt)
        np.testing.assert_allclose(risk[0], task.answer_rms**2, rtol=0.15)
        assert risk[8:].max() < 3e-3 * task.answer_rms**2
        nearest = jnp.square(prompt.x[:, None, :12, 0] - prompt.x[:, 12:, :1]).argmin(-1)
        neighbour = jnp.take_along_axis(prompt.targets[:, :, 0], nearest, axis=1)
        assert risk[12] < 0.2 * float(jnp.square(neighbour[:, 0] - prompt.targets[:, 12, 0]).mean())
        assert (risk[1:] < risks(oracles.least_squares(prompt.x, prompt.targets, prompt.x), prompt.targets)[1:]).all()

    def test_knows_the_split(self):
        task = Sinusoid(held_out_frequency=(3.0, 4.0), grid=(8, 24, 32))
        prompt = sample(task, jax.random.key(0), 128, 8, held_out=True)
        assert self.risk(task, prompt, held_out=True)[8] < 0.05 < self.risk(task, prompt)[8]

    def test_knows_the_noise(self):
        clean = Sinusoid(grid=(8, 24, 32))
        prompt = sample(clean, jax.random.key(0), 256, 8)
        y = clean.corrupt(jax.random.key(1), prompt.targets, 0.5)
        told = risks(oracle(clean, prompt.x, y, prompt.x, noise=0.5), prompt.targets)
        assert (told[2:] < risks(oracle(clean, prompt.x, y, prompt.x), prompt.targets)[2:]).all()

    def test_refuses_wide_inputs(self):
        task = Sinusoid(input_width=2)
        prompt = sample(task, jax.random.key(0), 2, 3)
        assert not task.has_oracle
        with pytest.raises(UserError, match=r"config\.task\.input_width: given 2"):
            oracle(task, prompt.x, prompt.targets, prompt.x)


def brute_force(task, x, y, query, noise, *, split, asked_held_out=False):
    """The posterior predictive for one query, by adding up probabilities over c in float64."""
    seen, size = np.asarray(task.shown()), task.vocab_size
    own = max(task.noise, LEAST_NOISE)
    both = 1 - (1 - own) * (1 - noise)
    total, answer = 0.0, np.zeros(size)
    for c in split:
        allowed = [*(seen[c, x_j] for x_j in x), seen[c, query] != asked_held_out]
        weight = math.prod(allowed)
        for x_j, y_j in zip(x, y, strict=True):
            weight *= (1 - both) * (y_j == (x_j + c) % size) + both / size
        total += weight
        answer += weight * ((1 - own) * (np.arange(size) == (query + c) % size) + own / size)
    return answer / total


class TestTokenOracle:
    @pytest.mark.parametrize(
        ("own", "added", "held_out", "held_out_queries"),
        [(0.0, 0.0, False, False), (0.1, 0.2, False, False), (0.0, 0.3, True, False), (0.05, 0.2, False, True)],
    )
    def test_is_the_exact_posterior_predictive(self, own, added, held_out, held_out_queries):
        task = TokenOffset(7, offsets=(1, 2, 6), held_out_offsets=(0, 3), held_out_pairs=2, noise=own)
        prompt = sample(task, jax.random.key(3), 12, 4, held_out=held_out)
        y = task.corrupt(jax.random.key(4), prompt.targets, added)
        queries = prompt.x
        if held_out_queries:
            queries = task.held_out_inputs(jax.random.key(5), prompt.parameters, 5)
        told = {"held_out": held_out, "held_out_queries": held_out_queries}
        ours = np.exp(oracle(task, prompt.x, y, queries, noise=added, **told))
        split = task.held_out_offsets if held_out else task.offsets
        x, y, queries = map(np.asarray, (prompt.x, y, queries))
        for b, i in itertools.product(range(12), range(5)):
            expected = brute_force(
                task, x[b, :i], y[b, :i], queries[b, i], added, split=split, asked_held_out=held_out_queries
            )
            np.testing.assert_allclose(ours[b, i], expected, atol=2e-6)

    def test_one_demonstration_suffices_and_the_loss_stays_finite(self):
        task = TokenOffset()
        prompt = sample(task, jax.random.key(0), 256, 6)
        predictions = oracle(task, prompt.x, prompt.targets, prompt.x)
        scores = task.scores(predictions, prompt.targets)
        assert np.asarray(scores["accuracy"])[:, 1:].all()
        assert np.asarray(scores["risk"])[:, 1:].max() < 1e-5
        wrong = task.scores(predictions, (prompt.targets + 1) % 20)["risk"]
        assert np.isfinite(wrong).all()
        np.testing.assert_allclose(wrong[:, 1:].max(), math.log(20 / LEAST_NOISE), rtol=1e-3)
