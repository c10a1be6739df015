"""Run the sides of a benchmark in turn, each in a process of its own, so that a machine whose speed drifts is fair."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from tvjax.nn.decoder import DecoderConfig


def serve(run: Callable[[], None]) -> None:
    """Be one side: after two runs to warm up, answer each line on stdin with the seconds that one run took."""
    run()
    run()
    for _ in sys.stdin:
        begun = time.perf_counter()
        run()
        print(time.perf_counter() - begun, flush=True)


def measure(command: list[str], names: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of each side; `command` with ``--side=NAME`` starts a side."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    sides = {name: subprocess.Popen([*command, f"--side={name}"], **pipes) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, process in sides.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer:
                sys.exit(f"the side {name} ended early: its error stands above")
            if number:  # the first round waits for every side to have warmed up
                seconds[name].append(float(answer))
    for process in sides.values():
        process.stdin.close()
        process.wait()
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {rounds} rounds"
    print(f"{machine}; float32 products at {DecoderConfig.matmul_precision} precision")
    return seconds


def spread(values: list[float], digits: int) -> str:
    """Median [least..most]."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} [{low:.{digits}f}..{high:.{digits}f}]"


def ratio(title: str, seconds: dict[str, list[float]], top: str, bottom: str) -> None:
    """Print how much longer `top` took than `bottom`, round by round; nothing where one of them did not run."""
    if top in seconds and bottom in seconds:
        print(f"{title}: {spread([a / b for a, b in zip(seconds[top], seconds[bottom], strict=True)], 2)}")


def pair(text: str) -> tuple[int, int]:
    """The two numbers of an argument such as 2,12."""
    low, high = map(int, text.split(","))
    return low, high


def said(value: object) -> str:
    """An argument's value as it is written on a command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
