"""What each family draws: its moments, its splits, and that a key settles everything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax import tasks
from tvjax.errors import UserError
from tvjax.tasks import (
    GINC,
    LAYOUTS,
    Bijection,
    DecisionTree,
    Linear,
    LinearClassification,
    Quadratic,
    RegBench,
    ReLUNetwork,
    Sinusoid,
    TokenOffset,
)

LAYOUT = LAYOUTS["xzy"]
SETTINGS = [
    Linear(),
    Linear(noise=0.3, nonzero=2, pool=5),
    Linear(noise=0.3, nonzero=2, outputs=3),
    Bijection(),
    Sinusoid(),
    Sinusoid(input_width=3, noise=0.1),
    TokenOffset(),
    TokenOffset(noise=0.2, held_out_pairs=0),
    GINC(),
    RegBench(automata=20, held_out_automata=5, word=3),
    Quadratic(),
    Quadratic(input_width=3, noise=0.1),
    ReLUNetwork(),
    ReLUNetwork(input_width=2, hidden_width=5, noise=0.1),
    DecisionTree(),
    DecisionTree(input_width=3, depth=1, noise=0.1),
    LinearClassification(),
    LinearClassification(input_width=2, noise=0.1),
]


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def sample(task, key, batch, demonstrations):
    return task.sample(key, batch, demonstrations, LAYOUT.wide(task.x_tokens))


@pytest.mark.parametrize("task", SETTINGS, ids=str)
class TestEveryFamily:
    def test_a_key_settles_the_prompt(self, task):
        first, again, other = (sample(task, jax.random.key(seed), 4, 3) for seed in (0, 0, 1))
        jax.tree.map(np.testing.assert_array_equal, first, again)
        assert (np.asarray(first.inputs) != np.asarray(other.inputs)).any()

    @pytest.mark.slow
    def test_eager_draws_what_jit_draws(self, task):
        eager, jitted = (
            task.sample(jax.random.key(0), 4, 3, LAYOUT.wide(task.x_tokens)),
            sample(task, jax.random.key(0), 4, 3),
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), eager, jitted)

    def test_oracle_and_scores_have_the_declared_shapes(self, task):
        prompt = jax.eval_shape(lambda: task.sample(jax.random.key(0), 4, 3, LAYOUT.wide(task.x_tokens)))
        predictions = jax.ShapeDtypeStruct((4, 4, task.decoder_inputs()["num_outputs"]), jnp.float32)
        scores = jax.eval_shape(task.scores, predictions, prompt.targets)
        assert all(score.shape == (4, 4) for score in scores.values())
        if task.has_oracle:
            assert jax.eval_shape(task.oracle, prompt.x, prompt.targets, prompt.x).shape == predictions.shape

    def test_hashable_and_registered(self, task):
        assert hash(task) == hash(type(task)(**vars(task)))
        assert type(task) in map(tasks.family, tasks.names())


class TestBijection:
    TASK = Bijection(input_width=6)

    def test_a_map_and_its_inverse_of_unit_variance(self):
        prompt = sample(self.TASK, jax.random.key(0), 5000, 3)
        x, y, w = np.asarray(prompt.x), np.asarray(prompt.targets), np.asarray(prompt.parameters["w"])
        np.testing.assert_allclose(np.square(y).mean(), 1, rtol=0.05)
        forward = (x[..., :3] != 0).all(-1)
        assert ((x[..., 3:] != 0).all(-1) != forward).all() and 0.45 < forward.mean() < 0.55
        m = w[:, 3:, :3]
        np.testing.assert_allclose(w[:, :3, 3:], np.linalg.inv(m), atol=1e-4)
        np.testing.assert_allclose(np.einsum("byx,bnx->bny", w, y), x, atol=1e-4)
        np.testing.assert_allclose(np.mean(m, 0), 0, atol=0.05)

    def test_no_map_of_one_direction_leaves_less_than_all_others(self):
        """The best map of rank one, of each task, has 1/d of the variance: so would one vector, if it carried one."""
        prompt = sample(self.TASK, jax.random.key(0), 4000, 1)
        w = np.asarray(prompt.parameters["w"])
        u, s, v = np.linalg.svd(w)
        np.testing.assert_allclose(s, 1, atol=1e-5)
        best = u[:, :, :1] @ v[:, :1]
        said = np.einsum("byx,bnx->bny", best, prompt.x)
        np.testing.assert_allclose(np.square(said - prompt.targets).mean(), 1 - 1 / 6, atol=0.03)

    def test_the_oracle_knows_what_was_shown_either_way(self):
        prompt = sample(self.TASK, jax.random.key(1), 2000, 4)
        predictions = self.TASK.oracle(prompt.x, prompt.targets, prompt.x)
        risk = np.asarray(self.TASK.scores(predictions, prompt.targets)["risk"].mean(0))
        np.testing.assert_allclose(risk, [1, 2 / 3, 1 / 3, 0, 0], atol=0.05)
        back = self.TASK.oracle(prompt.targets, prompt.x, prompt.targets)  # shown from its answers to its inputs
        np.testing.assert_allclose(self.TASK.scores(back, prompt.x)["risk"].mean(0), risk, atol=0.05)

    @pytest.mark.parametrize("width", [0, 3])
    def test_halves_are_whole(self, width):
        with pytest.raises(UserError, match=rf"config.task.input_width: given {width}; accepted: an even number"):
            Bijection(input_width=width)


class TestLinear:
    @pytest.mark.parametrize("nonzero", [0, 1, 3])
    def test_outputs_have_unit_variance_however_sparse(self, nonzero):
        prompt = sample(Linear(input_width=5, nonzero=nonzero), jax.random.key(0), 20_000, 3)
        np.testing.assert_allclose(jnp.square(prompt.targets).mean(), 1, rtol=0.05)
        count = np.asarray((prompt.parameters["w"] != 0).sum(-1))
        assert (count == (nonzero or 5)).all()
        np.testing.assert_allclose((prompt.parameters["w"] != 0).mean(0), (nonzero or 5) / 5, atol=0.02)

    @pytest.mark.parametrize("nonzero", [0, 2])
    def test_several_outputs_are_unrelated_and_each_of_unit_variance(self, nonzero):
        prompt = sample(Linear(input_width=3, outputs=2, nonzero=nonzero), jax.random.key(0), 20_000, 3)
        w = np.asarray(prompt.parameters["w"])
        assert w.shape == (20_000, 2, 3) and prompt.targets.shape == (20_000, 4, 2)
        np.testing.assert_allclose(prompt.targets, np.einsum("byx,bnx->bny", w, prompt.x), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.cov(w.reshape(len(w), -1).T), np.eye(6) / 3, atol=0.02)
        assert ((w != 0).sum(-1) == (nonzero or 3)).all()

    def test_one_output_is_a_row(self):
        assert Linear(input_width=3).parameters(jax.random.key(0), 4)["w"].shape == (4, 3)
        assert Linear(input_width=3, outputs=1) == Linear(input_width=3)

    def test_noise_is_that_of_the_answers(self):
        prompt = sample(Linear(noise=0.5), jax.random.key(0), 5000, 3)
        clean = Linear().answers(jax.random.key(0), prompt.parameters, prompt.x)
        np.testing.assert_allclose(jnp.std(prompt.targets - clean), 0.5, rtol=0.02)

    def test_pool_is_all_that_training_shows(self):
        task = Linear(pool=8, pool_seed=3)
        pool = {tuple(w) for w in np.asarray(task.pool_weights()).tolist()}
        drawn = {tuple(w) for w in np.asarray(task.parameters(jax.random.key(0), 500)["w"]).tolist()}
        assert len(pool) == 8
        assert drawn == pool
        unseen = task.parameters(jax.random.key(0), 500, held_out=True)["w"]
        assert not pool & {tuple(w) for w in np.asarray(unseen).tolist()}
        assert len({tuple(w) for w in np.asarray(unseen).tolist()}) == 500

    def test_pool_depends_on_its_seed_alone(self):
        pool = Linear(pool=8).pool_weights()
        np.testing.assert_array_equal(pool, Linear(pool=8, noise=1.0).pool_weights())
        np.testing.assert_array_equal(pool, Linear(pool=16).pool_weights()[:8])
        assert (np.asarray(pool) != np.asarray(Linear(pool=8, pool_seed=1).pool_weights())).all()

    def test_only_a_finite_pool_holds_anything_out(self):
        assert Linear(pool=3).has_held_out
        assert not Linear().has_held_out


class TestSinusoid:
    def test_parameters_stay_in_the_ranges_of_their_split(self):
        task = Sinusoid(2, (0.5, 2.0), (0.5, 1.5), (0.0, 1.0), (2.0, 3.0), (1.5, 2.5), (1.0, 2.0))
        for held_out, ranges in enumerate([((0.5, 2.0), (0.5, 1.5), (0.0, 1.0)), ((2.0, 3.0), (1.5, 2.5), (1.0, 2.0))]):
            drawn = task.parameters(jax.random.key(0), 2000, held_out=bool(held_out))
            sizes = (drawn["amplitude"], jnp.linalg.norm(drawn["frequency"], axis=-1), drawn["phase"])
            for size, (low, high) in zip(sizes, ranges, strict=True):
                margin = 0.01 * (high - low)
                assert low - 1e-5 <= size.min() < low + margin
                assert high - margin < size.max() <= high + 1e-5

    def test_answers_are_the_sinusoid(self):
        prompt = sample(Sinusoid(), jax.random.key(0), 3, 2)
        a, b, c = (np.asarray(prompt.parameters[name]) for name in ("amplitude", "frequency", "phase"))
        expected = a[:, None] * np.sin(np.asarray(prompt.x)[..., 0] * b + c[:, None])
        np.testing.assert_allclose(prompt.targets[..., 0], expected, rtol=1e-4, atol=1e-5)

    def test_directions_are_spread_over_the_sphere(self):
        frequency = Sinusoid(input_width=3).parameters(jax.random.key(0), 5000)["frequency"]
        direction = np.asarray(frequency / jnp.linalg.norm(frequency, axis=-1, keepdims=True))
        np.testing.assert_allclose(direction.mean(0), 0, atol=0.03)
        np.testing.assert_allclose(direction.T @ direction / 5000, np.eye(3) / 3, atol=0.03)

    @pytest.mark.parametrize("task", [Sinusoid(), Sinusoid(3, phase=(0.0, 1.0), frequency=(0.3, 0.4))], ids=str)
    def test_answer_rms_is_what_is_drawn(self, task):
        y = sample(task, jax.random.key(0), 20_000, 3).targets
        np.testing.assert_allclose(jnp.sqrt(jnp.square(y).mean()), task.answer_rms, rtol=0.02)


class TestTokenOffset:
    def test_splits_are_disjoint(self):
        task = TokenOffset()
        seen = set(np.asarray(task.parameters(jax.random.key(0), 500)["c"]).tolist())
        unseen = set(np.asarray(task.parameters(jax.random.key(0), 500, held_out=True)["c"]).tolist())
        assert (seen, unseen) == (set(task.offsets), set(task.held_out_offsets))

    def test_held_out_pairs_never_occur_in_training_and_all_others_do(self):
        task = TokenOffset(held_out_pairs=4, pair_seed=2)
        prompt = sample(task, jax.random.key(0), 2000, 9)
        asked = task.held_out_inputs(jax.random.key(1), prompt.parameters, 9)
        c = np.asarray(prompt.parameters["c"]).tolist()

        def pairs(rows):
            return {(c_b, x) for c_b, row in zip(c, np.asarray(rows).tolist(), strict=True) for x in row}

        trained, held_out = pairs(prompt.x), pairs(asked)
        assert not trained & held_out
        assert trained | held_out == {(c_b, x) for c_b in task.offsets for x in range(20)}
        assert all(sum(c_b == offset for c_b, _ in held_out) == 4 for offset in task.offsets)
        assert trained == {(c_b, x) for c_b, x in np.argwhere(task.shown()).tolist() if c_b in task.offsets}

    def test_pairs_depend_on_their_seed_alone(self):
        shown = np.asarray(TokenOffset().shown())
        np.testing.assert_array_equal(shown, TokenOffset(noise=0.5, held_out_offsets=()).shown())
        assert (shown != np.asarray(TokenOffset(pair_seed=1).shown())).any()

    def test_tasks_held_out_are_shown_with_every_x(self):
        assert np.asarray(TokenOffset().shown())[list(TokenOffset().held_out_offsets)].all()

    def test_training_tokens_are_uniform_over_those_allowed(self):
        task = TokenOffset(5, offsets=(1,), held_out_offsets=(), held_out_pairs=2)
        x = task.inputs(jax.random.key(0), {"c": jnp.ones(4000, int)}, 2)
        share = np.bincount(np.asarray(x).reshape(-1), minlength=5) / 8000
        np.testing.assert_allclose(share, np.asarray(task.shown()[1]) / 3, atol=0.02)

    def test_noise_replaces_that_share_by_uniform_tokens(self):
        prompt = sample(TokenOffset(noise=0.4), jax.random.key(0), 4000, 3)
        offset = (prompt.targets - prompt.x - prompt.parameters["c"][:, None]) % 20
        share = np.bincount(np.asarray(offset).reshape(-1), minlength=20) / offset.size
        np.testing.assert_allclose(share, 0.4 / 20 + 0.6 * (np.arange(20) == 0), atol=0.01)
