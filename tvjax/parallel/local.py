"""Several processes on this machine, as on a pod: python -m tvjax.parallel.local N -- ARGUMENTS of tvjax.main

  N                     processes, each with DEVICES_PER_PROCESS CPU devices (default: 1)
  RESTARTS              how often the job starts again after a process was killed or hung (default: 3)

Each process is `python -m tvjax.main ARGUMENTS`; the output of process 0 is shown. If one process ends badly, all are
ended, and the job ends with its exit code. SIGTERM goes to all processes, which save together (143). A process that was
killed is noticed at once. A process that hangs is noticed by the others, within 40 seconds. Then the job goes on from
its last whole checkpoint.

If TVJAX_PROCESSES is set, N is 1 and this is one host of a larger job (tvjax/parallel/processes.py). Its process is
started again if another process was lost. The other hosts do the same, and the processes join again.
"""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from typing import IO

from tvjax.errors import RunError, UserError, reject
from tvjax.parallel.processes import LOST

FINAL = (0, 2, 3, 130, 143)
"""Exit codes after which the job is not started again."""
RUNTIME = re.compile(r"distributed service|[Cc]oordination ?[Ss]ervice|heartbeat")
"""What jax's runtime says if it ends a process (SIGABRT) because another process was lost."""
ENDING_SECONDS = 10.0
"""The time in which all processes end after one process was lost; a process that hangs does not end."""
STOPPING_SECONDS = 90.0
"""How long a job may take to save after SIGTERM."""
WHO = re.compile(r"stopped sending heartbeats\):\s*(\d+(?:[\s,]+\d+)*)\s")
UNHEARD = re.compile(
    r"\[Gloo\]|[EWIF]\d{4} |\s*@ +0x|\*\*\*|\[?Compiling module|\s*Very slow compile|The operation took"
    r"|tvjax: process \d+: another one was lost"
)
"""Lines that are not shown: the log of jax's runtime, and that another process was lost.

This module names that process.
"""


@dataclasses.dataclass(frozen=True)
class End:
    """How a job ended.

    code: the exit code.
    line: which process ended it and when; "": the process has said it itself.
    """

    code: int
    line: str = ""


class Job:
    """N processes of one program that find each other on a port of this machine."""

    def __init__(self, command: list[str], count: int, devices: int):
        self._lines: list[deque[str]] = [deque(maxlen=200) for _ in range(count)]
        self._log: list[deque[str]] = [deque(maxlen=200) for _ in range(count)]
        self._stopping = 0.0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._processes, self._listeners = [], []
        for index in range(count):
            job = {
                "TVJAX_PROCESSES": str(count),
                "TVJAX_PROCESS_ID": str(index),
                "TVJAX_COORDINATOR": f"127.0.0.1:{port}",
            }
            environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)} | ({} if in_a_larger_job() else job)
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=None if index == 0 else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self._processes.append(process)
            assert process.stderr is not None
            self._listeners.append(threading.Thread(target=self._listen, args=(index, process.stderr), daemon=True))
            self._listeners[-1].start()

    def _listen(self, index: int, stream: IO[str]) -> None:
        """Keep the lines of a process on stderr, except `UNHEARD` ones; print those of the first process at once."""
        for line in stream:
            self._log[index].append(line)
            if UNHEARD.match(line):
                continue
            self._lines[index].append(line)
            if index == 0:
                print(line, end="", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Send SIGTERM to all processes: they save and end. May be called by a signal handler."""
        self._stopping = self._stopping or time.monotonic()
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def wait(self) -> End:
        """Return when all processes have ended, or one ended badly and the others were ended."""
        try:
            while True:
                codes = [process.poll() for process in self._processes]
                bad = sorted((self._is_second(index, code), index, code) for index, code in enumerate(codes) if code)
                if self._stopping and time.monotonic() > self._stopping + STOPPING_SECONDS:
                    return End(
                        143, f"no answer to SIGTERM within {STOPPING_SECONDS:.0f} s; the last checkpoint is whole"
                    )
                if bad and not (self._stopping and None in codes):
                    return self._lost(bad[0][2], bad[0][1])
                if None not in codes:
                    return End(0)
                time.sleep(0.05)
        finally:
            self._end()

    def _lost(self, code: int, index: int) -> End:
        """How the job ended, by the process that ended first or by the process that it waited for."""
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        if code in FINAL:
            self._hear(index)
            return End(code)
        count = len(self._processes)
        if self._is_second(index, code):
            limit = time.monotonic() + ENDING_SECONDS
            while time.monotonic() < limit and self._running():
                time.sleep(0.05)
            if hung := self._running():
                return End(LOST, f"process {hung[0]} of {count} stopped answering, noticed at {when}")
            if in_a_larger_job():
                self._listeners[0].join(timeout=5)
                who = WHO.search("".join(self._log[0]))
                name = f"process {' '.join(who.group(1).split())}" if who else "another process"
                return End(LOST, f"{name} of the job was lost, noticed here at {when}")
            codes = [process.poll() or 0 for process in self._processes]
            code, index = next(
                ((other, i) for i, other in enumerate(codes) if other and not self._is_second(i, other)), (code, index)
            )
        if code > 0:
            self._hear(index)
            return End(code, f"process {index} of {count} ended with code {code} at {when}")
        return End(LOST, f"process {index} of {count} was ended by {signal.Signals(-code).name} at {when}")

    def _is_second(self, index: int, code: int) -> bool:
        """Whether a process ended because another was lost: the process noticed that, or jax's runtime ended it."""
        if code == -signal.SIGABRT:
            self._listeners[index].join(timeout=5)
            return RUNTIME.search("".join(self._log[index])) is not None
        return code == LOST

    def _running(self) -> list[int]:
        return [index for index, process in enumerate(self._processes) if process.poll() is None]

    def _hear(self, index: int) -> None:
        """Print the lines of a process, unless it is the first process or the first has printed an error."""
        self._listeners[index].join(timeout=5)
        if index and not any(line.startswith("tvjax: ") for line in self._lines[0]):
            print("".join(self._lines[index]), end="", file=sys.stderr, flush=True)

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for listener in self._listeners:
            listener.join(timeout=5)


def in_a_larger_job() -> bool:
    """Whether this is one host of a job whose processes find each other by themselves."""
    return bool(os.environ.get("TVJAX_PROCESSES"))


def run(command: list[str], count: int, devices: int, restarts: int) -> int:
    """Run the job, start it again if a process was lost, and return its exit code.

    Raises `RunError` if a process was lost more than `restarts` times.
    """
    job: Job | None = None
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if job is not None:
            job.stop()

    signal.signal(signal.SIGTERM, stop)
    # A terminal sends it to every process: they end by themselves. What ignores it would be inherited by them.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    for restart in range(restarts + 1):
        job = Job(command, count, devices)
        if stopping:
            job.stop()
        end = job.wait()
        again = end.code == LOST and not stopping
        left = restarts - restart
        if end.line:
            what = f"starting again ({restart + 1} of {restarts})" if again and left else "not started again"
            print(f"tvjax: {end.line}; {what}", file=sys.stderr, flush=True)
        if not again:
            return 143 if stopping and end.code == LOST else end.code
    raise RunError(f"a process was lost {restarts + 1} times; checkpoints are kept; the same command goes on from them")


def _is_number(text: str, least: int) -> bool:
    return re.fullmatch("[0-9]{1,9}", text) is not None and int(text) >= least


def main(argv: list[str]) -> int:
    """Read the command line and run the job. Raises `UserError`."""
    count, *rest = argv[1:] or [""]
    if not _is_number(count, 1) or rest[:1] != ["--"]:
        raise reject("command line", " ".join(argv[1:]), "N -- ARGUMENTS, N processes and what tvjax.main is given")
    if in_a_larger_job() and count != "1":
        raise reject("command line", count, "1 process on each host, as TVJAX_PROCESSES is set")
    numbers = {}
    for name, usual, least in (("DEVICES_PER_PROCESS", "1", 1), ("RESTARTS", "3", 0)):
        text = os.environ.get(name, usual)
        if not _is_number(text, least):
            raise reject(name, text, f"a number, {least} or more")
        numbers[name] = int(text)
    command = [sys.executable, "-m", "tvjax.main", *rest[1:]]
    return run(command, int(count), numbers["DEVICES_PER_PROCESS"], numbers["RESTARTS"])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except (UserError, RunError) as error:
        print(f"tvjax: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
