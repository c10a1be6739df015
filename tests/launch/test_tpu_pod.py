"""launch/tpu_pod.sh against a stand-in for gcloud: two workers run what they are told, each in its own home."""

import signal
import time
from pathlib import Path

import pytest

ODD = ["--config=configs/a b.py", "--workdir=gs://bucket/run", "--config.task.name='it''s \"x\"'", "--x=$HOME;*\n`ls`"]
PLAIN = ["--config=c.py", "--workdir=gs://bucket/run"]


def pod(stage, *arguments, **environment):
    return stage.run("bash", "launch/tpu_pod.sh", "pod", "zone-a", "--", *(arguments or PLAIN), **environment)


def commands(stage) -> list[str]:
    """What gcloud was asked for, in order, without the looks at states."""
    found = [" ".join(call["argv"][2:4]) for call in stage.calls("gcloud")]
    return [command for command in found if not command.endswith("describe")]


def started(stage) -> list[dict]:
    return stage.calls("python3", "-m", "tvjax.main")


ONCE = ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
MAKE = ["queued-resources create"]


class TestStart:
    def test_a_slice_is_made_installed_and_started_on_every_worker(self, stage):
        code, _, err = pod(stage, TPU_TYPE="v5p-64", TPU_OPTIONS="--spot --network=net")
        assert code == 0, err
        assert commands(stage) == MAKE + ONCE
        (asked,) = stage.calls("gcloud", "create")
        assert {
            "pod",
            "--node-id=pod",
            "--zone=zone-a",
            "--accelerator-type=v5p-64",
            "--runtime-version=v2-alpha-tpuv5",
            "--spot",
            "--network=net",
            "--quiet",
        } <= set(asked["argv"])
        assert sorted(call["worker"] for call in stage.calls("python3", ".[tpu]")) == ["0", "1"]
        assert sorted(call["worker"] for call in started(stage)) == ["0", "1"]
        assert {call["processes"] for call in started(stage)} == {"auto"}
        assert {call["cwd"] for call in started(stage)} == {f"{stage.folder}/worker{n}/tvjax" for n in (0, 1)}

    def test_all_workers_start_at_once(self, stage):
        pod(stage)
        for call in stage.calls("gcloud", "ssh"):
            assert {"--worker=all", "--batch-size=all", "--zone=zone-a"} <= set(call["argv"])
            assert call["argv"].index("--zone=zone-a") < call["argv"].index("--")

    def test_a_slice_that_is_ready_is_used(self, stage):
        stage.play(node="READY")
        assert pod(stage)[0] == 0
        assert commands(stage) == ONCE

    def test_a_slice_that_is_stopped_is_started(self, stage):
        stage.play(node="STOPPED")
        assert pod(stage)[0] == 0
        assert commands(stage) == ["tpu-vm start", *ONCE]

    def test_a_slice_that_was_preempted_before_is_made_again(self, stage):
        stage.play(node="PREEMPTED", request="SUSPENDED")
        assert pod(stage)[0] == 0
        assert commands(stage) == ["queued-resources delete", "tpu-vm delete", *MAKE, *ONCE]

    def test_worker_0_is_followed_and_every_worker_has_its_log(self, stage):
        _, out, _ = pod(stage)
        assert out.count("worker 0 says this") == 1 and "worker 1" not in out
        assert "worker 1 says this" in (stage.folder / "logs" / "1.log").read_text()

    def test_spaces_quotes_and_signs_in_arguments_arrive_as_they_are(self, stage):
        assert pod(stage, *ODD)[0] == 0
        assert [call["argv"][2:] for call in started(stage)] == [ODD, ODD]


class TestEnd:
    def test_after_a_preemption_the_slice_is_made_again_and_the_run_started_again(self, stage):
        stage.play(ends=["preempted", 0])
        code, _, err = pod(stage)
        assert code == 0, err
        assert commands(stage) == [*MAKE, *ONCE, "queued-resources delete", "tpu-vm delete", *MAKE, *ONCE]
        assert len(started(stage)) == 4
        assert "restart 1 of 2" in err

    def test_a_run_that_fails_is_started_again_on_the_same_slice(self, stage):
        stage.play(ends=[1, 134, 0])
        assert pod(stage)[0] == 0
        assert commands(stage) == MAKE + 3 * ONCE

    def test_it_gives_up_after_the_stated_number_with_the_last_code(self, stage):
        stage.play(ends=[1, 1, 7])
        code, _, err = pod(stage)
        assert code == 7
        assert len(started(stage)) == 2 * 3
        assert "ended with code 7 after 2 restarts: giving up" in err

    @pytest.mark.parametrize("code", [2, 3])
    def test_what_would_end_the_same_is_not_started_again(self, stage, code):
        stage.play(ends=[code, 0])
        assert pod(stage)[0] == code
        assert len(started(stage)) == 2

    def test_a_worker_that_hangs_is_killed_and_the_run_started_again(self, stage):
        stage.play(ends=["one hangs", 0])
        code, _, err = pod(stage, ENDING="0")
        assert code == 0
        assert "a worker hangs" in err
        assert "0.log:tvjax: this worker ended with code 75 at 20" in err
        assert "1.log:tvjax: this worker ended with code 137 at 20" in err
        assert len(started(stage)) == 4

    @pytest.mark.parametrize("played", [{"no_slice": True}, {"becomes": "FAILED"}])
    def test_where_there_is_no_slice_it_ends_with_code_3(self, stage, played):
        stage.play(**played)
        code, _, err = pod(stage)
        assert code == 3
        assert "pod: there is no slice of v5litepod-16 in zone-a" in err
        assert commands(stage) == MAKE

    def test_a_signal_is_passed_on_and_the_end_of_the_workers_awaited(self, stage):
        process, _ = self.running(stage)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 143
        assert len(started(stage)) == 2

    def test_what_a_launcher_that_was_killed_left_running_is_ended_first(self, stage):
        process, left = self.running(stage)
        process.kill()
        stage.play(ends=[0])
        assert pod(stage)[0] == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in left)
        assert len(started(stage)) == 4

    def running(self, stage):
        """A launcher whose workers run until they are stopped, and their process ids."""
        stage.play(ends=["until stopped"])
        process = stage.start("bash", "launch/tpu_pod.sh", "pod", "zone-a", "--", *PLAIN)
        files = [stage.folder / f"running{n}" for n in (0, 1)]
        until = time.monotonic() + 60
        while not all(file.exists() and file.read_text() for file in files):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        return process, [file.read_text() for file in files]


class TestUse:
    @pytest.mark.parametrize(
        "words",
        [(), ("pod",), ("pod", "zone-a"), ("pod", "zone-a", "--"), ("pod", "--", *PLAIN), ("--x", "z", "--", *PLAIN)],
    )
    def test_wrong_arguments_end_with_code_2_and_one_line(self, stage, words):
        code, _, err = stage.run("bash", "launch/tpu_pod.sh", *words)
        assert code == 2 and err.count("\n") == 1
        assert "NAME ZONE -- --config=FILE --workdir=" in err
        assert not stage.calls("gcloud")

    def test_without_a_workdir_a_restart_would_begin_anew(self, stage):
        code, _, err = pod(stage, "--config=c.py")
        assert code == 2 and err.count("\n") == 1 and "--workdir=gs://" in err

    @pytest.mark.parametrize("wrong", [{"RESTARTS": "ten"}, {"ENDING": "1.5"}, {"POLL": "soon"}], ids=str)
    def test_a_variable_that_is_no_number_is_named(self, stage, wrong):
        code, _, err = pod(stage, **wrong)
        assert code == 2 and err.count("\n") == 1 and f"tvjax: {next(iter(wrong))}: given" in err
        assert not stage.calls("gcloud")

    def test_help_says_how_it_is_used(self, stage):
        code, out, _ = stage.run("bash", "launch/tpu_pod.sh", "--help")
        assert code == 0 and out.startswith("Usage: bash launch/tpu_pod.sh NAME ZONE -- ARGUMENTS")
        assert "RESTARTS" in out and "set -" not in out
