"""The figures draw the numbers of the run directory, and say what they are."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from tvjax.experiments.tvp.report.figures import icl_figure, tvp_figure
from tvjax.experiments.tvp.report.gallery import gallery
from tvjax.experiments.tvp.report.looks import looks
from tvjax.experiments.tvp.report.progress import heatmap_figure, training_figure
from tvjax.experiments.tvp.report.reader import TVPRun
from tvjax.experiments.tvp.report.shifts import CEILING, shifts_figure
from tvjax.experiments.tvp.report.vectors import pca_figure
from tvjax.report.pca import colour_scale, coordinates, principal
from tvjax.report.reader import Vectors, read_run

LASSO = "lasso, penalty 0.1 (n = 128)"
PLAIN, TRAINED = "ICL loss only", "ICL + 1 × TVP-loss at layer 2"  # noqa: RUF001


def line(ax: Axes, label: str) -> np.ndarray:
    (found,) = [entry for entry in ax.lines if entry.get_label() == label]
    return np.array(found.get_xydata())


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


class TestTraining:
    def test_draws_the_logged_risks_smoothed(self, regression_dir: Path) -> None:
        run = TVPRun.of(read_run(regression_dir))
        left, right = training_figure(run).axes
        assert left.get_yscale() == right.get_yscale() == "log"
        for ax, name in ((left, "icl_loss"), (right, "tvp_loss")):
            steps, values = run.metrics[1].get(name)
            drawn = line(ax, TRAINED)
            np.testing.assert_array_equal(drawn[0], [steps[2], pytest.approx(values[:5].mean())])
            assert any(np.array_equal(entry.get_ydata(), values) for entry in ax.lines)

    def test_tokens_add_accuracies(self, tokens_dir: Path) -> None:
        figure = training_figure(TVPRun.of(read_run(tokens_dir)))
        assert [ax.get_ylabel().split("\n")[0] for ax in figure.axes] == [
            "ICL risk",
            "TVP risk",
            "ICL accuracy",
            "TVP accuracy",
        ]

    def test_a_metric_that_one_member_never_logged_leaves_the_other(self, pair_dir: Path) -> None:
        path = pair_dir / "metrics.jsonl"
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        for row in rows:
            if row["member"] == "icl":
                row.pop("tvp_loss", None)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        right = training_figure(TVPRun.of(read_run(pair_dir))).axes[1]
        assert line(right, PLAIN).size == 0 and line(right, TRAINED).size > 0


class TestEvaluation:
    def test_icl_by_demonstrations(self, regression_dir: Path) -> None:
        summary = TVPRun.of(read_run(regression_dir)).summary
        figure = icl_figure(summary)
        (ax,) = figure.axes
        np.testing.assert_array_equal(line(ax, TRAINED), np.c_[np.arange(17), summary.base.risk.scores[1].icl.value])
        np.testing.assert_allclose(line(ax, "oracle")[:4, 1], [1, 0.75, 0.5, 0.25])
        assert line(ax, "oracle")[5, 1] < ax.get_ylim()[0]
        assert "oracle: below the axis from 4 demonstrations on, down to 0" in legend(figure)
        assert "n = 1024 prompts; bands: 90% bootstrap" in words(figure)

    @pytest.mark.parametrize(("share", "shown"), [(0.5, True), (0.1, False)])
    def test_an_oracle_near_the_members_is_on_the_axis(
        self, regression_dir: Path, edit: Callable, share: float, shown: bool
    ) -> None:
        def near(tree: dict) -> None:
            least = share * min(low for member in tree["members"] for low, _ in member["icl_risk_ci"])
            tree["oracle_risk"] = [least for _ in tree["oracle_risk"]]
            tree["oracle_risk_ci"] = [[least, least] for _ in tree["oracle_risk"]]

        edit(regression_dir, near)
        figure = icl_figure(TVPRun.of(read_run(regression_dir)).summary)
        assert (line(figure.axes[0], "oracle")[-1, 1] > figure.axes[0].get_ylim()[0]) == shown
        assert ("oracle" in legend(figure)) == shown

    def test_baselines_have_labelled_lines_where_they_were_tried(self, regression_dir: Path) -> None:
        figure = icl_figure(TVPRun.of(read_run(regression_dir)).summary)
        (ax,) = figure.axes
        np.testing.assert_array_equal(line(ax, LASSO)[:, 0], np.arange(0, 17, 2))
        np.testing.assert_allclose(line(ax, LASSO)[:, 1], np.exp(-np.arange(0, 17, 2) / 3))
        np.testing.assert_allclose(line(ax, "averaging (mean of y x)")[1:3], [[1, 5], [2, 2.5]])
        assert {LASSO, "averaging (mean of y x)"} <= set(legend(figure))
        looked = {(str(e.get_color()), str(e.get_linestyle())) for e in ax.lines if e.get_label() in legend(figure)}
        assert len(looked) >= 4
        assert ax.get_ylim()[1] > 5

    def test_a_baseline_that_goes_astray_leaves_the_axis(self, pair_dir: Path, edit: Callable) -> None:
        edit(pair_dir, lambda tree: tree["baselines"]["averaging"]["risk"].__setitem__(3, 1e6))
        (ax,) = icl_figure(TVPRun.of(read_run(pair_dir)).summary).axes
        assert 5 < ax.get_ylim()[1] < 20

    def test_without_an_oracle_or_baselines_there_are_no_lines_of_them(self, pair_dir: Path, edit: Callable) -> None:
        edit(pair_dir, lambda tree: tree.update(oracle_risk=None, baselines={}))
        text = " ".join(legend(icl_figure(TVPRun.of(read_run(pair_dir)).summary)))
        assert "oracle" not in text and "lasso" not in text and PLAIN in text

    def test_bands_are_the_intervals(self, regression_dir: Path) -> None:
        summary = TVPRun.of(read_run(regression_dir)).summary
        (ax,) = tvp_figure(summary).axes
        tvp = summary.base.risk.scores[1].tvp
        band = ax.collections[1].get_paths()[0].vertices
        assert band[:, 1].min() == tvp.low.min() and band[:, 1].max() == tvp.high.max()

    def test_tvp_by_layer_rings_the_prescribed_layer(self, regression_dir: Path) -> None:
        summary = TVPRun.of(read_run(regression_dir)).summary
        (ax,) = tvp_figure(summary).axes
        np.testing.assert_array_equal(line(ax, PLAIN)[:, 1], summary.base.risk.scores[0].tvp.value)
        np.testing.assert_allclose(line(ax, "prescribed layer"), [[2, 0.128]])
        assert any(np.allclose(entry.get_ydata(), 1.02) for entry in ax.lines)

    def test_layout_xy_shades_no_ends(self, pair_dir: Path, edit: Callable) -> None:
        edit(pair_dir, lambda tree: tree.update(layout="xy"))
        figure = tvp_figure(TVPRun.of(read_run(pair_dir)).summary)
        assert not figure.axes[0].patches and not any("sees no query" in text for text in legend(figure))

    def test_tokens_show_accuracy_beside_risk(self, tokens_dir: Path) -> None:
        summary = TVPRun.of(read_run(tokens_dir)).summary
        left, right = icl_figure(summary).axes
        assert left.get_yscale() == "linear" and right.get_yscale() == "log"
        np.testing.assert_array_equal(line(left, PLAIN)[:, 1], summary.base.accuracy.scores[0].icl.value)
        assert right.get_ylabel() == "ICL risk\ncross-entropy (nats)"


class TestHeatmap:
    def test_is_relative_to_the_prior_on_one_scale_centred_at_it(self, regression_dir: Path) -> None:
        run = TVPRun.of(read_run(regression_dir))
        figure = heatmap_figure(run)
        meshes = [mesh for ax in figure.axes[:2] for mesh in ax.collections if isinstance(mesh, QuadMesh)]
        values = run.metrics[1].get("eval_tvp_risk_by_layer")[1]
        np.testing.assert_allclose(np.asarray(meshes[1].get_array()), values.T / 1.02)
        assert meshes[0].norm is meshes[1].norm and meshes[0].norm(1.0) == pytest.approx(0.5)

    def test_one_evaluation_alone_can_be_drawn(self, pair_dir: Path) -> None:
        path = pair_dir / "metrics.jsonl"
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= 40))
        figure = heatmap_figure(TVPRun.of(read_run(pair_dir)))
        assert figure.axes[0].collections[0].get_array().shape == (5, 1)

    def test_without_evaluations_there_is_none(self, pair_dir: Path) -> None:
        path = pair_dir / "metrics.jsonl"
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if "eval" not in k}) + "\n" for row in rows))
        assert "tvp_by_layer_and_step" not in [exhibit.stem for exhibit in gallery(TVPRun.of(read_run(pair_dir)))]


class TestShifts:
    def test_bars_are_risks_over_the_shifts_own_prior(self, pair_dir: Path, edit: Callable) -> None:
        def change(tree: dict) -> None:
            tree["shifts"] = {"inputs_x3": tree["shifts"]["inputs_x3"]}
            tree["shifts"]["inputs_x3"].update(prior_risk=2.0)

        edit(pair_dir, change)
        summary = TVPRun.of(read_run(pair_dir)).summary
        left, right = shifts_figure(summary).axes
        ends = {round(bar.get_x() + bar.get_width(), 6) for bar in right.patches}
        assert ends == {round(x, 6) for x in (1.08 / 1.02, 0.128 / 1.02, 1.08 / 2, 0.128 / 2)}
        assert [text.get_text() for text in left.get_yticklabels()] == ["as in training", "inputs x3"]
        assert len(left.patches) == 6 and left.get_xscale() == "log"

    def test_what_explodes_is_cut_and_its_value_written(self, pair_dir: Path, edit: Callable) -> None:
        edit(pair_dir, lambda tree: tree["shifts"]["label_noise"]["members"][0]["icl_risk"].__setitem__(16, 1.02e6))
        left = shifts_figure(TVPRun.of(read_run(pair_dir)).summary).axes[0]
        assert left.get_xlim()[1] == CEILING
        assert max(bar.get_x() + bar.get_width() for bar in left.patches) == CEILING
        assert any("1.0e6" in text.get_text() for text in left.texts)


class TestVectors:
    def test_principal_directions_of_a_known_cloud(self) -> None:
        rng = np.random.default_rng(1)
        points = rng.normal(size=(500, 2)) * [3.0, 1.0]
        found, share = principal(points @ np.eye(2, 7) + 5.0)
        assert share.sum() == pytest.approx(1) and share[0] == pytest.approx(0.9, abs=0.03)
        assert abs(np.corrcoef(found[:, 0], points[:, 0])[0, 1]) > 0.999

    def test_one_panel_for_each_of_two_coordinates(self, regression_dir: Path) -> None:
        run = TVPRun.of(read_run(regression_dir))
        figure = pca_figure(run)
        shown = [ax for ax in figure.axes if ax.get_visible() and ax.get_xlabel()]
        assert len(shown) == 4
        dots = shown[3].collections[0]
        np.testing.assert_allclose(dots.get_array(), run.vectors[1].parameters["w"][:, 1])
        np.testing.assert_allclose(dots.get_offsets(), principal(run.vectors[1].theta)[0])
        share = principal(run.vectors[1].theta)[1]
        assert shown[3].get_xlabel() == f"PC 1 ({share[0]:.0%} of variance)"

    def test_scalars_and_constants(self) -> None:
        parameters = {"phase": np.linspace(0, 6, 5), "amplitude": np.arange(5.0), "frequency": np.ones(5)}
        assert list(coordinates(Vectors(np.zeros((5, 3)), parameters))) == ["amplitude", "phase"]

    def test_colours_fit_the_kind_of_parameter(self) -> None:
        cyclic, norm, _ = colour_scale("phase", np.linspace(0.1, 6.2, 50))
        assert cyclic.name == "twilight" and norm.vmax - norm.vmin == pytest.approx(2 * np.pi)
        steps, _, ticks = colour_scale("c", np.array([3, 0, 7, 3]))
        assert steps.N == 3 and ticks == [0, 3, 7]
        assert colour_scale("w[0]", np.linspace(-1, 1, 9))[0].name == "viridis"

    def test_vectors_that_are_not_finite_get_no_place(self, regression_dir: Path) -> None:
        run = TVPRun.of(read_run(regression_dir))
        run.vectors[0].theta[3] = np.nan
        dots = pca_figure(run).axes[0].collections[0].get_offsets()
        assert np.isnan(np.asarray(dots)).any(1).sum() <= 1 and np.isfinite(np.asarray(dots)[4]).all()


class TestMembers:
    def test_one_colour_a_member_in_every_figure(self, eight_dir: Path) -> None:
        run = TVPRun.of(read_run(eight_dir))
        styles = looks(run.summary)
        assert len({look.color for look in styles}) == 8
        for figure in (training_figure(run), icl_figure(run.summary), tvp_figure(run.summary)):
            drawn = {entry.get_label(): entry.get_color() for ax in figure.axes for entry in ax.lines}
            assert all(drawn[look.label] == look.color for look in styles)
            assert {look.label for look in styles} <= set(legend(figure))

    def test_eight_members_all_have_their_panels_and_bars(self, eight_dir: Path) -> None:
        run = TVPRun.of(read_run(eight_dir))
        titles = [ax.get_title(loc="left") for ax in heatmap_figure(run).axes]
        assert [look.label for look in looks(run.summary)] == [title for title in titles if title]
        left, right = shifts_figure(run.summary).axes
        assert len(left.patches) == 10 * 9 and len(right.patches) == 10 * 8
        assert sum(ax.get_visible() and ax.get_xlabel() != "" for ax in pca_figure(run).axes) == 16

    def test_seeds_are_named_only_where_there_are_several(self, regression_dir: Path, eight_dir: Path) -> None:
        assert [look.label for look in looks(TVPRun.of(read_run(regression_dir)).summary)] == [PLAIN, TRAINED]
        assert looks(TVPRun.of(read_run(eight_dir)).summary)[5].label == f"{TRAINED}, seed 1"

    def test_members_that_differ_in_nothing_known_here_are_told_apart(self, pair_dir: Path, edit: Callable) -> None:
        edit(pair_dir, lambda tree: [member.update(tvp_weight=1.0) for member in tree["members"]])
        assert [look.label[-5:] for look in looks(TVPRun.of(read_run(pair_dir)).summary)] == ["(icl)", "(tvp)"]

    def test_figures_hold_no_global_state(self, regression_dir: Path) -> None:
        for exhibit in gallery(TVPRun.of(read_run(regression_dir))):
            exhibit.draw()
        pyplot = sys.modules.get("matplotlib.pyplot")
        assert pyplot is None or not pyplot.get_fignums()
