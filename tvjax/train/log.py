"""The log of a training run: metrics.jsonl, TensorBoard events, and a bar or plain lines on the terminal."""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from tvjax.files import write_whole

Row = dict[str, Any]


def mean_name(kind: str, score: str) -> str:
    """The name of a score's mean over the trained positions, for one `kind` of answers.

    It is ``icl_loss`` for the risk and ``icl_mean_accuracy`` for others. ``icl_risk`` and ``icl_accuracy`` are
    everywhere the scores by number of demonstrations.
    """
    return f"{kind}_loss" if score == "risk" else f"{kind}_mean_{score}"


def as_line(row: Row) -> str:
    """A row as strict JSON. A number that is not finite is null, since JSON has no word for it."""
    return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics file, up to the first line that is no row, such as a last line that a kill cut short."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or "member" not in row:
            break
        rows.append(row)
    return rows


class MetricsLog:
    """Appends rows to metrics.jsonl and TensorBoard after `step`: rows beyond it are dropped.

    before: the last row of the file, kept or dropped; {}: the file had none.

    The file is synchronized to disk before every checkpoint, so a resumed run misses no line. TensorBoard events are
    not; they are written anew from the file.
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = True):
        self._path = folder / "metrics.jsonl"
        rows = read_rows(self._path)
        self.before: Row = rows[-1] if rows else {}
        kept = [row for row in rows if row["step"] <= step]
        write_whole(self._path, "".join(map(as_line, kept)))
        self._file = self._path.open("a")
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            for events in (folder / "tensorboard").glob("events.out.tfevents.*"):
                events.unlink()
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, flush_secs=30)
            self._show(kept)

    def write(self, rows: Sequence[Row]) -> None:
        """One line a row, as `as_line` writes it; numbers also go to TensorBoard as ``member/metric``."""
        self._file.write("".join(map(as_line, rows)))
        self._file.flush()
        self._show(rows)

    def _show(self, rows: Sequence[Row]) -> None:
        if self._board is None:
            return
        for row in rows:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                    self._board.add_scalar(f"{row['member']}/{name}", value, row["step"])

    def sync(self) -> None:
        """Return when all rows are on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


class Progress:
    """A bar with the risks, steps/s and the time left on a terminal; a plain line now and then elsewhere."""

    def __init__(self, total: int, start: int, shown: Sequence[str], stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._total, self._shown = total, tuple(shown)
        self._first = start
        self._last_line = -math.inf
        self._bar = None
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(file=self._stream),
            )
            self._bar.start()
            self._task = self._bar.add_task("train", total=total, completed=start, text="")

    def update(self, rows: Sequence[Row], rate: float) -> None:
        """Show the newest rows (one a member) and the speed in steps per second."""
        step = rows[0]["step"]
        parts = [
            f"{row['member']} " + " ".join(f"{name} {row[name]:.3g}" for name in self._shown if name in row)
            for row in rows[:4]
        ]
        text = f"{' | '.join(parts)} | {rate:.1f} steps/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
            return
        now = time.monotonic()
        if now - self._last_line > 15 or step == self._total:
            self._last_line = now
            left = (self._total - step) / rate if rate else math.inf
            print(f"step {step}/{self._total} | {text} | {left:.0f} s left", file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
