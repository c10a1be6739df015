"""The page: complete, self-contained, escaped, and honest either way."""

import itertools
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvjax.experiments.pages import write_report
from tvjax.experiments.tvp.report.findings import headline, verdict
from tvjax.experiments.tvp.report.reader import TVPRun
from tvjax.experiments.tvp.report.summary import parse_summary
from tvjax.report.reader import read_run
from tvjax.report.words import Estimate


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style"} & set(self.open):
            self.text += data


@pytest.fixture(scope="module")
def page(regression_dir: Path) -> Page:
    return Page(write_report(regression_dir))


class TestPage:
    def test_every_tag_is_closed_in_turn(self, page: Page) -> None:
        assert page.open == []

    def test_links_only_files_that_exist_and_nothing_outside(self, page: Page, regression_dir: Path) -> None:
        sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
        assert len(sources) == 6
        for source in sources:
            assert (regression_dir / "report" / str(source)).read_bytes().startswith(b"\x89PNG")
        text = (regression_dir / "report" / "index.html").read_text()
        assert "http" not in text and "url(" not in text and "@import" not in text
        assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}

    def test_every_image_has_an_alternative_text_and_a_caption(self, page: Page) -> None:
        alts = [str(attributes["alt"]) for tag, attributes in page.tags if tag == "img"]
        assert all(len(alt) > 40 for alt in alts) and len(set(alts)) == 6
        assert [tag for tag, _ in page.tags].count("figcaption") == 6

    def test_headings_step_down_one_at_a_time(self, page: Page) -> None:
        levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))

    def test_names_every_member_shift_and_note(self, page: Page, regression_dir: Path) -> None:
        tree = json.loads((regression_dir / "eval" / "summary.json").read_text())
        for name, shift in tree["shifts"].items():
            assert name in page.text and shift["summary"] in page.text
        for member in tree["members"]:
            assert f"{member['name']}, seed 0" in page.text
        assert tree["notes"][0] in page.text
        assert "abc1234" in page.text and "re-implementation from the paper's description" in page.text

    def test_numbers_stand_beside_their_member(self, page: Page, regression_dir: Path) -> None:
        text = (regression_dir / "report" / "index.html").read_text()
        rows = [re.sub("<[^>]+>", " ", row).split() for row in text.split("<tr>")]
        for name, value in (("icl,", "0.0162"), ("tvp,", "0.0802")):
            (row,) = [row for row in rows if name in row]
            assert value in row and ("TVP-loss" in row) == (name == "tvp,")

    def test_escapes_what_it_is_given(self, page: Page, regression_dir: Path) -> None:
        text = (regression_dir / "report" / "index.html").read_text()
        assert "<script" not in text and "&lt;script&gt;" in text and "&lt;by design&gt;" in text

    def test_hostile_names_stay_text(self, pair_dir: Path, edit: Callable) -> None:
        def change(tree: dict[str, Any]) -> None:
            tree["task"] = "<img src=x onerror=y>$"
            tree["shifts"]['"><b>$x_'] = tree["shifts"].pop("label_noise")

        edit(pair_dir, change)
        hostile = Page(write_report(pair_dir))
        assert [tag for tag, _ in hostile.tags].count("img") == 6 and "b" not in [tag for tag, _ in hostile.tags]
        assert '"><b>$x_' in hostile.text

    def test_tokens_add_a_table_of_accuracies(self, tokens_dir: Path, undrawn: None) -> None:
        text = Page(write_report(tokens_dir)).text
        assert "Accuracy: fraction correct" in text and "with accuracy 0.872" in text

    def test_eight_members(self, eight_dir: Path, undrawn: None) -> None:
        text = Page(write_report(eight_dir)).text
        assert all(f"ICL loss only, seed {seed}" in text for seed in range(4))

    def test_no_shifts_no_table_of_them(self, pair_dir: Path, edit: Callable, undrawn: None) -> None:
        edit(pair_dir, lambda tree: tree.update(shifts={}))
        assert "Out of distribution" not in Page(write_report(pair_dir)).text

    def test_a_failed_write_leaves_the_old_page(
        self, regression_dir: Path, page: Page, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {path.name: path.read_bytes() for path in (regression_dir / "report").iterdir()}

        def refuse(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="disk full"):
            write_report(regression_dir)
        assert {path.name: path.read_bytes() for path in (regression_dir / "report").iterdir()} == before


class TestHeadline:
    def sentences(self, run_dir: Path, change: Callable[[dict[str, Any]], object] | None = None) -> str:
        tree = json.loads((run_dir / "eval" / "summary.json").read_text())
        if change:
            change(tree)
        return " ".join(headline(parse_summary(tree)))

    def set_tvp(self, tree: dict[str, Any], member: int, layer: int, value: float) -> None:
        tree["members"][member]["tvp_risk_by_layer"][layer] = value
        tree["members"][member]["tvp_risk_by_layer_ci"][layer] = [value * 0.9, value * 1.1]

    def test_as_the_prototype_ran(self, regression_dir: Path) -> None:
        text = self.sentences(regression_dir)
        assert (
            "With the ICL loss alone, no usable task vector emerged: of all inner layers the lowest TVP risk is" in text
        )
        assert "TVP-loss at layer 2 made a usable vector there: TVP risk is 0.128" in text
        assert "It cost ICL: ICL risk at K = 16 rose from 0.0162 to 0.0802" in text

    def test_turns_when_a_vector_emerges_by_itself(self, regression_dir: Path) -> None:
        text = self.sentences(regression_dir, lambda tree: self.set_tvp(tree, 0, 2, 0.1))
        assert "With the ICL loss alone, a usable task vector emerged" in text
        text = self.sentences(regression_dir, lambda tree: self.set_tvp(tree, 0, 2, 0.8))
        assert "With the ICL loss alone, only a weak task vector emerged" in text

    def test_turns_when_tvp_loss_fails(self, regression_dir: Path) -> None:
        text = self.sentences(regression_dir, lambda tree: self.set_tvp(tree, 1, 2, 1.5))
        assert "TVP-loss at layer 2 made no vector there" in text

    def test_turns_when_tvp_loss_helps_icl_or_makes_no_difference(self, regression_dir: Path) -> None:
        def icl(tree: dict[str, Any], value: float) -> None:
            tree["members"][1]["icl_risk"][16] = value
            tree["members"][1]["icl_risk_ci"][16] = [value * 0.9, value * 1.1]

        assert "It helped ICL" in self.sentences(regression_dir, lambda tree: icl(tree, 0.004))
        assert "no clear difference to ICL" in self.sentences(regression_dir, lambda tree: icl(tree, 0.017))

    def test_says_what_the_run_cannot_tell(self, regression_dir: Path) -> None:
        def only(tree: dict[str, Any], place: int) -> None:
            for part in (tree, *tree["shifts"].values()):
                part["members"] = [part["members"][place]]

        assert "No member was trained with TVP-loss." in self.sentences(regression_dir, lambda tree: only(tree, 0))
        text = self.sentences(regression_dir, lambda tree: only(tree, 1))
        assert "No member was trained with the ICL loss alone." in text and "cost" not in text

    def test_counts_seeds(self, eight_dir: Path) -> None:
        text = self.sentences(eight_dir, lambda tree: self.set_tvp(tree, 1, 2, 0.1))
        assert "a usable task vector emerged in 1 of 4 seeds" in text
        assert "made a usable vector there in 4 of 4 seeds" in text

    def test_layout_xy_comes_first(self, regression_dir: Path) -> None:
        assert self.sentences(regression_dir, lambda tree: tree.update(layout="xy")).startswith("In layout xy")

    @pytest.mark.parametrize(
        ("high", "kind"), [(0.5, "usable"), (0.51, "weak"), (0.99, "weak"), (1.0, "no"), (float("nan"), "no")]
    )
    def test_the_upper_end_of_the_interval_decides(self, high: float, kind: str) -> None:
        assert verdict(Estimate(*map(np.asarray, (0.1, 0.0, high)))) == kind


def test_the_report_does_not_change_what_it_reads(regression_dir: Path, page: Page) -> None:
    assert TVPRun.of(read_run(regression_dir)).summary.members[1].best_layer == 2
    assert not list((regression_dir / "report").glob(".*"))
