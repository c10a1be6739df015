"""The benchmarks say what they take, and the trainer that they time takes steps."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
MODULES = {"turns", "programs", "atv_released"}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in MODULES))
def test_it_says_what_it_takes(name):
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"benchmarks/{name}.py" in done.stdout, "its own command stands in it"


@pytest.mark.parametrize(("members", "weight"), [(1, 0.0), (2, 1.0)])
def test_the_timed_trainer_takes_steps(members, weight):
    spec = importlib.util.spec_from_file_location("programs", FOLDER / "programs.py")
    programs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(programs)
    sizes = {"num_layers": 2, "width": 8, "num_heads": 2}
    run = programs.training(steps=2, batch=4, inputs=2, pairs=3, layout="xzy", members=members, weight=weight, **sizes)
    assert [run(4), run(2)] == [4, 6]
