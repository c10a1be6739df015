"""Evaluation: packed queries are what they stand for, and intervals cover what they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax.evals import prompting
from tvjax.evals.measure import Measure
from tvjax.evals.statistics import bootstrap, with_interval
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model, forward
from tvjax.tasks import LAYOUTS, NO_SHIFT, Linear, draw, oracle_scores, shifts_for
from tvjax.vectors import tvp

K, B = 4, 6


@pytest.fixture(scope="module", params=["xzy", "xy"])
def setting(request):
    task = Linear(input_width=2)
    decoder = Decoder(DecoderConfig(num_layers=2, width=16, num_heads=2, max_positions=32, **task.decoder_inputs()))
    layout = LAYOUTS[request.param]
    inputs = task.sample(jax.random.key(0), 1, K, layout).inputs
    params = jax.jit(decoder.init)(jax.random.key(0), inputs)["params"]
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    return Model(params, decoder.config), task, layout


def shift(task, name):
    return {s.name: s for s in shifts_for(task, K)}[name]


def test_packed_queries_are_asked_one_by_one(setting):
    """One pass over N queries side by side gives what N prompts give, each of i demonstrations and its query."""
    model, task, layout = setting
    drawn = draw(shift(task, "quadrants"), task, layout, jax.random.key(1), B, K)
    assert drawn.separate
    out, theta_LBD = prompting.predict(model, task, drawn)
    for i in range(K + 1):
        x = jnp.concatenate([drawn.prompt.x[:, :i], drawn.queries[:, i : i + 1]], axis=1)
        prompt = task.prompt(layout, drawn.prompt.parameters, x, drawn.shown[:, : i + 1])
        alone, states = tvp.run_prompt(model, prompt)
        np.testing.assert_allclose(out[:, i], alone[:, i], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(theta_LBD, states[:, :, K], rtol=1e-4, atol=1e-4)


def test_a_shift_that_keeps_its_queries_is_one_prompt(setting):
    model, task, layout = setting
    drawn = draw(NO_SHIFT, task, layout, jax.random.key(1), B, K)
    out, theta_LBD = prompting.predict(model, task, drawn)
    expected, found = forward(model, drawn.prompt.inputs, addresses=["blocks/resid"], at=drawn.prompt.queries)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    last = layout.length(K + 1) - 1
    np.testing.assert_allclose(theta_LBD[1:], found["blocks/resid"][:, :, last], rtol=1e-5, atol=1e-6)


def test_the_sweep_is_tvp_at_each_layer(setting):
    model, task, layout = setting
    drawn = draw(NO_SHIFT, task, layout, jax.random.key(1), B, K)
    scores, theta_LBD = prompting.score(model, task, drawn, "replace")
    for layer in range(3):
        out = tvp.prompt_with(model, task, layout, theta_LBD[layer], layer, drawn.fresh_x)
        expected = jnp.square(out - drawn.fresh_answers).mean(-1)
        np.testing.assert_allclose(scores["tvp_risk_by_layer"][layer], expected, rtol=1e-4, atol=1e-5)
    bare, _ = forward(model, task.zero_shot(layout, drawn.fresh_x), at=slice(layout.offset, None))
    expected = jnp.square(bare[:, 0] - drawn.fresh_answers).mean(-1)
    np.testing.assert_allclose(scores["zero_shot_risk"], expected, rtol=1e-4, atol=1e-5)


def test_the_whole_sweep_is_one_compilation(setting):
    model, task, layout = setting
    drawn = draw(NO_SHIFT, task, layout, jax.random.key(1), B, K)
    theta = jnp.zeros((3, B, 16))
    sweep = jax.jit(lambda m, t, d: prompting.layer_sweep(m, task, t, d, "replace"))
    for step in range(3):
        sweep(model, theta + step, drawn)
    assert sweep._cache_size() == 1


PROMPTS, SEED = 300, 3


@pytest.fixture(scope="module")
def measured(setting):
    """Two members on two chunks of prompts: the measure, and what it found."""
    model, task, layout = setting
    two = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), model)
    measure = Measure(two, task, layout, K, edit="replace", prompts=PROMPTS, seed=SEED)
    return measure, *measure(NO_SHIFT)


def chunks(setting, a_shift):
    """What is to be measured, drawn anew."""
    _, task, layout = setting
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), 1), chunk) for chunk in range(2)]
    return [draw(a_shift, task, layout, key, PROMPTS // 2, K) for key in keys]


def test_measure_does_not_depend_on_the_company_of_a_member(setting, measured):
    model, task, layout = setting
    one = jax.tree.map(lambda p: 0.5 * p[None], model)
    _, both, seen = measured
    alone, _ = Measure(one, task, layout, K, edit="replace", prompts=PROMPTS, seed=SEED)(NO_SHIFT)
    assert seen["theta"].shape == (2, PROMPTS, 3, 16)
    assert both["prior_risk"] == alone["prior_risk"]
    for name, value in alone["members"][0].items():
        np.testing.assert_allclose(both["members"][1][name], value, rtol=1e-4, atol=1e-6)
    assert both["prior_risk"] == both["oracle_risk"][0], "the prior is the oracle that has seen nothing"
    np.testing.assert_allclose(both["oracle_risk"][:3], [1, 0.5, 0], atol=0.3)


def test_chunks_are_other_prompts_and_each_vector_keeps_its_task(setting, measured):
    model, task, _ = setting
    _, _, seen = measured
    assert len(np.unique(np.asarray(seen["parameters"]["w"]).reshape(PROMPTS, -1), axis=0)) == PROMPTS
    second = chunks(setting, NO_SHIFT)[1]
    np.testing.assert_array_equal(seen["parameters"]["w"][PROMPTS // 2 :], second.prompt.parameters["w"])
    _, theta_LBD = prompting.predict(model, task, second)
    np.testing.assert_allclose(seen["theta"][0, PROMPTS // 2 :], theta_LBD.swapaxes(0, 1), rtol=1e-4, atol=1e-4)


def test_the_oracle_is_told_of_the_noise(setting, measured):
    _, task, _ = setting
    noisy = shift(task, "label_noise")
    entry, _ = measured[0](noisy)
    scores = [oracle_scores(noisy, task, drawn)["risk"] for drawn in chunks(setting, noisy)]
    np.testing.assert_allclose(entry["oracle_risk"], np.concatenate(scores).mean(0), rtol=1e-4)
    untold = [
        jnp.square(task.oracle(d.prompt.x, d.shown, d.queries) - d.answers).mean() for d in chunks(setting, noisy)
    ]
    assert np.mean(untold) > 1.01 * np.mean(entry["oracle_risk"]), "the noise makes no difference here"


class TestBootstrap:
    def test_ninety_percent_of_intervals_cover_the_mean(self):
        draws = np.random.default_rng(0).exponential(size=(400, 200))
        covered = [low <= 1 <= high for low, high in (bootstrap(d, resamples=300)[1] for d in draws)]
        assert 0.85 < np.mean(covered) < 0.94

    def test_the_interval_of_a_mean_is_that_of_the_normal_approximation(self):
        losses = np.random.default_rng(1).normal(3.0, 2.0, size=(4000, 2))
        mean, interval = bootstrap(losses)
        np.testing.assert_allclose(mean, losses.mean(0))
        half = 1.645 * losses.std(0) / np.sqrt(4000)
        np.testing.assert_allclose(interval, np.stack([mean - half, mean + half], -1), atol=0.15 * half.max())

    def test_curves_share_their_draws(self):
        losses = np.random.default_rng(2).random(50)
        _, interval = bootstrap(np.stack([losses, losses], axis=1))
        np.testing.assert_array_equal(interval[0], interval[1])

    def test_a_summary_gets_plain_numbers(self):
        found = with_interval("icl_risk", np.ones((5, 3), np.float32))
        assert found == {"icl_risk": [1.0] * 3, "icl_risk_ci": [[1.0, 1.0]] * 3}
