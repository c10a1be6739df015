"""Vectors on disk: they come back as they were, with what one must know; broken files are named."""

import numpy as np
import pytest

import tvjax
from tvjax.errors import UserError
from tvjax.vectors.store import fingerprint


def test_round_trip_with_metadata(tmp_path):
    vectors = {"theta": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), "task.c": np.arange(4)}
    tvjax.save_vectors(tmp_path / "v.safetensors", vectors, about={"model": "abc", "layer": 2, "position": "last"})
    back, about = tvjax.load_vectors(tmp_path / "v.safetensors")
    assert {k: v.tolist() for k, v in back.items()} == {k: v.tolist() for k, v in vectors.items()}
    assert about["model"] == "abc"
    assert about["layer"] == "2"
    assert "0 = embedding" in about["layer_numbering"]


def test_a_missing_and_a_truncated_file_are_named(tmp_path):
    path = tmp_path / "v.safetensors"
    with pytest.raises(UserError, match=r"v\.safetensors: no such file"):
        tvjax.load_vectors(path)
    tvjax.save_vectors(path, {"theta": np.ones(100, np.float32)}, about={})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        tvjax.load_vectors(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "v.safetensors"
    tvjax.save_vectors(path, {"theta": np.ones(3, np.float32)}, about={})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        tvjax.save_vectors(path, {"theta": np.zeros(3, np.float32)}, about={})
    assert tvjax.load_vectors(path)[0]["theta"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["v.safetensors"]


def test_a_fingerprint_tells_models_apart():
    params = {"a": np.ones(3), "b": np.zeros(2)}
    assert fingerprint(params) == fingerprint(dict(params))
    assert fingerprint(params) != fingerprint({"a": np.ones(3), "b": np.array([0, 1e-9])})
    assert fingerprint(params) != fingerprint({"a": np.ones(3), "c": np.zeros(2)})
