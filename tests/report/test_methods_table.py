"""The table of methods side by side: dashes where nothing is defined, and runs that are older than it."""

from typing import Any

from tests.report.test_what_failed import MEASURED, text_vectors
from tvjax.experiments.task_vectors import report
from tvjax.experiments.task_vectors.methods_report import methods_table


def compared(**few_shot: float) -> dict[str, Any]:
    """As `text_vectors`, with what is measured beside accuracies: a margin in the first task alone."""
    tree = text_vectors(**few_shot)
    for number, entry in enumerate(tree["tasks"].values()):
        entry["rivals"] = 0 if number else 3
        for kind in MEASURED:
            entry |= {f"{kind}_d_ntp": 0.25, f"{kind}_d_ntp_ci": [0.2, 0.3]}
            entry |= {f"{kind}_margin": None, f"{kind}_margin_ci": None}
            entry |= {} if number else {f"{kind}_margin": -0.5, f"{kind}_margin_ci": [-0.6, -0.4]}
    for kind in MEASURED:
        tree["mean"] |= {f"{kind}_d_ntp": 0.25, f"{kind}_d_ntp_ci": [0.2, 0.3]}
        tree["mean"] |= {f"{kind}_margin": -0.5, f"{kind}_margin_ci": [-0.6, -0.4]}
        for suffix in ("", "_first"):
            tree["mean"] |= {f"{kind}{suffix}_less_few_shot": -0.125, f"{kind}{suffix}_less_few_shot_ci": [-0.2, 0.0]}
    one = {"tokens_per_query": 4.0, "trainable_parameters": 0, "query_flops": 2.5e9, "make_flops": 0.0}
    return tree | {"cost": {kind: dict(one) for kind in MEASURED}}


def rows(tree: dict[str, Any]) -> dict[str, str]:
    """The rows of the terminal's second table, by their names."""
    text = report.PAGE.text(tree).split("d_NTP", 1)[1]
    return {line.split("  ")[0]: line for line in text.splitlines()[1:]}


def test_each_method_has_its_row() -> None:
    found = rows(compared(a=0.8, b=0.7))
    cells = "0.25 [0.20, 0.30]  -0.50 [-0.60, -0.40]  -0.12 -0.12 [-0.20, +0.00]  4.0     none     2.50    0"
    assert " ".join(found["zero-shot"].split()) == " ".join(f"zero-shot {cells}".split())
    assert "-0.12" not in found["4-shot"], "nothing is less than itself"


def test_a_task_without_a_rival_has_a_dash_and_no_number() -> None:
    tree = compared(a=0.8, b=0.7)
    page = "".join(part for part in report._tables(with_details(tree), {}))
    assert page.count("<br>-</td>") == len(MEASURED) and page.count("<br>-0.50 <small>") == len(MEASURED)
    for kind in MEASURED:
        tree["mean"] |= {f"{kind}_margin": None, f"{kind}_margin_ci": None}
    assert all(line.split("]", 1)[1].split()[0] == "-" for line in rows(tree).values() if line)


def with_details(tree: dict[str, Any]) -> dict[str, Any]:
    """What the page needs beside."""
    for entry in tree["tasks"].values():
        entry |= {"pairs": {"test": 9}, "words": ["a"]}
    return tree | {"model": {"path": "m", "model_type": "llama"}, "conflicts": []}


def test_where_nothing_is_learned_nothing_is_held_against_k_shot() -> None:
    found = rows(compared(a=0.1, b=0.1))
    assert "not learned" in found["zero-shot"] and "-0.12" not in found["zero-shot"]


def test_times_are_columns_where_they_are_known() -> None:
    tree, names = compared(a=0.8), {"zero_shot": "zero-shot", "vector": "state vector"}
    page = methods_table(tree, names, {"zero_shot": {"query_ms": 12.5, "make_seconds": 0.0}}).html()
    assert "<td>12.5</td><td>0</td></tr>" in page and "<td></td><td></td></tr>" in page


def test_an_older_run_has_no_such_table() -> None:
    tree = text_vectors(a=0.8)
    assert "d_NTP" not in report.PAGE.text(tree)
    page = "".join(report._tables(with_details(tree), {}))
    assert "d_NTP" not in page and "Published elsewhere" in page
