"""The progress of a run on the terminal: the share that is done and the time left, at least every few seconds."""

import functools
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

aloud = functools.partial(print, flush=True)
"""Prints a line at once, also into a file or a pipe."""
EVERY = 12.0
"""Seconds without a line after which a line is printed."""


class Progress:
    """Prints lines, and by itself the progress after `EVERY` seconds without a line.

    Use it as ``with Progress(say) as progress``. Then `plan` sets the work, and `tick` counts finished work.
    """

    def __init__(self, say: Callable[[str], None], every: float = EVERY) -> None:
        self._say, self._every = say, every
        self._costs: Mapping[str, float] = {}
        self._total = self._done = 0.0
        self._began = self._spoke = time.monotonic()
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def say(self, line: str) -> None:
        """Print a line of the run."""
        with self._lock:
            self._spoke = time.monotonic()
            self._say(line)

    def plan(self, counts: Mapping[str, int], costs: Mapping[str, float]) -> None:
        """Set the work from now on.

        counts: how often each kind of work is done.
        costs: what each kind costs, in any unit.
        """
        self._costs, self._began, self._done = costs, time.monotonic(), 0.0
        self._total = sum(count * costs[kind] for kind, count in counts.items())

    def tick(self, kind: str) -> None:
        """Count one finished piece of work of this kind."""
        self._done += self._costs.get(kind, 0.0)

    def line(self) -> str:
        """The progress in words."""
        seconds, share = time.monotonic() - self._began, self._done / self._total if self._total else 0.0
        if share <= 0:
            return f"at work for {spelled(seconds)}"
        return f"{min(share, 1):.0%} done, about {spelled(seconds * max(1 / share - 1, 0))} left"

    def _watch(self) -> None:
        while not self._end.wait(min(1.0, self._every / 4)):
            if time.monotonic() - self._spoke >= self._every:
                self.say(self.line())


def spelled(seconds: float) -> str:
    """A time in words, in seconds or minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
