"""In-context task families: pure samplers on the device, each with a split of its tasks, an oracle, and its shifts."""

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from tvjax.errors import UserError, near
from tvjax.tasks.base import Parameters, RealTask, StringTask, Task, TokenTask
from tvjax.tasks.prompt import LAYOUTS, Layout, Prompt

if TYPE_CHECKING:
    from tvjax.tasks.bijection import Bijection
    from tvjax.tasks.decision_tree import DecisionTree
    from tvjax.tasks.gaussian import GaussianTask
    from tvjax.tasks.ginc import GINC
    from tvjax.tasks.linear import Linear
    from tvjax.tasks.linear_classification import LinearClassification
    from tvjax.tasks.quadratic import Quadratic
    from tvjax.tasks.regbench import RegBench
    from tvjax.tasks.relu_network import ReLUNetwork
    from tvjax.tasks.shifts import (
        NO_SHIFT,
        Shift,
        ShiftedPrompts,
        draw,
        oracle_knows,
        oracle_scores,
        reference_scores,
        shifts_for,
    )
    from tvjax.tasks.sinusoid import Sinusoid
    from tvjax.tasks.token_offset import TokenOffset
    from tvjax.tasks.trial import try_family

BUILT_IN = {
    "linear": "Linear",
    "sinusoid": "Sinusoid",
    "token_offset": "TokenOffset",
    "ginc": "GINC",
    "regbench": "RegBench",
    "quadratic": "Quadratic",
    "relu_network": "ReLUNetwork",
    "decision_tree": "DecisionTree",
    "linear_classification": "LinearClassification",
    "bijection": "Bijection",
}
"""Families of this package, each a class in the module of its name here, which is imported on use."""
_REGISTERED: dict[str, type[Task]] = {}
_SHIFTS = ("NO_SHIFT", "Shift", "ShiftedPrompts", "draw", "oracle_knows", "oracle_scores", "reference_scores")
_PLACES = {
    **{family: name for name, family in BUILT_IN.items()},
    "GaussianTask": "gaussian",
    **dict.fromkeys((*_SHIFTS, "shifts_for"), "shifts"),
    "try_family": "trial",
}


def names() -> list[str]:
    """The names of all families, as config.task.name takes them."""
    return [*BUILT_IN, *_REGISTERED]


def family(name: str) -> type[Task]:
    """The family of this name, which must exist."""
    known: type[Task] = _REGISTERED[name] if name in _REGISTERED else __getattr__(BUILT_IN[name])
    return known


def register(name: str, family: type[Task]) -> None:
    """Make a family known as `name`, which config.task.name then takes. A later one of the same name takes its place.

    Raises `UserError` for the name of a family of this package, and for what is no dataclass of its own with all that a
    `Task` has.
    """
    if not (isinstance(family, type) and issubclass(family, Task) and "__dataclass_fields__" in vars(family)):
        raise UserError(f"task family {name}: given {family!r}; accepted: a class under Task, a dataclass of its own")
    if inspect.isabstract(family):
        lacks = ", ".join(sorted(family.__abstractmethods__))
        raise UserError(f"task family {name}: given {family.__name__} without {lacks}; accepted: a class that has them")
    if name in BUILT_IN:
        raise UserError(f"task family {name}: given a name of this package; accepted: another one")
    _REGISTERED[name] = family


__all__ = [
    "BUILT_IN",
    "GINC",
    "LAYOUTS",
    "NO_SHIFT",
    "Bijection",
    "DecisionTree",
    "GaussianTask",
    "Layout",
    "Linear",
    "LinearClassification",
    "Parameters",
    "Prompt",
    "Quadratic",
    "ReLUNetwork",
    "RealTask",
    "RegBench",
    "Shift",
    "ShiftedPrompts",
    "Sinusoid",
    "StringTask",
    "Task",
    "TokenOffset",
    "TokenTask",
    "draw",
    "family",
    "names",
    "oracle_knows",
    "oracle_scores",
    "reference_scores",
    "register",
    "shifts_for",
    "try_family",
]


def __getattr__(name: str) -> Any:
    # Imported when used: a run is of one family, and what is loaded of it needs no shift.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near(name, __all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
