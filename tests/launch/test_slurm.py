"""launch/slurm.sbatch against stand-ins for srun, scancel and scontrol."""

import signal
import time

import pytest

from tests.launch.conftest import REPOSITORY

ODD = ["--config=configs/a b.py", "--workdir=/shared/run", "--config.task.name='it''s \"x\"'", "--x=$HOME;*"]


@pytest.fixture
def job(stage):
    """Starts the script as Slurm would; what is installed is there already."""
    venv = stage.checkout / ".venv" / "bin" / "python"
    venv.parent.mkdir(parents=True)
    venv.symlink_to(stage.folder / "bin" / "python3")

    def start(*arguments, **more):
        known = {"SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(stage.checkout)} | more
        return stage.start("bash", str(stage.checkout / "launch" / "slurm.sbatch"), *(arguments or ODD), **known)

    return start


def ended(process) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def running(stage, process) -> None:
    """Return when the step is under way."""
    until = time.monotonic() + 60
    while not (stage.folder / "step").exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)


def test_one_process_a_task_with_the_arguments_as_they_are(stage, job):
    code, err = ended(job())
    assert code == 0, err
    (step,) = stage.calls("srun")
    assert "--kill-on-bad-exit=0" in step["argv"]  # after SIGTERM the first to end must not end the others' save
    assert step["argv"][-len(ODD) - 3 :] == [".venv/bin/python", "-m", "tvjax.main", *ODD]
    assert step["processes"] == "auto" and step["cwd"] == str(stage.checkout)
    assert stage.calls("python3", ".[gpu]")


def test_there_are_as_many_tasks_as_gpus_on_a_node():
    lines = (REPOSITORY / "launch" / "slurm.sbatch").read_text().splitlines()
    options = dict(
        line.removeprefix("#SBATCH --").split("=") for line in lines if line.startswith("#SBATCH --") and "=" in line
    )
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"].startswith("B:USR1@")


@pytest.mark.parametrize(
    ("ends", "code", "starts"), [([1, 134, 0], 0, 3), ([1, 1, 7], 7, 3), ([2, 0], 2, 1), ([3, 0], 3, 1)]
)
def test_a_run_that_fails_is_started_again_a_stated_number_of_times(stage, job, ends, code, starts):
    stage.play(ends=ends)
    found, err = ended(job())
    assert found == code
    assert len(stage.calls("srun")) == starts
    assert ("giving up" in err) == (code == 7)


def test_when_the_time_is_over_the_run_saves_and_queues_again(stage, job):
    stage.play(ends=["until stopped"])
    process = job()
    running(stage, process)
    process.send_signal(signal.SIGUSR1)
    code, err = ended(process)
    assert code == 143 and "queueing again" in err
    assert stage.calls("scancel", "--signal=TERM", "77") and stage.calls("scontrol", "requeue", "77")
    assert len(stage.calls("srun")) == 1


@pytest.mark.parametrize("seconds", ["0.5", "30"])
def test_a_step_that_does_not_hear_that_the_time_is_over_is_killed_and_queued_again(stage, job, seconds):
    deaf = seconds == "0.5"
    stage.play(ends=["until stopped"], deaf=deaf)
    process = job(SAVING_SECONDS=seconds)
    running(stage, process)
    process.send_signal(signal.SIGUSR1)
    code, err = ended(process)
    assert code == 143 and "queueing again" in err and stage.calls("scontrol", "requeue", "77")
    assert bool(stage.calls("scancel", "--signal=KILL", "77")) == deaf


def test_it_does_not_queue_again_without_end(stage, job):
    stage.play(ends=["until stopped"])
    process = job(SLURM_RESTART_COUNT="2")
    running(stage, process)
    process.send_signal(signal.SIGUSR1)
    code, err = ended(process)
    assert code == 143 and "giving up" in err
    assert not stage.calls("scontrol")


def test_what_is_cancelled_is_neither_started_nor_queued_again(stage, job):
    stage.play(ends=["until stopped"])
    process = job()
    running(stage, process)
    process.send_signal(signal.SIGTERM)
    (stage.folder / "step").unlink()
    assert ended(process)[0] == 143
    assert len(stage.calls("srun")) == 1 and not stage.calls("scontrol")


def test_wrong_use_ends_with_code_2_and_one_line(stage, job):
    for process in (job("--config=c.py"), job(SLURM_JOB_ID=""), job(SLURM_SUBMIT_DIR=str(stage.folder))):
        code, err = ended(process)
        assert code == 2 and err.count("\n") == 1 and "accepted: sbatch launch/slurm.sbatch" in err
    assert not stage.calls("srun")


@pytest.mark.parametrize("wrong", [{"RESTARTS": "ten"}, {"SAVING_SECONDS": "long"}], ids=str)
def test_a_variable_that_is_no_number_is_named(stage, job, wrong):
    code, err = ended(job(**wrong))
    assert code == 2 and err.count("\n") == 1 and f"tvjax: {next(iter(wrong))}: given" in err
    assert not stage.calls("srun")


def test_help_says_how_it_is_used(stage):
    code, out, _ = stage.run("bash", "launch/slurm.sbatch", "--help")
    assert code == 0 and out.startswith("Usage, in the folder of the checkout: sbatch")
    assert "RESTARTS" in out and "#SBATCH --" not in out
