"""A run is a function of its config: killed, stopped, or with a broken checkpoint, it ends with the same bits."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import TINY, changed, quiet
from tests.parallel import toy
from tests.runs import Runs, logged, past, saving
from tvjax.errors import RunError, UserError
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import make_trainer
from tvjax.train import checkpoint, loop
from tvjax.train.checkpoint import Checkpoints
from tvjax.train.log import MetricsLog
from tvjax.train.observe import Meter
from tvjax.train.state import TrainState
from tvjax.train.stop import Stop, Stopped

CONFIG = changed(
    TINY,
    train={"batch": 4, "steps": 120, "log_every": 5, "evaluate_every": 40, "checkpoint_every": 20},
    evaluation={"training_prompts": 8, "prompts": 8, "shifts": False},
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """What starts runs; `whole` is the folder of one that nothing interrupted."""
    runs = Runs("tvp", CONFIG, tmp_path_factory.mktemp("resume"))
    code, stderr = runs.finish(runs.whole)
    assert code == 0, stderr
    return runs


@pytest.fixture(scope="module")
def trainer() -> Any:
    return make_trainer(TVPSettings.from_config(CONFIG))


def restored(trainer: Any, folder: Path) -> tuple[Any, list[str]]:
    """The state that a run in `folder` would go on from, on the host, and what it would say of it."""
    said: list[str] = []
    _, state = trainer.restore(folder, said.append)
    return jax.device_get(state), said


def assert_same_bits(first: Any, second: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_same_run(trainer: Any, folder: Path, whole: Path) -> None:
    assert logged(folder) == logged(whole)
    for name in ("eval/summary.json", *(f"vectors/{file.name}" for file in (whole / "vectors").iterdir())):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert_same_bits(restored(trainer, folder)[0], restored(trainer, whole)[0])


@pytest.mark.slow
def test_a_run_logs_every_step_once(runs):
    steps = [(row["step"], row["member"]) for row in logged(runs.whole)]
    assert steps == [(step, member) for step in range(0, 121, 5) for member in ("icl", "tvp")]


@pytest.mark.slow
def test_a_run_killed_three_times_ends_with_the_same_bits(runs, trainer):
    folder = runs.folder / "killed"
    for when in (past(5), saving(after=20), past(85)):
        assert runs.stop(folder, when, signal.SIGKILL)[0] == -signal.SIGKILL
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 90, "member": "ic')
    assert runs.finish(folder) == (0, "")
    assert_same_run(trainer, folder, runs.whole)


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_with_the_same_bits(runs, trainer):
    folder = runs.folder / "stopped"
    code, seconds = runs.stop(folder, past(25), signal.SIGTERM)
    assert code == 143
    assert seconds < 30
    saved = int(restored(trainer, folder)[0].step)
    assert saved == logged(folder)[-1]["step"] >= 25
    assert runs.finish(folder) == (0, "")
    assert_same_run(trainer, folder, runs.whole)


def test_sigterm_at_the_very_end_of_the_loop_is_not_lost():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught, Stop():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("harm", ["cut", "deleted", "flipped"])
def test_no_broken_file_of_a_checkpoint_gives_wrong_values(runs, trainer, tmp_path, harm):
    good = restored(trainer, runs.whole)[0]
    newest = Path("checkpoints") / "120"
    files = [path.relative_to(runs.whole) for path in (runs.whole / newest).rglob("*") if path.is_file()]
    assert len(files) > 10
    fell_back = 0
    for file in files:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(runs.whole, folder)
        if harm == "cut":
            os.truncate(folder / file, (folder / file).stat().st_size // 2)
        elif harm == "flipped":
            content = bytearray((folder / file).read_bytes())
            content[2 * len(content) // 3] ^= 0x10
            (folder / file).write_bytes(content)
        else:
            (folder / file).unlink()
        state, said = restored(trainer, folder)
        if state.step == 120:
            assert_same_bits(state, good)
            assert not said
        else:
            fell_back += 1
            assert state.step == 100
            assert len(said) == 1 and "checkpoint of step 120" in said[0] and "before it is used" in said[0]
    # A flipped byte may lie in what no restore reads; how many do depends on how the writer laid the file out.
    assert fell_back >= (1 if harm == "flipped" else 4)


@pytest.mark.slow
def test_without_a_whole_checkpoint_the_run_cannot_go_on(runs, trainer, tmp_path):
    shutil.copytree(runs.whole / "checkpoints", tmp_path / "checkpoints")
    for file in tmp_path.rglob("manifest.ocdbt"):
        file.unlink()
    with pytest.raises(RunError, match=r"step 120 .*step 100 .*new --workdir"):
        restored(trainer, tmp_path)


@pytest.mark.slow
def test_a_full_disk_ends_with_code_3_and_keeps_the_checkpoints_before(runs, trainer, tmp_path):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    in_small_disk = 'mount -t tmpfs -o size="$1" none "$2" || exit 99; d="$2"; k="$3"; shift 3; "$@"; c=$?; '
    in_small_disk += 'cp -r "$d" "$k"; exit $c'
    size = sum(path.stat().st_size for path in (runs.whole / "checkpoints" / "120").rglob("*") if path.is_file())
    wrap = ("unshare", "-rm", "sh", "-c", in_small_disk, "sh", str(3 * size), str(disk), str(kept))
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    code, stderr = runs.finish(disk, wrap=wrap)
    assert code == 3, stderr
    assert stderr.count("\n") == 1 and "free some space" in stderr, stderr
    state, said = restored(trainer, kept)
    assert state.step >= 20 and all("was not written to its end" in line for line in said)
    assert runs.finish(kept) == (0, "")
    assert_same_run(trainer, kept, runs.whole)


@pytest.mark.slow
def test_a_file_that_may_not_grow_ends_with_code_3(runs, tmp_path):
    code, stderr = runs.finish(tmp_path / "run", wrap=("sh", "-c", 'ulimit -f 16; exec "$@"', "sh"))
    assert code == 3, stderr
    assert stderr.count("\n") == 1 and "free some space" in stderr, stderr


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_with_code_3(runs, tmp_path):
    config = changed(CONFIG, population__learning_rate=(2e-3, 1e30))
    code, stderr = Runs("tvp", config, runs.folder).finish(tmp_path / "run")
    assert code == 3, stderr
    assert stderr.count("\n") == 1, stderr
    assert all(words in stderr for words in ("member tvp", "not finite at step", "learning_rate", "--workdir")), stderr


def test_a_checkpoint_that_reads_as_other_values_is_not_used(tmp_path, monkeypatch):
    """As a reader would that does not notice a flipped bit: one bit of one array of the newest is another."""
    checkpoints = two_checkpoints(tmp_path)
    read = checkpoint._arrays

    def harmed(folder, abstract):
        found = read(folder, abstract)
        if folder.parent.name == "2":
            bits = found["params"]["w"].view(jnp.uint32)
            found["params"]["w"] = bits.at[4].set(bits[4] ^ 1).view(jnp.float32)
        return found

    assert int(checkpoints.restore(tiny_state(0)).step) == 2
    monkeypatch.setattr(checkpoint, "_arrays", harmed)
    assert int(checkpoints.restore(tiny_state(0)).step) == 1
    assert "params/w: not the bits that were saved" in checkpoints.skipped[0]


@pytest.mark.parametrize("heavy", [False, True])
def test_a_checkpoint_is_written_while_training_goes_on_but_nothing_later_is_logged_before(
    heavy, tmp_path, monkeypatch
):
    """So a kill costs, of what the log had, one interval at most, however long the writing takes.

    A state of which the host has no room for a second one is written before the next steps change it.
    """
    events: list[str] = []
    monkeypatch.setattr(loop, "HEAVY", 0 if heavy else 2**30)

    def noted(owner: type, name: str, note: Callable[..., str]) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: (events.append(note(*given)), real(*given))[1])

    def finish(checkpoints: Checkpoints, real: Callable[[Checkpoints], None] = Checkpoints.finish) -> None:
        saving = checkpoints._saving
        real(checkpoints)
        assert saving is None or (tmp_path / "checkpoints" / str(saving)).is_dir()
        events.append(f"whole {saving}")

    noted(Checkpoints, "save", lambda checkpoints, state: f"save {state.step}")
    monkeypatch.setattr(Checkpoints, "finish", finish)
    noted(Meter, "dispatched", lambda meter, step: f"ask {step}")
    noted(MetricsLog, "write", lambda log, rows: f"row {rows[0]['step']}")
    toy.make_trainer({}, steps=20, evaluate_every=10, checkpoint_every=10).run(tmp_path, quiet)
    before = ["row 0", "ask 5", "ask 10", "row 5", "row 10"]
    after = ["ask 15", "ask 20", "whole 10", "row 15", "row 20", "save 20", "whole 20"]
    if heavy:
        after = ["whole 10", "ask 15", "ask 20", "row 15", "row 20", "save 20", "whole 20"]
    assert [event for event in events if event != "whole None"] == [*before, "save 10", *after]


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), MemoryError(), ValueError("RESOURCE_EXHAUSTED: 9G")]
)
def test_a_checkpoint_that_cannot_be_read_now_is_kept(tmp_path, monkeypatch, error):
    checkpoints = two_checkpoints(tmp_path)

    def failing(folder, abstract):
        raise error

    with monkeypatch.context() as patched, pytest.raises(RunError, match=r"step 2 .*it is kept"):
        patched.setattr(checkpoint, "_arrays", failing)
        checkpoints.restore(tiny_state(0))
    assert checkpoints.steps() == [1, 2] and int(checkpoints.restore(tiny_state(0)).step) == 2


def test_a_part_of_a_checkpoint_is_read_without_the_rest(tmp_path):
    checkpoints, wanted = two_checkpoints(tmp_path), {"params": tiny_state(0).params}
    assert_same_bits(checkpoints.part(wanted), wanted)
    with pytest.raises(RunError, match="no checkpoint is left"):
        checkpoints.part({"params": {"b": jnp.zeros(2)}})


def tiny_state(step: int) -> TrainState:
    return TrainState(step=jnp.asarray(step), params={"w": jnp.arange(6.0)}, opt_state={"m": jnp.ones(3)})


def two_checkpoints(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=3, run="this")
    for step in (1, 2):
        checkpoints.save(tiny_state(step))
    return checkpoints


def test_a_half_written_checkpoint_is_skipped(tmp_path):
    """As a kill leaves it: under its temporary name."""
    two_checkpoints(tmp_path).finish()
    shutil.move(tmp_path / "2", tmp_path / "2.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(tmp_path, keep=3, run="this")
    assert int(checkpoints.restore(tiny_state(0)).step) == 1
    assert checkpoints.skipped == ["2.orbax-checkpoint-tmp was not written to its end"]
    checkpoints.drop_after(1)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_checkpoint_of_another_config_is_refused_by_name(tmp_path):
    two_checkpoints(tmp_path).finish()
    with pytest.raises(UserError, match=r"/2: a checkpoint of another config"):
        Checkpoints(tmp_path, keep=3, run="other").restore(tiny_state(0))
    assert int(Checkpoints(tmp_path, keep=3).restore(tiny_state(0)).step) == 2


def test_a_checkpoint_of_a_newer_format_is_refused_by_name(tmp_path):
    two_checkpoints(tmp_path).finish()
    about = tmp_path / "2" / "about" / "metadata"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format": checkpoint.FORMAT + 1}))
    with pytest.raises(UserError, match=r"step 2: format 2; accepted: up to 1"):
        Checkpoints(tmp_path, keep=3, run="this").restore(tiny_state(0))


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(tmp_path):
    """The state is donated to the next step while it is written."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    big = lambda: TrainState(step=jnp.asarray(1), params={"w": jnp.zeros((1000, 1000))}, opt_state={"m": jnp.ones(3)})
    checkpoints, state = Checkpoints(tmp_path, keep=3), big()
    checkpoints.save(state)
    for _ in range(5):
        state = step(state)
    jax.block_until_ready(state)
    assert_same_bits(jax.device_get(checkpoints.restore(big())), jax.device_get(big()))
