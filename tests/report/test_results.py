"""Numbers of runs as rows, and runs side by side: values known from runs that are made up."""

import json
import sys

import numpy as np
import pytest

import tvjax
from tests.report.conftest import EIGHT, PAIR, SHIFTS, edit_summary, write_run
from tvjax import compare as command
from tvjax.errors import UserError
from tvjax.evals.statistics import over_seeds, student
from tvjax.report.comparison import compare
from tvjax.report.reader import Run
from tvjax.report.results import FIRST, LAST, rows


@pytest.fixture
def two(tmp_path):
    """Two runs of four seeds: in the second ICL risk is higher, by 0.01 and by 0.001 more a seed; one field differs."""

    def worse(tree):
        for member in tree["members"]:
            member["icl_risk"] = [value + 0.01 + 0.001 * member["seed"] for value in member["icl_risk"]]

    first, second = write_run(tmp_path / "first", EIGHT), write_run(tmp_path / "second", EIGHT)
    edit_summary(second, worse)
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**config, "train": {"steps": 5}}))
    return first, second


def test_every_number_of_a_summary_is_a_row(tmp_path):
    folder = write_run(tmp_path / "run", PAIR)
    summary = json.loads((folder / "eval" / "summary.json").read_text())
    table = tvjax.results([folder]).to_dict("records")
    assert list(table[0]) == [*FIRST, "index", "baseline", *LAST]
    by = {(r["shift"], r["member"], r["metric"], r["layer"], r["index"], r["baseline"]): r for r in clean(table)}
    assert len(by) == len(table), "each row says what it is of"
    expected = 0
    for shift, tree in ((None, summary), *summary["shifts"].items()):
        for member in tree["members"]:
            name = summary["members"][tree["members"].index(member)]["name"]
            for layer, value in enumerate(member["tvp_risk_by_layer"]):
                row = by[shift, name, "tvp_risk_by_layer", layer, None, None]
                assert row["value"] == value and [row["low"], row["high"]] == member["tvp_risk_by_layer_ci"][layer]
            for index, value in enumerate(member["icl_risk"]):
                row = by[shift, name, "icl_risk", None, index, None]
                assert row["value"] == value and row["tvp_weight"] == (name == "tvp") and row["prescribed_layer"] == 2
            expected += len(member["tvp_risk_by_layer"]) + len(member["icl_risk"])
    assert expected == sum(row["metric"] in ("icl_risk", "tvp_risk_by_layer") for row in table)
    lasso = [row for row in table if row["baseline"] == "lasso_0.1" and row["metric"] == "risk"]
    assert [row["index"] for row in lasso] == list(range(0, 17, 2)), "what was not tried is no row"


def clean(table):
    """The rows with None for what a data frame calls nan."""
    return [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in table]


def test_fields_that_differ_are_columns_and_without_pandas_it_is_a_list(two, monkeypatch):
    frame = tvjax.results(two)
    monkeypatch.setitem(sys.modules, "pandas", None)
    table = tvjax.results(two)
    assert isinstance(table, list) and list(table[0]) == list(frame.columns)
    assert {(row["run"], row["config.train.steps"]) for row in table} == {(str(two[0]), None), (str(two[1]), 5)}
    assert [row["value"] for row in table] == frame["value"].tolist()


def test_what_names_an_entry_is_a_column(tmp_path):
    summary = {
        "experiment": "formats",
        "cells": [{"template": "arrow", "start": "newline", "gain": 0.5, "gain_ci": [0.4, 0.6]}],
        "methods": [{"name": "lora", "seen": {"accuracy": 0.7}}],
        "tasks": {"plural": {"vector_by_layer_dev": [None, 0.25]}},
        "layers": [3],
        "works": True,
    }
    table = [
        {name: value for name, value in row.items() if name not in ("run", "experiment")}
        for row in rows(Run(tmp_path, {}, {}, summary))
    ]
    cell = {"index": 0, "template": "arrow", "start": "newline", "metric": "cells.gain"}
    assert table == [
        {**cell, "value": 0.5, "low": 0.4, "high": 0.6},
        {"method": "lora", "metric": "seen.accuracy", "value": 0.7, "low": None, "high": None},
        {"task": "plural", "layer": 1, "metric": "vector_by_layer_dev", "value": 0.25, "low": None, "high": None},
        {"index": 0, "metric": "layers", "value": 3, "low": None, "high": None},
    ]


def test_differences_are_paired_by_seed(two):
    comparison = compare(two)
    assert comparison.fields == {"config.train.steps": [None, 5]} and not comparison.notes()
    icl = {dict(key)["tvp_weight"]: key for key in comparison.numbers if dict(key)["metric"] == "icl_risk"}
    for key in icl.values():
        first, second = (comparison.numbers[key][run] for run in (0, 1))
        mean, ends = second.less(first)
        np.testing.assert_allclose(mean, 0.0115, atol=1e-9)
        np.testing.assert_allclose(ends, student([0.01, 0.011, 0.012, 0.013])[1], atol=1e-9)
        values = [value for value, *_ in first.by_seed.values()]
        assert first.estimate() == over_seeds(values) and len(values) == 4
    text = comparison.number_table().text()
    assert "icl_risk (tvp weight 1.0, prescribed layer 2)" in text and "0.0115 [1.0e-2, 0.0130]" in text


def test_one_seed_has_its_own_interval_and_its_difference_none(tmp_path):
    runs = [write_run(tmp_path / name, PAIR) for name in ("a", "b")]
    comparison = compare(runs)
    member = json.loads((runs[0] / "eval" / "summary.json").read_text())["members"][1]
    (key,) = (k for k in comparison.numbers if dict(k).get("tvp_weight") == 1 and dict(k)["metric"] == "icl_risk")
    one, other = (comparison.numbers[key][run] for run in (0, 1))
    assert one.estimate() == (member["icl_risk"][-1], tuple(member["icl_risk_ci"][-1]))
    assert other.less(one) == (0.0, None)


def test_headline_numbers_are_in_distribution_at_the_end_of_curves_and_at_the_prescribed_layer(two):
    metrics = {dict(key)["metric"] for key in compare(two).numbers}
    assert metrics == {"prior_risk", "oracle_risk", "icl_risk", "tvp_risk_by_layer", "zero_shot_risk", "risk"}
    assert not any(name in str(key) for key in compare(two).numbers for name in SHIFTS)
    summary = json.loads((two[0] / "eval" / "summary.json").read_text())
    (key,) = (
        k for k in compare(two).numbers if dict(k)["metric"] == "tvp_risk_by_layer" and dict(k)["tvp_weight"] == 1
    )
    expected = [m["tvp_risk_by_layer"][2] for m in summary["members"] if m["tvp_weight"] == 1]
    assert [value for value, *_ in compare(two).numbers[key][0].by_seed.values()] == expected


@pytest.mark.parametrize("change", [{"evaluation": {"prompts": 3}}, {"task": {"name": "other"}}])
def test_runs_that_were_asked_different_things_are_not_subtracted(two, change):
    config = json.loads((two[1] / "config.json").read_text())
    (two[1] / "config.json").write_text(json.dumps({**config, **change}))
    comparison = compare(two)
    assert (
        "no differences are shown" in comparison.notes()[0] and f"config.{next(iter(change))}" in comparison.notes()[0]
    )
    assert all(
        len(row.cells) == 5 and not getattr(row.cells[4], "text", row.cells[4])
        for row in comparison.number_table().rows
    )


def test_the_command_prints_and_writes_the_same(two, tmp_path, capsys):
    command.main(["compare", *map(str, two), f"--out={tmp_path / 'page'}"])
    printed = capsys.readouterr().out
    assert "config.train.steps  -  5" in printed and "0.0115 [1.0e-2, 0.0130]" in printed
    page = (tmp_path / "page" / "index.html").read_text()
    assert "0.0115" in page and 'src="numbers.png"' in page and (tmp_path / "page" / "numbers.png").is_file()
    assert "less the first" in (tmp_path / "page" / "numbers.csv").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "runs: given None; accepted: the folders of two or more"),
        (["FIRST"], "runs: given"),
        (["FIRST", "FIRST"], "runs: given"),
        (["FIRST", "nowhere"], "nowhere: no such run directory"),
        (["FIRST", "SECOND", "--outt=x"], "--outt=x"),
        (["FIRST", "SECOND", "--out"], "--out"),
    ],
)
def test_bad_input_is_one_line(two, words, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.replace("FIRST", str(two[0])).replace("SECOND", str(two[1])) for word in words]
    with pytest.raises(UserError) as error:
        command.main(["compare", *words])
    assert line in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_run_twice_is_no_data_frame(two):
    with pytest.raises(UserError, match="given twice"):
        tvjax.results([two[0], two[0]])


def test_members_that_differ_in_their_rate_alone_are_two_settings(tmp_path):
    """A summary does not have the rate: the config does."""
    folder = write_run(tmp_path / "run", [("slow", 0, 1.0, 2), ("fast", 0, 1.0, 2)])
    config = json.loads((folder / "config.json").read_text())
    population = {"name": ["slow", "fast"], "learning_rate": [0.001, 0.01]}
    (folder / "config.json").write_text(json.dumps({**config, "population": population}))
    shifted = [
        r
        for r in rows(
            Run(folder, {"population": population}, {}, json.loads((folder / "eval/summary.json").read_text()))
        )
        if "shift" in r and "member" in r
    ]
    assert {(r["member"], r["learning_rate"]) for r in shifted} == {("slow", 0.001), ("fast", 0.01)}
    other = write_run(tmp_path / "other", PAIR)
    keys = [dict(key) for key in compare([folder, other]).numbers]
    assert {k.get("learning_rate") for k in keys if k["metric"] == "icl_risk" and k["tvp_weight"]} == {
        0.001,
        0.01,
        None,
    }


def test_what_a_sweep_asks_is_asked_of_its_base(two):
    for folder, prompts in zip(two, (3, 4), strict=True):
        (folder / "config.json").write_text(json.dumps({"base": {"evaluation": {"prompts": prompts}}}))
    assert "config.base.evaluation.prompts" in compare(two).notes()[0]
