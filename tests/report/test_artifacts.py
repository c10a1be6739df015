"""The numbers that README and docs/ print are those of the results that are kept beside them."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from tvjax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("artifacts", ROOT / "docs" / "artifacts.py")
artifacts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(artifacts)

PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in artifacts.pages()}
COVERED = [name for name, text in PAGES.items() if re.search("<!-- (numbers of|terminal|table|claims) ", text)]
OPEN = {f"docs/{name}.md" for name in ("task_vectors", "tvp_languages")}
"""Pages of which some numbers are older than the results that are kept. A page leaves this list, and none is added."""
MEASURED = {f"docs/{name}.md" for name in ("parity", "scaling")}
"""Pages whose numbers are of benchmarks and plans, which their commands print."""
OWN = {"docs/formats.md"}
"""Pages whose numbers have a test of their own."""


@pytest.mark.parametrize("name", COVERED)
def test_tables_are_made_from_what_is_kept(name):
    assert artifacts.written(PAGES[name]) == PAGES[name], "python docs/artifacts.py write"


@pytest.mark.parametrize("name", COVERED)
def test_every_number_that_a_page_lists_is_in_its_result(name):
    for result, printed, path in artifacts.listed(PAGES[name]):
        value = artifacts.value_of(artifacts.kept(result)["summary"], path)
        assert artifacts.printed_as(printed, value) == printed, f"{result}: {path}"


@pytest.mark.parametrize("name", [name for name in PAGES if name not in OPEN | MEASURED | OWN])
def test_no_number_in_prose_is_without_a_source(name):
    assert not artifacts.unlisted(PAGES[name])


def test_open_pages_are_there():
    assert set(PAGES) >= OPEN | MEASURED | OWN


@pytest.mark.parametrize("path", sorted(artifacts.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_what_made_a_result_is_kept(path):
    made = json.loads(path.read_text())
    assert {"command", "commit", "date", "hardware", "python", "packages", "summary"} <= made.keys()
    assert all(made.values()) and path.stat().st_size < 600_000


SUMMARY = {"members": [{"name": "tvp", "risk": 0.09449, "risk_ci": [0.0741, 0.1104]}], "x_0.5": {"a": [1.25, 3e-5]}}


@pytest.mark.parametrize(
    ("path", "printed"),
    [
        ("members.tvp.risk", "0.094"),
        ("members.0.risk", "0.0945"),
        ("members.tvp.risk_ci", "0.07, 0.11"),
        ("x_0.5.a.0", "+1.2"),
        ("x_0.5.a.1", "3.0e-5"),
        ("x_0.5.a.0 - members.tvp.risk", "1.16"),
        ("x_0.5.a.0 / x_0.5.a.0", "1"),
    ],
)
def test_a_path_leads_to_a_number_which_is_written_as_in_the_page(path, printed):
    assert artifacts.printed_as(printed, artifacts.value_of(SUMMARY, path)) == printed
    assert artifacts.printed_as(printed, [v + 1 for v in (0, 1)] if ", " in printed else 7) != printed


@pytest.mark.parametrize("path", ["members.icl.risk", "members.1", "x_0.5.b", "members.tvp.risk.more"])
def test_a_path_that_leads_nowhere_is_an_error(path):
    with pytest.raises(KeyError):
        artifacts.value_of(SUMMARY, path)


def test_what_counts_as_a_number_of_the_prose():
    page = """Risk 0.25 and -0.3, of 8 in `0.7`, Llama-3.2-3B, [x](a0.9.md), arXiv 2501.09240; 1.5e-4. It rose by +0.10.

<!-- numbers of r
0.25: a
-->
<!-- settings
1.5e-4
-->
"""
    assert artifacts.unlisted(page) == ["-0.3", "+0.10"]


def test_of_a_path_the_last_part_is_kept_and_texts_stay_as_they_are():
    tree = {"target": {"path": "/somewhere/model.gguf", "width": 1 / 3}, "answers": ["/", "/a/b", "c"]}
    assert artifacts.rounded(tree) == {
        "target": {"path": "model.gguf", "width": 0.33333},
        "answers": ["/", "/a/b", "c"],
    }


def test_a_run_is_kept_rounded_and_its_block_is_written_again(tmp_path, monkeypatch, regression_dir):
    monkeypatch.setattr(artifacts, "RESULTS", tmp_path)
    artifacts.keep("a", regression_dir, "a command", "a machine")
    made = artifacts.kept("a")
    summary = json.loads((regression_dir / "eval" / "summary.json").read_text())
    assert made["command"] == "a command" and made["summary"].keys() == summary.keys()
    old = "x\n\n<!-- terminal a -->\n```\nold\n```\ny\n"
    new = artifacts.written(old)
    assert "icl" in new and "old" not in new and new.startswith("x\n") and new.endswith("```\ny\n")
    assert artifacts.written(new) == new
    with pytest.raises(UserError, match="accepted: one of a"):
        artifacts.kept("b")
