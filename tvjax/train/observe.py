"""The costs of a training run: time, speed, use of the hardware, memory, saving and restarting."""

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from tvjax.parallel.hardware import Chip, chip_of

GIB = 2**30
WALL_CLOCK = (
    "seconds",
    "steps_per_second",
    "step_seconds",
    "examples_per_second",
    "flops_utilization",
    "memory_gib",
    "peak_memory_gib",
    "save_seconds",
    "restarts",
    "restart_seconds",
    "repeated_steps",
)
"""The fields of metrics.jsonl that another run of the same config does not repeat: comparisons set them aside."""
LOST = ("save_seconds", "restarts", "restart_seconds", "repeated_steps")


class Meter:
    """The wall-clock fields of a run's rows.

    start: the step that training goes on from.
    before: the last row of the process before this one, whose lost time is added to; {}: there was none.
    steps: of one dispatch.
    examples: of one step, of all members.
    flops: gives the FLOPs of one dispatch, by dtype, over all devices; called once, and only if the chip is known.

    A dispatch begins when it is dispatched or when the one before it ends, whichever is later. So an evaluation or a
    save between two dispatches is in neither's time.
    """

    def __init__(
        self,
        start: int,
        before: Mapping[str, Any],
        *,
        steps: int,
        examples: int,
        flops: Callable[[], Mapping[str, float]],
        mesh: Mesh,
    ):
        self._first, self._steps, self._examples, self._mesh = start, steps, examples, mesh
        chip = chip_of(mesh.devices.flat[0].device_kind)
        self._ideal = functools.cache(lambda: ideal_seconds(flops(), chip, mesh.size) if chip else None)
        self._lost: dict[str, float] = {name: before.get(name, 0) for name in LOST}
        self._resumed = bool(before)
        if self._resumed:
            self._lost["restarts"] += 1
            self._lost["repeated_steps"] += max(before["step"] - start, 0)
        self._dispatched: dict[int, float] = {}
        self._begun = self._ended = time.monotonic()
        self._dispatch = 0.0

    def dispatched(self, step: int) -> None:
        """Note that the dispatch that ends with `step` was started."""
        self._dispatched[step] = time.monotonic()

    def ended(self, step: int) -> None:
        """Note that the dispatch that ends with `step` has ended; a second call changes nothing."""
        if step not in self._dispatched:
            return
        now = time.monotonic()
        self._dispatch = now - max(self._dispatched.pop(step), self._ended)
        self._ended = now
        if self._resumed:
            self._resumed = False
            self._lost["restart_seconds"] += process_seconds() - self._dispatch

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count the time inside as lost to saving."""
        begun = time.monotonic()
        yield
        self._lost["save_seconds"] += time.monotonic() - begun

    def fields(self, step: int) -> dict[str, float]:
        """The fields of `WALL_CLOCK` that are known at `step`."""
        seconds = time.monotonic() - self._begun
        values = {"seconds": seconds, "steps_per_second": (step - self._first) / seconds}
        if self._dispatch:
            one = self._dispatch / self._steps
            values |= {"step_seconds": one, "examples_per_second": self._examples / one}
            if ideal := self._ideal():
                values["flops_utilization"] = ideal / self._dispatch
        values |= memory(self._mesh) | self._lost
        return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}


def ideal_seconds(flops: Mapping[str, float], chip: Chip, devices: int) -> float:
    """Seconds in which `devices` chips could do `flops` (by `hardware.rate`) alone, at the vendor's rates.

    A dtype that the table of chips does not have counts as float32.
    """
    return sum(count / chip.flops.get(dtype, chip.flops["float32"]) for dtype, count in flops.items()) / devices


def memory(mesh: Mesh) -> dict[str, float]:
    """GiB in use now, and at most so far, on the fullest device of this process; empty if no device says (CPUs)."""
    devices = [stats for device in mesh.local_devices if (stats := device.memory_stats())]
    names = {"memory_gib": "bytes_in_use", "peak_memory_gib": "peak_bytes_in_use"}
    return {
        name: max(stats[key] for stats in devices) / GIB
        for name, key in names.items()
        if devices and all(key in stats for stats in devices)
    }


def process_seconds() -> float:
    """Since this process was started, its imports included."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
