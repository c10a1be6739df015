"""What is measured of a language model that was fine-tuned with the TVP-loss, and how members are compared. [ours]

A member's answers are kept question by question (`Right`), so that differences are paired. Members that differ by their
seed alone are an arm: of several seeds its numbers are means over them, with Student's t intervals, which say what
another seed would give; of one seed the intervals are over questions.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tvjax.evals.statistics import bootstrap, macro, student
from tvjax.tasks.text import Template, some
from tvjax.text.bench import Bench
from tvjax.text.shifts import SHIFTS, shifted

ASKED = ("zero_shot", "single_vector", "vector", "best_vector", "few_shot")
GAINS = {"over_zero_shot": ("zero_shot", 1.0), "over_half": ("few_shot", 0.5)}
"""What the vector of one prompt has more than a share of another accuracy."""
BY_LAYER = "by_layer"
SETTINGS = ("tvp_weight", "prescribed_layer", "learning_rate", "answered_from")
"""What members of an arm share; without a TVP-loss the layer and the source of the answers do not matter."""
Right = dict[str, dict[str, np.ndarray]]
"""Whether each question is answered right, ``{kind: {task: [n]}}``; of kind `BY_LAYER` ``[n, layers]``."""
Means = dict[str, Any]
Groups = Mapping[str, Sequence[str]]


def kinds_of(right: Mapping[str, Any]) -> list[str]:
    """The kinds of answers of which there are means."""
    return [kind for kind in (*ASKED, *GAINS, *SHIFTS) if kind in right]


def measured(
    bench: Bench,
    layer: int,
    layers: Sequence[int],
    keep: float,
    single: int,
    other: Template,
    shifts: int,
    done: Callable[[], None] = lambda: None,
) -> tuple[Right, dict[str, np.ndarray], dict[str, int]]:
    """Which questions of the test split are answered right; by task the vectors ``[L+1, D]`` and the layer best on dev.

    The vector is the mean state at the last token of few-shot prompts (Hendel et al. 2023), written at the last token
    of the zero-shot prompt. Of the kinds of answers, "vector" has it at `layer`, "by_layer" at each of `layers`, and
    "best_vector" at the layer that is best on the dev split; "single_vector" has the state of one prompt, the mean over
    `single` prompts.

    layers: those that are written at, `layer` among them.
    keep: 0 replaces the state, 1 adds to it.
    other: the template of `shifted`.
    shifts: the questions of a task that are asked under each shift.
    done: is called after each task.
    """
    right: Right = {kind: {} for kind in (*ASKED, *GAINS, *(SHIFTS if shifts else ()), BY_LAYER)}
    vectors: dict[str, np.ndarray] = {}
    best: dict[str, int] = {}
    for name in bench.tasks:
        pairs = bench.sample(name, "test")
        accepted = bench.accepted(name, pairs)
        states_PLD = bench.few_shot_states(name)
        vectors[name] = states_PLD.mean(0)
        by_layer = {s: bench.right_on(name, s, vectors[name][list(layers)], layers, keep) for s in ("dev", "test")}
        # At layer 0 the last token of every prompt has the same state.
        row = max((i for i, at in enumerate(layers) if at), key=lambda i: by_layer["dev"][:, i].mean())
        best[name] = layers[row]
        alone = bench.right_on(name, "test", states_PLD[:single, layer], [layer] * single, keep)
        right["zero_shot"][name] = bench.right(bench.zero_shot(pairs), accepted)
        right["few_shot"][name] = bench.right(bench.few_shot(name, pairs), accepted)
        right["single_vector"][name] = alone.mean(1)
        right["vector"][name] = by_layer["test"][:, layers.index(layer)]
        right["best_vector"][name] = by_layer["test"][:, row]
        right[BY_LAYER][name] = by_layer["test"]
        for gain, (kind, share) in GAINS.items():
            right[gain][name] = right["single_vector"][name] - share * right[kind][name]
        for kind, (prompts, answers) in (shifted(bench, name, some(pairs, shifts), other) if shifts else {}).items():
            right[kind][name] = bench.right(prompts, answers)
        done()
    return right, vectors, best


def averaged(rights: Sequence[Mapping[str, np.ndarray]], names: Collection[str]) -> tuple[float, list[float]]:
    """The macro average over tasks of answers ``{task: [n]}``, of one seed or of several, and its interval."""
    if len(rights) == 1:
        return macro([rights[0][name] for name in names])
    mean, limits = student([float(np.mean([right[name].mean() for name in names])) for right in rights])
    assert limits is not None
    return mean, limits


def means(groups: Groups, rights: Sequence[Right]) -> dict[str, Means]:
    """Of each group of tasks and each kind: ``{group: {kind: mean, kind_ci: interval}}``."""
    table: dict[str, Means] = {group: {} for group in groups}
    for group, names in groups.items():
        for kind in kinds_of(rights[0]):
            table[group][kind], table[group][f"{kind}_ci"] = averaged([right[kind] for right in rights], names)
    return table


def entry(groups: Groups, about: Mapping[str, Any], rights: Sequence[Right]) -> Means:
    """What the summary says of an arm, or of a member, which is an arm of one seed."""
    table = means(groups, rights)
    for group, names in groups.items():
        curves = [{name: right[BY_LAYER][name] for name in names} for right in rights]
        layers = range(curves[0][names[0]].shape[1])
        rows = [averaged([{n: values[:, i] for n, values in c.items()} for c in curves], names) for i in layers]
        table[group] |= {"vector_by_layer": [r[0] for r in rows], "vector_by_layer_ci": [r[1] for r in rows]}
    numbers = {kind: {task: _of_task([r[kind][task] for r in rights]) for task in rights[0][kind]} for kind in ASKED}
    by_layer = {
        task: np.mean([right[BY_LAYER][task].mean(0) for right in rights], 0).tolist() for task in rights[0][BY_LAYER]
    }
    return {
        **about,
        "accuracy": {kind: {task: mean for task, (mean, _) in e.items()} for kind, e in numbers.items()},
        "accuracy_ci": {kind: {task: ci for task, (_, ci) in e.items()} for kind, e in numbers.items()},
        "vector_by_layer": by_layer,
        "means": table,
    }


def _of_task(rights: Sequence[np.ndarray]) -> tuple[float, list[float]]:
    if len(rights) == 1:
        alone, ends = bootstrap(rights[0])
        return float(alone), ends.tolist()
    return averaged([{"": right} for right in rights], [""])


def arms(members: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Members of the same settings but for their seeds: ``{name, members, seeds, ..}``, in their order.

    An arm of several members has the beginning that their names share as its name, if no other arm has it too.
    """
    by_setting: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for member in members:
        fields = SETTINGS if member["tvp_weight"] else ("tvp_weight", "learning_rate")
        by_setting.setdefault(tuple(member[field] for field in fields), []).append(member)
    names = [re.sub(r"[_.+-]+(s|seed)?$", "", _shared([m["name"] for m in group])) for group in by_setting.values()]
    entries = []
    for group, shared in zip(by_setting.values(), names, strict=True):
        whole = len(group) > 1 and shared and names.count(shared) == 1
        about = {name: group[0][name] for name in SETTINGS}
        listed = {"members": [m["name"] for m in group], "seeds": [m["seed"] for m in group]}
        entries.append({"name": shared if whole else group[0]["name"], **listed, **about})
    return entries


def _shared(names: Sequence[str]) -> str:
    """The letters that all names begin with."""
    first, last = min(names), max(names)
    return first[: next((i for i, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), None)]


def differences(
    groups: Groups, arms: Sequence[Mapping[str, Any]], rights: Mapping[str, Right], layers: Sequence[int]
) -> list[dict[str, Any]]:
    """Arms against each other on the same questions, seed by seed: what one has more, with paired intervals.

    With a TVP-loss against without one and against the control of the same weight, if all but the TVP-loss is the
    same, and each against the model itself, which is the first. Vectors are compared at the layer of the arm that is
    named first (`asked_at`).

    layers: those of kind `BY_LAYER`.
    """
    pairs = [(one, other) for one in arms for other in arms if _compared(one, other)]
    rows = []
    for one, other in [*pairs, *((arm, arms[0]) for arm in arms[1:])]:
        first = dict(zip(one["seeds"], one["members"], strict=True))
        second = dict(zip(other["seeds"], other["members"], strict=True))
        if other is arms[0]:
            second = dict.fromkeys(first, other["members"][0])
        shared = [seed for seed in first if seed in second]
        if shared:
            same = one["prescribed_layer"] == other["prescribed_layer"]
            place = layers.index(one["prescribed_layer"])
            against = [rights[second[seed]] for seed in shared]
            against = against if same else [asked_at(right, place) for right in against]
            gaps = [_less(rights[first[seed]], right) for seed, right in zip(shared, against, strict=True)]
            rows.append({"of": one["name"], "minus": other["name"], **means(groups, gaps)})
    return rows


def asked_at(right: Right, place: int) -> Right:
    """What a member answers with its vectors at another layer, the one at `place` of kind `BY_LAYER`.

    Vectors of one prompt were asked at its own layer alone: the vector of all prompts, which is the better one, stands
    for them.
    """
    there = {task: values[:, place] for task, values in right[BY_LAYER].items()}
    gains = {
        gain: {task: there[task] - share * right[kind][task] for task in there} for gain, (kind, share) in GAINS.items()
    }
    return {**right, "vector": there, "single_vector": there, **{k: v for k, v in gains.items() if k in right}}


def _compared(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether `one` has a TVP-loss, and `other` all but that: no extra loss, or the control's."""
    if not one["tvp_weight"] or one["answered_from"] != "vector" or other["tvp_weight"] is None:
        return False
    if one["learning_rate"] != other["learning_rate"]:
        return False
    control = other["answered_from"] == "demonstrations" and other["tvp_weight"] == one["tvp_weight"]
    return not other["tvp_weight"] or control


def _less(one: Right, other: Right) -> Right:
    return {k: {task: one[k][task] - other[k][task] for task in one[k]} for k in kinds_of(one)}
