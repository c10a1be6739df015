"""A checkout of its own for the launchers, and the stand-ins of what they call on PATH."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
TOOLS = ("gcloud", "python3", "srun", "scancel", "scontrol")


class Stage:
    """A folder in which a launcher is played."""

    def __init__(self, folder: Path):
        self.folder, self.checkout = folder, folder / "check out"
        shutil.copytree(REPOSITORY / "launch", self.checkout / "launch")
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(REPOSITORY / name, self.checkout / name)
        subprocess.run(["git", "init", "--quiet", str(self.checkout)], check=True)
        for tool in TOOLS:
            script = folder / "bin" / tool
            script.parent.mkdir(exist_ok=True)
            standins = Path(__file__).with_name("standins.py")
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{standins}" {tool} "$@"\n')
            script.chmod(0o755)
        self.play(ends=[0], node="", request="")

    def play(self, **what: Any) -> None:
        """What shall happen: see standins.py."""
        path = self.folder / "play.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | what))

    def start(self, *command: str, **environment: str) -> Any:
        known = os.environ | {"STANDINS": str(self.folder), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        known |= {"POLL": "0.05", "LOGS": str(self.folder / "logs"), "RESTARTS": "2"} | environment
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=known, cwd=self.checkout, stdout=pipe, stderr=pipe, text=True)

    def run(self, *command: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        process = self.start(*command, **environment)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def calls(self, tool: str, *words: str) -> list[dict[str, Any]]:
        """What `tool` was asked with all of `words` among the arguments."""
        path = self.folder / "calls.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in found if call["tool"] == tool and set(words) <= set(call["argv"])]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)
