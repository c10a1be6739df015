"""Jobs of several real processes that talk over this machine's own loopback, started by the launcher."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.runs import REPOSITORY

LAUNCH = """
import sys
from tvjax.errors import RunError
from tvjax.parallel import local
try:
    sys.exit(local.run([sys.executable, *sys.argv[4:]], *map(int, sys.argv[1:4])))
except RunError as error:
    sys.exit(error.exit_code)
"""


class Jobs:
    """Starts programs as N processes with D devices each; all share what they compiled."""

    def __init__(self, folder: Path, processes: int, devices: int):
        self.folder, self.processes, self.devices = folder, processes, devices

    def start(self, *words: str, restarts: int = 0) -> subprocess.Popen:
        """Start ``python WORDS``."""
        environment = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        numbers = map(str, (self.processes, self.devices, restarts))
        command = [sys.executable, "-c", LAUNCH, *numbers, *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    def finish(self, *words: str) -> tuple[int, str]:
        """Exit code and stderr of a job that is left alone."""
        process = self.start(*words)
        _, stderr = process.communicate(timeout=900)
        return process.returncode, stderr

    def when(self, process: subprocess.Popen, moment: Callable[[], bool]) -> list[int]:
        """Wait for `moment()`: the ids of the job's processes then, by number."""
        while not moment():
            assert process.poll() is None, "the job ended before its moment came: " + process.stderr.read()
            time.sleep(0.01)
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        assert len(found) == self.processes
        return sorted(map(int, found))
