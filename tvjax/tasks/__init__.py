"""In-context task families: pure samplers on the device, each with a split of its tasks, an oracle, and its shifts."""

import inspect

from tvjax.errors import UserError
from tvjax.tasks.base import Parameters, RealTask, StringTask, Task, TokenTask
from tvjax.tasks.bijection import Bijection
from tvjax.tasks.decision_tree import DecisionTree
from tvjax.tasks.gaussian import GaussianTask
from tvjax.tasks.ginc import GINC
from tvjax.tasks.linear import Linear
from tvjax.tasks.linear_classification import LinearClassification
from tvjax.tasks.prompt import LAYOUTS, Layout, Prompt
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

FAMILIES: dict[str, type[Task]] = {
    "linear": Linear,
    "sinusoid": Sinusoid,
    "token_offset": TokenOffset,
    "ginc": GINC,
    "regbench": RegBench,
    "quadratic": Quadratic,
    "relu_network": ReLUNetwork,
    "decision_tree": DecisionTree,
    "linear_classification": LinearClassification,
    "bijection": Bijection,
}
BUILT_IN = tuple(FAMILIES)


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
    FAMILIES[name] = family


__all__ = [
    "FAMILIES",
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
    "oracle_knows",
    "oracle_scores",
    "reference_scores",
    "register",
    "shifts_for",
]
