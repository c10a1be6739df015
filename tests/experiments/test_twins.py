"""Members that end as one model are named; what a run logs has the names of what it is."""

import json

import pytest

from tests.conftest import TINY, changed, quiet
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.tvp import run as tvp
from tvjax.vectors.origin import twins


def test_models_of_one_fingerprint_are_named_together():
    assert twins({"a": "1", "b": "2", "c": "1", "d": "3", "e": "2"}) == [["a", "c"], ["b", "e"]]
    assert twins({"a": "1", "b": "2"}) == []


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Without the TVP-loss a prescribed layer trains nothing: two members of one seed that differ in it are one."""
    population = {"name": ("first", "other", "trained"), "seed": (0,), "learning_rate": (2e-3,)}
    population |= {"tvp_weight": (0.0, 0.0, 1.0), "prescribed_layer": (1, 2, 1)}
    every = {"steps": 5, "evaluate_every": 5, "tensorboard": False, "batch": 8, "log_every": 5, "checkpoint_every": 5}
    folder, lines = tmp_path_factory.mktemp("twins") / "run", []
    config = changed(TINY, model__num_layers=3, population=population, train=every)
    return folder, tvp.run(config, folder, "train", lines.append), lines


def test_members_that_end_as_one_model_are_named(ran):
    folder, summary, lines = ran
    assert summary["identical_members"] == [["first", "other"]]
    assert json.loads((folder / "eval" / "summary.json").read_text()) == summary
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert "first, other are one model" in warning and "trained" not in warning
    said = "first and other ended as one model, bit for bit"
    page = write_report(folder).read_text()
    assert said in summary_table(summary) and page.index(said) < page.index('<h2 id="results">')


def test_a_mean_over_the_prompt_is_logged_as_a_loss_and_risks_are_those_of_the_table(ran):
    folder, summary, _ = ran
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {row["member"]: row for row in rows if row["step"] == 5}
    for member in summary["members"]:
        row = last[member["name"]]
        assert row["loss"] == pytest.approx(row["icl_loss"] + member["tvp_weight"] * row["tvp_loss"])
        assert len(row["eval_icl_risk"]) == len(member["icl_risk"])
        assert not {"icl_risk", "tvp_risk"} & row.keys()


def test_the_progress_lines_have_those_names(capsys, tmp_path):
    tvp.run(changed(TINY, train__steps=10, train__tensorboard=False), tmp_path / "run", "train", quiet)
    text = capsys.readouterr().out
    assert "icl icl_loss" in text and "tvp_loss" in text and "_risk" not in text
