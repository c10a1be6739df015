"""A run directory on object storage: what is there when a run starts, goes on, and ends. The store is a folder here."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import quiet
from tests.parallel import toy
from tests.runs import logged
from tvjax import remote
from tvjax.experiments import identity, rundir

URL = "gs://bucket/run"


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """The folder that stands for gs://bucket; this machine's temporary folder is another."""
    at = remote._at
    monkeypatch.setattr(remote, "_at", lambda address: at(address.replace("gs://bucket", str(tmp_path / "store"))))
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(remote.tempfile, "tempdir", str(tmp_path / "here"))
    return tmp_path / "store" / "run"


def train(config: dict[str, Any], steps: int) -> tuple[Path, list[str]]:
    """A run of the workdir URL, as far as `steps`; what it said."""
    said: list[str] = []
    folder = remote.here(URL)
    rundir.prepare(folder, config, new=True)
    toy.make_trainer({}, steps=steps, keep_checkpoints=9).run(folder, said.append, identity.run_of(folder))
    remote.push(folder)
    return folder, said


def test_a_local_workdir_is_itself(tmp_path):
    assert remote.here(str(tmp_path)) == tmp_path
    assert str(remote.there(tmp_path)) == str(tmp_path)
    assert str(remote.there(Path("runs/a"))) == str(Path("runs/a").absolute())


def test_a_run_leaves_everything_in_the_store_and_goes_on_from_it_elsewhere(store):
    config = {"mesh": {}, "any": 1}
    folder, said = train(config, steps=20)
    assert said == []
    assert {path.name for path in (store / "checkpoints").iterdir()} == {"10", "20"}
    assert not (folder / "checkpoints").exists()
    assert json.loads((store / "config.json").read_text()) == config
    assert logged(store) == logged(folder)
    assert logged(store)[-1]["step"] == 20

    (folder / "metrics.jsonl").write_text("of another time\n")
    folder, said = train(config, steps=30)
    assert said == ["resuming after step 20"]
    assert [row["step"] for row in logged(store) if row["member"] == "a"] == list(range(0, 31, 5))


def test_what_is_inside_a_run_directory_is_at_the_same_place_in_the_store(store):
    folder = remote.here(URL)
    assert str(remote.there(folder / "methods" / "lora")) == str(store / "methods" / "lora")
    trainer = toy.make_trainer({}, steps=10)
    trainer.run(folder / "methods" / "lora", quiet)
    assert (store / "methods" / "lora" / "checkpoints" / "10").is_dir()
    assert logged(store / "methods" / "lora")[-1]["step"] == 10


def test_a_run_that_trains_inside_of_its_folder_goes_on_elsewhere(store):
    """With a checkpoint goes all that a new machine needs, and not only what lies beside it."""
    config = {"mesh": {}, "any": 1}
    folder = remote.here(URL)
    rundir.prepare(folder, config, new=True)
    (folder / "data").mkdir()
    (folder / "data" / "tasks").write_text("kept")
    toy.make_trainer({}, steps=10).run(folder / "methods" / "lora", quiet)
    elsewhere = remote.here(URL)
    rundir.prepare(elsewhere, config, new=True)
    assert (elsewhere / "data" / "tasks").read_text() == "kept"
    assert logged(elsewhere / "methods" / "lora")[-1]["step"] == 10
