"""What a run says while it works: how much is done and how long the rest will take, at least every few seconds."""

import functools
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

aloud = functools.partial(print, flush=True)
"""What says a line at once, into a file or a pipe too."""
EVERY = 12.0
"""Seconds without a line after which one is said."""


class Progress:
    """Says lines, and says by itself how far the work is wherever nothing was said for `EVERY` seconds.

    Used as ``with Progress(say) as progress``; then `plan` says what there is to do, and `tick` what has been done.
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
        """Say a line of the run's own."""
        with self._lock:
            self._spoke = time.monotonic()
            self._say(line)

    def plan(self, counts: Mapping[str, int], costs: Mapping[str, float]) -> None:
        """What there is to do from now on: how often each kind of work, and what it costs, in any unit."""
        self._costs, self._began, self._done = costs, time.monotonic(), 0.0
        self._total = sum(count * costs[kind] for kind, count in counts.items())

    def tick(self, kind: str) -> None:
        """One piece of work of this kind is done."""
        self._done += self._costs.get(kind, 0.0)

    def line(self) -> str:
        """How far the work is."""
        seconds, share = time.monotonic() - self._began, self._done / self._total if self._total else 0.0
        if share <= 0:
            return f"at work for {_spelled(seconds)}"
        return f"{min(share, 1):.0%} done, about {_spelled(seconds * max(1 / share - 1, 0))} left"

    def _watch(self) -> None:
        while not self._end.wait(min(1.0, self._every / 4)):
            if time.monotonic() - self._spoke >= self._every:
                self.say(self.line())


def _spelled(seconds: float) -> str:
    """A time as a reader takes it in."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
