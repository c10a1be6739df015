"""Each shift has the property it is named for, on drawn data, and differs from training in nothing else."""

import functools

import jax
import numpy as np
import pytest

from tvjax.tasks import (
    LAYOUTS,
    NO_SHIFT,
    DecisionTree,
    Linear,
    LinearClassification,
    Quadratic,
    ReLUNetwork,
    Sinusoid,
    TokenOffset,
    draw,
    oracle_scores,
    shifts_for,
)

LAYOUT = LAYOUTS["xzy"]
LINEAR, POOLED = Linear(input_width=4), Linear(input_width=5, pool=6, noise=0.1)
SINUSOID, TOKENS = Sinusoid(grid=(4, 12, 16)), TokenOffset()
MAP = Linear(input_width=4, outputs=2)
TASKS = {"linear": LINEAR, "pooled": POOLED, "map": MAP, "sinusoid": SINUSOID, "tokens": TOKENS}
BATCH, DEMONSTRATIONS = 1024, 6
SCALES = [f"{part}_scale_{scale}" for part in ("input", "output") for scale in ("0.33", "0.5", "2", "3")]
SHIFTS = {
    family: {shift.name: shift for shift in (NO_SHIFT, *shifts_for(task, DEMONSTRATIONS))}
    for family, task in TASKS.items()
}
SHIFTS["pooled"] = {name: SHIFTS["pooled"][name] for name in ("half_subspace", "orthogonal_query", "held_out_tasks")}
SHIFTS["map"] = {name: SHIFTS["map"][name] for name in ("half_subspace", "output_scale_2", "label_noise")}


@functools.cache
def sampler(family):
    """All shifts of a family in one program, lightly optimized: compiling is most of what these tests cost."""

    def draw_all(key):
        drawn = {name: draw(s, TASKS[family], LAYOUT, key, BATCH, DEMONSTRATIONS) for name, s in SHIFTS[family].items()}
        scores = {name: oracle_scores(SHIFTS[family][name], TASKS[family], shifted) for name, shifted in drawn.items()}
        return drawn, scores

    return jax.jit(draw_all)


@functools.cache
def sampled(family, key=0, run=0):
    return jax.tree.map(np.asarray, sampler(family)(jax.random.key(key)))


def shift_of(name, family):
    return SHIFTS[family][name]


def drawn(name, family="linear", key=0):
    return sampled(family, key)[0][name]


def oracle_risk(name, family="linear"):
    return sampled(family)[1][name]["risk"].mean(0)


def clean(family, shifted, x):
    """The task's noiseless answers at x."""
    p = shifted.prompt.parameters
    if family == "tokens":
        return (x + p["c"][:, None]) % TOKENS.vocab_size
    if family == "sinusoid":
        return p["amplitude"][:, None, None] * np.sin(x * p["frequency"][:, None] + p["phase"][:, None, None])
    return np.einsum("bnx,byx->bny", x, p["w"].reshape(BATCH, -1, x.shape[-1]))


class TestWhichApply:
    def test_linear(self):
        names = [shift.name for shift in shifts_for(LINEAR, 6)]
        assert names == [
            *SCALES, "quadrants", "skewed_covariance", "half_subspace", "orthogonal_query", "repeated_query",
            "label_noise", "more_demonstrations",
        ]  # fmt: skip

    def test_a_finite_pool_has_tasks_to_hold_out(self):
        assert "held_out_tasks" in {shift.name for shift in shifts_for(POOLED, 6)}

    def test_one_input_dimension_has_no_subspace(self):
        names = [shift.name for shift in shifts_for(SINUSOID, 6)]
        assert names == [*SCALES, "quadrants", "repeated_query", "label_noise", "more_demonstrations", "held_out_tasks"]
        same_ranges = Sinusoid(held_out_frequency=(0.5, 1.5))
        assert "held_out_tasks" not in {shift.name for shift in shifts_for(same_ranges, 6)}

    def test_tokens(self):
        names = [shift.name for shift in shifts_for(TOKENS, 6)]
        assert names == ["repeated_query", "label_noise", "more_demonstrations", "held_out_tasks", "held_out_pairs"]
        assert "held_out_pairs" not in {shift.name for shift in shifts_for(TokenOffset(held_out_pairs=0), 6)}
        assert "held_out_tasks" not in {shift.name for shift in shifts_for(TokenOffset(held_out_offsets=()), 6)}

    def test_other_regressions_have_those_of_linear(self):
        assert {shifts_for(task, 6) for task in (Quadratic(), ReLUNetwork(), DecisionTree())} == {shifts_for(LINEAR, 6)}

    def test_labels_have_no_scale(self):
        names = [shift.name for shift in shifts_for(LinearClassification(), 6)]
        assert names == [shift.name for shift in shifts_for(LINEAR, 6) if "output_scale" not in shift.name]

    @pytest.mark.parametrize(("max_pairs", "fits"), [(None, True), (13, True), (12, False)])
    def test_more_demonstrations_only_where_the_decoder_has_positions(self, max_pairs, fits):
        assert ("more_demonstrations" in {shift.name for shift in shifts_for(LINEAR, 6, max_pairs)}) == fits

    def test_names_are_unique(self):
        for task in TASKS.values():
            names = [shift.name for shift in (NO_SHIFT, *shifts_for(task, 6))]
            assert len(set(names)) == len(names)


ALL = [(name, family) for family in TASKS for name in SHIFTS[family]]


@pytest.mark.parametrize(("name", "family"), ALL)
class TestEveryShift:
    def test_shapes(self, name, family):
        shifted, task = drawn(name, family), TASKS[family]
        pairs = (2 if name == "more_demonstrations" else 1) * DEMONSTRATIONS + 1
        x_shape = (BATCH, pairs) if family == "tokens" else (BATCH, pairs, task.input_width)
        y_shape = (BATCH, pairs) if family == "tokens" else (BATCH, pairs, task.num_outputs)
        assert shifted.prompt.x.shape == shifted.queries.shape == x_shape
        assert shifted.prompt.targets.shape == shifted.answers.shape == shifted.shown.shape == y_shape
        assert shifted.fresh_x.shape == (BATCH, *x_shape[2:])
        assert shifted.fresh_answers.shape == (BATCH, *y_shape[2:])
        assert shifted.prompt.inputs.shape[1] == LAYOUT.length(pairs)

    def test_inputs_show_the_demonstrations(self, name, family):
        shifted = drawn(name, family)
        expected = TASKS[family].encode(LAYOUT, shifted.prompt.x, shifted.shown)
        np.testing.assert_array_equal(shifted.prompt.inputs, expected)
        assert (np.asarray(shifted.shown) == np.asarray(shifted.prompt.targets)).all() == (name != "label_noise")

    def test_what_is_not_separate_is_the_prompt_itself(self, name, family):
        shifted = drawn(name, family)
        same = shifted.queries.shape == shifted.prompt.x.shape and (shifted.queries == shifted.prompt.x).all()
        assert bool(same) == (not shifted.separate)
        if not shifted.separate:
            np.testing.assert_array_equal(shifted.answers, shifted.prompt.targets)

    def test_answers_are_the_tasks(self, name, family):
        shifted = drawn(name, family)
        scale = shift_of(name, family).output_scale
        tolerance = 0.6 * scale if family == "pooled" else 1e-4
        for x, answers in ((shifted.prompt.x, shifted.prompt.targets), (shifted.queries, shifted.answers)):
            np.testing.assert_allclose(answers, scale * clean(family, shifted, x), atol=tolerance)
        fresh = clean(family, shifted, shifted.fresh_x[:, None])[:, 0]
        np.testing.assert_allclose(shifted.fresh_answers, scale * fresh, atol=tolerance)

    def test_a_key_settles_it(self, name, family):
        again = sampled(family, run=1)[0][name]
        jax.tree.map(np.testing.assert_array_equal, drawn(name, family), again)
        assert (drawn(name, family, key=1).prompt.x != drawn(name, family).prompt.x).any()

    def test_the_fresh_query_is_not_the_last_one(self, name, family):
        shifted = drawn(name, family)
        equal = (shifted.fresh_x == shifted.queries[:, -1]).reshape(BATCH, -1).all(-1)
        assert equal.mean() < (0.75 if family == "tokens" else 0.4 if name == "repeated_query" else 0.01)

    def test_the_oracle_has_a_finite_score_for_each_query(self, name, family):
        risk = oracle_risk(name, family)
        assert np.isfinite(risk).all()
        assert risk.shape == drawn(name, family).prompt.x.shape[1:2]


class TestInputs:
    def moments(self, x):
        return np.asarray(np.square(x).mean((0, 1)))

    @pytest.mark.parametrize(("suffix", "scale"), [("0.33", 1 / 3), ("0.5", 0.5), ("2", 2), ("3", 3)])
    def test_scales(self, suffix, scale):
        base, inputs, outputs = (
            drawn("in_distribution"),
            drawn(f"input_scale_{suffix}"),
            drawn(f"output_scale_{suffix}"),
        )
        np.testing.assert_allclose(inputs.prompt.x, scale * base.prompt.x, rtol=1e-5)
        np.testing.assert_allclose(inputs.fresh_x, scale * base.fresh_x, rtol=1e-5)
        np.testing.assert_allclose(outputs.answers, scale * base.answers, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(outputs.fresh_answers, scale * base.fresh_answers, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(outputs.prompt.x, base.prompt.x)

    def test_skewed_covariance_has_its_spectrum_and_the_trace_of_the_identity(self):
        pure = jax.jit(draw, static_argnums=(0, 1, 2, 4, 5))
        shifted = pure(shift_of("skewed_covariance", "linear"), LINEAR, LAYOUT, jax.random.key(0), 256, 1000)
        x = np.asarray(shifted.prompt.x)
        covariance = np.einsum("bnx,bnz->bxz", x, x) / 1001
        spectrum = np.linalg.eigvalsh(covariance)[:, ::-1].mean(0)
        expected = 1 / np.arange(1, 5)
        np.testing.assert_allclose(spectrum, 4 * expected / expected.sum(), rtol=0.05)
        np.testing.assert_allclose(covariance.mean(0), np.eye(4), atol=0.2)
        leading = np.linalg.eigh(covariance)[1][:, :, -1]
        along = np.einsum("bx,bx->b", leading, np.asarray(shifted.fresh_x))
        np.testing.assert_allclose(np.square(along).mean(), spectrum[0], rtol=0.3)

    @pytest.mark.parametrize("family", ["linear", "pooled"])
    def test_half_subspace(self, family):
        shifted, width = drawn("half_subspace", family), TASKS[family].input_width
        singular = np.linalg.svd(np.asarray(shifted.prompt.x), compute_uv=False)
        assert (singular[:, width // 2 - 1] > 1e-2).all()
        assert (singular[:, width // 2 :] < 1e-4).all()
        np.testing.assert_allclose(self.moments(shifted.queries), 1, atol=0.2)
        np.testing.assert_allclose(np.square(shifted.prompt.x).sum(-1).mean(), width // 2, rtol=0.1)

    @pytest.mark.parametrize("family", ["linear", "pooled"])
    def test_orthogonal_query(self, family):
        shifted, width = drawn("orthogonal_query", family), TASKS[family].input_width
        everything = np.concatenate([shifted.queries, shifted.fresh_x[:, None]], axis=1)
        assert np.abs(np.einsum("bnx,bmx->bnm", shifted.prompt.x, everything)).max() < 1e-4
        rest = width - width // 2
        np.testing.assert_allclose(np.square(everything).sum(-1).mean(), rest, rtol=0.1)
        assert np.linalg.matrix_rank(np.asarray(everything), rtol=1e-4).tolist() == [rest] * BATCH

    @pytest.mark.parametrize("family", ["linear", "sinusoid"])
    def test_quadrants(self, family):
        shifted = drawn("quadrants", family)
        sign = np.sign(np.asarray(shifted.prompt.x))
        assert (sign == sign[:, :1]).all()
        assert (np.sign(np.asarray(shifted.queries)) == -sign).all()
        assert (np.sign(np.asarray(shifted.fresh_x)) == -sign[:, 0]).all()
        assert np.abs(sign[:, 0].mean(0)).max() < 0.25
        assert (np.abs(shifted.queries) != np.abs(shifted.prompt.x)).all()

    @pytest.mark.parametrize("family", ["linear", "tokens"])
    def test_repeated_query_is_one_of_those_before_it(self, family):
        shifted = drawn("repeated_query", family)
        x, queries = (np.asarray(v).reshape(BATCH, 7, -1) for v in (shifted.prompt.x, shifted.queries))
        matches = (queries[:, :, None] == x[:, None]).all(-1)
        before = np.tril(np.ones((7, 7), bool), -1)
        before[0, 0] = True
        assert (matches & before).any(-1).all()
        fresh = (np.asarray(shifted.fresh_x).reshape(BATCH, 1, -1) == x).all(-1)
        assert fresh[:, :6].any(-1).all()
        if family == "linear":
            assert matches[:, 6, :6].mean(0).min() > 0.08
            assert fresh[:, :6].mean(0).min() > 0.08

    def test_held_out_pairs_are_asked_and_never_shown(self):
        shifted = drawn("held_out_pairs", "tokens")
        allowed, c = np.asarray(TOKENS.shown()), np.asarray(shifted.prompt.parameters["c"])
        assert allowed[c[:, None], shifted.prompt.x].all()
        assert not allowed[c[:, None], shifted.queries].any()
        assert not allowed[c, shifted.fresh_x].any()


class TestLabelsAndTasks:
    @pytest.mark.parametrize("family", ["linear", "map", "sinusoid"])
    def test_label_noise_is_half_of_the_prior_and_answers_are_clean(self, family):
        shifted = drawn("label_noise", family)
        error = np.asarray(shifted.shown - shifted.prompt.targets)
        np.testing.assert_allclose(error.std(), 0.5 * TASKS[family].answer_rms, rtol=0.03)

    def test_token_label_noise(self):
        shifted = drawn("label_noise", "tokens")
        wrong = (np.asarray(shifted.shown) != np.asarray(shifted.prompt.targets)).mean()
        np.testing.assert_allclose(wrong, 0.2 * 19 / 20, atol=0.01)

    def test_held_out_tasks(self):
        pool = np.asarray(POOLED.pool_weights())
        w = np.asarray(drawn("held_out_tasks", "pooled").prompt.parameters["w"])
        assert not (w[:, None] == pool[None]).all(-1).any()
        assert set(np.asarray(drawn("held_out_tasks", "tokens").prompt.parameters["c"]).tolist()) == {3, 7, 11}
        assert drawn("held_out_tasks", "sinusoid").prompt.parameters["frequency"].min() >= 1.5


class TestOracleScores:
    def test_in_distribution(self):
        np.testing.assert_allclose(oracle_risk("in_distribution")[:4], [1, 0.75, 0.5, 0.25], rtol=0.2)

    @pytest.mark.parametrize("scale", [1 / 3, 0.5, 2, 3])
    def test_least_squares_needs_no_telling_of_scales(self, scale):
        base = oracle_risk("in_distribution")
        for part in ("input", "output"):
            np.testing.assert_allclose(oracle_risk(f"{part}_scale_{scale:.2g}")[:4], scale**2 * base[:4], rtol=1e-3)

    def test_nothing_is_learned_of_an_orthogonal_query(self):
        np.testing.assert_allclose(oracle_risk("orthogonal_query"), 0.5, rtol=0.25)

    def test_half_subspace_leaves_half_of_the_risk(self):
        risk = oracle_risk("half_subspace")
        np.testing.assert_allclose(risk, [1, 0.75, 0.5, 0.5, 0.5, 0.5, 0.5], rtol=0.2)

    def test_several_outputs_have_the_risks_of_one(self):
        np.testing.assert_allclose(oracle_risk("half_subspace", "map"), [1, 0.75, *[0.5] * 5], rtol=0.2)
        np.testing.assert_allclose(oracle_risk("output_scale_2", "map")[:4], [4, 3, 2, 1], rtol=0.2)

    def test_a_repeated_query_is_known(self):
        assert oracle_risk("repeated_query")[1:].max() < 1e-6
        assert oracle_risk("repeated_query", "tokens")[1:].max() < 1e-5

    def test_is_told_of_label_noise(self):
        risk = oracle_risk("label_noise")
        assert (risk[1:] < 1).all()
        assert risk[6] < risk[3] < risk[1]
        assert oracle_risk("label_noise", "tokens")[6] < 0.1

    def test_is_told_the_split_and_that_pairs_are_held_out(self):
        assert oracle_risk("held_out_tasks", "tokens")[1:].max() < 1e-5
        assert oracle_risk("held_out_pairs", "tokens")[1:].max() < 1e-5
        assert oracle_risk("held_out_tasks", "pooled")[4:].max() < 0.6
        assert oracle_risk("held_out_tasks", "sinusoid")[6] < 0.1
