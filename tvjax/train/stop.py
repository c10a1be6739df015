"""SIGTERM ends a run at the next safe point, with a checkpoint saved and exit code 143.

If one of several processes gets SIGTERM, all stop. jax's preemption service listens for SIGTERM from the moment that a
job is joined, picks a boundary that no process has passed, and all processes stop there.
"""

import itertools
import signal
from types import FrameType, TracebackType

from jax.experimental import multihost_utils

from tvjax.parallel import processes

EXIT_CODE = 143
_boundaries = itertools.count(1)
"""The service wants a number for each boundary, one more than the last, also when a process trains several times."""


class Stopped(SystemExit):
    """The run was stopped by SIGTERM, and everything that it needs to go on is saved."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Stop:
    """While a block `with Stop() as stop` runs, SIGTERM makes `stop.requested()` true and does not end the process.

    The block raises `Stopped` at its next safe point, or at its end if it does not look again.
    """

    def __init__(self) -> None:
        self._requested = False

    def requested(self) -> bool:
        """Whether to stop at this boundary: the same answer in all processes.

        Every process must call it at every boundary.
        """
        if processes.count() == 1:
            return self._requested
        return bool(multihost_utils.reached_preemption_sync_point(next(_boundaries)))

    def __enter__(self) -> "Stop":
        if processes.count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if processes.count() == 1:
            signal.signal(signal.SIGTERM, self._before)
        if self._requested and kind is None:
            raise Stopped
