"""Adaptive task vectors on text tasks, beside every method that they are compared with, in one table.

The target is frozen. What is trained trains on the seen and the ambiguous tasks, a population of seeds each, and is
asked the test split of all tasks; so are prompts and vectors, which nothing is trained for (`atv_methods`).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import reject
from tvjax.evals.statistics import bootstrap, macro
from tvjax.experiments import rundir, text_model
from tvjax.experiments.atv_data import Examples, Reader, asked_of, make_examples, questions_of
from tvjax.experiments.atv_methods import (
    UNTRAINED,
    Arena,
    Outcome,
    ask,
    milliseconds,
    plan,
    population,
    train,
    trained,
)
from tvjax.experiments.atv_settings import TRAINED, ATVSettings, check_model
from tvjax.experiments.bench import SINK, Bench, sink
from tvjax.experiments.progress import Progress, aloud
from tvjax.experiments.text_data import keep_tasks
from tvjax.files import user_path, write_json
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.model import Model
from tvjax.nn.pretrained import Tokenizer, load_model
from tvjax.nn.pretrained.sources import find
from tvjax.nn.tokens import pad
from tvjax.parallel import processes
from tvjax.parallel.batches import Batches
from tvjax.parallel.mesh import make_mesh
from tvjax.tasks.text import Template, TextTask, some
from tvjax.vectors import origin, store
from tvjax.vectors.adapters import Queries

UNROLLED = 6
"""Layers that a generator may have and be unrolled, which is faster on a CPU."""
OURS = ("atv_last", "atv_all", "atv_shown")
COUNTED = {"": "whole", "_first": "first"}
"""How the summary's fields of accuracies end: those of whole answers, and of their first tokens."""


def folder_of(folder: Path, settings: ATVSettings, name: str) -> Path:
    """Where a trained method keeps its checkpoints: the first ATV of the config in the run's own folder."""
    main = next((method for method in settings.methods if method in OURS), None)
    return folder if name == main else folder / "methods" / name


def _models(
    config: Mapping[str, Any], s: ATVSettings, say: Callable[[str], None], target: Model | None
) -> tuple[Model, Model | None]:
    """The target and, where it is a model of its own, the generator, in float32 and without its readout."""
    found: list[Model] = []
    for part, chosen, dtype in (("target", s.target, s.target.dtype), ("generator", s.generator, "float32")):
        how: dict[str, Any] = {"dtype": dtype or None, "matmul_precision": s.target.matmul_precision}
        if part == "generator" and s.generator.kind == "target":
            return found[0], None
        if part == "target" and target is not None:
            found.append(target)
        elif chosen.path:
            mesh = processes.own(make_mesh(**dataclasses.asdict(s.mesh)))
            folder = find(chosen.path, f"config.{part}.path")
            found.append(load_model(folder, mesh=mesh, unroll=1, **how))  # as `small_model`
        else:
            where = {"place": f"config.training.{part}", "names": f"config.{part}.trained"}
            folder = user_path(chosen.trained, f"config.{part}.trained")
            found.append(text_model.small_model(config["training"][part], folder, say, **where, **how))
    if found[1].source.tokenizer is None:
        raise reject("config.generator.path", s.generator.path, "a folder with a tokenizer.json")
    params = {name: value for name, value in found[1].params.items() if name != "readout"}
    return found[0], Model(params, headless(found[1].config, s.generator.dtype), found[1].source)


def headless(config: DecoderConfig, dtype: str) -> DecoderConfig:
    """A generator's decoder: its readout is never used, so that of its embedding stands for it. Only a small one is
    unrolled: of GPT-2's twelve layers a program with all of them takes minutes to compile.
    """
    unroll = 0 if config.num_layers <= UNROLLED else 1
    return dataclasses.replace(config, tied_readout=True, unroll=unroll, dtype=dtype)


def _tasks(s: ATVSettings, folder: Path) -> dict[str, TextTask]:
    """The tasks of the run, those that are trained on first; a task's place is its number."""
    known = s.data.of_run(folder)
    for group, names in s.tasks.groups.items():
        for name in names:
            if name not in known:
                raise reject(f"config.tasks.{group}", name, f"tasks of config.data: {', '.join(known)}")
    return {name: known[name] for name in s.tasks.all}


def open_arena(
    config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None], target: Model | None = None
) -> Arena:
    """All that the methods share. Raises `UserError` for what does not fit."""
    s = ATVSettings.from_config(config)
    return _arena(s, _tasks(s, folder), _models(config, s, say, target), folder, mode, say)


def _arena(
    s: ATVSettings,
    tasks: Mapping[str, TextTask],
    models: tuple[Model, Model | None],
    folder: Path,
    mode: str,
    say: Callable[[str], None],
) -> Arena:
    target, generator = models
    check_model(s, target.config)
    v = s.evaluation
    batches = Batches(s.vectors.memory, v.batch)
    settings = dataclasses.replace(s.vectors, questions=v.test, batch=v.batch)
    benches = [
        Bench(
            target,
            dataclasses.replace(settings, seed=seed),
            template,
            tasks,
            batches=batches,
            heads_by=s.tasks.trained,
        )
        for seed in s.examples.seeds
        for template in s.templates
    ]
    given = {"target": target.params} | ({} if generator is None else {"generator": generator.params})
    readers = _readers(s, (generator or target).source.tokenizer)
    examples = _examples(s, tasks, readers, target.source.tokenizer)
    _check_lengths(s, (generator or target).config, examples)
    return Arena(
        s,
        folder,
        mode,
        say,
        target,
        None if generator is None else generator.config,
        given,
        tasks,
        readers,
        examples,
        benches,
        batches,
    )


def _readers(s: ATVSettings, tokenizer: Tokenizer) -> dict[str, Reader]:
    """How the generator is shown a query, alone and, where a method needs it, behind demonstrations."""
    template = Template(*s.generator.template) if s.generator.template else s.templates[0]
    readers = {"query": Reader(tokenizer, template)}
    if "atv_shown" in s.methods:
        readers["shown"] = Reader(tokenizer, template, s.generator.demonstrations, s.generator.draws)
    return readers


def _examples(
    s: ATVSettings, tasks: Mapping[str, TextTask], readers: Mapping[str, Reader], tokenizer: Tokenizer
) -> dict[str, dict[str, Examples]]:
    """The examples of each kind of reading, by split; only the test split has the unseen tasks."""
    v = s.evaluation
    known = {name: tasks[name] for name in s.tasks.trained}
    splits = {
        "train": (known, asked_of(known, "train", s.examples.examples)),
        "dev": (known, questions_of(known, "dev", v.dev)),
        "test": (tasks, questions_of(tasks, "test", v.test)),
    }
    return {
        kind: {
            split: make_examples(which, asked, reader, tokenizer, s.templates, 0)
            for split, (which, asked) in splits.items()
        }
        for kind, reader in readers.items()
    }


def _check_lengths(s: ATVSettings, reads: DecoderConfig, examples: Mapping[str, Mapping[str, Examples]]) -> None:
    for kind, splits in examples.items():
        longest = max(one.readings.ids_BT.shape[-1] for one in splits.values())
        if reads.positions == "learned" and longest > reads.max_positions:
            what = "demonstrations" if kind == "shown" else "template"
            raise reject(
                f"config.generator.{what}",
                getattr(s.generator, what),
                f"queries that its {reads.max_positions} positions hold; the longest has {longest} tokens",
            )


def _by_group(s: ATVSettings, per_task: Mapping[str, np.ndarray], suffix: str) -> dict[str, Any]:
    """The macro average over the tasks of each group, ``{GROUP + suffix: mean, ..._ci: interval}``."""
    found: dict[str, Any] = {}
    for group, names in s.tasks.groups.items():
        found[f"{group}{suffix}"], found[f"{group}{suffix}_ci"] = macro([per_task[task] for task in names])
    return found


def _per_question(outcome: Outcome, kind: str) -> dict[str, np.ndarray]:
    """Of each task how often each question is answered right, ``[n]``: the mean over seeds and templates."""
    return {task: getattr(right, kind).mean(1) for task, right in outcome.right.items()}


def _row(name: str, outcome: Outcome, s: ATVSettings) -> dict[str, Any]:
    """A method's entry in the summary."""
    row: dict[str, Any] = {
        "name": name,
        "trainable_parameters": outcome.trainable,
        "tokens_per_query": outcome.tokens,
        "generator_tokens_per_query": outcome.generator_tokens,
    }
    for suffix, kind in COUNTED.items():
        per_question = _per_question(outcome, kind)
        row |= {
            f"accuracy{suffix}": {task: float(values.mean()) for task, values in per_question.items()},
            f"accuracy{suffix}_ci": {task: bootstrap(values)[1].tolist() for task, values in per_question.items()},
        }
        row |= _by_group(s, per_question, f"_mean{suffix}")
    runs = np.stack([outcome.right[task].whole.mean(0) for task in s.tasks.seen]).mean(0)
    row["seen_mean_by_run"] = runs.tolist()
    return row | outcome.about


def _differences(outcomes: Mapping[str, Outcome], s: ATVSettings) -> dict[str, Any]:
    """Each ATV minus each other method, on the same questions: the macro averages with paired intervals."""
    found: dict[str, Any] = {}
    for ours in (name for name in outcomes if name in OURS):
        found[ours] = {}
        for other in (name for name in outcomes if name != ours):
            found[ours][other] = {}
            for suffix, kind in COUNTED.items():
                first, second = (_per_question(outcomes[name], kind) for name in (ours, other))
                gaps = {task: first[task] - second[task] for task in s.tasks.all}
                found[ours][other] |= _by_group(s, gaps, suffix)
    return found


def _sensitivity(arena: Arena) -> list[dict[str, Any]]:
    """ATV trained again with other lambdas, subsets of layers and numbers of examples: one population of them all."""
    s, c = arena.settings, arena.settings.sensitivity
    every = np.array(arena.layers)
    members: list[dict[str, Any]] = [{"scale": value, "kind": "scale"} for value in c.scales]
    members += [{"layers": list(layers), "kind": "layers"} for layers in c.layers]
    members += [{"examples": count, "kind": "examples"} for count in c.examples]
    if not members:
        return []
    arena.say(f"training {c.method} again in {len(members)} other settings")
    scales = [
        np.full(len(every), one["scale"]) if "scale" in one else arena.scale * np.isin(every, one.get("layers", every))
        for one in members
    ]
    names = tuple(f"{one['kind']}{i}" for i, one in enumerate(members))
    hyper = {
        "seed": jnp.full(len(members), s.examples.seeds[0]),
        "learning_rate": jnp.full(len(members), s.rates.atv),
        "scale": jnp.asarray(np.stack(scales), jnp.float32),
        "examples": jnp.array([one.get("examples", s.examples.examples) for one in members]),
    }
    mesh = dataclasses.replace(s.mesh, member=1, data=s.mesh.data * s.mesh.member)  # any number of members
    batches = Batches(s.vectors.memory, s.evaluation.batch)
    settings, tick = dataclasses.replace(s, mesh=mesh), arena.tick
    arena = dataclasses.replace(arena, settings=settings, batches=batches, tick=lambda name: tick("sensitivity"))
    experiment, params = train(arena, c.method, arena.folder / "methods" / "sensitivity", names, hyper)
    asked = arena.examples["shown" if c.method == "atv_shown" else "query"]["test"]
    found = ask(arena, experiment, params, hyper["scale"], asked)
    arena.tick(c.method)
    for suffix, kind in COUNTED.items():
        per_task = arena.by_task(getattr(found, kind), asked)
        for m, one in enumerate(members):
            one |= _by_group(s, {task: values[:, m].mean(1) for task, values in per_task.items()}, f"_mean{suffix}")
    return members


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = aloud) -> dict[str, Any]:
    """Train (or with mode "eval" only load) what `config` asks for in `folder`, ask everything, return the summary.

    Raises `UserError` for a config, a model, tasks or a folder that does not fit, `RunError` where it cannot go on.
    """
    s = ATVSettings.from_config(config)
    with Progress(say) as progress:
        return _run(s, config, folder, mode, progress)


def _sinks(arena: Arena) -> dict[str, str]:
    """What reads a query in its prompt's first token ("target", "generator"), with such a query."""
    reader = arena.readers["query"]
    found = {"target": next(filter(None, (bench.sink() for bench in arena.benches)), "")}
    found["generator"] = sink(reader.tokenizer, reader.template, arena.tasks)
    return {part: query for part, query in found.items() if query}


def _run(s: ATVSettings, config: Mapping[str, Any], folder: Path, mode: str, progress: Progress) -> dict[str, Any]:
    began, say = time.monotonic(), progress.say
    tasks = _tasks(s, folder)
    rundir.prepare(folder, config, new=mode == "train")
    keep_tasks(tasks, folder, say)
    arena = _arena(s, tasks, _models(config, s, say, None), folder, mode, say)
    arena.tick = progress.tick
    sinks = _sinks(arena)
    for part, query in sinks.items():
        field = "config.templates" if part == "target" or not s.generator.template else "config.generator.template"
        say(f"warning: the query {query!r} that the {part} reads {SINK}; the fourth text of {field} puts one before it")
    progress.plan(*plan(arena))
    fingerprint = origin.fingerprint(arena.target.params)
    outcomes: dict[str, Outcome] = {}
    timing: dict[str, Any] = {}
    for name in s.methods:
        say(f"{'training' if name in TRAINED and mode == 'train' else 'asking'} {name}")
        if name in TRAINED:
            outcomes[name] = trained(arena, name, folder_of(folder, s, name))
        else:
            outcomes[name] = UNTRAINED[name](arena)
        o = outcomes[name]
        timing[name] = {"query_ms": milliseconds(o.ask, o.asked) if o.ask else None, "train_example_ms": o.train_ms}
        first, whole = (np.mean([o.right[task][kind].mean() for task in s.tasks.seen]) for kind in (0, 1))
        say(f"{name}: accuracy {whole:.2f} on seen tasks (first tokens {first:.2f}), {o.tokens:.0f} tokens a query")
        for task, vectors in (o.vectors or {}).items():
            store.save_vectors(
                folder / "vectors" / f"{name}.{task}.safetensors",
                {"vectors": vectors},
                model=fingerprint,
                layers=arena.layers,
                positions="all" if name == "atv_all" else "last",
                template=dataclasses.asdict(arena.readers["query"].template),
                about={"made_by": f"{name}, seed {s.examples.seeds[0]}, of the test queries of {task}; to be added"},
            )
    summary = {
        "experiment": "atv",
        "target": {
            "path": str(arena.target.source.path),
            "model_type": arena.target.source.values["model_type"],
            "num_layers": arena.target.config.num_layers,
            "width": arena.target.config.width,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(arena.target.params)),
        },
        "tasks": {group: list(getattr(s.tasks, group)) for group in ("seen", "unseen", "ambiguous")},
        "num_questions": {name: len(task.questions("test")[: s.evaluation.test]) for name, task in tasks.items()},
        "num_demonstrations": s.vectors.demonstrations,
        "num_seeds": len(s.examples.seeds),
        "query_first": list(sinks),
        "layers": list(arena.layers),
        "chance": _chance(arena),
        "methods": [_row(name, outcome, s) for name, outcome in outcomes.items()],
        "differences": _differences(outcomes, s),
        "sensitivity": _sensitivity(arena),
    }
    write_json(folder / "eval" / "timing.json", timing)
    write_json(folder / "eval" / "summary.json", summary)
    say(f"measured in {time.monotonic() - began:.0f} s")
    return summary


def _chance(arena: Arena) -> dict[str, float]:
    """Of each ambiguous task, what one gets who knows all answers but guesses the task among those of its inputs, and
    then one of the answers that are right in that task.
    """
    s, found = arena.settings, {}
    answers = {name: arena.tasks[name].answers for name in s.tasks.ambiguous}
    for name in s.tasks.ambiguous:
        shares = []
        for x, _ in some(arena.tasks[name].questions("test"), s.evaluation.test):
            said = [other[x] for other in answers.values() if x in other]
            right = sum(len(set(ys) & set(answers[name][x])) / len(ys) for ys in said)
            shares.append(right / len(said))
        found[name] = float(np.mean(shares))
    return found


def write_vectors(
    model: Model, folder: Path, config: Mapping[str, Any], queries: list[str], method: str, any_model: bool = False
) -> jax.Array:
    """What the run in `folder` writes for `queries` with its first seed, lambda included: ``[N, B, D]``.

    method: "atv_last" or "atv_all"; "" is the first that the run has. Raises `UserError` where it has none, and for a
    model that its vectors are not of, unless `any_model`.
    """
    s = ATVSettings.from_config(config)
    known = [name for name in s.methods if name in OURS[:2]]
    method = method or next(iter(known), "")
    if method not in known:
        raise reject("method", method, ", ".join(known) or "those of a run that has atv_last or atv_all")
    for file in [] if any_model else sorted((folder / "vectors").glob(f"{method}.*.safetensors"))[:1]:
        origin.check(model, store.load_vectors(file)["vectors"])
    config = {**config, "mesh": {}}  # whatever the run was made on
    arena = open_arena(config, folder, "eval", lambda line: None, model)
    names, hyper = population(arena, s.rates.atv)
    experiment, params = train(arena, method, folder_of(folder, s, method), names, hyper)
    reader = arena.readers["query"]
    tokens = pad(reader.tokenizer.encode([reader.template.prompt([], text) for text in queries]), side="right")
    reads, count_B = arena.generator or arena.target.config, np.asarray(tokens.count_B)
    if reads.positions == "learned" and count_B.max() > reads.max_positions:
        accepted = f"a query that is read in {reads.max_positions} tokens, the positions of the model that reads it"
        raise reject(f"queries[{count_B.argmax()}]", f"{count_B.max()} tokens", accepted)
    read = Queries(tokens.ids_BT, tokens.positions_BT, tokens.last_B, jnp.zeros(len(queries), jnp.int32))
    first = jax.tree.map(lambda p: p[0], params)
    made_BND = experiment.adapter.read(first, experiment.given, read, hyper["scale"][0], None)
    return jnp.asarray(made_BND).swapaxes(0, 1)
