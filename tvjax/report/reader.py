"""Reads a run directory, whole and checked, so that nothing after it need doubt a file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tvjax.errors import UserError
from tvjax.files import read_json, read_text
from tvjax.report.summary import Member, Summary, parse_summary
from tvjax.train.log import mean_name

OLD_NAMES = {
    f"{kind}_{score}": mean_name(kind, score) for kind in ("icl", "tvp", "query") for score in ("risk", "accuracy")
}
"""What means over a prompt were called in logs of before they had names of their own."""


@dataclass(frozen=True)
class Metrics:
    """What one member logged. Each series is (steps, values): values [S], or [S, ...] for evaluations by layer."""

    series: dict[str, tuple[np.ndarray, np.ndarray]]

    def get(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of `name`; both empty where it was never logged."""
        return self.series.get(name, (np.zeros(0), np.zeros(0)))


@dataclass(frozen=True)
class Vectors:
    """A member's task vectors at its prescribed layer, theta [P, D], and the true parameters {name: [P, ...]}."""

    theta: np.ndarray
    parameters: dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """A run directory in memory. `metrics` and `vectors` are in the order of `summary.members`."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: Summary
    metrics: tuple[Metrics, ...]
    vectors: tuple[Vectors, ...]


def read_kind(run_dir: str | Path) -> str:
    """Which experiment wrote `run_dir`: "tvp" unless its summary says otherwise. Raises UserError without a summary."""
    path = Path(run_dir)
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory; give the --workdir of a run that was trained")
    _object(path / "config.json", "train")  # a folder without one is no run: that is the first thing to say
    return str(_object(path / "eval" / "summary.json", "eval").get("experiment", "tvp"))


def read_plain(run_dir: str | Path) -> tuple[Path, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The folder, config, environment and summary of any run, as they stand in its files."""
    path = Path(run_dir)
    files = (("config.json", "train"), ("environment.json", "train"), ("eval/summary.json", "eval"))
    return path, *(_object(path / name, mode) for name, mode in files)  # type: ignore[return-value]


def read_run(run_dir: str | Path) -> Run:
    """Read the run in `run_dir`. Raises UserError (one line: the file, what is wrong, what to do)."""
    path = Path(run_dir)
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory; give the --workdir of a run that was trained")
    config = _object(path / "config.json", "train")
    environment = _object(path / "environment.json", "train")
    summary_path = path / "eval" / "summary.json"
    summary = parse_summary(_object(summary_path, "eval"), str(summary_path))
    metrics = read_metrics(path, [member.name for member in summary.members])
    vectors = tuple(_vectors(path / "vectors", member, summary.num_layers) for member in summary.members)
    return Run(path, config, environment, summary, metrics, vectors)


def _object(path: Path, mode: str) -> dict[str, Any]:
    return read_json(path, f"run --mode={mode} first")


def read_metrics(run_dir: Path, names: Sequence[str]) -> tuple[Metrics, ...]:
    """The log of the members `names`. Of two lines for one step (a run that was resumed) the later counts; a line cut
    short at the very end, by a kill, is left out.
    """
    path = run_dir / "metrics.jsonl"
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


def _vectors(folder: Path, member: Member, num_layers: int) -> Vectors:
    path = folder / f"{member.name}.safetensors"
    if not path.is_file():
        raise UserError(f"{path}: missing; run --mode=eval first")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError):
        raise UserError(f"{path}: not a whole safetensors file; run --mode=eval again to write it anew") from None
    theta = tensors.get("theta")
    if theta is None or theta.ndim != 3 or theta.shape[0] != num_layers + 1:
        given = "missing" if theta is None else f"shape {list(theta.shape)}"
        raise UserError(f"{path}: theta: {given}, expected [{num_layers + 1}, P, D]; run --mode=eval again")
    parameters = {name.removeprefix("task."): value for name, value in tensors.items() if name.startswith("task.")}
    wrong = [name for name, value in parameters.items() if value.shape[:1] != theta.shape[1:2]]
    if wrong:
        raise UserError(f"{path}: task.{wrong[0]}: not one entry per vector; run --mode=eval again")
    return Vectors(np.asarray(theta[member.prescribed_layer], np.float64), parameters)
