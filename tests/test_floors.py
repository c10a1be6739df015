"""Imports go down only, as README's list of floors has it."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tvjax"
FLOORS = (
    ("errors", "files", "remote", "memory", "settings", "plugins", "parallel", "tasks", "nn"),
    ("vectors",),
    ("train", "evals", "text"),
    ("methods",),
    ("experiments",),
    ("report", "library"),
    ("cli", "main"),
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


def test_an_import_sets_nothing_and_a_report_brings_no_jax():
    code = (
        "import os, sys; before = dict(os.environ); import tvjax, tvjax.report;"
        "assert dict(os.environ) == before, 'a variable was set'; assert 'jax' not in sys.modules, 'jax came along'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
