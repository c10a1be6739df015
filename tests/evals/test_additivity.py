"""Sums and combinations of the vectors of single demonstrations, where it is known how the demonstrations add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import handmade
from tvjax.evals import additivity
from tvjax.tasks import LAYOUTS, NO_SHIFT, Linear, TokenOffset, draw
from tvjax.vectors import tvp

K, V, P, D = 4, 5, 200, 7
TASK = TokenOffset(V, offsets=(0, 1, 3), held_out_offsets=(2,), held_out_pairs=0)
LAYOUT = LAYOUTS["xzy"]
PLACES = LAYOUT.length(K + 1)
NEXT = np.roll(np.arange(P), 1)
EXACT = pytest.approx(1, abs=1e-4)


def drawn_states(seed=0):
    random = np.random.default_rng(seed)
    return {"none": np.ones((P, D)) * 2, "alone": 2 + random.normal(size=(P, K, D))}


def measured(model, task, prompts=40):
    batched = jax.tree.map(lambda p: p[None], model)
    entries, oracle = additivity.measure(batched, task, LAYOUT, K, edit="replace", prompts=prompts, seed=0)
    return entries[0], oracle


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (0.25,) * 4, (3, 0, -1, 0.5)], ids=["sum", "mean", "weighted"])
def test_what_adds_up_is_found_exactly(weights):
    """And what all prompts share, here 5, is no part of it but of the bare cosine."""
    states = drawn_states()
    states["all"] = 5 + np.einsum("n,pnd->pd", weights, states["alone"] - 2)
    found, total = additivity.combinations(states, NEXT)
    scores = additivity.compared(found)
    assert total == pytest.approx(sum(weights)) and scores["weighted"]["explained"] == EXACT
    assert scores["best"]["explained"] == EXACT and scores["weighted"]["cosine"] == EXACT
    alike = len(set(weights)) == 1
    for name in ("sum", "mean"):
        assert (scores[name]["centred_cosine"] > 0.9999) == alike
        assert scores[name]["explained"] < 0.9, "the 5 is not theirs"
    assert abs(scores["other_sum"]["centred_cosine"]) < 0.2
    states["all"] = states["all"] - 5 + 2
    scores = additivity.compared(additivity.combinations(states, NEXT)[0])
    exact = {"sum": weights[0] == 1 and alike, "mean": weights[0] == 0.25 and alike}
    assert {name: scores[name]["explained"] > 0.9999 for name in exact} == exact


def test_fits_count_on_prompts_that_they_have_not_seen():
    """Of noise nothing is explained but by weights that are fitted to each prompt: N of D directions."""
    states = drawn_states() | {"all": np.random.default_rng(1).normal(size=(P, D))}
    scores = additivity.compared(additivity.combinations(states, NEXT)[0])
    assert scores["weighted"]["explained"] < 0.03
    for name in ("best", "other_best"):
        assert scores[name]["explained"] == pytest.approx(K / D, abs=0.08)


def test_what_never_varies_is_explained_by_nothing():
    states = {"none": np.full((P, D), 0.1), "alone": np.full((P, K, D), 0.1), "all": np.full((P, D), 0.1)}
    for numbers in additivity.compared(additivity.combinations(states, NEXT)[0]).values():
        assert numbers["explained"] == 0 == numbers["centred_cosine"] and numbers["cosine"] == EXACT


def test_states_are_those_of_prompts_of_their_own():
    model = handmade.token_offset(TASK, PLACES)
    prompt = draw(NO_SHIFT, TASK, LAYOUT, jax.random.key(0), 3, K).prompt
    found = additivity.states(model, TASK, prompt)
    for row in range(3):
        one = jax.tree.map(lambda a, row=row: a[row : row + 1], prompt)
        for shown in ([], [0], [2], list(range(K))):
            at = jnp.array([*shown, K])
            alone = TASK.prompt(LAYOUT, one.parameters, one.x[:, at], one.targets[:, at])
            theta_LD = tvp.run_prompt(model, alone)[1][:, 0, -1]
            name = {0: "none", 1: "alone", K: "all"}[len(shown)]
            here = found[name][:, row, shown[0]] if len(shown) == 1 else found[name][:, row]
            np.testing.assert_allclose(here, theta_LD, atol=1e-5)


def test_demonstrations_that_say_the_same_are_a_mean():
    """Of the model made by hand theta is c, after one demonstration as after all; of the oracle too."""
    entry, oracle = measured(handmade.token_offset(TASK, PLACES), TASK)
    assert entry["weighted"]["total_weight_by_layer"][2] == pytest.approx(1, abs=1e-3)
    for name in ("mean", "weighted", "best"):
        assert entry[name]["explained_by_layer"][2] == EXACT and oracle[name]["explained"] == EXACT
        assert entry[name]["tvp_accuracy_by_layer"][2] == 1 == entry["theta"]["tvp_accuracy_by_layer"][2]
    assert entry["sum"]["centred_cosine_by_layer"][2] == EXACT and entry["sum"]["explained_by_layer"][2] < 0
    assert entry["other_sum"]["tvp_accuracy_by_layer"][2] == 0
    assert entry["sum"]["explained_by_layer"][0] == 0, "at the embedding z is the same everywhere"


def test_of_least_squares_in_two_dimensions_a_sum_has_a_share_of_k_in_k_plus_1():
    """A single pair gives w along its x alone; in the mean over random x the best scaled sum explains K / (K + 1)."""
    task = Linear(2)
    drawn = draw(NO_SHIFT, task, LAYOUT, jax.random.key(0), 600, K)
    states = {name: part[0] for name, part in additivity.oracle_states(task, drawn, jax.random.key(1)).items()}
    found, total = additivity.combinations(states, np.roll(np.arange(600), 1))
    scores = additivity.compared(found)
    assert scores["weighted"]["explained"] == pytest.approx(K / (K + 1), abs=0.04)
    assert total == pytest.approx(2 * K / (K + 1), abs=0.1)
    assert scores["best"]["explained"] == EXACT == scores["other_best"]["explained"], (
        "any two directions span the plane"
    )
    assert abs(scores["other_sum"]["centred_cosine"]) < 0.1
