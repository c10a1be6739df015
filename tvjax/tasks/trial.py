"""A trial of a family before anything is trained: do its functions give the shapes that `Task` says?

Nothing is computed: the functions are traced with shapes alone. An exception of the family's own keeps its traceback.
What its oracle answers is looked at where it is scored (`check_oracle`).
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import UserError
from tvjax.tasks.base import RealTask, StringTask, Task, TokenTask
from tvjax.tasks.prompt import Layout
from tvjax.tasks.shifts import NO_SHIFT, Shift, oracle_knows

TOLERANCE = 1e-2
"""By how much the probabilities of an oracle may sum to more or less than 1."""


@dataclasses.dataclass(frozen=True)
class _Trial:
    """Of the family `name`: how large each axis must be."""

    name: str
    sizes: Mapping[str, int]

    def check(self, method: str, value: Any, axes: str, *, whole: bool = False) -> None:
        """Raise `UserError` for a `value` of other axes; "..." at their end: there may be more.

        whole: whether it must be whole numbers.
        """
        shape = getattr(value, "shape", None)
        expected = tuple(self.sizes[letter] for letter in axes.removesuffix("...").split())
        same = shape is not None and (shape[: len(expected)] if axes.endswith("...") else shape) == expected
        if not same or (whole and not jnp.issubdtype(value.dtype, jnp.integer)):
            raise self.error(method, value, f"{'whole numbers ' if whole else ''}{_letters(axes)}, here {expected}")

    def check_each(self, method: str, values: Any, axes: str) -> None:
        """Raise `UserError` for what is no ``{name: array}``, or has an array of other axes."""
        if not isinstance(values, dict) or not values:
            raise self.error(method, values, f"a dict of arrays {_letters(axes)}")
        for key, value in values.items():
            self.check(f"{method}: {key}", value, axes)

    def error(self, method: str, value: Any, accepted: str) -> UserError:
        """The error for what a method has given."""
        shape = getattr(value, "shape", None)
        given = type(value).__name__ if shape is None else f"{value.dtype} of shape {shape}"
        return UserError(f"task family {self.name}: {method}: given {given}; accepted: {accepted}")


def try_family(name: str, task: Task, layout: Layout, demonstrations: int, shifts: Iterable[Shift] = ()) -> None:
    """Raise `UserError` for a function of `task` that gives another shape than `Task` says.

    name: that of the family, for errors.
    layout: as wide as an x.
    demonstrations: K of the prompts that are drawn.
    shifts: those that are measured; the oracle is tried with what it knows of each.

    Raises it too if `parameters` draws other tasks where `held_out` is true, and `has_held_out` is False.
    """
    pairs, outputs = demonstrations + 1, task.decoder_inputs()["num_outputs"]
    batch = pairs + 1  # unlike N, so that one in the place of the other is seen
    x_axes, y_axes, widths = _of_pairs(task)
    trial = _Trial(name, {"B": batch, "N": pairs, "T": layout.length(pairs), "O": outputs, **widths})
    tokens = isinstance(task, TokenTask)
    known = [dict(one) for one in dict.fromkeys(tuple(oracle_knows(s, task).items()) for s in (NO_SHIFT, *shifts))]
    key = jax.eval_shape(lambda: jax.random.key(0))
    if not task.has_held_out and _draws_others(task, key, batch):
        line = "has_held_out: given False, although `parameters` draws other tasks where `held_out` is true"
        raise UserError(f"task family {name}: {line}; accepted: True, so that they are measured")
    for held_out in (False, True) if task.has_held_out else (False,):
        parameters = jax.eval_shape(lambda key, h=held_out: task.parameters(key, batch, held_out=h), key)
        trial.check_each("parameters", parameters, "B ...")
        x = jax.eval_shape(lambda key, tasks: task.inputs(key, tasks, pairs), key, parameters)
        trial.check("inputs", x, x_axes, whole=tokens)
        y = jax.eval_shape(task.answers, key, parameters, x)
        trial.check("answers", y, y_axes, whole=tokens)
        trial.check("blank", jax.eval_shape(task.blank, x), y_axes, whole=tokens)
        encoded = jax.eval_shape(lambda x, y: task.encode(layout, x, y), x, y)
        trial.check("encode", encoded, "B T" if tokens else "B T ...", whole=tokens)
        predictions = jax.ShapeDtypeStruct((batch, pairs, outputs), jnp.float32)
        scores = jax.eval_shape(task.scores, predictions, y)
        trial.check_each("scores", scores, "B N")
        if "risk" not in scores:
            raise UserError(f"task family {name}: scores: given {', '.join(scores)}; accepted: risk among them")
        for knows in known:
            if task.has_oracle and knows["held_out"] == held_out:
                answer = jax.eval_shape(functools.partial(task.oracle, **knows), x, y, x)
                trial.check("oracle", answer, "B N O")


def check_oracle(task: Task, predictions: jax.Array) -> None:
    """Raise `UserError` for `predictions` of the oracle, on the host, that are not finite, or no log-probabilities.

    The latter of tokens alone, of which a log-probability may be -inf.
    """
    values, field = np.asarray(predictions, np.float32), f"task family {type(task).__name__}: oracle"
    if isinstance(task, TokenTask):
        with np.errstate(over="ignore"):
            totals = np.exp(values).sum(-1)
        wrong = totals[~(np.abs(totals - 1) < TOLERANCE)]
        if wrong.size:
            raise UserError(f"{field}: given values whose exp sums to {wrong[0]:.4g}; accepted: log-probabilities")
    elif not np.isfinite(values).all():
        raise UserError(f"{field}: given values that are not finite; accepted: finite ones")


def _letters(axes: str) -> str:
    return f"[{', '.join(axes.split())}]"


def _of_pairs(task: Task) -> tuple[str, str, dict[str, int]]:
    """The axes of x and of y, and the sizes of their last ones."""
    if isinstance(task, RealTask):
        return "B N X", "B N Y", {"X": task.input_width, "Y": task.num_outputs}
    if isinstance(task, StringTask):
        return "B N W", "B N Y", {"W": task.x_tokens, "Y": task.answer_width}
    return ("B N", "B N", {}) if isinstance(task, TokenTask) else ("B N ...", "B N ...", {})


def _draws_others(task: Task, key: Any, batch: int) -> bool:
    """Whether `parameters` is another program, or of other constants, where `held_out` is true."""

    def program(held_out: bool) -> tuple[str, list[bytes]]:
        traced = jax.make_jaxpr(lambda key: task.parameters(key, batch, held_out=held_out))(key)
        consts = [jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a for a in traced.consts]
        return re.sub("0x[0-9a-f]+", "", str(traced)), [np.asarray(a).tobytes() for a in consts]

    own = program(False)
    try:
        return program(True) != own
    except Exception:  # it refuses to draw what there is not
        return False
