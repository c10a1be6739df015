"""Reading a run directory: what is taken in, and what is refused, in one line that names the file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tvjax.errors import UserError
from tvjax.experiments.tvp.report.reader import TVPRun
from tvjax.report.reader import read_run


def refusal(run_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        TVPRun.of(read_run(run_dir))
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestWhatIsRead:
    def test_members_scores_and_vectors_belong_together(self, regression_dir: Path) -> None:
        run = TVPRun.of(read_run(regression_dir))
        tree = json.loads((regression_dir / "eval" / "summary.json").read_text())
        assert [member.name for member in run.summary.members] == ["icl", "tvp"]
        np.testing.assert_array_equal(
            run.summary.base.risk.scores[1].tvp.value, tree["members"][1]["tvp_risk_by_layer"]
        )
        ends = np.array(tree["members"][1]["icl_risk_ci"])
        np.testing.assert_array_equal(run.summary.base.risk.scores[1].icl.low, ends[:, 0])
        np.testing.assert_array_equal(run.summary.base.risk.scores[1].icl.high, ends[:, 1])
        assert run.vectors[1].theta.shape == (1024, 32) and run.vectors[1].parameters["w"].shape == (1024, 4)
        assert run.summary.base.accuracy is None

    def test_token_tasks_have_accuracies(self, tokens_dir: Path) -> None:
        summary = TVPRun.of(read_run(tokens_dir)).summary
        assert summary.base.accuracy is not None and float(summary.base.accuracy.prior.value) == 0.2
        assert all(shift.accuracy is not None for shift in summary.shifts)

    def test_a_shift_may_have_more_demonstrations(self, regression_dir: Path) -> None:
        shifts = {shift.name: shift for shift in TVPRun.of(read_run(regression_dir)).summary.shifts}
        assert shifts["more_demonstrations"].risk.scores[0].icl.value.shape == (33,)

    def test_members_of_a_shift_are_matched_by_name(self, pair_dir: Path, edit: Callable) -> None:
        before = TVPRun.of(read_run(pair_dir)).summary
        edit(pair_dir, lambda tree: tree["shifts"]["label_noise"]["members"].reverse())
        after = TVPRun.of(read_run(pair_dir)).summary
        for old, new in zip(before.shifts, after.shifts, strict=True):
            np.testing.assert_array_equal(old.risk.scores[0].tvp.value, new.risk.scores[0].tvp.value)

    def test_vectors_are_those_of_the_prescribed_layer(self, pair_dir: Path) -> None:
        theta = np.arange(5 * 6 * 3, dtype=np.float32).reshape(5, 6, 3)
        save_file({"theta": theta, "task.c": np.arange(6)}, pair_dir / "vectors" / "tvp.safetensors")
        np.testing.assert_array_equal(TVPRun.of(read_run(pair_dir)).vectors[1].theta, theta[2])

    def test_a_task_without_an_oracle(self, pair_dir: Path, edit: Callable) -> None:
        edit(pair_dir, lambda tree: tree.update(oracle_risk=None))
        assert TVPRun.of(read_run(pair_dir)).summary.base.risk.oracle is None


class TestTheLog:
    def test_a_resumed_run_logs_steps_again_and_the_later_line_counts(self, pair_dir: Path) -> None:
        with (pair_dir / "metrics.jsonl").open("a") as log:
            log.write('{"step": 20, "member": "icl", "icl_loss": 7.5}\n')
        steps, values = TVPRun.of(read_run(pair_dir)).metrics[0].get("icl_loss")
        assert values[steps == 20].tolist() == [7.5] and (np.diff(steps) > 0).all()

    def test_a_last_line_cut_by_a_kill_is_left_out(self, pair_dir: Path) -> None:
        before = TVPRun.of(read_run(pair_dir)).metrics[0].get("icl_loss")[0].size
        with (pair_dir / "metrics.jsonl").open("a") as log:
            log.write('{"step": 4020, "mem')
        assert TVPRun.of(read_run(pair_dir)).metrics[0].get("icl_loss")[0].size == before

    def test_a_broken_line_in_the_middle_is_named(self, pair_dir: Path) -> None:
        path = pair_dir / "metrics.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:2], "{oops", *lines[2:]]) + "\n")
        assert "metrics.jsonl: line 3 " in refusal(pair_dir)

    def test_a_member_that_was_never_logged(self, pair_dir: Path) -> None:
        path = pair_dir / "metrics.jsonl"
        path.write_text("\n".join(line for line in path.read_text().splitlines() if '"tvp"' not in line) + "\n")
        assert "metrics.jsonl: no line of member 'tvp'" in refusal(pair_dir)


class TestRefusals:
    @pytest.mark.parametrize(
        ("file", "mode"),
        [
            ("config.json", "train"),
            ("environment.json", "train"),
            ("metrics.jsonl", "train"),
            ("eval/summary.json", "eval"),
            ("vectors/tvp.safetensors", "eval"),
        ],
    )
    def test_a_missing_file_is_named_with_what_makes_it(self, pair_dir: Path, file: str, mode: str) -> None:
        (pair_dir / file).unlink()
        assert refusal(pair_dir) == f"{pair_dir / file}: missing; run --mode={mode} first"

    @pytest.mark.parametrize("file", ["config.json", "eval/summary.json", "vectors/tvp.safetensors"])
    def test_a_cut_file_is_named(self, pair_dir: Path, file: str) -> None:
        path = pair_dir / file
        path.write_bytes(path.read_bytes()[:-20])
        assert refusal(pair_dir).startswith(f"{path}: not ")

    def test_no_such_run(self, tmp_path: Path) -> None:
        assert "no such run directory" in refusal(tmp_path / "absent")

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            (lambda tree: tree.pop("risk_unit"), "risk_unit: missing"),
            (lambda tree: tree["members"][1].pop("tvp_risk_by_layer_ci"), "members.tvp.tvp_risk_by_layer_ci: missing"),
            (lambda tree: tree["members"][0]["icl_risk"].pop(), "members.icl.icl_risk: shape (16,), expected (17,)"),
            (lambda tree: tree["members"][0].update(prescribed_layer=9), "prescribed_layer: 9 is not a layer 0..4"),
            (lambda tree: tree["members"][0].update(name="tvp"), "members: two have the same name"),
            (lambda tree: tree["shifts"]["label_noise"].pop("prior_risk"), "shifts.label_noise.prior_risk: missing"),
            (lambda tree: tree["shifts"]["label_noise"]["members"].pop(), "shifts.label_noise.members: not those"),
            (lambda tree: tree.update(num_layers="4"), "num_layers: '4' is not of the right type"),
            (lambda tree: tree.update(prior_risk=["x"]), "prior_risk: not numbers"),
            (lambda tree: tree["baselines"]["averaging"].pop("risk_ci"), "baselines.averaging.risk_ci: missing"),
            (lambda tree: tree["baselines"]["averaging"].pop("num_prompts"), "averaging.num_prompts: missing"),
            (lambda tree: tree.update(baselines=[]), "baselines: [] is not of the right type"),
        ],
    )
    def test_a_wrong_field_of_the_summary_is_named(
        self, pair_dir: Path, edit: Callable, change: Callable, field: str
    ) -> None:
        edit(pair_dir, change)
        message = refusal(pair_dir)
        assert message.startswith(str(pair_dir / "eval" / "summary.json")) and field in message

    def test_vectors_of_another_model(self, pair_dir: Path) -> None:
        save_file({"theta": np.zeros((3, 6, 3), np.float32)}, pair_dir / "vectors" / "tvp.safetensors")
        assert "tvp.safetensors: theta: shape [3, 6, 3], expected [5, P, D]" in refusal(pair_dir)
