"""The terminal's tables: the right numbers, in 80 columns."""

import json
from pathlib import Path
from typing import Any

import pytest

from tvjax.errors import UserError
from tvjax.experiments.pages import summary_table
from tvjax.report.words import number


def tree_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "eval" / "summary.json").read_text())


@pytest.mark.parametrize("which", ["regression_dir", "tokens_dir", "eight_dir"])
def test_fits_a_terminal_and_names_every_member_and_shift(which: str, request: pytest.FixtureRequest) -> None:
    tree = tree_of(request.getfixturevalue(which))
    table = summary_table(tree)
    assert max(map(len, table.splitlines())) <= 80
    for name in (*tree["shifts"], *(member["name"] for member in tree["members"])):
        assert name in table


def test_the_row_of_a_member(regression_dir: Path) -> None:
    rows = [" ".join(row.split()) for row in summary_table(tree_of(regression_dir)).splitlines()]
    assert "2 tvp 0.0802 [0.0762,0.0842] 2: 0.128 [0.122,0.134] 2: 0.128 1.05" in rows
    assert "prior 1.02 [0.969,1.07]" in rows and "oracle 0 [0,0]" in rows
    assert "held_out_tasks 0 1.11 8.90 5.54 8.87" in rows


def test_tokens_have_accuracies(tokens_dir: Path) -> None:
    rows = [" ".join(row.split()) for row in summary_table(tree_of(tokens_dir)).splitlines()]
    assert "2 tvp 0.920 [0.874,0.966] 2: 0.872 [0.828,0.916] 2: 0.872 0.200" in rows


def test_long_names_and_wild_numbers_still_fit(regression_dir: Path) -> None:
    tree = tree_of(regression_dir)
    for part in (tree, *tree["shifts"].values()):
        part["members"][1]["name"] = "a_member_with_a_very_long_name_that_has_no_place_in_a_column"
        part["members"][1]["icl_risk"] = [1.234e-9] * len(part["members"][1]["icl_risk"])
        part["members"][1]["tvp_risk_by_layer"] = [None] * 5
    tree["task"] = "a task whose name goes on and on " * 3
    tree["shifts"]["a_shift_with_a_very_long_name"] = tree["shifts"].pop("label_noise")
    table = summary_table(tree)
    assert max(map(len, table.splitlines())) <= 80
    assert "1.2e-9" in table and "n/a" in table and tree["members"][1]["name"] in table


def test_refuses_another_kind_of_summary() -> None:
    with pytest.raises(UserError, match=r"eval/summary.json: num_layers: missing"):
        summary_table({"methods": []})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.016, "0.0160"),
        (1.0849, "1.08"),
        (9.999, "10.0"),
        (123.4, "123"),
        (0.00999, "1.0e-2"),
        (1.6e-05, "1.6e-5"),
        (0, "0"),
        (float("nan"), "n/a"),
        (-0.5, "-0.500"),
        (99999.9, "1.0e5"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text
