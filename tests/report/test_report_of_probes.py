"""The figures, sentences and rows of the probes: the numbers of the summary, and nothing where there are none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.conftest import LAYERS, interval, twins
from tvjax.errors import UserError
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.tvp.report.gallery import gallery
from tvjax.experiments.tvp.report.looks import looks
from tvjax.experiments.tvp.report.probes import probe_figure, probes_shown, rank_figure, rank_text
from tvjax.experiments.tvp.report.reader import TVPRun
from tvjax.report.reader import read_run

TOP = np.arange(LAYERS + 1)


def probes_of(weight: float, words: tuple[str, ...]) -> dict[str, Any]:
    """Probes like those of a trained member: with TVP-loss theta at layer 2 is the task, without none is."""
    bump = np.where(TOP == 2, 1.0, 0.0) if weight else np.zeros(LAYERS + 1)
    tree: dict[str, Any] = {"num_prompts": 256, "num_dummies": 8}
    shares = [0, 0.25, 0.5, 0.75, 1]
    tree["decodability"] = {
        reader: {"w": twins("explained", read * np.minimum(TOP / 2, 1))}
        for reader, read in (("linear", 0.9), ("neighbours", 0.7))
    }
    tree["entanglement"] = twins("ratio", np.where(bump > 0, 0.1, 3.0)) | {}
    tree["entanglement"]["ratio"][0] = 0.0
    tree["entanglement"]["ratio"][4] = None
    tree["entanglement"]["ratio_ci"][4] = [12.0, None]
    tree["averaging"] = {"counts": [1, 2, 4, 8]}
    tree["swap"], tree["superposition"] = {}, {"shares": shares}
    for word in words:
        good, bad = (0.9, 0.2) if word == "accuracy" else (0.05, 1.9)
        spread = (bad + (good - bad) * bump) * np.array([1.0, 0.9, 0.8, 0.7])[:, None]
        tree["averaging"] |= twins(word, spread)
        tree["swap"] |= twins(f"vector_{word}", bad + (good - bad) * bump)
        tree["swap"] |= twins(f"prompt_{word}", good + (bad - good) * bump)
        tree["swap"] |= twins(f"unedited_vector_{word}", bad) | twins(f"unedited_prompt_{word}", good)
        tree["superposition"] |= twins(f"first_{word}", np.linspace(bad, good, 5))
        tree["superposition"] |= twins(f"second_{word}", np.linspace(good, bad, 5))
    return tree


def add_probes(tree: dict[str, Any], rank: bool = False) -> None:
    words = ("risk", "accuracy") if "prior_accuracy" in tree else ("risk",)
    for member in tree["members"]:
        probes = member["probes"] = probes_of(member["tvp_weight"], words)
        if "accuracy" not in words:
            probes["superposition"] |= twins("mixture_risk", np.full(5, 0.3))
        if rank:
            one = twins("captured", [0.98, 0.4]) | twins("participation", 1.3) | twins("true_participation", 1.6)
            one |= twins("power", 0.75)
            probes["rank"] = {"prescribed": one, "best": one | twins("participation", 1.4)}


@pytest.fixture
def probed_dir(pair_dir: Path, edit: Callable) -> Path:
    edit(pair_dir, add_probes)
    return pair_dir


def panels(summary: Any) -> dict[str, Any]:
    """The only axes of each probe's figure, by the probe's name."""
    return {probe.stem.removeprefix("probe_"): probe_figure(summary, probe).axes[0] for probe in probes_shown(summary)}


def probes_text(summary: Any) -> str:
    return " ".join(probe.text(summary) for probe in probes_shown(summary))


def drawn(ax: Any, color: str) -> list[np.ndarray]:
    return [np.array(line.get_ydata(), float) for line in ax.lines if line.get_color() == color]


class TestFigure:
    def test_a_panel_a_probe_with_its_numbers(self, probed_dir: Path) -> None:
        summary = TVPRun.of(read_run(probed_dir)).summary
        found = panels(summary)
        assert len(found) == 5
        tvp = looks(summary)[1].color
        lines = {title: drawn(ax, tvp) for title, ax in found.items()}
        np.testing.assert_allclose(lines["read"], [[0, 0.45, 0.9, 0.9, 0.9], [0, 0.35, 0.7, 0.7, 0.7]])
        np.testing.assert_allclose(lines["dummy"], [[np.nan, 3, 0.1, 3, np.nan]])
        np.testing.assert_allclose(lines["averaging"], [[0.05, 0.045, 0.04, 0.035]])
        vector, own, prompt, other = lines["swap"]
        np.testing.assert_allclose(vector, [1.9, 1.9, 0.05, 1.9, 1.9])
        np.testing.assert_allclose(prompt, [0.05, 0.05, 1.9, 0.05, 0.05])
        assert (own.tolist(), other.tolist()) == ([1.9], [0.05])
        first, second, mixture = lines["mix"]
        np.testing.assert_allclose(first[::4], [1.9, 0.05])
        np.testing.assert_allclose(second[::4], [0.05, 1.9])
        np.testing.assert_allclose(mixture, 0.3)

    def test_bands_are_the_intervals(self, probed_dir: Path) -> None:
        ax = panels(TVPRun.of(read_run(probed_dir)).summary)["mix"]
        band = ax.collections[1].get_paths()[0].vertices[:, 1]
        assert band.min() == pytest.approx(0.05 * 0.95) and band.max() == pytest.approx(1.9 * 1.05)

    def test_the_prescribed_layer_is_ringed(self, probed_dir: Path) -> None:
        found = panels(TVPRun.of(read_run(probed_dir)).summary)
        for title in ("read", "dummy", "swap"):
            (ring,) = [line for line in found[title].lines if line.get_label() == "prescribed layer"]
            assert ring.get_xdata()[0] == 2

    def test_tokens_show_accuracies(self, tokens_dir: Path, tmp_path: Path, edit: Callable) -> None:
        from shutil import copytree

        copy = Path(copytree(tokens_dir, tmp_path / "copy"))
        edit(copy, add_probes)
        summary = TVPRun.of(read_run(copy)).summary
        found = panels(summary)
        np.testing.assert_allclose(drawn(found["swap"], looks(summary)[1].color)[0][2], 0.9)
        assert found["mix"].get_ylim()[1] > 1 and "accuracy" in found["mix"].get_ylabel()
        assert "closer (whole intervals)" in probes_text(summary)
        assert "TVP-loss at layer 2: to the vector's task" in probes_text(summary)

    def test_pools_of_tokens_are_drawn_by_their_size(self, probed_dir: Path, edit: Callable) -> None:
        def change(tree: dict[str, Any]) -> None:
            for member in tree["members"]:
                member["probes"]["operands"] = {
                    str(pool): twins("margin_by_layer", np.where(TOP == 2, pool / 12, -0.5))
                    | twins("single_margin_by_layer", np.where(TOP == 2, pool / 24, -0.5))
                    for pool in (12, 9, 4)
                }

        edit(probed_dir, change)
        run = TVPRun.of(read_run(probed_dir))
        several, single = drawn(panels(run.summary)["operands"], looks(run.summary)[1].color)
        np.testing.assert_allclose(several, [4 / 12, 9 / 12, 1])
        np.testing.assert_allclose(single, [4 / 24, 9 / 24, 0.5])
        assert [e.stem for e in gallery(run) if e.stem.startswith("probe_")][-1] == "probe_operands"
        words = probes_text(run.summary)
        assert (
            "of vectors made of 12 different tokens" in words
            and "TVP-loss at layer 2: 0.333" in words.split("of 4:")[1]
        )

    def test_how_demonstrations_add_up_is_drawn_and_said(self, probed_dir: Path, edit: Callable) -> None:
        shares = {"weighted": 0.6, "best": 0.9, "other_best": 0.7}

        def change(tree: dict[str, Any]) -> None:
            for member in tree["members"]:
                sums = {name: twins("explained_by_layer", share * TOP / 4) for name, share in shares.items()}
                for name, risk in (("theta", 0.1), ("weighted", 0.2), ("sum", 5.0)):
                    sums[name] = sums.get(name, {}) | twins("tvp_risk_by_layer", np.full(LAYERS + 1, risk))
                sums["weighted"]["total_weight_by_layer"] = [1.5] * (LAYERS + 1)
                member["probes"]["additivity"] = sums

        edit(probed_dir, change)
        summary = TVPRun.of(read_run(probed_dir)).summary
        lines = drawn(panels(summary)["additivity"], looks(summary)[1].color)
        np.testing.assert_allclose(lines[0], 0.6 * TOP / 4)
        np.testing.assert_allclose(lines[-2:], [0.9 * TOP / 4, 0.7 * TOP / 4])
        words = probes_text(summary).split("Share at l*")[1]
        assert "TVP-loss at layer 2: 0.3" in words and "with the plain sum: ICL loss only: 5" in words

    def test_a_family_without_swaps_has_three_panels(self, probed_dir: Path, edit: Callable) -> None:
        def change(tree: dict[str, Any]) -> None:
            for member in tree["members"]:
                del member["probes"]["swap"], member["probes"]["superposition"]

        edit(probed_dir, change)
        run = TVPRun.of(read_run(probed_dir))
        assert len(panels(run.summary)) == 3
        shown = [e.stem for e in gallery(run) if e.stem.startswith("probe_")]
        assert shown == ["probe_read", "probe_dummy", "probe_averaging"]
        assert "-         -" in summary_table(__import__("json").loads((probed_dir / "eval/summary.json").read_text()))

    def test_rank_only_where_there_are_several_outputs(self, probed_dir: Path, edit: Callable) -> None:
        assert "rank" not in [e.stem for e in gallery(TVPRun.of(read_run(probed_dir)))]
        edit(probed_dir, lambda tree: add_probes(tree, rank=True))
        run = TVPRun.of(read_run(probed_dir))
        assert [e.stem for e in gallery(run)][8:10] == ["probe_mix", "rank"]
        figure = rank_figure(run.summary)
        left, right = figure.axes
        color = looks(run.summary)[1].color
        np.testing.assert_allclose(drawn(left, color), [[0.98, 0.4]] * 2)
        assert [value.tolist() for value in drawn(right, color)] == [[1.3], [1.4]]
        assert "(W: 1.60)" in rank_text(run.summary) and "1.30" in rank_text(run.summary)
        assert "share of W's power: ICL loss only: 0.750" in rank_text(run.summary)
        assert "Dong et al. 2025" in next(e for e in gallery(run) if e.stem == "rank").caption


class TestWords:
    def test_sentences_are_the_numbers(self, probed_dir: Path) -> None:
        text = probes_text(TVPRun.of(read_run(probed_dir)).summary)
        assert "ICL loss only: 0.900; ICL + 1 × TVP-loss at layer 2: 0.900" in text  # noqa: RUF001
        assert "ICL loss only: 3.00; ICL + 1 × TVP-loss at layer 2: 0.100" in text  # noqa: RUF001
        assert "with the mean over 8: ICL loss only: 1.33; ICL + 1 × TVP-loss at layer 2: 0.0350." in text  # noqa: RUF001
        assert "ICL loss only: to the prompt's own task; ICL + 1" in text and "layer 2: to the vector's task." in text

    def test_a_swap_that_decides_nothing_is_said_to_be_so(self, probed_dir: Path, edit: Callable) -> None:
        def change(tree: dict[str, Any]) -> None:
            for member in tree["members"]:
                member["probes"]["swap"] |= twins("prompt_risk", member["probes"]["swap"]["vector_risk"])

        edit(probed_dir, change)
        assert probes_text(TVPRun.of(read_run(probed_dir)).summary).count("clearly to neither") == 2

    def test_seeds_are_counted(self, eight_dir: Path, tmp_path: Path, edit: Callable) -> None:
        from shutil import copytree

        copy = Path(copytree(eight_dir, tmp_path / "copy"))

        def change(tree: dict[str, Any]) -> None:
            add_probes(tree)
            swap = tree["members"][4]["probes"]["swap"]
            swap["vector_risk"], swap["prompt_risk"] = swap["prompt_risk"], swap["vector_risk"]
            swap["vector_risk_ci"], swap["prompt_risk_ci"] = swap["prompt_risk_ci"], swap["vector_risk_ci"]

        edit(copy, change)
        summary = TVPRun.of(read_run(copy)).summary
        assert "to the vector's task (3 of 4 seeds), to the prompt's own task (1 of 4 seeds)" in probes_text(summary)
        assert len(panels(summary)) == 5

    def test_the_terminal_has_a_row_a_member(self, probed_dir: Path) -> None:
        import json

        table = summary_table(json.loads((probed_dir / "eval" / "summary.json").read_text()))
        rows = [" ".join(row.split()) for row in table.splitlines()]
        assert (
            "2 tvp 0.900 0.100 0.0500 1.90 0.0500 -> 0.0350" in rows
            and "1 icl 0.900 3.00 1.90 0.0500 1.90 -> 1.33" in rows
        )
        assert max(map(len, table.splitlines())) <= 80

    def test_the_page_has_the_figure_with_its_caption(self, probed_dir: Path) -> None:
        text = write_report(probed_dir).read_text()
        assert (probed_dir / "report" / "probe_swap.png").read_bytes().startswith(b"\x89PNG")
        assert "After a swap at l*, the answer is closer" in text


class TestReading:
    def test_runs_without_probes_have_none(self, regression_dir: Path, pair_dir: Path, edit: Callable) -> None:
        run = TVPRun.of(read_run(regression_dir))
        assert all(member.probes is None for member in run.summary.members)
        assert not [exhibit for exhibit in gallery(run) if exhibit.stem.startswith("probe")]

    def test_several_parameters_are_drawn_together(self, probed_dir: Path, edit: Callable) -> None:
        def change(tree: dict[str, Any]) -> None:
            for part in tree["members"][0]["probes"]["decodability"].values():
                part["all"] = twins("explained", np.full(LAYERS + 1, 0.25))

        edit(probed_dir, change)
        member = TVPRun.of(read_run(probed_dir)).summary.members[0]
        assert member.probes is not None
        np.testing.assert_array_equal(member.probes.read["linear"].value, 0.25)

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            (lambda p: p["swap"]["vector_risk"].pop(), "probes: vector_risk: shape (4,), expected (5,)"),
            (lambda p: p["averaging"].update(risk_ci=interval(np.ones(3))), "probes: risk: shape"),
            (lambda p: p.pop("entanglement"), "probes: entanglement: missing"),
            (lambda p: p["entanglement"].pop("ratio_ci"), "probes: ratio_ci: missing"),
            (lambda p: p.update(decodability={"linear": {}}), "probes: decodability: not by parameter"),
            (lambda p: p.update(swap=[]), "probes: swap: [] is not of the right type"),
            (lambda p: p.update(num_prompts="many"), "probes: num_prompts: 'many' is not of the right type"),
            (lambda p: p.update(rank={"best": {}}), "probes: captured: missing"),
        ],
    )
    def test_a_wrong_field_is_named(self, probed_dir: Path, edit: Callable, change: Callable, field: str) -> None:
        def spoil(tree: dict[str, Any]) -> None:
            if "risk: shape" in field and "vector" not in field:
                tree["members"][1]["probes"]["averaging"]["risk"] = [1.0]
            change(tree["members"][1]["probes"])

        edit(probed_dir, spoil)
        with pytest.raises(UserError, match="run --mode=eval again") as caught:
            TVPRun.of(read_run(probed_dir))
        assert f"members.tvp.{field}" in str(caught.value)
