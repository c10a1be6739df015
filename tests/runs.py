"""Runs in processes of their own, to be killed, stopped and started again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvjax.train.observe import WALL_CLOCK

REPOSITORY = Path(__file__).parents[1]

DRIVER = """
import importlib, json, sys
from pathlib import Path
from tvjax.cli import exit_cleanly
config, folder = json.loads(sys.argv[2]), Path(sys.argv[3])
run = importlib.import_module(f"tvjax.experiments.{sys.argv[1]}.run").run
sys.exit(exit_cleanly(lambda argv: run(config, folder, "train"), []))
"""


class Runs:
    """Starts the same run in processes of their own, which share what they compiled; `whole` is for one left alone."""

    def __init__(self, experiment: str, config: dict[str, Any], folder: Path):
        self.experiment, self.config, self.folder = experiment, config, folder
        self.whole = folder / "whole"

    def start(self, folder: Path, wrap: tuple[str, ...] = ()) -> Any:
        environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        command = [*wrap, sys.executable, "-c", DRIVER, self.experiment, json.dumps(self.config), str(folder)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    def finish(self, folder: Path, wrap: tuple[str, ...] = ()) -> tuple[int, str]:
        """Exit code and stderr of a run that is left alone."""
        process = self.start(folder, wrap)
        _, stderr = process.communicate(timeout=300)
        return process.returncode, stderr

    def stop(self, folder: Path, when: Callable[[Path], bool], number: int) -> tuple[int, float]:
        """Send signal `number` as soon as `when(folder)`: the exit code, and the seconds until the end."""
        process = self.start(folder)
        while not when(folder):
            assert process.poll() is None, "the run ended before its moment came: " + process.stderr.read()
            time.sleep(0.0005)
        process.send_signal(number)
        begun = time.monotonic()
        process.communicate(timeout=120)
        return process.returncode, time.monotonic() - begun


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in WALL_CLOCK} for line in lines]


def past(step: int) -> Callable[[Path], bool]:
    """Whether a step from `step` on is logged."""

    def when(folder: Path) -> bool:
        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return any(line.endswith("}") and json.loads(line)["step"] >= step for line in lines[-4:])

    return when


def saving(after: int) -> Callable[[Path], bool]:
    """Whether a checkpoint later than step `after` is half written: its folder still has its temporary name."""

    def when(folder: Path) -> bool:
        names = os.listdir(folder / "checkpoints") if (folder / "checkpoints").exists() else []
        return any(not n.isdigit() and n.split(".")[0].isdigit() and int(n.split(".")[0]) > after for n in names)

    return when
