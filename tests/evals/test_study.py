"""What an emergence study says of numbers that are made up, so that what it must say is known."""

import math

import numpy as np
import pytest

from tvjax.evals import study
from tvjax.evals.statistics import over_seeds

L, PRIOR = 3, 2.0
STEPS = [0, 100, 200]


def member(seed, icl, by_layer, weight=0.0, layer=1, falls=(1.0, 1.0, 1.0)):
    """A member of prior `PRIOR`; `falls`: its risks during training, over those at the end of each layer."""
    return {
        "name": f"m{weight}{layer}{seed}",
        "seed": seed,
        "tvp_weight": weight,
        "prescribed_layer": layer,
        "icl_risk": icl * PRIOR,
        "tvp_risk": by_layer[layer] * PRIOR,
        "tvp_risk_by_layer": [PRIOR * risk for risk in by_layer],
        "history": {
            "step": STEPS,
            "icl_risk": [PRIOR * icl * fall for fall in falls],
            "tvp_risk_by_layer": [[PRIOR * risk * fall for risk in by_layer] for fall in falls],
        },
    }


def population(arm, members, differs_in=None, shifted=None, seconds=1.0, query_replaced=False):
    """shifted: of each member, its ICL risk under the one shift."""
    shift = {"prior_risk": 3.0, "members": [{"name": "m", "icl_risk": s, "tvp_risk": 1.0} for s in shifted or ()]}
    return {
        "name": arm,
        "differs_in": differs_in or {},
        "arm": arm,
        "query_replaced": query_replaced,
        "prior_risk": PRIOR,
        "seconds_per_step": seconds,
        "members": members,
        "shifts": {"far": shift} if shifted else {},
    }


NONE, AT_2 = [1.0, 0.9, 0.95, 1.5], [1.0, 0.9, 0.1, 1.5]


def made_up(shifted=(0.5, 0.55, 0.45), control=(1.0, 1.1, 0.9), made=AT_2):
    """The base learns ICL and no vector, rotary positions learn one at layer 2; TVP-loss makes one at layer 2."""
    seeds = range(3)
    return {
        "populations": [
            population("icl", [member(s, 0.1, NONE, falls=(9, 6, 1)) for s in seeds], shifted=[1.0, 1.1, 0.9]),
            population("tvp", [member(s, 0.2, made, 1.0, 2, falls=(9, 4, 1)) for s in seeds], shifted=list(shifted))
            | {"seconds_per_step": 1.5},
            population("control", [member(s, 0.1, NONE, 1.0, 1) for s in seeds], shifted=list(control)),
            population("icl", [member(s, 0.1, AT_2) for s in seeds], {"positions": "rotary"}),
            population("icl", [member(s, 0.9, NONE) for s in seeds], {"width": 8}),
        ]
    }


def test_the_interval_over_seeds_is_students_t():
    """Three logarithms 0, 1, 2: mean 1, standard error 1 / sqrt(3), and t of 2 degrees of freedom at 95% is 2.92."""
    mean, (low, high) = over_seeds([1.0, math.e, math.e**2])
    half = 2.919986 / 3**0.5
    np.testing.assert_allclose([mean, low, high], np.exp([1, 1 - half, 1 + half]), rtol=1e-6)
    assert over_seeds([4.0]) == (pytest.approx(4.0), None)


def test_nine_in_ten_intervals_over_seeds_hold_the_mean():
    random = np.random.default_rng(0)
    found = [over_seeds(np.exp(random.normal(0.3, 0.5, 4)))[1] for _ in range(4000)]
    assert abs(np.mean([low <= np.exp(0.3) <= high for low, high in found]) - 0.9) < 0.015


def test_what_the_icl_loss_alone_leads_to():
    base, rotary, narrow = study.answers(made_up())["emergence"]
    assert base["differs_in"] == {} and rotary["differs_in"] == {"positions": "rotary"}
    assert base["icl"]["values"] == pytest.approx([0.1] * 3) and base["tvp_best"]["mean"] == pytest.approx(0.9)
    assert base["best_layers"] == [1, 1, 1] and rotary["best_layers"] == [2, 2, 2]
    assert (base["usable"], rotary["usable"], narrow["usable"]) == (0, 3, 0)
    assert [entry["mean"] for entry in rotary["tvp_by_layer"]] == pytest.approx(AT_2)
    assert base["learned_from"] == [200] * 3 and base["usable_from"] == [None] * 3 and rotary["usable_from"] == [0] * 3


def test_arms_are_compared_seed_by_seed():
    tvp, control = study.answers(made_up())["trained"]
    assert (tvp["arm"], tvp["prescribed_layer"], control["arm"]) == ("tvp", 2, "control")
    assert tvp["icl_over_plain"]["values"] == pytest.approx([2.0] * 3)
    assert tvp["shifts_over_plain"]["far"]["values"] == pytest.approx([0.5, 0.5, 0.5])
    assert tvp["at_best_layer"] == 3 and tvp["usable_from"] == [100] * 3  # 0.1 * 4 is below a half, 0.1 * 9 is not


def test_seeds_are_matched_by_their_number_not_their_place():
    tree = made_up(shifted=(0.5, 0.55, 0.45))
    tvp = tree["populations"][1]
    tvp["members"].reverse()
    tvp["shifts"]["far"]["members"].reverse()
    assert study.answers(tree)["trained"][0]["shifts_over_plain"]["far"]["values"] == pytest.approx([0.5] * 3)


def test_cost_is_that_of_a_step_over_the_icl_loss():
    rows = {(str(row["differs_in"]), row["arm"]): row for row in study.answers(made_up())["cost"]}
    assert rows["{}", "tvp"]["over_icl"] == pytest.approx(1.5) and rows["{}", "icl"]["over_icl"] == pytest.approx(1)


def test_supported_claims():
    claims = study.answers(made_up())["claims"]
    assert all(claim["supported"] for claim in claims.values()), claims
    assert claims["emerges_alone"]["where"] == [{"positions": "rotary"}]
    assert claims["not_everywhere"]["where"] == [{}], "width 8 has not learned ICL: it says nothing"
    assert claims["deeper_helps_shifts"]["layer"] == 2
    assert claims["more_than_its_compute"]["ratio"]["mean"] == pytest.approx(0.5, rel=0.01)


def test_claims_that_the_numbers_do_not_support():
    def claims(**changes):
        return {name: claim["supported"] for name, claim in study.answers(made_up(**changes))["claims"].items()}

    assert not claims(shifted=(0.5, 1.8, 1.2))["deeper_helps_shifts"], "its interval holds 1"
    assert not claims(shifted=(2.0, 2.2, 1.8))["deeper_helps_shifts"], "it hurts"
    worse = claims(control=(0.3, 0.33, 0.27))
    assert worse["deeper_helps_shifts"] and not worse["more_than_its_compute"]
    none = claims(made=NONE)
    assert not (none["made_where_prescribed"] or none["no_search"] or none["deeper_helps_shifts"])
    assert not claims(made=[1.0, 0.05, 0.1, 1.5])["no_search"], "layer 1 is better than the prescribed one"


def test_shifts_are_counted_beside_their_mean():
    """One shift that is all but solved can carry the mean of all: how many are better and worse is said with it."""
    tree = made_up()
    for entry, factors in zip(tree["populations"][:3], ((1, 1), (1e-4, 1.2), (1, 1)), strict=True):
        far = entry["shifts"].pop("far")
        for name, factor in zip(("near", "far"), factors, strict=True):
            members = [{**m, "icl_risk": factor * (1 + 0.01 * s)} for s, m in enumerate(far["members"])]
            entry["shifts"][name] = {**far, "members": members}
    deeper = study.answers(tree)["claims"]["deeper_helps_shifts"]
    assert deeper["supported"] and (deeper["better"], deeper["worse"], deeper["of"]) == (1, 1, 2)


def test_one_seed_supports_nothing():
    tree = made_up()
    for entry in tree["populations"]:
        del entry["members"][1:]
    assert not any(claim["supported"] for claim in study.answers(tree)["claims"].values())


def test_a_study_without_shifts_control_or_tvp_loss():
    tree = made_up()
    tree["populations"] = [tree["populations"][0] | {"shifts": {}}]
    found = study.answers(tree)
    assert found["trained"] == [] and not found["claims"]["deeper_helps_shifts"]["supported"]


def test_the_first_and_last_layers_hold_no_vector():
    tree = {"populations": [population("icl", [member(s, 0.1, [0.1, 0.9, 0.95, 0.1]) for s in range(3)])]}
    (row,) = study.answers(tree)["emergence"]
    assert row["usable"] == 0 and row["usable_from"] == [None] * 3 and row["best_layers"] == [1] * 3


def test_the_deepest_usable_layer_decides():
    """TVP-loss at layer 1 hurts under shifts and at layer 2 helps: both make a vector."""
    tree = made_up()
    at_1 = [member(s, 0.2, [1.0, 0.1, 0.9, 1.5], 1.0, 1) for s in range(3)]
    tree["populations"].insert(1, population("tvp", at_1, shifted=[2.0, 2.2, 1.8]))
    deeper = study.answers(tree)["claims"]["deeper_helps_shifts"]
    assert deeper["layer"] == 2 and deeper["ratio"]["mean"] == pytest.approx(0.5)


def untested(tree):
    """The reasons, by claim, for which they are not tested."""
    claims = study.answers(tree)["claims"]
    assert not any(claim["supported"] and not claim["tested"] for claim in claims.values())
    return {name: claim["why"] for name, claim in claims.items() if not claim["tested"]}


class TestNotTested:
    """A claim for which nothing was run is neither supported nor not supported."""

    EVERY = frozenset(study.answers(made_up())["claims"])

    def test_what_was_run_is_tested(self):
        assert untested(made_up()) == {}
        assert untested(made_up(shifted=(2.0, 2.2, 1.8))) == {}, "a claim that fails is tested all the same"

    def test_one_seed_tests_nothing(self):
        tree = made_up()
        for entry in tree["populations"]:
            del entry["members"][1:]
        reasons = untested(tree)
        assert set(reasons) == self.EVERY and set(reasons.values()) == {study.ONE_SEED}

    def test_where_no_model_learned_nothing_is(self):
        tree = made_up()
        for entry in tree["populations"]:
            for one in entry["members"]:
                one |= {"icl_risk": 0.97 * PRIOR, "tvp_risk": PRIOR, "tvp_risk_by_layer": [1.1 * PRIOR] * (L + 1)}
        reasons = untested(tree)
        assert set(reasons) == self.EVERY
        assert "under no condition was ICL learned" in reasons["emerges_alone"]
        assert "neither with TVP-loss nor without it" in reasons["made_where_prescribed"]

    def test_tvp_loss_that_keeps_a_model_from_learning_is_tested(self):
        """Without it the same training learns: that it makes no vector is a finding."""
        tree = made_up(made=NONE)
        for one in tree["populations"][1]["members"]:
            one["icl_risk"] = PRIOR
        assert "made_where_prescribed" not in untested(tree)

    def test_without_tvp_loss_its_claims_are_not(self):
        tree = made_up()
        tree["populations"] = [entry for entry in tree["populations"] if entry["arm"] == "icl"]
        reasons = untested(tree)
        assert set(reasons) == self.EVERY - {"emerges_alone", "not_everywhere"}
        assert set(reasons.values()) == {"no model was trained with TVP-loss at the base"}

    def test_without_a_vector_there_is_nothing_to_search_or_to_shift(self):
        reasons = untested(made_up(made=NONE))
        assert set(reasons) == {"no_search", "deeper_helps_shifts", "more_than_its_compute"}

    def test_without_shifts_or_a_control_their_claims_are_not(self):
        tree = made_up()
        tree["populations"] = [entry for entry in tree["populations"] if entry["arm"] != "control"]
        assert set(untested(tree)) == {"more_than_its_compute"}
        for entry in tree["populations"]:
            entry["shifts"] = {}
        assert untested(tree)["deeper_helps_shifts"] == "no shifts were measured"

    def test_a_condition_without_a_place_for_vectors_alone(self):
        tree = {"populations": [population("icl", [member(s, 0.1, NONE) for s in range(3)], query_replaced=True)]}
        assert untested(tree)["not_everywhere"] == "no condition has a place for a vector"

    def test_an_arm_whose_icl_loss_alone_is_missing_is_left_out(self):
        tree = made_up()
        tree["populations"].append(population("tvp", [member(s, 0.1, AT_2, 1.0, 2) for s in range(3)], {"width": 8}))
        tree["populations"] = [p for p in tree["populations"] if p["arm"] != "icl" or p["differs_in"] != {"width": 8}]
        assert all(not row["differs_in"] for row in study.answers(tree)["trained"])


class TestTwoFailures:
    """A ratio of two risks that are both no better than the prior's is no news."""

    def test_shifts_under_which_both_fail_do_not_count(self):
        """The prior has 3 there: 30 is better than 60 and says nothing."""
        tree = made_up()
        for entry, risk in zip(tree["populations"][:3], (60.0, 30.0, 60.0), strict=True):
            far = entry["shifts"]["far"]
            entry["shifts"]["lost"] = {**far, "members": [{**m, "icl_risk": risk} for m in far["members"]]}
        row = study.answers(tree)["trained"][0]
        assert row["failed_shifts"] == ["lost"] and set(row["shifts_over_plain"]) == {"far", "lost"}
        assert row["working_shifts_over_plain"]["values"] == pytest.approx([0.5] * 3)
        deeper = study.answers(tree)["claims"]["deeper_helps_shifts"]
        assert (deeper["better"], deeper["failed"], deeper["of"]) == (1, 1, 2)

    def test_they_alone_support_nothing(self):
        """Under the shift that is not lost TVP-loss hurts: the mean over both would say that it helps."""
        tree = made_up(shifted=(1.3, 1.43, 1.17))
        for entry, risk in zip(tree["populations"][:3], (60.0, 3.1, 60.0), strict=True):
            far = entry["shifts"]["far"]
            entry["shifts"]["lost"] = {**far, "members": [{**m, "icl_risk": risk} for m in far["members"]]}
        deeper = study.answers(tree)["claims"]["deeper_helps_shifts"]
        assert deeper["ratio"]["ci"][1] < 1 and deeper["tested"] and not deeper["supported"]

    def test_where_both_fail_under_all_it_is_not_tested(self):
        tree = made_up(shifted=(30.0, 33.0, 27.0))
        for entry in tree["populations"][:3:2]:
            for one in entry["shifts"]["far"]["members"]:
                one["icl_risk"] *= 60
        assert untested(tree)["deeper_helps_shifts"] == "under every shift both are no better than the prior"


def test_an_evaluation_that_was_not_finite_is_no_first_step():
    tree = made_up()
    history = tree["populations"][0]["members"][0]["history"]
    history["icl_risk"][0], history["tvp_risk_by_layer"][0] = None, [None] * (L + 1)
    assert study.answers(tree)["emergence"][0]["learned_from"] == [200] * 3


def test_a_layout_without_a_place_for_vectors_decides_nothing():
    """Where theta takes the place of the query, TVP fails by construction: that no vector emerges is no finding."""
    tree = made_up()
    learned = [member(s, 0.1, NONE) for s in range(3)]
    tree["populations"] = [
        population("icl", [member(s, 0.1, AT_2) for s in range(3)]),
        population("icl", learned, {"layout": "xy"}, query_replaced=True),
    ]
    claims = study.answers(tree)["claims"]
    assert not claims["not_everywhere"]["supported"] and claims["not_everywhere"]["where"] == []
    tree["populations"][1]["query_replaced"] = False
    claims = study.answers(tree)["claims"]
    assert claims["not_everywhere"]["supported"] and claims["not_everywhere"]["where"] == [{"layout": "xy"}]


def spread_around(mean, deviation, random):
    """Members whose best vector has this risk but for the luck of their seeds."""
    risks = mean * np.exp(deviation * random.normal(size=3))
    return [member(s, 0.1, [1.0, 1.0, risk, 1.5]) for s, risk in enumerate(risks)]


@pytest.mark.parametrize("claim", ["emerges_alone", "not_everywhere"])
def test_of_many_conditions_none_is_found_by_luck(claim):
    """Nine conditions at the threshold itself: one study in twenty may find one on this side, not one in three."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(300):
        conditions = [
            population("icl", spread_around(study.USABLE, 0.3, random), {"width": n} if n else {}) for n in range(9)
        ]
        found.append(study.answers({"populations": conditions})["claims"][claim]["supported"])
    assert np.mean(found) < 0.09


def test_only_conditions_that_are_sure_are_named():
    """Width 8 has an interval on both sides of the threshold: it neither holds a vector nor surely holds none."""
    tree = made_up()
    unsure = [member(s, 0.1, [1.0, 1.0, risk, 1.5]) for s, risk in enumerate((0.3, 0.6, 0.9))]
    tree["populations"][-1] = population("icl", unsure, {"width": 8})
    claims = study.answers(tree)["claims"]
    assert claims["emerges_alone"]["where"] == [{"positions": "rotary"}] and claims["not_everywhere"]["where"] == [{}]


def test_the_control_has_the_weight_of_what_it_controls():
    """TVP-loss of weight 2 alone makes a vector; its control of weight 2 does as much, that of weight 1 does not."""
    tree = made_up(made=NONE)
    seeds = range(3)
    heavy = [member(s, 0.2, AT_2, 2.0, 2) for s in seeds]
    tree["populations"] += [
        population("tvp", heavy, shifted=[0.5, 0.55, 0.45]),
        population("control", [member(s, 0.1, NONE, 2.0, 1) for s in seeds], shifted=[0.5, 0.55, 0.45]),
    ]
    claims = study.answers(tree)["claims"]
    assert claims["deeper_helps_shifts"]["supported"]
    assert claims["more_than_its_compute"]["ratio"]["values"] == pytest.approx([1.0] * 3)
    assert not claims["more_than_its_compute"]["supported"]


def test_a_vector_in_a_shallow_layer_says_nothing_of_deep_ones():
    tree = made_up()
    at_1 = [member(s, 0.2, [1.0, 0.1, 0.9, 1.5], 1.0, 1) for s in range(3)]
    tree["populations"][1] = population("tvp", at_1, shifted=[0.5, 0.55, 0.45])
    claims = study.answers(tree)["claims"]
    assert claims["made_where_prescribed"]["supported"]
    assert not claims["deeper_helps_shifts"]["supported"] and claims["deeper_helps_shifts"]["layer"] is None
    assert not claims["more_than_its_compute"]["supported"]


def test_where_there_is_one_inner_layer_no_search_is_spared():
    shallow = [1.0, 0.1, 1.5]
    tree = {
        "populations": [
            population("icl", [member(s, 0.1, [1.0, 0.9, 1.5]) for s in range(3)]),
            population("tvp", [member(s, 0.1, shallow, 1.0, 1) for s in range(3)]),
        ]
    }
    claims = study.answers(tree)["claims"]
    assert claims["made_where_prescribed"]["supported"] and not claims["no_search"]["supported"]


def test_a_risk_of_nothing_can_be_compared():
    """A cross-entropy in float32 can be 0: the study must not end there after all that training."""
    tree = made_up(shifted=(0.0, 0.0, 0.0))
    for entry in tree["populations"][:2]:
        for one in entry["members"]:
            one["icl_risk"] = 0.0
        for one in entry["shifts"]["far"]["members"]:
            one["icl_risk"] = 0.0
    tvp = study.answers(tree)["trained"][0]
    assert tvp["icl_over_plain"]["values"] == [1.0] * 3 and tvp["shifts_over_plain"]["far"]["values"] == [1.0] * 3
