"""The emergence study: its grid, its populations as runs of their own, and its page."""

import copy
import dataclasses
import json
import signal

import pytest
from matplotlib.colors import LogNorm

from tests.conftest import TINY, changed, quiet
from tests.runs import Runs
from tvjax.errors import UserError
from tvjax.evals.study import USABLE
from tvjax.experiments.emergence import figures
from tvjax.experiments.emergence import run as emergence
from tvjax.experiments.emergence.settings import EmergenceSettings
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.tvp import load as tvp_load
from tvjax.experiments.tvp import run as tvp

BASE = changed(
    TINY,
    model__num_layers=3,
    train__tensorboard=False,
    train__steps=10,
    train__checkpoint_every=10,
    evaluation__shifts=True,
    model__max_positions=32,
)
CONFIG = {
    "experiment": "emergence",
    "base": BASE,
    "grid": {"layout": ("xy",), "num_layers": (2,)},
    "study": {"seeds": (0, 1)},
}


def names(config):
    return [population.name for population in EmergenceSettings.from_config(config).populations]


def test_one_factor_at_a_time():
    assert names(CONFIG) == ["base.icl", "base.tvp", "base.control", "layout-xy.icl", "num_layers-2.icl"]
    assert names(changed(CONFIG, grid__layout=("xzy", "xy", "xy"))) == names(CONFIG), "the base is not there twice"


def test_all_combinations():
    found = names(changed(CONFIG, grid__cross=True, study__tvp_everywhere=True, study__control=False))
    conditions = ["base", "num_layers-2", "layout-xy", "layout-xy.num_layers-2"]
    assert found == [f"{condition}.{arm}" for condition in conditions for arm in ("icl", "tvp")]


def test_the_members_of_a_population():
    """TVP-loss at every inner layer, weight and seed; a population that is too large is cut."""
    config = changed(CONFIG, study__tvp_weights=(0.1, 1.0), study__most_members=5)
    settings = EmergenceSettings.from_config(config)
    made = [p for p in settings.populations if p.arm == "tvp"]
    assert [p.name for p in made] == ["base.tvp.1", "base.tvp.2"]
    members = [
        member
        for p in made
        for member in zip(
            *(p.config["population"][name] for name in ("tvp_weight", "prescribed_layer", "seed")), strict=True
        )
    ]
    assert members == [(w, layer, seed) for layer in (1, 2) for w in (0.1, 1.0) for seed in (0, 1)]
    arms = {p.arm: p.config for p in settings.populations}
    assert [arms[arm]["tvp"]["answered_from"] for arm in ("tvp", "control")] == ["vector", "demonstrations"]
    assert arms["icl"]["population"]["tvp_weight"] == (0.0, 0.0)


def test_only_what_is_compared_is_shifted():
    shifted = {p.name: p.config["evaluation"]["shifts"] for p in EmergenceSettings.from_config(CONFIG).populations}
    assert shifted == {name: name.startswith("base") for name in shifted}


@pytest.mark.parametrize(("edit", "replaced"), [("replace", True), ("add", False)])
def test_which_populations_replace_the_query_itself(edit, replaced):
    settings = EmergenceSettings.from_config(changed(CONFIG, base__tvp__edit=edit))
    assert {p.name for p in settings.populations if p.query_replaced} == ({"layout-xy.icl"} if replaced else set())


def test_the_config_is_left_as_it_is():
    before = copy.deepcopy(CONFIG)
    EmergenceSettings.from_config(CONFIG)
    assert before == CONFIG


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"base__model__width": 15}, ("config.base: model.num_heads", "divisor of width = 15")),
        ({"grid__width": (15,)}, ("config.grid: population width-15.icl: model.num_heads", "divisor of width = 15")),
        ({"grid__layout": ("zxy",)}, ("config.grid: population layout-zxy.icl: prompt.layout", "'zxy'", "xzy")),
        ({"grid__heads": (1,)}, ("config.grid.heads", "no such field")),
        ({"study__seeds": ()}, ("config.study.seeds", "at least one")),
        ({"study__seeds": (0, 0)}, ("config.study.seeds", "different numbers")),
        ({"study__tvp_weights": (0.0,)}, ("config.study.tvp_weights", "more than 0")),
        ({"study__tvp_weights": ()}, ("config.study.tvp_weights", "at least one")),
        ({"study__prescribed_layers": (3,)}, ("population base.tvp: population.prescribed_layer", "3", "1..2")),
        ({"study__most_members": 0}, ("config.study.most_members", "1 or more")),
        ({"base": 3}, ("config.base", "a group of fields")),
    ],
)
def test_a_wrong_value_is_named(fields, said):
    with pytest.raises(UserError) as caught:
        EmergenceSettings.from_config(changed(CONFIG, **fields))
    assert all(words in str(caught.value) for words in said), caught.value


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "run"
    return folder, emergence.run(CONFIG, folder, "train", quiet)


def test_its_numbers_are_those_of_its_populations(ran):
    folder, summary = ran
    assert summary == json.loads((folder / "eval" / "summary.json").read_text())
    assert [p["name"] for p in summary["populations"]] == names(CONFIG)
    for entry in summary["populations"]:
        own = json.loads((folder / "populations" / entry["name"] / "eval" / "summary.json").read_text())
        assert entry["prior_risk"] == own["prior_risk"]
        for kept, member in zip(entry["members"], own["members"], strict=True):
            assert kept["name"] == member["name"] and kept["icl_risk"] == member["icl_risk"][-1]
            assert kept["tvp_risk"] == member["tvp_risk_by_layer"][member["prescribed_layer"]]
            assert kept["history"]["step"] == [0, 10]
        assert set(entry["shifts"]) == set(own["shifts"])
        assert entry["seconds_per_step"] > 0


def test_a_population_is_a_run_of_its_own(ran):
    """It reads, reports and loads like any TVP run."""
    folder, _ = ran
    place = folder / "populations" / "base.tvp"
    model = tvp_load.load(place, json.loads((place / "config.json").read_text()), "tvp-layer2-weight1-seed1")
    assert model.config.num_layers == 3
    assert write_report(folder / "populations" / "base.control").is_file()


def test_a_finished_population_is_not_trained_again(ran, monkeypatch):
    folder, summary = ran

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(emergence, "populations_run", lambda: dataclasses.replace(tvp.EXPERIMENT, run=refuse))
    assert emergence.run(CONFIG, folder, "train", quiet) == summary


def test_a_study_that_lost_a_population_trains_that_alone(ran, monkeypatch):
    folder, summary = ran
    (folder / "populations" / "base.control" / "eval" / "summary.json").unlink()
    trained, real = [], tvp.EXPERIMENT
    run = lambda config, place, *rest: trained.append(place.name) or real.run(config, place, *rest)
    monkeypatch.setattr(emergence, "populations_run", lambda: dataclasses.replace(real, run=run))
    assert emergence.run(CONFIG, folder, "train", quiet) == summary
    assert trained == ["base.control"]


def test_the_page_and_the_table(ran):
    folder, summary = ran
    page = write_report(folder).read_text()
    stems = ("conditions", "layers", "training", "prescribed", "shifts")
    assert all((folder / "report" / f"{stem}.png").is_file() and f'src="{stem}.png"' in page for stem in stems)
    assert "not tested" in page and ">supported" not in page, "in ten steps nothing is learned: no claim is tested"
    text = summary_table(summary)
    assert "NOT TESTED" in text and "SUPPORTED" not in text and "layout xy" in text and "control" in text
    first = "ICL was not learned in every seed, which says nothing of vectors there"
    assert first in text.splitlines()[1] and page.index(first) < page.index('<h2 id="claims')
    assert "neither learned" in text and "0 of 2 " not in text
    assert "0 of 2, by construction" in page and "0 of 2, by construction" in text
    assert "the fair control is the additive edit" in page and "ICL not learned</td>" in page


def test_members_of_a_population_that_are_one_model_are_named_first(ran):
    tree = copy.deepcopy(ran[1])
    assert all(entry["identical_members"] == [] for entry in tree["populations"])
    tree["populations"][1]["identical_members"] = [["a", "b"]]
    assert summary_table(tree).splitlines()[1] == "In population base.tvp, a, b ended as one model, bit for bit."


def test_where_some_learned_the_rest_is_said_to_have_not(ran):
    """At the base ICL is learned and TVP-loss makes a vector: those claims are tested, and their layers are named."""
    tree = copy.deepcopy(ran[1])
    for entry in tree["populations"]:
        for member in entry["members"]:
            if entry["differs_in"]:
                member |= {"icl_risk": entry["prior_risk"], "tvp_risk_by_layer": [entry["prior_risk"]] * 4}
                continue
            member["icl_risk"] = 0.1 * entry["prior_risk"] * (1 + 0.01 * member["seed"])
            risk = 0.2 if entry["arm"] == "tvp" else 0.9
            at = [1.1, *(risk if n == member["prescribed_layer"] else 0.95 for n in (1, 2)), 1.2]
            member["tvp_risk_by_layer"] = [entry["prior_risk"] * value * (1 + 0.01 * member["seed"]) for value in at]
            member["tvp_risk"] = member["tvp_risk_by_layer"][member["prescribed_layer"]]
    text = summary_table(tree)
    assert text.splitlines()[1].startswith("Under 2 of 3 conditions ICL was not learned in every seed")
    rows = {line.split("  ")[0]: " ".join(line.split()) for line in text.splitlines()}
    assert rows["base"].endswith("none 0 of 2") and rows["2 layers"].endswith("none ICL not learned")
    claims = [line.split("  ")[0].strip() for line in text[text.index("claims\n") :].splitlines()[1:]]
    assert claims[1] == "supported", "ICL is learned at the base and no vector is usable there"
    assert any(line.startswith("supported") and "makes a usable vector" in line for line in text.splitlines())


def test_the_page_of_one_seed_and_no_second_loss(ran, tmp_path):
    folder, summary = ran
    tree = copy.deepcopy(summary)
    tree["populations"] = [p for p in tree["populations"] if p["arm"] == "icl"]
    for entry in tree["populations"]:
        del entry["members"][1:]
        entry["shifts"] = {}
    tree["answers"] = emergence.study.answers(tree)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "summary.json").write_text(json.dumps(tree))
    for name in ("config.json", "environment.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    page = write_report(tmp_path).read_text()
    assert "prescribed.png" not in page and "shifts.png" not in page


def test_what_is_usable_is_blue():
    assert LogNorm(*figures.LIMITS)(USABLE) == pytest.approx(0.5)


@pytest.mark.exhaustive
def test_a_killed_study_goes_on(tmp_path):
    """Killed in its second population and started again, it ends with the answers of one that was left alone."""
    config = changed(CONFIG, base__evaluation__shifts=False, grid__layout=(), grid__num_layers=())
    runs = Runs("emergence", config, tmp_path)
    assert runs.finish(runs.whole)[0] == 0
    killed = tmp_path / "killed"
    code, _ = runs.stop(
        killed, lambda folder: (folder / "populations" / "base.tvp" / "metrics.jsonl").exists(), signal.SIGKILL
    )
    assert code == -signal.SIGKILL
    first = (killed / "populations" / "base.icl" / "eval" / "summary.json").stat().st_mtime_ns
    assert runs.finish(killed)[0] == 0
    assert (killed / "populations" / "base.icl" / "eval" / "summary.json").stat().st_mtime_ns == first

    def timeless(folder):
        tree = json.loads((folder / "eval" / "summary.json").read_text())
        for entry in [*tree["populations"], *tree["answers"]["cost"]]:
            del entry["seconds_per_step"]
            entry.pop("over_icl", None)
        return tree

    assert timeless(killed) == timeless(runs.whole)
