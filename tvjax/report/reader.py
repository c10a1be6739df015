"""Reads a run directory: its config, environment, summary and log."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvjax.errors import UserError
from tvjax.files import read_json, read_text
from tvjax.train.log import mean_name

OLD_NAMES = {
    f"{kind}_{score}": mean_name(kind, score) for kind in ("icl", "tvp", "query") for score in ("risk", "accuracy")
}
"""Names of means over a prompt in old logs, and their names now."""


@dataclass(frozen=True)
class Metrics:
    """The log of one member.

    series: by name (steps, values); values are one a step, or a row a step for evaluations by layer.
    """

    series: dict[str, tuple[np.ndarray, np.ndarray]]

    def get(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of `name`; both are empty if it was never logged."""
        return self.series.get(name, (np.zeros(0), np.zeros(0)))


@dataclass(frozen=True)
class Vectors:
    """Vectors [P, D], and the true parameters of their tasks {name: [P, ...]}."""

    theta: np.ndarray
    parameters: dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """A run directory: its folder, and the contents of its files."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]

    @property
    def experiment(self) -> str:
        """The experiment that wrote the run: "tvp" unless the summary says otherwise."""
        return str(self.summary.get("experiment", "tvp"))

    def metrics(self, names: Sequence[str], part: str = "") -> tuple[Metrics, ...]:
        """The logs of the members `names`.

        part: the folder, inside the run's, in which the members were trained.

        If two lines have one step (a resumed run), the later line counts. A last line that a kill cut short is left
        out. Raises `UserError` for a log that is missing or broken, and for a member without a line.
        """
        return _metrics(self.path / part, names)


def read_run(run_dir: str | Path) -> Run:
    """Read the run in `run_dir`. Raises `UserError` (one line: the file, what is wrong, what to do)."""
    path = Path(run_dir)
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory; give the --workdir of a run that was trained")
    files = {"config": "train", "environment": "train", "eval/summary": "eval"}
    return Run(path, *(read_json(path / f"{name}.json", f"run --mode={mode} first") for name, mode in files.items()))


def _metrics(folder: Path, names: Sequence[str]) -> tuple[Metrics, ...]:
    path = folder / "metrics.jsonl"
    content = read_text(path, "run --mode=train first")
    lines = content.split("\n")
    rows: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step, name = int(row["step"]), str(row["member"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            if number == len(lines):
                continue
            raise UserError(
                f"{path}: line {number} is not a JSON object with step and member; mend or remove that line"
            ) from None
        if name in rows:
            rows[name].setdefault(step, {}).update({OLD_NAMES.get(key, key): value for key, value in row.items()})
    absent = [name for name, steps in rows.items() if not steps]
    if absent:
        raise UserError(f"{path}: no line of member {absent[0]!r}; is eval/summary.json of another run?")
    return tuple(Metrics(_series(rows[name], path)) for name in names)


def _series(rows: dict[int, dict[str, Any]], path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    steps: dict[str, list[int]] = {}
    values: dict[str, list[Any]] = {}
    for step, row in sorted(rows.items()):
        for name, value in row.items():
            if name not in ("step", "member") and isinstance(value, int | float | list):
                steps.setdefault(name, []).append(step)
                values.setdefault(name, []).append(value)
    try:
        return {name: (np.array(steps[name]), np.array(values[name], dtype=np.float64)) for name in values}
    except (TypeError, ValueError):
        raise UserError(
            f"{path}: an evaluation changes its length from line to line; train in a new --workdir"
        ) from None
