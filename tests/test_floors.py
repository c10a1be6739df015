"""Imports go down only, as README's list of floors has it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tvjax.experiments.base import BUILT_IN

PACKAGE = Path(__file__).parents[1] / "tvjax"
FLOORS = (
    ("errors", "files", "remote", "memory", "settings", "plugins", "parallel", "tasks", "nn"),
    ("vectors",),
    ("train", "evals", "text", "report"),
    ("methods",),
    ("experiments",),
    ("library",),
    ("cli", "main", "compare"),
)
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}
SEEN_BY_REPORT = {"errors", "files", "evals", "train", "report"}
"""What a report may be made with: no model, no task and no experiment."""


def rooms():
    """Each file with the part of the package that it is in, and the parts that it imports."""
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        own = inside.parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        yield inside, own, {name.split(".")[1] for name in names if name.startswith("tvjax.")} - {own}


def test_every_part_has_a_floor():
    assert {own for _, own, _ in rooms()} == set(RANK)


def test_imports_go_down_only():
    up = [f"{path} imports {name}" for path, own, names in rooms() for name in names if RANK[name] > RANK[own]]
    assert not up, up


def test_the_bottom_floor_knows_no_text_and_no_training():
    assert not any(names & {"train", "text", "evals"} for _, own, names in rooms() if own in ("nn", "tasks", "vectors"))


def test_a_report_knows_no_model_and_no_experiment():
    seen = {f"{path}: {name}" for path, own, names in rooms() if own == "report" for name in names - SEEN_BY_REPORT}
    assert not seen, seen


def imported(path):
    """The modules that a file imports, whatever it does so for."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_experiment_is_a_package_that_brings_no_other(name):
    folder = PACKAGE / "experiments" / name
    assert {"__init__.py", "settings.py", "run.py"} <= {path.name for path in folder.iterdir()}
    code = f"import sys, tvjax.experiments.{name}.run, tvjax.experiments.{name}.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    others = [one for one in done.stdout.split() if re.match(rf"tvjax\.experiments\.({'|'.join(BUILT_IN)})\b", one)]
    assert {one.split(".")[2] for one in others} == {name}


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_page_sees_no_settings_and_no_run(name):
    reports = [path for path in (PACKAGE / "experiments" / name).rglob("*.py") if "report" in str(path)]
    theirs = {f"tvjax.experiments.{name}.{part}" for part in ("run", "settings")}
    assert reports and not {one for path in reports for one in imported(path)} & theirs


def test_an_import_sets_nothing_and_no_page_brings_jax():
    pages = ", ".join(f"tvjax.experiments.{name}.report" for name in BUILT_IN)
    code = (
        f"import os, sys; before = dict(os.environ); import tvjax, tvjax.experiments.pages, {pages};"
        "assert dict(os.environ) == before, 'a variable was set'; assert 'jax' not in sys.modules, 'jax came along'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
