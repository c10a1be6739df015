"""A TVP run, whole and checked: the code after it need not doubt a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tvjax.errors import UserError
from tvjax.experiments.tvp.report.summary import Member, Summary, parse_summary
from tvjax.report.reader import Metrics, Run, Vectors


@dataclass(frozen=True)
class TVPRun:
    """A TVP run in memory, with `metrics` and `vectors` in the order of `summary.members`.

    vectors: of each member, at its prescribed layer.
    """

    summary: Summary
    metrics: tuple[Metrics, ...]
    vectors: tuple[Vectors, ...]

    @classmethod
    def of(cls, run: Run) -> "TVPRun":
        """Check all files of a run. Raises `UserError` (one line: the file, what is wrong, what to do)."""
        summary = parse_summary(run.summary, str(run.path / "eval" / "summary.json"))
        metrics = run.metrics([member.name for member in summary.members])
        vectors = (_vectors(run.path / "vectors", member, summary.num_layers) for member in summary.members)
        return cls(summary, metrics, tuple(vectors))


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
        actual = "missing" if theta is None else f"shape {list(theta.shape)}"
        raise UserError(f"{path}: theta: {actual}, expected [{num_layers + 1}, P, D]; run --mode=eval again")
    parameters = {name.removeprefix("task."): value for name, value in tensors.items() if name.startswith("task.")}
    wrong = [name for name, value in parameters.items() if value.shape[:1] != theta.shape[1:2]]
    if wrong:
        raise UserError(f"{path}: task.{wrong[0]}: not one entry per vector; run --mode=eval again")
    return Vectors(np.asarray(theta[member.prescribed_layer], np.float64), parameters)
