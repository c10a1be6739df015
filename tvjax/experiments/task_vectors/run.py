"""Task vectors of a language model on text tasks: how well they replace demonstrations, and at which layer.

Vectors are made from the train split (`tvjax.methods.vector`) and written into zero-shot prompts, at the last token
unless the method says otherwise. Layer and scale are chosen on the dev split, everything else is measured on the test
split. Accuracy is that of whole answers, and beside it (`_first`) that of their first tokens, which is what a vector at
the last token steers.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tvjax.evals.learned import clearly_above
from tvjax.evals.statistics import macro, of_known, with_interval
from tvjax.experiments import models, rundir
from tvjax.experiments.base import Experiment
from tvjax.experiments.models import open_model
from tvjax.experiments.progress import Progress, aloud
from tvjax.experiments.task_vectors.costs import Asking, costs, timing
from tvjax.experiments.task_vectors.settings import CONTROL, STATE, TaskVectorSettings
from tvjax.files import write_json
from tvjax.methods import state_vector
from tvjax.methods.vector import Layer, TaskVectors, VectorMethod, Vectors
from tvjax.tasks.text import Pair
from tvjax.text.bench import SINK, Bench, Right, best_layer_and_scale
from tvjax.text.data import keep_tasks
from tvjax.text.measures import Measured
from tvjax.vectors import store
from tvjax.vectors.from_prompts import vocabulary

ACCURACIES = {"": "whole", "_first": "first"}
"""How the summary's fields of accuracies end."""
Answers = dict[str, Measured]
"""By the name of a way to ask, what is measured of the answers to the test questions of a task, ``[n]``."""


def _chosen(
    bench: Bench, name: str, method: VectorMethod, result: TaskVectors, scales: Sequence[float], alone: Right
) -> tuple[dict[str, Any], Measured]:
    """Accuracy with the vector of a task at each layer that has one; what is measured where the dev split prefers it.

    alone: zero-shot on the dev split. A vector works if more first tokens are right there (`clearly_above`).
    """
    kind, vectors_LD, layers = method.name, result.vectors[name], method.layers(bench, result, name)
    dev = method.swept(bench, name, "dev", vectors_LD, layers, scales)
    row, number = best_layer_and_scale(dev)
    layer, scale = layers[row], scales[number]
    test = method.measured(bench, name, vectors_LD, layers, (scale,))
    entry: dict[str, Any] = {
        f"{kind}_layer": layer,
        f"{kind}_scale": scale,
        f"{kind}_dev": float(dev.first[:, row, number].mean()),
        f"{kind}_works": clearly_above(dev.first[:, row, number], alone.first),
    }
    right: Right | Measured
    for split, right, column in (("dev", dev, number), ("test", test, 0)):
        for suffix, values in (("", right.whole), ("_first", right.first)):
            entry[f"{kind}{suffix}_by_layer_{split}"] = _by_layer(bench, layers, values[:, :, column].mean(0))
    bench.tick("swept")
    return entry, Measured(*(a[:, row, 0] for a in test))


def _by_layer(bench: Bench, layers: Sequence[Layer], means: np.ndarray) -> list[float | None]:
    """The means of `layers`, each at its place among 0..L; None if there is no vector of one layer."""
    accuracies: list[float | None] = [None] * len(bench.layers)
    for layer, mean in zip(layers, means, strict=True):
        if layer is not None:
            accuracies[layer] = float(mean)
    return accuracies


def _fields(kind: str, answers: Measured) -> dict[str, Any]:
    """What the summary says of answers: accuracy by the whole and by first tokens, distance and margin."""
    return {
        **with_interval(kind, answers.whole),
        **with_interval(f"{kind}_first", answers.first),
        **with_interval(f"{kind}_d_ntp", answers.d_ntp),
        **of_known(f"{kind}_margin", [answers.margin]),
    }


def _measure(
    bench: Bench, name: str, s: TaskVectorSettings, results: Mapping[str, TaskVectors], asking: Asking
) -> tuple[dict[str, Any], Answers]:
    """What the summary says of a task, and what is measured of its answers."""
    test, dev = (bench.sample(name, split) for split in ("test", "dev"))
    alone = bench.plain(bench.zero_shot(dev), bench.accepted(name, dev))
    prompts = {
        "few_shot": bench.few_shot(name, test),  # first: the others are held against it
        "zero_shot": bench.zero_shot(test),
        "shuffled_shot": bench.few_shot(name, test, shuffled=True),
    }
    answers = {kind: asking.ask(kind, bench, name, texts) for kind, texts in prompts.items()}
    bench.tick("asked")
    entry: dict[str, Any] = {"pairs": {"dev": len(dev), "test": len(test)}, "zero_shot_dev": float(alone.first.mean())}
    for method in s.methods:
        scales = method.scales(s.own[method.group])
        chosen, answers[method.name] = _chosen(bench, name, method, results[method.name], scales, alone)
        entry |= chosen
    layer, model = entry[f"{STATE}_layer"], bench.model
    control = state_vector.METHOD.measured(bench, name, results[CONTROL].vectors[name], [layer], [1.0])
    answers[CONTROL] = Measured(*(a[:, 0, 0] for a in control))
    state_1D = jnp.asarray(results[STATE].vectors[name][[layer]])
    top = np.asarray(vocabulary(model, state_1D))[0]
    words = [bench.tokenizer.decode([i]) for i in np.argsort(-top)[: s.vectors.words]]
    for kind, found in answers.items():
        entry |= _fields(kind, found)
    return entry | {"rivals": int((~np.isnan(answers["few_shot"].margin)).sum()), "words": words}, answers


def _means(answers: Mapping[str, Answers]) -> dict[str, Any]:
    """Over tasks: of each way to ask its accuracies, its distance from k-shot, margin, and accuracy less k-shot's."""
    means: dict[str, Any] = {}
    for kind in next(iter(answers.values())):
        by_task = [one[kind] for one in answers.values()]
        shots = [one["few_shot"] for one in answers.values()]
        for suffix, field in ACCURACIES.items():
            right = [getattr(one, field) for one in by_task]
            means[f"{kind}{suffix}"] = float(np.mean([values.mean() for values in right]))
            gaps = [values - getattr(other, field) for values, other in zip(right, shots, strict=True)]
            means[f"{kind}{suffix}_less_few_shot"], means[f"{kind}{suffix}_less_few_shot_ci"] = macro(gaps)
        means |= of_known(f"{kind}_d_ntp", [one.d_ntp for one in by_task])
        means |= of_known(f"{kind}_margin", [one.margin for one in by_task])
    return means


def _partners(bench: Bench, shown: str, fewest: int) -> dict[str, list[tuple[int, Pair]]]:
    """Tasks with a vector that can contradict the demonstrations of `shown`, and about what.

    The questions of the test split, with their places in it, that both have and whose answers begin with other tokens;
    if there are at least `fewest` of them.
    """
    pairs, partners = bench.sample(shown, "test"), {}
    for moved in bench.tasks:
        theirs = bench.tasks[moved].answers
        both = [(i, pair) for i, pair in enumerate(pairs) if moved != shown and pair[0] in theirs]
        ours = bench.tasks[shown].answers
        both = [(i, pair) for i, pair in both if not bench.begun(pair[0], ours) & bench.begun(pair[0], theirs)]
        if len(both) >= fewest:
            partners[moved] = both
    return partners


def _conflicts(
    bench: Bench, shown: str, entries: Mapping[str, Any], vectors: Vectors, fewest: int
) -> list[dict[str, Any]]:
    """Prompts that demonstrate `shown`, with the vector of another task written in: whose answers do they begin?"""
    partners = _partners(bench, shown, fewest)
    if not partners:
        return []
    pairs = bench.sample(shown, "test")
    layers = [entries[moved][f"{STATE}_layer"] for moved in partners]
    vectors_LD = np.stack([vectors[moved][layer] for moved, layer in zip(partners, layers, strict=True)])
    # At each layer a vector, and one that changes nothing.
    vectors_LUD = np.stack([vectors_LD, np.zeros_like(vectors_LD)], 1)
    keep_LU = np.tile(np.array([0.0, 1.0]), (len(layers), 1))
    q = bench.ask(bench.few_shot(shown, pairs), [y for _, y in pairs])
    begins_BLU = bench.likeliest(q, vectors_LUD, layers, keep_LU)[..., 0]
    bench.tick("conflicts")
    conflicts = []
    for number, (moved, both) in enumerate(partners.items()):
        entry: dict[str, Any] = {"shown": shown, "moved": moved, "pairs": len(both), "layer": layers[number]}
        for whose, task in (("shown", shown), ("moved", moved)):
            begun = [bench.begun(x, bench.tasks[task].answers) for _, (x, _) in both]
            for suffix, column in (("", 0), ("_without", 1)):
                begins = begins_BLU[[i for i, _ in both], number, column]
                right = np.array([token in known for token, known in zip(begins.tolist(), begun, strict=True)], float)
                entry |= with_interval(f"says_{whose}{suffix}", right)
        conflicts.append(entry)
    return conflicts


def _work(bench: Bench, s: TaskVectorSettings, conflicts: int) -> tuple[dict[str, int], dict[str, float]]:
    """How often each kind of work is done, and about how many tokens it takes through all blocks."""
    c, tasks, layers = bench.config, len(bench.tasks), bench.model.config.num_layers
    long = c.demonstrations * 5.0 + 8.0
    questions = float(
        np.mean([len(bench.sample(name, "dev")) + len(bench.sample(name, "test")) for name in bench.tasks])
    )
    counts = {"shown": 2 * tasks, "asked": tasks, "swept": len(s.methods) * tasks, "conflicts": conflicts}
    costs = {
        "shown": c.prompts * long,
        "asked": 1.5 * questions * long,
        "swept": questions * layers,
        "conflicts": questions * long / 2,
    }
    for method in s.methods:
        counts[method.name], costs[method.name] = method.making(bench, s.own[method.group])
    return counts, costs


def _save(
    path: Path,
    bench: Bench,
    name: str,
    entry: Mapping[str, Any],
    s: TaskVectorSettings,
    results: Mapping[str, TaskVectors],
) -> None:
    """The vectors of a task, with what one must know to use them."""
    c, methods = bench.config, [method for method in s.methods if method.stored]
    kinds = [method.name for method in methods]
    about = {
        "made_by": f"{c.prompts} prompts of {c.demonstrations} demonstrations of {name}",
        **{f"{kind}.layer": "all" if entry[f"{kind}_layer"] is None else entry[f"{kind}_layer"] for kind in kinds},
        **{f"{kind}.scale": entry[f"{kind}_scale"] for kind in kinds},
        **{f"{method.name}.edit": "add" if method.keep else "replace" for method in methods},
        **{f"{method.name}.positions": method.positions for method in methods},
        **{f"{method.name}.rescaled": True for method in methods if method.rescaled},
    }
    store.save_vectors(
        path,
        {kind: results[kind].vectors[name] for kind in kinds},
        model=bench.model,
        address="embed, blocks/resid",
        layers=range(bench.model.config.num_layers + 1),
        template=dataclasses.asdict(bench.template),
        about=about,
    )


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = aloud) -> dict[str, Any]:
    """Measure task vectors of a model in `folder`: eval/summary.json, vectors/*.safetensors; return the summary.

    Raises `UserError` for a config, a model or a folder of tasks that does not fit. There is nothing to train but the
    small model, so both modes do the same.
    """
    s = TaskVectorSettings.from_config(config)
    with Progress(say) as progress:
        return _run(s, config, folder, mode, progress)


def _run(
    s: TaskVectorSettings, config: Mapping[str, Any], folder: Path, mode: str, progress: Progress
) -> dict[str, Any]:
    began = time.monotonic()
    tasks = s.data.of_run(folder)
    rundir.prepare(folder, config, new=mode == "train")
    keep_tasks(tasks, folder, progress.say)
    model = open_model(s.model, s.training, progress.say)
    for method in s.methods:
        method.check(s.own[method.group], model.config)
    bench = Bench(model, s.vectors, s.template, tasks, tick=progress.tick)
    sink = bench.sink()
    if sink:
        progress.say(f"warning: the query {sink!r} {SINK}; config.template.start puts one before it")
    fewest = s.vectors.conflicts
    progress.plan(*_work(bench, s, sum(bool(_partners(bench, name, fewest)) for name in tasks)))
    results, made = {}, {}
    results[CONTROL], made[CONTROL] = bench.cost(lambda: state_vector.make(bench, None, shuffled=True))
    about: dict[str, Any] = {}
    for method in s.methods:
        progress.say(f"making vectors: {method.label}")
        make = functools.partial(method.vectors, bench, s.own[method.group])
        results[method.name], made[method.name] = bench.cost(make)
        about |= results[method.name].about
    entries: dict[str, Any] = {}
    answers: dict[str, Answers] = {}
    asking = Asking()
    for name in tasks:
        entries[name], answers[name] = _measure(bench, name, s, results, asking)
        progress.say(_line(name, entries[name], s))
        _save(folder / "vectors" / f"{name}.safetensors", bench, name, entries[name], s, results)
    vectors = results[STATE].vectors
    conflicts = [entry for name in tasks for entry in _conflicts(bench, name, entries, vectors, fewest)]
    summary = {
        "experiment": "task_vectors",
        "model": {"path": str(model.source.path), "model_type": model.source.values["model_type"]},
        "num_layers": model.config.num_layers,
        "num_demonstrations": s.vectors.demonstrations,
        "num_prompts": s.vectors.prompts,
        "start": bench.template.start,
        "query_first": bool(sink),
        "methods": [method.described() for method in s.methods],
        **about,
        "mean": _means(answers),
        "cost": costs(bench, s, made, asking),
        "tasks": entries,
        "conflicts": conflicts,
    }
    times = timing(bench, s, results, entries[next(iter(tasks))], made, asking)
    write_json(folder / "eval" / "timing.json", times)
    write_json(folder / "eval" / "summary.json", summary)
    progress.say(f"measured in {time.monotonic() - began:.0f} s")
    return summary


def _line(name: str, e: Mapping[str, Any], s: TaskVectorSettings) -> str:
    """A task's results in one line."""
    kinds = []
    for method in s.methods:
        kind, layer = method.name, e[f"{method.name}_layer"]
        scale = f" times {e[f'{kind}_scale']:g}" if len(method.scales(s.own[method.group])) > 1 else ""
        at = "at all layers" if layer is None else f"at layer {layer}"
        where = f"{at}{scale}" if e[f"{kind}_works"] else "none works" + (scale and f",{scale}")
        kinds.append(f"{method.label} {e[f'{kind}_first']:.2f} ({where})")
    shots = f"zero-shot {e['zero_shot_first']:.2f}, {s.vectors.demonstrations}-shot {e['few_shot_first']:.2f}"
    return f"{name}, first tokens: {shots}, {', '.join(kinds)}"


EXPERIMENT = Experiment(
    name="task_vectors",
    run=run,
    settings=TaskVectorSettings.from_config,
    trainer=models.planned,
)
