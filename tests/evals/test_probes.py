"""Probes of models made by hand, whose answers are known, and of numbers whose geometry is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import handmade
from tvjax.evals import geometry, probes, prompting
from tvjax.evals.measure import Measure
from tvjax.evals.recovery import neighbours
from tvjax.evals.statistics import ratio
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model, forward
from tvjax.tasks import GINC, LAYOUTS, NO_SHIFT, Linear, Sinusoid, TokenOffset, draw
from tvjax.vectors import tvp

K, V, OFFSETS, PROMPTS = 4, 5, (0, 1, 3), 150
TASK = TokenOffset(V, offsets=OFFSETS, held_out_offsets=(2,), held_out_pairs=0)
LAYOUT = LAYOUTS["xzy"]
PLACES = LAYOUT.length(K + 1)
CHANCE = pytest.approx(1 / V, abs=0.12)


def measure(model, task=TASK, layers=(2,), *, demonstrations=K, prompts=PROMPTS, edit="replace", seed=0):
    """The whole path of an experiment: members, their vectors, their probes."""
    layout = LAYOUT.wide(task.x_tokens)
    measured = Measure(model, task, layout, demonstrations, edit=edit, prompts=200, seed=seed)
    _, seen = measured(NO_SHIFT)
    where = {"prescribed": list(layers), "best": list(layers)}
    return probes.measure(model, task, layout, demonstrations, where, seen, edit=edit, prompts=prompts, seed=seed)


@pytest.fixture(scope="module")
def solved():
    """Theta at layer 2 is the task: (the model, its probes)."""
    model = handmade.token_offset(TASK, PLACES)
    return model, measure(jax.tree.map(lambda p: p[None], model))[0]


@pytest.fixture(scope="module")
def idle():
    """The task stands in theta at layer 2, but is read elsewhere."""
    model = handmade.token_offset(TASK, PLACES, theta_is_read=False)
    return model, measure(jax.tree.map(lambda p: p[None], model))[0]


def sweep(model):
    drawn = draw(NO_SHIFT, TASK, LAYOUT, jax.random.key(0), 400, K)
    scores, theta_LBD = prompting.score(model, TASK, drawn, "replace")
    return {name: np.asarray(value) for name, value in scores.items()}, drawn, np.asarray(theta_LBD)


class TestTheHandmadeModel:
    """What the sweep must find of it, with no training involved."""

    @pytest.mark.parametrize("kind", ["solved", "idle"])
    def test_one_demonstration_tells_it_the_task(self, kind, request):
        scores, _, _ = sweep(request.getfixturevalue(kind)[0])
        assert scores["icl_accuracy"][:, 0].mean() == CHANCE and (scores["icl_accuracy"][:, 1:] == 1).all()
        assert scores["icl_risk"][:, 1:].max() < 1e-6
        np.testing.assert_allclose(scores["zero_shot_risk"], np.log(V), rtol=1e-5)

    def test_the_sweep_is_right_at_layer_2_and_nowhere_else(self, solved):
        scores, drawn, _ = sweep(solved[0])
        assert (scores["tvp_accuracy_by_layer"][2] == 1).all() and scores["tvp_risk_by_layer"][2].max() < 1e-6
        np.testing.assert_allclose(scores["tvp_risk_by_layer"][:2], np.log(V), rtol=1e-5)
        # Layer 3 has answered the prompt's own query already.
        said = (drawn.prompt.targets[:, -1] == drawn.fresh_answers).astype(float)
        np.testing.assert_array_equal(scores["tvp_accuracy_by_layer"][3], said)

    def test_a_task_in_a_place_that_nobody_reads_is_no_task_vector(self, idle):
        scores, _, _ = sweep(idle[0])
        np.testing.assert_allclose(scores["tvp_risk_by_layer"][:3], np.log(V), rtol=1e-5)
        assert scores["tvp_accuracy_by_layer"][3].mean() == CHANCE

    def test_packed_dummies_are_prompts_of_their_own(self, solved):
        model, _ = solved
        _, drawn, theta_LBD = sweep(model)
        queries = jnp.concatenate([drawn.prompt.x[:, -1:], drawn.fresh_x[:, None]], axis=1)
        out, theta_LBSD = probes.after_dummies(model, TASK, drawn.prompt, queries)
        np.testing.assert_allclose(theta_LBSD[:, :, 0], theta_LBD, rtol=1e-5, atol=1e-3)
        other = TASK.prompt(
            LAYOUT, drawn.prompt.parameters, drawn.prompt.x.at[:, -1].set(drawn.fresh_x), drawn.prompt.targets
        )
        again, states = tvp.run_prompt(model, other)
        np.testing.assert_allclose(theta_LBSD[:, :, 1], states[:, :, -1], rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(out[:, 1], again[:, -1], rtol=1e-4, atol=1e-3)


class TestDecodability:
    @pytest.mark.parametrize("kind", ["solved", "idle"])
    def test_the_task_is_read_where_it_stands_whether_it_is_used_or_not(self, kind, request):
        for reader in ("linear", "neighbours"):
            entry = request.getfixturevalue(kind)[1]["decodability"][reader]["c"]
            np.testing.assert_allclose(entry["explained"][2:], 1, atol=1e-3)
            np.testing.assert_allclose(entry["explained"][:2], 0, atol=0.05)
            assert entry["accuracy"][2:] == [1.0, 1.0] and max(entry["accuracy"][:2]) < 0.5
            for low_high, value in zip(entry["accuracy_ci"], entry["accuracy"], strict=True):
                assert low_high[0] <= value <= low_high[1]

    def test_neighbours_by_brute_force(self):
        rng = np.random.default_rng(0)
        given, wanted = rng.normal(size=(40, 3)) + 50, rng.normal(size=(40, 2))
        true, said = neighbours(given, wanted)
        np.testing.assert_array_equal(true, wanted[1::2])
        for place, point in enumerate(given[1::2]):
            nearest = np.argsort(np.linalg.norm(given[::2] - point, axis=1))[:5]
            np.testing.assert_allclose(said[place], wanted[::2][nearest].mean(0))

    def test_neighbours_that_are_as_near_all_count(self):
        wanted = np.arange(40.0)[:, None]
        np.testing.assert_allclose(neighbours(np.ones((40, 3)) / 3, wanted)[1], wanted[::2].mean())
        np.testing.assert_allclose(neighbours(np.ones((6, 3)), wanted[:6])[1], 2.0)

    def test_neighbours_are_scikit_learns(self):
        sklearn = pytest.importorskip("sklearn.neighbors")
        rng = np.random.default_rng(1)
        given, wanted = rng.normal(size=(60, 4)), rng.normal(size=(60, 3))
        fit = sklearn.KNeighborsRegressor(5).fit(given[::2], wanted[::2])
        np.testing.assert_allclose(neighbours(given, wanted)[1], fit.predict(given[1::2]))

    def test_what_is_not_linear_is_read_by_neighbours_alone(self):
        rng = np.random.default_rng(0)
        w = rng.normal(size=2000)
        theta = np.stack([np.cos(6 * w), np.sin(6 * w)], axis=1)[:, None] * [[[1.0], [0.0]]]
        found = geometry.decodability(np.swapaxes(theta, 1, 2), {"angle": np.cos(12 * w)[:, None]})
        assert found["linear"]["angle"]["explained"][0] < 0.05
        assert found["neighbours"]["angle"]["explained"][0] > 0.99
        assert "accuracy" not in found["linear"]["angle"]

    def test_several_parameters_are_also_read_together_each_of_equal_weight(self):
        rng = np.random.default_rng(0)
        a, b = rng.normal(size=(4000, 2)).T
        entry = geometry.decodability(a[:, None, None], {"a": 1000 * a, "b": b})["linear"]
        assert list(entry) == ["a", "b", "all"]
        assert entry["a"]["explained"][0] == pytest.approx(1) and entry["b"]["explained"][0] == pytest.approx(
            0, abs=0.01
        )
        assert entry["all"]["explained"][0] == pytest.approx(0.5, abs=0.02)
        assert list(geometry.decodability(a[:, None, None], {"b": b})["linear"]) == ["b"]

    def test_accuracy_is_by_class_in_each_place_of_a_parameter(self):
        places = np.random.default_rng(0).integers(3, 6, (400, 2))
        hot = (places[:, :, None] == np.arange(3, 6)).reshape(400, -1).astype(float)
        entry = geometry.decodability(hot[:, None, :3], {"node": places})["linear"]["node"]
        assert entry["accuracy"][0] == pytest.approx((1 + 1 / 3) / 2, abs=0.08)


class TestEntanglement:
    def test_there_is_none_before_the_query_is_answered(self, solved, idle):
        for _, entry in (solved, idle):
            assert entry["entanglement"]["ratio"][:3] == [0, 0, 0]
            assert entry["entanglement"]["ratio_ci"][:3] == [[0, 0]] * 3

    def test_an_answer_varies_as_theory_says(self, solved):
        """At layer 3 stand the query and the answer, each uniform over V tokens, and c, uniform over the offsets."""
        low, high = solved[1]["entanglement"]["ratio_ci"][3]
        expected = 2 * (1 - 1 / V) / (1 - 1 / len(OFFSETS))
        assert low * 0.95 < expected < high * 1.05 and high - low < 0.5

    def test_averaging_keeps_the_task_and_is_each_count(self, solved):
        entry = solved[1]["averaging"]
        assert entry["counts"] == [1, 2, 4, 8]
        np.testing.assert_array_equal(np.array(entry["accuracy"])[:, 2], 1)
        np.testing.assert_allclose(np.array(entry["risk"])[:, :2], np.log(V), rtol=1e-5)
        answers = np.array(entry["risk"])[:, 3]
        assert answers[0] > answers[1] > answers[2] > answers[3] > np.log(V)

    def draws(self, dummy, task, prompts=400, queries=8):
        """Theta of one layer: a task's part of that deviation, and a dummy query's."""
        keys = jax.random.split(jax.random.key(3))
        parts = (jax.random.normal(keys[0], (1, prompts, 1, 6)), jax.random.normal(keys[1], (1, prompts, queries, 6)))
        return np.asarray(100 + task * parts[0] + dummy * parts[1])

    @pytest.mark.parametrize(("dummy", "task"), [(1.0, 1.0), (0.3, 1.0), (2.0, 1.0)])
    def test_the_ratio_of_known_variances(self, dummy, task):
        entry = geometry.entanglement(self.draws(dummy, task))
        assert entry["ratio"][0] == pytest.approx((dummy / task) ** 2, rel=0.1)
        low, high = entry["ratio_ci"][0]
        assert low < (dummy / task) ** 2 < high

    def test_the_same_dummy_query_eight_times_is_none(self, solved):
        model, _ = solved
        drawn = draw(NO_SHIFT, TASK, LAYOUT, jax.random.key(1), 20, K)
        queries = jnp.repeat(drawn.fresh_x[:, None], 8, axis=1)
        _, theta_LBSD = probes.after_dummies(model, TASK, drawn.prompt, queries)
        assert geometry.entanglement(np.asarray(theta_LBSD))["ratio"] == [0] * 4
        assert geometry.entanglement(self.draws(0.0, 1.0))["ratio"] == [0]

    def test_what_varies_with_the_dummy_query_alone_has_no_ratio(self):
        same = np.broadcast_to(self.draws(1.0, 0.0)[:, :1], (1, 40, 8, 6))
        assert geometry.entanglement(same) == {"ratio": [None], "ratio_ci": [[None, None]]}

    def test_the_order_of_prompts_and_of_dummy_queries_does_not_matter(self):
        theta = self.draws(0.7, 1.0)
        rng = np.random.default_rng(0)
        moved = theta[:, rng.permutation(400)][:, :, rng.permutation(8)]
        np.testing.assert_allclose(geometry.entanglement(moved)["ratio"], geometry.entanglement(theta)["ratio"])


class TestSwap:
    def test_the_vector_is_answered_at_layer_2_and_the_prompt_below(self, solved):
        entry = solved[1]["swap"]
        np.testing.assert_array_equal(entry["vector_accuracy"][:3], [0, 0, 1])
        np.testing.assert_array_equal(entry["prompt_accuracy"][:3], [1, 1, 0])
        assert entry["vector_accuracy"][3] == CHANCE and entry["prompt_accuracy"][3] == CHANCE
        assert max(entry["vector_risk"][2], *entry["prompt_risk"][:2]) < 1e-6

    def test_without_the_edit_the_prompt_is_answered(self, solved):
        entry = solved[1]["swap"]
        assert entry["unedited_prompt_accuracy"] == 1 and entry["unedited_vector_accuracy"] == 0
        assert entry["unedited_prompt_risk"] < 1e-6 < entry["unedited_vector_risk"]

    def test_a_model_that_reads_the_demonstrations_again_answers_the_prompt(self, idle):
        entry = idle[1]["swap"]
        np.testing.assert_array_equal(entry["vector_accuracy"][:3], [0, 0, 0])
        np.testing.assert_array_equal(entry["prompt_accuracy"][:3], [1, 1, 1])
        assert entry["prompt_accuracy"][3] == CHANCE

    def test_at_the_last_layer_it_is_the_dummy_query_that_was_answered(self, solved):
        model, _ = solved
        _, drawn, theta_LBD = sweep(model)
        inputs = jnp.roll(drawn.prompt.inputs, 1, axis=0)
        out = probes.swapped(model, inputs, jnp.asarray(theta_LBD), "replace")
        np.testing.assert_array_equal(out[3].argmax(-1), drawn.prompt.targets[:, -1])

    def test_the_other_prompt_is_the_next_of_another_task(self):
        assert probes.others({"c": np.array([1, 1, 2, 2, 2, 1])}).tolist() == [2, 2, 5, 5, 5, 2]
        assert probes.others({"c": np.array([1, 1, 1])}).tolist() == [1, 2, 0]
        assert probes.others({"w": np.arange(8.0).reshape(4, 2), "c": np.ones(4, int)}).tolist() == [1, 2, 3, 0]


class TestSuperposition:
    def test_the_greater_share_is_answered(self, solved):
        entry = solved[1]["superposition"]
        assert entry["shares"] == [0, 0.25, 0.5, 0.75, 1]
        first, second = entry["first_accuracy"], entry["second_accuracy"]
        assert first[:2] == [0, 0] and first[3:] == [1, 1] and second[:2] == [1, 1] and second[3:] == [0, 0]
        assert first[2] + second[2] == 1 and 0.3 < first[2] < 0.7
        np.testing.assert_allclose(entry["first_risk"][2], np.log(2), rtol=1e-3)

    def test_without_a_task_vector_neither_is(self, idle):
        entry = idle[1]["superposition"]
        np.testing.assert_allclose([entry["first_risk"], entry["second_risk"]], np.log(V), rtol=1e-5)

    def test_queries_come_from_both_tasks_in_turn(self):
        task = TokenOffset(7, offsets=(0, 1, 3), held_out_offsets=(), held_out_pairs=6)  # an offset is shown with one x
        drawn = draw(NO_SHIFT, task, LAYOUT, jax.random.key(0), 30, 2)
        asks = probes.draw_questions(task, drawn, jax.random.key(1))
        c, x = np.asarray(drawn.prompt.parameters["c"]), np.asarray(asks["mix_x"])
        whose = np.where(np.arange(30) % 2 == 0, c, c[np.asarray(asks["other"])])
        assert np.asarray(task.shown())[whose, x].all()
        np.testing.assert_array_equal(asks["mix"]["first"], (x + c) % 7)
        np.testing.assert_array_equal(asks["mix"]["second"], (x + c[np.asarray(asks["other"])]) % 7)
        assert (c != c[np.asarray(asks["other"])]).all()

    def test_so_do_those_of_swaps(self):
        """Or the vector alone would be asked what its task was never trained on."""
        task = TokenOffset(7, offsets=(0, 1, 3), held_out_offsets=(), held_out_pairs=6)
        drawn = draw(NO_SHIFT, task, LAYOUT, jax.random.key(0), 30, 2)
        asks = probes.draw_questions(task, drawn, jax.random.key(1))
        other = np.asarray(asks["other"])
        c, x = np.asarray(drawn.prompt.parameters["c"]), np.asarray(asks["swap_inputs"])[:, -2]
        assert np.asarray(task.shown())[np.where(np.arange(30) % 2 == 0, c[other], c), x].all()
        np.testing.assert_array_equal(asks["swap_inputs"][:, :-2], drawn.prompt.inputs[other, :-2])
        np.testing.assert_array_equal(asks["swap"]["vector"], (x + c) % 7)
        np.testing.assert_array_equal(asks["swap"]["prompt"], (x + c[other]) % 7)


R, X, Y = 2, 3, 2
MAP = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])


def maps(prompts=300, outputs=Y, inputs=X):
    rng = np.random.default_rng(0)
    return rng.normal(size=(prompts, outputs, inputs)), rng.normal(size=(prompts, 4 * inputs, inputs))


def cut(w, kept):
    """W with its first `kept` directions alone."""
    u, s, v = np.linalg.svd(w, full_matrices=False)
    return np.einsum("pyr,pr,prx->pyx", u, s * (np.arange(s.shape[-1]) < kept), v)


class TestRank:
    @pytest.mark.parametrize(("outputs", "inputs"), [(2, 3), (3, 2)])
    def test_a_vector_that_carries_the_first_directions_alone(self, outputs, inputs):
        w, x = maps(outputs=outputs, inputs=inputs)
        for kept in (0, 1, 2):
            answers = np.einsum("pyx,pnx->pny", cut(w, kept), x)
            entry = geometry.rank(geometry.linear_map(x, answers), w)
            np.testing.assert_allclose(entry["captured"], np.arange(2) < kept, atol=1e-9)
            s = np.linalg.svd(w, compute_uv=False)
            true = (s.sum(1) ** 2 / (s**2).sum(1)).mean()
            assert entry["true_participation"] == pytest.approx(true)
            assert entry["participation"] == pytest.approx((0.0, 1.0, true)[kept])
            shares = (s**2 * (np.arange(2) < kept)).sum() / (s**2).sum()
            assert entry["power"] == pytest.approx(shares)

    def test_shares_of_a_direction_are_weighed_by_its_strength(self):
        """Two prompts: one direction carried whole with s = 3, and not at all with s = 1."""
        w = np.array([[[3.0, 0.0], [0.0, 0.5]], [[1.0, 0.0], [0.0, 0.5]]])
        carried = w * np.array([1.0, 0.0])[:, None, None]
        assert geometry.rank(carried, w)["captured"] == pytest.approx([9 / 10, 0.5])

    def test_turned_directions_are_not_carried(self):
        w = np.diag([2.0, 1.0])[None]
        turned = np.array([[0.0, 2.0], [1.0, 0.0]])[None]
        assert geometry.rank(turned, w)["captured"] == pytest.approx([0, 0])
        assert geometry.rank(-w, w)["captured"] == pytest.approx([-1, -1])

    def test_a_decoder_whose_map_is_known(self):
        task = Linear(input_width=X, outputs=Y)
        for matrix, participation in ((MAP, (5**0.5 + 3) ** 2 / 14), (MAP * [[1], [0]], 1.0)):
            model = handmade.fixed_map(task, matrix, 3 * K + 2)
            x = jax.random.normal(jax.random.key(0), (6, 4 * X, X))
            theta = jnp.zeros((6, model.config.width)).at[:, -1].set(handmade.LARGE)
            theta = theta.at[:, X + 1].set(1)  # z's own mark
            said = probes.answered(model, task, LAYOUT, theta, 0, x, "replace")
            found = geometry.linear_map(np.asarray(x), np.asarray(said))
            np.testing.assert_allclose(found, np.broadcast_to(matrix, (6, Y, X)), rtol=1e-3, atol=1e-3)
            assert geometry.rank(found, maps(6)[0])["participation"] == pytest.approx(participation, rel=1e-3)

    def test_the_whole_path_finds_it(self):
        """At layer 0 of that decoder theta says nothing: every prompt's map is the same, of known numbers."""
        task = Linear(input_width=X, outputs=Y)
        model = handmade.fixed_map(task, MAP, 3 * K + 2)
        (entry,) = measure(jax.tree.map(lambda p: p[None], model), task, (0,), prompts=70)
        for found in entry["rank"].values():
            assert found["participation"] == pytest.approx((5**0.5 + 3) ** 2 / 14, rel=1e-3)
            assert len(found["captured"]) == R and found["captured_ci"][0][0] < 0 < found["captured_ci"][0][1]
        assert "mixture_risk" in entry["superposition"] and "first_accuracy" not in entry["superposition"]
        (later,) = measure(jax.tree.map(lambda p: p[None], model), task, (1,), prompts=70)
        assert later["rank"]["best"]["participation"] < 1.7, "from layer 1 on the answer is that to the dummy query"


class TestRatio:
    def test_is_that_of_sums_with_an_interval_around_it(self):
        rng = np.random.default_rng(0)
        below = rng.uniform(1, 3, size=(500, 2))
        above = below * [0.5, 2.0] + rng.normal(size=(500, 2))
        value, limits = ratio(above, below)
        np.testing.assert_allclose(value, above.sum(0) / below.sum(0))
        assert (limits[:, 0] < value).all() and (value < limits[:, 1]).all() and limits.shape == (2, 2)
        np.testing.assert_allclose(limits[:, 1] - limits[:, 0], 2 * 1.645 / 500**0.5 / 2, rtol=0.15)

    def test_of_nothing_is_0(self):
        value, limits = ratio(np.ones((4, 2)), np.zeros((4, 2)))
        assert not value.any() and not limits.any()


@pytest.fixture(scope="module")
def random_members():
    """Two random members on vector-valued regression."""
    task = Linear(input_width=2, outputs=2)
    decoder = Decoder(DecoderConfig(num_layers=2, width=16, num_heads=2, max_positions=32, **task.decoder_inputs()))
    inputs = task.sample(jax.random.key(0), 1, 3, LAYOUT).inputs
    params = jax.vmap(lambda key: decoder.init(key, inputs)["params"])(jax.random.split(jax.random.key(0)))
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    return task, Model(params, decoder.config)


class TestMembers:
    def test_a_member_is_probed_as_if_alone_at_its_own_layer(self, random_members):
        task, model = random_members
        both = measure(model, task, (1, 2), demonstrations=3, prompts=70)
        alone = measure(jax.tree.map(lambda p: p[1:], model), task, (2,), demonstrations=3, prompts=70)
        flat = lambda tree: jax.tree.leaves(tree, is_leaf=lambda x: x is None)
        for one, other in zip(flat(both[1]), flat(alone[0]), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-4)
        assert both[0]["superposition"] != both[1]["superposition"]
        assert both[0]["num_prompts"] == 70 and both[0]["num_dummies"] == 8

    def test_every_number_has_its_interval_around_it(self, random_members):
        task, model = random_members

        def check(tree):
            for name, value in tree.items():
                if isinstance(value, dict):
                    check(value)
                elif f"{name}_ci" in tree:
                    limits = np.array(tree[f"{name}_ci"], float)
                    assert limits.shape == (*np.shape(value), 2), name
                    inside = (limits[..., 0] <= np.array(value, float)) & (np.array(value, float) <= limits[..., 1])
                    assert (inside | np.isnan(limits).any(-1)).all(), name
                else:
                    assert name.endswith("_ci") or name in ("num_prompts", "num_dummies", "counts", "shares"), name

        for entry in measure(model, task, (1, 1), demonstrations=3, prompts=70):
            check(entry)

    def test_swaps_and_mixes_score_what_they_say(self, random_members):
        """One by one, without vmap: the swap in whole prompts, the mix in zero-shot prompts."""
        task, model = random_members
        model = jax.tree.map(lambda p: p[0], model)
        drawn = draw(NO_SHIFT, task, LAYOUT, jax.random.key(5), 12, 3)
        asks = probes.draw_questions(task, drawn, jax.random.key(6))
        found = probes.run(model, task, drawn, asks, {"prescribed": 1, "best": 2}, "replace")
        _, theta_LBND = tvp.run_prompt(model, drawn.prompt)
        theta, other = theta_LBND[:, :, -1], np.asarray(asks["other"])
        w, x = np.asarray(drawn.prompt.parameters["w"]), np.array(drawn.prompt.x)[other]
        x[1::2, -1] = drawn.fresh_x[1::2]
        inputs = task.prompt(LAYOUT, None, jnp.asarray(x), drawn.prompt.targets[other]).inputs
        x_b = x[:, -1]
        right = {"vector": np.einsum("byx,bx->by", w, x_b), "prompt": np.einsum("byx,bx->by", w[other], x_b)}
        for layer in range(3):
            out = tvp.answer_with(model, inputs, theta[layer], layer)
            for kind, answer in right.items():
                expected = np.square(out - answer).mean(-1)
                np.testing.assert_allclose(found["swap"][f"{kind}_risk"][:, layer], expected, rtol=1e-3, atol=1e-4)
        plain = forward(model, inputs)[0][:, -1]
        for kind, answer in right.items():
            expected = np.square(plain - answer).mean(-1)
            np.testing.assert_allclose(found["swap"][f"unedited_{kind}_risk"], expected, rtol=1e-3, atol=1e-4)
        x = np.asarray(asks["mix_x"])
        first, second = np.einsum("byx,bx->by", w, x), np.einsum("byx,bx->by", w[other], x)
        for place, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
            mixed = share * theta[1] + (1 - share) * theta[1][other]
            out = tvp.prompt_with(model, task, LAYOUT, mixed, 1, asks["mix_x"])
            answers = {"first": first, "second": second, "mixture": share * first + (1 - share) * second}
            for kind, answer in answers.items():
                expected = np.square(out - answer).mean(-1)
                said = found["superposition"][f"{kind}_risk"][:, place]
                np.testing.assert_allclose(said, expected, rtol=1e-3, atol=1e-4)
        said = tvp.prompt_with(model, task, LAYOUT, theta[2], 2, asks["map_x"][:, 3])
        np.testing.assert_allclose(found["map"]["best"][:, 3], said, rtol=1e-3, atol=1e-4)

    def test_prompts_in_another_order_have_the_same_probes(self, random_members):
        task, model = random_members
        model = jax.tree.map(lambda p: p[0], model)
        drawn = draw(NO_SHIFT, task, LAYOUT, jax.random.key(5), 12, 3)
        asks = probes.draw_questions(task, drawn, jax.random.key(6))
        order = np.random.default_rng(0).permutation(12)
        moved = jax.tree.map(lambda a: a[order] if a.shape[:1] == (12,) else a, (drawn, asks))
        moved[1]["other"] = jnp.asarray(np.argsort(order)[np.asarray(asks["other"])[order]])
        layers = {"prescribed": 1, "best": 1}
        here = probes.run(model, task, drawn, asks, layers, "replace")
        there = probes.run(model, task, *moved, layers, "replace")
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[order], b, rtol=1e-3, atol=1e-4), here, there)


def test_every_chunk_of_prompts_is_new_and_no_more_are_kept_than_asked_for(random_members, monkeypatch):
    task, model = random_members
    monkeypatch.setattr(probes, "CHUNK", 4)
    drawn, kept = [], []
    draws, entries = probes.draw, probes.entry
    monkeypatch.setattr(probes, "draw", lambda *a: drawn.append(draws(*a)) or drawn[-1])
    monkeypatch.setattr(probes, "entry", lambda *a: kept.append(a) or entries(*a))
    measure(model, task, (1, 2), demonstrations=3, prompts=10)
    w = np.concatenate([d.prompt.parameters["w"] for d in drawn])
    assert [len(d.fresh_x) for d in drawn] == [4] * 3 and len(np.unique(w[:, 0, 0])) == 12
    for arrays, tasks in kept:
        np.testing.assert_array_equal(tasks["w"], w[:10])
        assert {len(leaf) for leaf in jax.tree.leaves(arrays)} == {10}
    member = jax.tree.map(lambda p: p[1], model)
    _, theta_LBND = tvp.run_prompt(member, drawn[2].prompt)
    theta = np.moveaxis(np.asarray(theta_LBND[:, :2, -1]), 0, 1)
    np.testing.assert_allclose(kept[1][0]["theta"][8:, 0], theta, rtol=1e-3, atol=1e-4)


def test_an_added_vector_is_added_in_every_probe():
    model = handmade.token_offset(TASK, PLACES)
    drawn = draw(NO_SHIFT, TASK, LAYOUT, jax.random.key(5), 12, K)
    asks = probes.draw_questions(TASK, drawn, jax.random.key(6))
    theta = {
        edit: probes.run(model, TASK, drawn, asks, {"prescribed": 2, "best": 2}, edit) for edit in ("replace", "add")
    }
    assert all(
        theta["replace"][probe][name][..., 2].all()
        for probe, name in (("swap", "vector_accuracy"), ("averaging", "accuracy"))
    )
    # Added to a whole stream theta doubles its large constant: the norm halves the rest, which then says nothing.
    for found in (theta["add"]["swap"]["vector_risk"][:, 2], theta["add"]["averaging"]["risk"][..., 2]):
        np.testing.assert_allclose(found, np.log(V), rtol=1e-4)
    np.testing.assert_allclose(theta["add"]["superposition"]["first_risk"], np.log(V), rtol=1e-4)


@pytest.mark.parametrize("task", [Sinusoid(grid=(2, 2, 2)), GINC(length=3)], ids=["sinusoid", "strings"])
def test_other_families(task):
    """Strings of one task are none of another: no swap. A phase is read as an angle, with all parameters."""
    layout = LAYOUT.wide(task.x_tokens)
    decoder = Decoder(DecoderConfig(num_layers=2, width=16, num_heads=2, max_positions=32, **task.decoder_inputs()))
    inputs = jax.jit(lambda key: task.sample(key, 1, 3, layout).inputs)(jax.random.key(0))
    params = jax.vmap(lambda key: decoder.init(key, inputs)["params"])(jax.random.split(jax.random.key(0), 1))
    (entry,) = measure(Model(params, decoder.config), task, (1,), demonstrations=3, prompts=20)
    strings = task.x_tokens > 1
    assert ("swap" in entry) == ("superposition" in entry) == (not strings) and "rank" not in entry
    expected = {"concept", "slot", "all"} if strings else {"amplitude", "frequency", "phase", "all"}
    assert set(entry["decodability"]["linear"]) == expected
    assert np.shape(entry["averaging"]["risk"]) == (4, 3)


def test_prompts_are_none_of_those_that_chose_the_best_layer(random_members, monkeypatch):
    """A layer that is best on these prompts by luck would look as good in the probes, were they asked of the same."""
    task, model = random_members
    drawn, draws = [], probes.draw
    monkeypatch.setattr(probes, "draw", lambda *a: drawn.append(draws(*a)) or drawn[-1])
    measure(model, task, (1, 2), demonstrations=3, prompts=4 * probes.CHUNK)
    probed = np.concatenate([d.prompt.parameters["w"] for d in drawn]).reshape(4 * probes.CHUNK, -1)
    measured = Measure(model, task, LAYOUT, 3, edit="replace", prompts=200, seed=0)(NO_SHIFT)[1]
    chosen_on = measured["parameters"]["w"].reshape(200, -1)
    assert not (probed[:, None] == chosen_on[None]).all(-1).any()
