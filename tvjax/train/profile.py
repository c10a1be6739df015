"""A trace of chosen steps by JAX's profiler: where the time of a step goes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax


class Trace:
    """Traces the dispatches that hold steps `first` to `last` of the first training that takes them.

    The trace is written into `folder` when the last of them has ended; `written` says whether it is.
    """

    def __init__(self, first: int, last: int, folder: Path):
        self.first, self.last, self.folder = first, last, folder
        self.written = False
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def before(self, first: int, last: int, state: Any) -> None:
        """A dispatch of steps `first` to `last` is about to move `state` on."""
        wanted = first <= self.last and last >= self.first
        if self.written or self._scratch or not wanted or jax.process_index() > 0:
            return
        jax.block_until_ready(state)  # what is still under way is not of those steps
        self._scratch = tempfile.TemporaryDirectory(prefix="tvjax-profile-")
        jax.profiler.start_trace(self._scratch.name)

    def after(self, last: int, state: Any) -> None:
        """The dispatch that ends with step `last` and makes `state` has been started."""
        if self._scratch and last >= self.last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Write the trace. The profiler writes to local folders alone, but `folder` may be anywhere."""
        if self._scratch is None:
            return
        jax.profiler.stop_trace()
        with self._scratch as scratch:
            for path in (path for path in Path(scratch).rglob("*") if path.is_file()):
                target = self.folder / path.relative_to(scratch)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        self._scratch, self.written = None, True


_NONE = Trace(0, -1, Path())
_current: ContextVar[Trace] = ContextVar("trace", default=_NONE)


def current() -> Trace:
    """The trace of the enclosing `tracing`; outside, a trace of no step."""
    return _current.get()


@contextmanager
def tracing(trace: Trace | None) -> Iterator[None]:
    """Inside, training writes `trace` at its steps."""
    if trace is None:
        yield
        return
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)
        trace.close()
        print(f"profile: {trace.folder if trace.written else 'none: no step of it was trained'}")
