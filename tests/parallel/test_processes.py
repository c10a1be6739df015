"""Several processes compute what one computes, stop and end together, and a job that lost one goes on."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.conftest import TINY, changed, quiet
from tests.experiments.test_atv import CONFIG as ATV
from tests.experiments.test_atv import model_folder
from tests.jobs import Jobs
from tests.parallel import toy
from tests.parallel.test_sharding import TOLERANCE, assert_close
from tests.runs import logged
from tvjax.errors import RunError
from tvjax.experiments.atv import run as atv
from tvjax.experiments.tvp import run as tvp
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import make_trainer
from tvjax.parallel import processes
from tvjax.parallel.processes import HEARTBEAT_SECONDS
from tvjax.train.checkpoint import Checkpoints
from tvjax.vectors import store

TOY = ("-m", "tests.parallel.toy")
MESH = {"member": 2, "data": 4}
TRAIN = {"steps": 60, "log_every": 20, "checkpoint_every": 20, "keep_checkpoints": 9}
LONG = {"mesh": {"member": 2}, "steps": 4000, "log_every": 5, "slow": 0.2}


def losses(run: Path, step: int) -> list[float]:
    return [row["loss"] for row in logged(run) if row["step"] == step]


class TestTheSameAnywhere:
    """A population on a mesh of eight devices: of one process, and of four with two devices each."""

    @pytest.fixture(scope="class")
    def one(self, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("one")
        toy.make_trainer(MESH, **TRAIN).run(folder, quiet)
        return folder

    @pytest.fixture(scope="class")
    def four(self, tmp_path_factory) -> Path:
        folder = tmp_path_factory.mktemp("four")
        jobs = Jobs(folder, processes=4, devices=2)
        assert jobs.finish(*TOY, json.dumps({"mesh": MESH, **TRAIN}), str(folder / "run")) == (0, "")
        return folder / "run"

    def saved(self, run: Path, step: int, folder: Path, mesh: dict[str, int]) -> tuple[Any, Any]:
        """The programs of a mesh, and the state that a run saved at `step`, restored onto it."""
        shutil.copytree(run / "checkpoints" / str(step), folder / "checkpoints" / str(step))
        trainer = toy.make_trainer(mesh, **TRAIN)
        return trainer, trainer.restore(folder, quiet)[1]

    @pytest.mark.slow
    def test_losses_and_parameters_of_four_processes_are_those_of_one(self, one, four, tmp_path):
        for step in (20, 40, 60):
            np.testing.assert_allclose(losses(four, step), losses(one, step), rtol=TOLERANCE)
        (_, theirs), (_, ours) = (self.saved(run, 20, tmp_path / str(i), MESH) for i, run in enumerate((one, four)))
        assert_close(jax.device_get(ours.params), jax.device_get(theirs.params))

    @pytest.mark.slow
    def test_every_process_gets_the_whole_parameters_and_the_first_alone_writes(self, four, tmp_path):
        _, last = self.saved(four, 60, tmp_path, MESH)
        summary = json.loads((four / "eval" / "summary.json").read_text())
        np.testing.assert_array_equal(np.float32(summary["w"]), jax.device_get(last.params["w"]))
        assert [(row["step"], row["member"]) for row in logged(four)] == [(s, m) for s in (0, 20, 40, 60) for m in "ab"]
        about = json.loads((four / "environment.json").read_text())
        assert about["devices"] == {"kind": "cpu", "count": 8, "processes": 4}

    @pytest.mark.slow
    @pytest.mark.parametrize("mesh", [{"data": 4}, {}], ids=["four devices", "one device"])
    @pytest.mark.parametrize("saved_by", ["one", "four"])
    def test_what_eight_devices_saved_goes_on_elsewhere(self, saved_by, mesh, request, tmp_path):
        run = request.getfixturevalue(saved_by)
        trainer, state = self.saved(run, 20, tmp_path, mesh)
        with jax.set_mesh(trainer.mesh):
            _, metrics = trainer.dispatch(state, trainer.data, trainer.hyper)
        np.testing.assert_allclose(metrics["loss"], losses(run, 40), rtol=TOLERANCE)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs"), processes=2, devices=1)


def checkpointed(folder: Path, after: int = 0) -> Callable[[], bool]:
    """Whether a checkpoint later than step `after` is whole."""
    place = folder / "checkpoints"
    return lambda: place.is_dir() and any(p.name.isdigit() and int(p.name) > after for p in place.iterdir())


def test_an_error_of_the_network_between_processes_is_the_loss_of_one(monkeypatch, tmp_path):
    """Whoever says it: orbax has errors of its own for what went wrong in jax."""
    gone = ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
    wrapped = RuntimeError("could not be written")
    wrapped.__cause__ = gone
    full = OSError(28, "No space left on device")
    assert not processes.is_loss(gone), "there is no other"
    monkeypatch.setitem(processes._rank, "count", 2)
    assert processes.is_loss(gone) and processes.is_loss(wrapped) and not processes.is_loss(full)
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints._failed(wrapped) is wrapped
    assert isinstance(checkpoints._failed(full), RunError)


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["the launcher", "one process"])
def test_sigterm_saves_on_all_together(jobs, asked):
    """As a launcher passes it on, and as a machine that is taken away gets it alone.

    At one of the next boundaries, also right after a save: each of them saves here.
    """
    folder = jobs.folder / asked
    process = jobs.start(*TOY, json.dumps({**LONG, "checkpoint_every": LONG["log_every"]}), str(folder))
    workers = jobs.when(process, checkpointed(folder, 50))
    begun = logged(folder)[-1]["step"]
    os.kill(process.pid if asked == "the launcher" else workers[1], signal.SIGTERM)
    _, stderr = process.communicate(timeout=180)
    assert (process.returncode, stderr) == (143, "")
    saved = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert begun <= saved == logged(folder)[-1]["step"] < begun + 100


@pytest.mark.parametrize(
    "victim", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.exhaustive)]
)
def test_a_process_that_hangs_is_noticed_and_named(jobs, victim):
    folder = jobs.folder / f"hung{victim}"
    process = jobs.start(*TOY, json.dumps(LONG), str(folder))
    workers = jobs.when(process, checkpointed(folder))
    os.kill(workers[victim], signal.SIGSTOP)
    begun = time.monotonic()
    _, stderr = process.communicate(timeout=300)
    assert time.monotonic() - begun < 2 * HEARTBEAT_SECONDS + 20
    assert process.returncode == 3
    assert re.search(
        rf"^tvjax: process {victim} of 2 stopped answering, noticed at [\d: -]+; not started", stderr, re.M
    )


@pytest.mark.slow
def test_killed_processes_cost_one_interval_at_most_and_no_bit(jobs):
    """The short form of benchmarks/survival.py: each of two processes, in training and beyond a checkpoint."""
    config = json.dumps({"mesh": {"member": 2}, "steps": 100, "slow": 0.1})
    assert jobs.finish(*TOY, config, str(jobs.folder / "whole")) == (0, "")
    folder = jobs.folder / "killed"
    process = jobs.start(*TOY, config, str(folder), restarts=2)
    lost_at = []
    for victim, after in ((1, 10), (0, 40)):
        workers = jobs.when(process, checkpointed(folder, after))
        os.kill(workers[victim], signal.SIGKILL)
        while set(workers) & {int(name) for name in os.listdir("/proc") if name.isdigit()}:
            time.sleep(0.01)
        lost_at.append(logged(folder)[-1]["step"])
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert re.fullmatch(
        r"tvjax: process 1 of 2 was ended by SIGKILL at [\d: -]+; starting again \(1 of 2\)\n"
        r"tvjax: process 0 of 2 was ended by SIGKILL at [\d: -]+; starting again \(2 of 2\)\n",
        stderr,
    )
    went_on = [int(step) for step in re.findall(r"resuming after step (\d+)", stdout)]
    assert len(went_on) == 2
    assert all(last - step <= toy.TRAIN["checkpoint_every"] for last, step in zip(lost_at, went_on, strict=True)), (
        lost_at,
        went_on,
    )
    whole = jobs.folder / "whole"
    assert logged(folder) == logged(whole)
    assert (folder / "eval" / "summary.json").read_bytes() == (whole / "eval" / "summary.json").read_bytes()


@pytest.mark.slow
def test_wrong_input_is_one_line_and_code_2(jobs):
    code, stderr = jobs.finish(*TOY, json.dumps({"mesh": {"data": 4}}), str(jobs.folder / "wrong"))
    assert code == 2
    assert stderr.count("\n") == 1 and "config.mesh" in stderr and "at most 2, the devices" in stderr


CONFIG_FILE = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({config!r})
"""


def both(config: dict[str, Any], run: Callable[..., Any], folder: Path) -> tuple[Path, Path]:
    """The folders of a run of four processes with two devices each, and of one with eight."""
    file, four, one = folder / "config.py", folder / "four", folder / "one"
    file.write_text(CONFIG_FILE.format(config=config))
    words = ("-m", "tvjax.main", f"--config={file}", f"--workdir={four}")
    assert Jobs(folder, processes=4, devices=2).finish(*words) == (0, "")
    run(config, one, "train", quiet)
    return four, one


@pytest.mark.slow
def test_tvp_on_four_processes_is_tvp_on_one(tmp_path):
    """After 20 steps to a part in 10^4; at the end of the run within the bootstrap intervals."""
    train = {"batch": 16, "steps": 40, "log_every": 20, "evaluate_every": 40, "checkpoint_every": 20}
    config = changed(
        TINY,
        train={**train, "tensorboard": False},
        evaluation={"training_prompts": 8, "prompts": 256, "shifts": False},
        mesh=MESH,
    )
    four, one = both(config, tvp.run, tmp_path)
    np.testing.assert_allclose(losses(four, 20), losses(one, 20), rtol=TOLERANCE)
    states = []
    for run in (four, one):
        shutil.rmtree(run / "checkpoints" / "40")
        states.append(make_trainer(TVPSettings.from_config(config)).restore(run, quiet)[1])
    assert_close(*(jax.device_get(state.params) for state in states))
    found, expected = (json.loads((run / "eval" / "summary.json").read_text()) for run in (four, one))
    for ours, theirs in zip(found["members"], expected["members"], strict=True):
        for risk in ("icl_risk", "tvp_risk_by_layer"):
            low, high = np.array(theirs[f"{risk}_ci"]).T
            assert (low <= ours[risk]).all() and (ours[risk] <= high).all(), f"{ours['name']}: {risk}"
    assert {path.name for path in (four / "vectors").iterdir()} == {"icl.safetensors", "tvp.safetensors"}
    assert (four / "report" / "index.html").is_file()


@pytest.mark.exhaustive
def test_atv_on_four_processes_is_atv_on_one(tmp_path):
    train = {"steps": 20, "log_every": 20, "evaluate_every": 20, "checkpoint_every": 20, "tensorboard": False}
    config = changed(
        ATV,
        target__path=model_folder(tmp_path / "target", 32, 2, 0),
        generator__path=model_folder(tmp_path / "generator", 16, 1, 1),
        templates=ATV["templates"][:1],
        methods=("zero_shot", "atv_last"),
        train={"batch": 8, "examples": 6, "seeds": (0,), **train},
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
    )
    four, one = both(config, atv.run, tmp_path)
    np.testing.assert_allclose(losses(four, 20), losses(one, 20), rtol=TOLERANCE)
    written = [store.load_vectors(run / "vectors" / "atv_last.next_letter.safetensors")[0] for run in (four, one)]
    assert_close(*written)
    found, expected = (json.loads((run / "eval" / "summary.json").read_text())["methods"] for run in (four, one))
    assert found == expected
