"""The numbers in docs/formats.md are those of the run whose summary lies beside it."""

import json
import re
from pathlib import Path

import pytest

from tvjax.evals.learned import above
from tvjax.experiments.formats.answers import DESTROYED, EXPLAINS, verdict

DOCS = Path(__file__).resolve().parents[2] / "docs"
KEPT = json.loads((DOCS / "results" / "formats_smollm2.json").read_text())
SUMMARY, PAGE = KEPT["summary"], (DOCS / "formats.md").read_text()


def rows_below(heading):
    """The cells of the rows of the table that begins with `heading`."""
    lines = PAGE[PAGE.index(heading) :].splitlines()[2:]
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def shown(entry, kind):
    low, high = entry[f"{kind}_ci"]
    return f"{entry[kind]:.2f} [{low:.2f}, {high:.2f}]"


def test_the_table_of_formats():
    rows = rows_below("| template | start |")
    assert len(rows) == len(SUMMARY["cells"]) == 20
    paired = {(row["template"], row["start"]): row for row in SUMMARY["compared"]["starts"]}
    for row, cell in zip(rows, SUMMARY["cells"], strict=True):
        other = paired.get((cell["template"], cell["start"]))
        expected = [cell["template"], cell["start"], f"{cell['few_shot_first']:.2f}"]
        expected += [shown(found, "vector_first") for found in cell["positions"].values()]
        expected += [f"{cell['positions']['query']['cosine'][SUMMARY['reading']['layer']]:.2f}"]
        expected += [f"{shown(other, 'difference')} {other['verdict']}" if other else ""]
        assert [text.replace("**", "") for text in row] == expected
        bold = [text.startswith("**") for text in row[3:5]]
        assert bold == [found["works"] for found in cell["positions"].values()]


def test_the_table_of_tasks():
    rows = rows_below("| task |")
    assert [row[0] for row in rows] == list(SUMMARY["tasks"])
    for row, (name, entry) in zip(rows, SUMMARY["tasks"].items(), strict=True):
        kinds = ("few_shot_first", "shuffled_shot_first", "loss")
        assert row == [name, *(shown(entry, kind) for kind in kinds), "yes" if entry["destroyed"] else "no"]


def test_the_table_of_tasks_behind_starts():
    """Of the template arrow, the vector at the prompt's last token."""
    starts = [start["name"] for start in SUMMARY["starts"]]
    cells = {cell["start"]: cell["positions"]["last"] for cell in SUMMARY["cells"] if cell["template"] == "arrow"}
    rows = rows_below("| arrow | " + " | ".join(starts))
    assert [row[0] for row in rows] == list(SUMMARY["tasks"])
    for name, *values in rows:
        assert values == [f"{cells[start]['tasks'][name]['vector_first']:.2f}" for start in starts]


def test_the_rules_give_the_verdicts():
    """From the intervals that are kept, each verdict again."""
    works = {(c["template"], c["start"], p): f["works"] for c in SUMMARY["cells"] for p, f in c["positions"].items()}
    for cell in SUMMARY["cells"]:
        for found in cell["positions"].values():
            assert found["works"] == (found["gain_ci"][0] > 0)
        assert above(cell["few_shot_first_ci"], cell["zero_shot_first"]), "the docs say that all are learned in context"
    for kind, rows in SUMMARY["compared"].items():
        for row in rows:
            at, less = (row["template"], row["start"], "last"), row["less"]
            other = tuple({"template": at[0], "start": at[1], "position": "last", **less}.values())
            assert row["verdict"] == verdict(row["difference_ci"], works[at] or works[other]), (kind, row)
    for entry in SUMMARY["tasks"].values():
        assert entry["destroyed"] == (entry["loss_ci"][0] > 0 and entry["loss"] >= DESTROYED * entry["few_shot_first"])
    assert SUMMARY["reading"]["explains"] == (SUMMARY["reading"]["rank_correlation"] <= EXPLAINS)


def test_what_is_said_of_the_correlation_and_the_counts():
    assert f"is {SUMMARY['reading']['rank_correlation']:.2f}" in PAGE
    count = sum(len(rows) for rows in SUMMARY["compared"].values())
    found = re.search(r"There are (\d+) comparisons of starts, (\d+) of templates and (\d+) of positions", PAGE)
    assert found and sum(map(int, found.groups())) == count == 16 + 15 + 20


@pytest.mark.parametrize("field", ["command", "commit", "packages", "hardware", "date"])
def test_what_made_it_is_kept(field):
    assert KEPT[field]
