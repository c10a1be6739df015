"""launch/colab.ipynb: the whole of it runs, small, on the CPU; and the file holds no output."""

import importlib.util
import subprocess
import sys

import nbformat
import pytest

from tests.launch.conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "launch" / "colab.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_valid_and_holds_no_output(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize(("gpu", "jax"), [(True, "jax[cuda12]"), (False, "jax")])
def test_where_tvjax_is_not_installed_the_first_cell_installs_it(notebook, monkeypatch, gpu, jax):
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi" if gpu else None)
    monkeypatch.setattr("pathlib.Path.glob", lambda path, pattern: iter(()))
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(next(cell.source for cell in notebook.cells if cell.id == "install"), {})
    assert [command[0] for command in asked] == ["git", sys.executable]
    assert asked[0][-1] == "tvjax-code" and asked[1][-2:] == ["./tvjax-code", jax]


@pytest.mark.slow
def test_the_whole_of_it_runs(notebook, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("TVJAX_NOTEBOOK_SIZE", "small")
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    said = {name: "".join(one.get("text", "") for one in found) for name, found in outputs.items()}
    assert outputs["install"] == []
    assert "step 20/20" in said["train"] and "ICL risk at K" in said["train"]
    pictures = {name: sum("image/png" in one.get("data", {}) for one in found) for name, found in outputs.items()}
    assert pictures["figures"] >= 3 and pictures["sweep"] == 1
    assert "(4, 256, 8)" in outputs["read"][0]["data"]["text/plain"]
    assert said["write"].count("\n") == 2 and said["swap"].count("\n") == 2
    assert (tmp_path / "runs" / "notebook-small" / "theta.safetensors").exists()
