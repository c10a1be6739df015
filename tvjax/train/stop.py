"""SIGTERM ends a run at the next safe point, with a checkpoint saved and exit code 143."""

import signal
from types import FrameType, TracebackType

EXIT_CODE = 143


class Stopped(SystemExit):
    """The run was asked to stop and everything that it needs to go on is saved."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Stop:
    """While a block `with Stop() as stop` runs, SIGTERM sets `stop.asked` instead of ending the process.

    The block raises `Stopped` at its next safe point; where it ends before it looked again, its end does.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Stop":
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self.asked and kind is None:
            raise Stopped
