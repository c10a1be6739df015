"""The methods that are compared, one file each; a new one is a file here, or a module that `register` is called in.

A method is a record (`base.Method`), of one of these kinds: prompts alone (`base.Prompted`), vectors of tasks
(`vector.VectorMethod`), what is trained (`trained.Trained`), or a class of its own (`elicit.Elicit`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tvjax.errors import UserError, one_of, reject
from tvjax.methods import (
    atv,
    bm25_shot,
    contrastive,
    controls,
    distributed_function_vector,
    elicit,
    few_shot,
    function_vector,
    i2cl,
    in_context_routing,
    in_context_vector,
    learned_vector,
    linear_task_vector,
    lora,
    prefix,
    principal,
    several_vectors,
    soft_injection,
    state_vector,
    static,
    stave,
    zero_shot,
)
from tvjax.methods.base import Method
from tvjax.settings import build, coerce, defaults

METHODS: dict[str, Method] = {}
"""All methods, by their names."""
TAKEN: tuple[str, ...] = ("experiment", "plan", "model", "target", "generator", "training", "data", "tasks", "template")
TAKEN += ("templates", "vectors", "methods", "train", "optimizer", "evaluation", "sensitivity", "mesh")
"""What else the config of an experiment that compares methods has: no method has its fields there."""


def register(*methods: Method) -> None:
    """Make methods known; a later one of the same name takes its place.

    Raises `UserError` for the name of a method of this package, and for a group in which another method, or an
    experiment, has other fields.
    """
    for method in methods:
        if method.name in BUILT_IN:
            raise UserError(f"method {method.name}: given a name of this package; accepted: another one")
        _add(method)


def _add(method: Method) -> None:
    if method.group in TAKEN:
        value = f"{method.group!r}, which experiments have fields in"
        raise UserError(f"method {method.name}: group: given {value}; accepted: none of {', '.join(TAKEN)}")
    for other in METHODS.values():
        if other.group == method.group and other.name != method.name and other.settings != method.settings:
            value = f"{method.group!r}, in which {other.name} has other fields"
            raise UserError(f"method {method.name}: group: given {value}; accepted: a group of its own")
    METHODS[method.name] = method


def groups() -> dict[str, type]:
    """The groups of the config in which methods have their fields."""
    return {method.group: method.settings for method in METHODS.values()}


def fields(*kinds: type) -> dict[str, dict[str, Any]]:
    """The fields of methods with their defaults, by group, for a config file; kinds: of methods (none: of all)."""
    by_group = {
        method.group: defaults(method.settings) for method in METHODS.values() if isinstance(method, kinds or Method)
    }
    return {group: values for group, values in by_group.items() if values}


def own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of all methods, by group; a group that a config lacks has its defaults. Raises `UserError`."""
    return {group: build(kind, config.get(group, {}), f"config.{group}") for group, kind in groups().items()}


def chosen(names: Any) -> tuple[Method, ...]:
    """The methods that config.methods names. Raises `UserError` for none, for one twice and for an unknown one."""
    names = coerce(names, tuple[str, ...], "config.methods")
    if not names or len(set(names)) < len(names):
        raise reject("config.methods", names, "different methods, at least one")
    for name in names:
        if name not in METHODS:
            raise reject("config.methods", name, one_of(METHODS))
    return tuple(METHODS[name] for name in names)


def check_order(methods: Sequence[Method], own: Mapping[str, Any]) -> None:
    """Raise `UserError` for a method before one that it needs."""
    for number, method in enumerate(methods):
        for needed in method.needs(own[method.group]):
            if needed not in [before.name for before in methods[:number]]:
                names = tuple(one.name for one in methods)
                raise reject("config.methods", names, f"{needed} before {method.name}, which is made of it")


for _method in (
    zero_shot.METHOD,
    few_shot.METHOD,
    bm25_shot.METHOD,
    state_vector.METHOD,
    function_vector.METHOD,
    distributed_function_vector.METHOD,
    learned_vector.METHOD,
    linear_task_vector.METHOD,
    in_context_vector.METHOD,
    contrastive.METHOD,
    principal.METHOD,
    several_vectors.METHOD,
    controls.MEAN_OF_TASKS,
    controls.MEAN_OF_DEMONSTRATIONS,
    elicit.METHOD,
    static.METHOD,
    i2cl.METHOD,
    soft_injection.METHOD,
    stave.METHOD,
    in_context_routing.METHOD,
    lora.METHOD,
    prefix.METHOD,
    atv.LAST,
    atv.ALL,
    atv.SHOWN,
):
    _add(_method)
BUILT_IN = tuple(METHODS)
