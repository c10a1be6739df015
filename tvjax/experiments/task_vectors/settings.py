"""What a run on task vectors is asked to do: its settings, read from a config and checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tvjax import methods
from tvjax.errors import reject
from tvjax.experiments.models import TextSettings
from tvjax.methods import METHODS, state_vector
from tvjax.methods.vector import VectorMethod
from tvjax.settings import parts, setting
from tvjax.tasks.text import Template
from tvjax.text.bench import VectorConfig
from tvjax.text.data import DataConfig

STATE = state_vector.METHOD.name
CONTROL = "shuffled_vector"
"""The name of the state vector of prompts with shuffled labels."""


@dataclasses.dataclass(frozen=True)
class MeasuredConfig(VectorConfig):
    """The fields of config.vectors, with those of what is measured beside accuracies."""

    words: int = setting(8, "tokens that the state vector's projection on the vocabulary lists", least=1)
    conflicts: int = setting(5, "fewest shared inputs for which two tasks are set against each other", least=1)


@dataclasses.dataclass(frozen=True)
class TaskVectorSettings(TextSettings):
    """The whole experiment, checked. own: the settings of methods, by group."""

    data: DataConfig
    template: Template
    vectors: MeasuredConfig
    methods: tuple[VectorMethod, ...]
    own: Mapping[str, Any]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the fields, with those of the methods."""
        return {
            **parts(cls, config, ("training", "methods", *methods.groups())),
            "training": config.get("training"),
            "methods": _methods(config.get("methods")),
            "own": methods.own_settings(config),
        }


def _methods(names: Any) -> tuple[VectorMethod, ...]:
    """The methods of config.methods, which make vectors; the state vector is one of them."""
    chosen = methods.chosen(names)
    known = [name for name, method in METHODS.items() if isinstance(method, VectorMethod)]
    for method in chosen:
        if not isinstance(method, VectorMethod):
            raise reject("config.methods", method.name, f"methods that make vectors: {', '.join(known)}")
    if STATE not in [method.name for method in chosen]:
        raise reject("config.methods", names, f"{STATE!r} among them, which the others are held against")
    return tuple(method for method in chosen if isinstance(method, VectorMethod))
