"""Adaptive task vectors on text tasks, beside every method that they are compared with, in one table.

The target is frozen. What is trained trains on the seen and the ambiguous tasks, a population of seeds each, and is
asked the test split of all tasks; so are prompts and vectors, which nothing is trained for (`tvjax.methods`).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tvjax.errors import reject
from tvjax.evals.statistics import bootstrap, macro, of_known
from tvjax.experiments import rundir
from tvjax.experiments.atv.settings import ATVSettings, check_model
from tvjax.experiments.base import Config, Experiment, PlanConfig, one_step
from tvjax.experiments.models import shape_named, small_model
from tvjax.experiments.progress import Progress, aloud
from tvjax.files import user_path, write_json
from tvjax.methods import METHODS, few_shot
from tvjax.methods.atv import ATVMethod, layers
from tvjax.methods.base import Method, MethodResult, RunContext, Training, Written, milliseconds
from tvjax.methods.trained import SHOTS, Trained, ask
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.model import Model
from tvjax.nn.pretrained import Tokenizer, load_model
from tvjax.nn.pretrained.weights import abstract_params
from tvjax.nn.sources import find
from tvjax.nn.tokens import pad
from tvjax.parallel import processes
from tvjax.parallel.batches import Batches
from tvjax.parallel.mesh import make_mesh
from tvjax.tasks.text import Template, TextTask, some
from tvjax.text.bench import SINK, Bench, sink
from tvjax.text.data import keep_tasks
from tvjax.text.examples import Examples, Reader, blank_examples, make_examples, pairs_of, questions_of
from tvjax.train.flops import total
from tvjax.train.loop import Trainer
from tvjax.vectors import origin, store
from tvjax.vectors.adapters import Queries

UNROLLED = 6
"""Layers that a generator may have and be unrolled, which is faster on a CPU."""
FEW_SHOT = few_shot.METHOD.name
COUNTED = {"": "whole", "_first": "first"}
"""How the summary's fields of accuracies end: those of whole answers, and of their first tokens."""


def ours(settings: ATVSettings) -> list[ATVMethod]:
    """The methods of the run that are ATV."""
    return [method for method in settings.methods if isinstance(method, ATVMethod)]


def folder_of(folder: Path, settings: ATVSettings, name: str) -> Path:
    """Where a trained method keeps its checkpoints: the first ATV of the config in the run's own folder."""
    return folder if name in [method.name for method in ours(settings)[:1]] else folder / "methods" / name


def _models(s: ATVSettings, say: Callable[[str], None], target: Model | None) -> tuple[Model, Model | None]:
    """The target and, if it is a model of its own, the generator, in float32 and without its readout."""
    models: list[Model] = []
    for part, chosen, dtype in (("target", s.target, s.target.dtype), ("generator", s.generator, "float32")):
        how: dict[str, Any] = {"dtype": dtype or None, "matmul_precision": s.target.matmul_precision}
        if part == "generator" and s.generator.kind == "target":
            return models[0], None
        if part == "target" and target is not None:
            models.append(target)
        elif chosen.path:
            mesh = processes.own(make_mesh(**dataclasses.asdict(s.mesh)))
            folder = find(chosen.path, f"config.{part}.path")
            models.append(load_model(folder, mesh=mesh, unroll=1, **how))  # as `small_model`
        else:
            where = {"field": f"config.training.{part}", "names": f"config.{part}.trained"}
            folder = user_path(chosen.trained, f"config.{part}.trained")
            models.append(small_model(s.training[part], folder, say, **where, **how))
    if models[1].source.tokenizer is None:
        raise reject("config.generator.path", s.generator.path, "a folder with a tokenizer.json")
    params = {name: value for name, value in models[1].params.items() if name != "readout"}
    return models[0], Model(params, headless(models[1].config, s.generator.dtype), models[1].source)


def headless(config: DecoderConfig, dtype: str) -> DecoderConfig:
    """A generator's decoder: its readout is never used, so that of its embedding stands for it. Only a small one is
    unrolled: of GPT-2's twelve layers a program with all of them takes minutes to compile.
    """
    unroll = 0 if config.num_layers <= UNROLLED else 1
    return dataclasses.replace(config, tied_readout=True, unroll=unroll, dtype=dtype)


def open_context(
    config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None], target: Model | None = None
) -> tuple[ATVSettings, RunContext]:
    """The settings of a run, and all that its methods share. Raises `UserError` for what does not fit."""
    s = ATVSettings.from_config(config)
    return s, make_context(s, s.data.of_groups(folder, s.tasks.groups), _models(s, say, target), mode, say)


def make_context(
    s: ATVSettings,
    tasks: Mapping[str, TextTask],
    models: tuple[Model, Model | None],
    mode: str,
    say: Callable[[str], None],
) -> RunContext:
    """All that the methods of a run share. Raises `UserError` for what does not fit."""
    target, generator = models
    check_model(s, target.config)
    batches = Batches(s.vectors.memory, s.vectors.batch, total)
    benches = [
        Bench(
            target,
            dataclasses.replace(s.vectors, seed=seed),
            template,
            tasks,
            batches=batches,
            seen=s.tasks.trained,
        )
        for seed in s.train.seeds
        for template in s.templates
    ]
    frozen = {"target": target.bare} | ({} if generator is None else {"generator": generator.params})
    readers = _readers(s, (generator or target).source.tokenizer)
    examples = _examples(s, tasks, readers, target.source.tokenizer)
    _check_lengths(s, (generator or target).config, examples)
    return context_of(
        s,
        target,
        None if generator is None else generator.config,
        frozen,
        tasks=tasks,
        readers=readers,
        examples=examples,
        benches=benches,
        batches=batches,
        finish=lambda trainer, folder: rundir.trained_state(trainer, folder, mode, say),
    )


def context_of(
    s: ATVSettings, target: Model, generator: DecoderConfig | None, frozen: Mapping[str, Any], **rest: Any
) -> RunContext:
    """A run context of the settings. rest: its tasks, readers, examples, benches, batches and `finish`."""
    return RunContext(
        own=s.own,
        training=Training(s.train, s.train, s.optimizer, s.mesh, s.target.remat),
        evaluation=s.evaluation,
        target=target,
        generator=generator,
        below=s.generator.below,
        frozen=dict(frozen),
        trained=s.tasks.trained,
        templates=len(s.templates),
        **rest,
    )


def _readers(s: ATVSettings, tokenizer: Tokenizer) -> dict[str, Reader]:
    """How the generator is shown a query, alone and, if a method needs it, behind demonstrations."""
    template = Template(*s.generator.template) if s.generator.template else s.templates[0]
    readers = {"query": Reader(tokenizer, template)}
    if any(isinstance(method, Trained) and method.reads == "shown" for method in s.methods):
        readers["shown"] = Reader(tokenizer, template, s.generator.demonstrations, s.generator.draws)
    return readers


def _examples(
    s: ATVSettings, tasks: Mapping[str, TextTask], readers: Mapping[str, Reader], tokenizer: Tokenizer
) -> dict[str, dict[str, Examples]]:
    """The examples of each kind of reading, by split; only the test split has the unseen tasks."""
    v = s.evaluation
    known = {name: tasks[name] for name in s.tasks.trained}
    splits = {
        "train": (known, pairs_of(known, "train", s.train.examples)),
        "dev": (known, questions_of(known, "dev", v.dev)),
        "test": (tasks, questions_of(tasks, "test", v.test)),
    }
    examples = {
        kind: {
            split: make_examples(which, pairs, reader, tokenizer, s.templates, 0)
            for split, (which, pairs) in splits.items()
        }
        for kind, reader in readers.items()
    }
    if any(isinstance(method, Trained) and method.shots for method in s.methods):
        which, pairs = splits["train"]
        more = {"demonstrations": s.vectors.demonstrations}
        asked = make_examples(which, pairs, readers["query"], tokenizer, s.templates, 0, **more)
        examples[SHOTS] = {"train": asked}
    return examples


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
    row: dict[str, Any] = {}
    for group, names in s.tasks.groups.items():
        row[f"{group}{suffix}"], row[f"{group}{suffix}_ci"] = macro([per_task[task] for task in names])
    return row


def _per_question(result: MethodResult, kind: str) -> dict[str, np.ndarray]:
    """Of each task a field of `Measured` of each question, ``[n]``: the mean over seeds and templates."""
    return {task: getattr(right, kind).mean(1) for task, right in result.right.items()}


def _row(method: Method, result: MethodResult, s: ATVSettings) -> dict[str, Any]:
    """A method's entry in the summary."""
    row: dict[str, Any] = {
        **method.described(),
        "trainable_parameters": result.trainable,
        "tokens_per_query": result.tokens,
        "generator_tokens_per_query": result.generator_tokens,
        "query_flops": result.query_flops,
        "make_flops": None if result.made is None else result.made.flops,
    }
    for suffix, kind in COUNTED.items():
        per_question = _per_question(result, kind)
        row |= {
            f"accuracy{suffix}": {task: float(values.mean()) for task, values in per_question.items()},
            f"accuracy{suffix}_ci": {task: bootstrap(values)[1].tolist() for task, values in per_question.items()},
        }
        row |= _by_group(s, per_question, f"_mean{suffix}")
    for kind in ("d_ntp", "margin"):
        per_question = _per_question(result, kind)
        by_task = {task: of_known("value", [values]) for task, values in per_question.items()}
        row |= {kind: {task: one["value"] for task, one in by_task.items()}}
        row |= {f"{kind}_ci": {task: one["value_ci"] for task, one in by_task.items()}}
        row |= of_known(f"{kind}_mean", list(per_question.values()))
    runs = np.stack([result.right[task].whole.mean(0) for task in s.tasks.seen]).mean(0)
    row["seen_mean_by_run"] = runs.tolist()
    return row | result.about


def _differences(results: Mapping[str, MethodResult], s: ATVSettings) -> dict[str, Any]:
    """Each ATV minus each other method, on the same questions: the macro averages with paired intervals."""
    return {
        one.name: {other: _difference(results, one.name, other, s) for other in results if other != one.name}
        for one in ours(s)
    }


def _difference(results: Mapping[str, MethodResult], one: str, other: str, s: ATVSettings) -> dict[str, Any]:
    """A method minus another, on the same questions: the macro averages with paired intervals."""
    difference: dict[str, Any] = {}
    for suffix, kind in COUNTED.items():
        first, second = (_per_question(results[name], kind) for name in (one, other))
        difference |= _by_group(s, {task: first[task] - second[task] for task in s.tasks.all}, suffix)
    return difference


def _less_few_shot(results: Mapping[str, MethodResult], s: ATVSettings) -> dict[str, Any]:
    """Each other method minus k-shot; none if the run has no k-shot."""
    others = [name for name in results if name != FEW_SHOT and FEW_SHOT in results]
    return {name: _difference(results, name, FEW_SHOT, s) for name in others}


def _settings_to_try(s: ATVSettings) -> list[dict[str, Any]]:
    """The members of `_sensitivity`, each with what it changes."""
    c = s.sensitivity
    members: list[dict[str, Any]] = [{"scale": value, "kind": "scale"} for value in c.scales]
    members += [{"layers": list(layers), "kind": "layers"} for layers in c.layers]
    return members + [{"examples": count, "kind": "examples"} for count in c.examples]


def _sensitivity(context: RunContext, s: ATVSettings, folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """ATV trained again with other lambdas, subsets of layers and numbers of examples: one population of them all."""
    members = _settings_to_try(s)
    if not members:
        return []
    method = next(method for method in ours(s) if method.name == s.sensitivity.method)
    say(f"training {method.name} again in {len(members)} other settings")
    every, scale_L = np.array(layers(context)), method.scale(context)
    scales = [
        np.full(len(every), one["scale"]) if "scale" in one else scale_L * np.isin(every, one.get("layers", every))
        for one in members
    ]
    names = tuple(f"{one['kind']}{i}" for i, one in enumerate(members))
    hyper = {
        "seed": jnp.full(len(members), s.train.seeds[0]),
        "learning_rate": jnp.full(len(members), s.own[method.group].rate),
        "scale": jnp.asarray(np.stack(scales), jnp.float32),
        "examples": jnp.array([one.get("examples", s.train.examples) for one in members]),
    }
    mesh = dataclasses.replace(s.mesh, member=1, data=s.mesh.data * s.mesh.member)  # any number of members
    training, tick = dataclasses.replace(context.training, mesh=mesh), context.tick
    batches = Batches(s.vectors.memory, s.vectors.batch)
    context = dataclasses.replace(context, training=training, batches=batches, tick=lambda name: tick("sensitivity"))
    experiment, params = method.train(context, folder / "methods" / "sensitivity", (names, hyper))
    examples = context.examples[method.reads]["test"]
    right = ask(context, experiment, params, hyper["scale"], examples)
    context.tick(method.name)
    for suffix, kind in COUNTED.items():
        per_task = context.by_task(getattr(right, kind), examples)
        for m, one in enumerate(members):
            one |= _by_group(s, {task: values[:, m].mean(1) for task, values in per_task.items()}, f"_mean{suffix}")
    return members


def _work(context: RunContext, s: ATVSettings, mode: str) -> tuple[dict[str, int], dict[str, float]]:
    """How many parts each method has, and about how many tokens one takes through all blocks."""
    work = {method.name: method.work(context) for method in s.methods}
    parts = {method.name: 1 if method.trains and mode != "train" else work[method.name][0] for method in s.methods}
    costs = {name: cost for name, (_, cost) in work.items()}
    members = len(_settings_to_try(s))
    if members:
        again = s.sensitivity.method
        parts["sensitivity"], costs["sensitivity"] = parts[again], costs[again] * members / len(s.train.seeds)
    return parts, costs


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = aloud) -> dict[str, Any]:
    """Train (or with mode "eval" only load) what `config` asks for in `folder`, ask everything, return the summary.

    Raises `UserError` for a config, a model, tasks or a folder that does not fit, `RunError` if the run cannot go on.
    """
    s = ATVSettings.from_config(config)
    with Progress(say) as progress:
        return _run(s, config, folder, mode, progress)


def _sinks(context: RunContext) -> dict[str, str]:
    """What reads a query in its prompt's first token ("target", "generator"), with such a query."""
    reader = context.readers["query"]
    sinks = {"target": next(filter(None, (bench.sink() for bench in context.benches)), "")}
    sinks["generator"] = sink(reader.tokenizer, reader.template, context.tasks)
    return {part: query for part, query in sinks.items() if query}


def _run(s: ATVSettings, config: Mapping[str, Any], folder: Path, mode: str, progress: Progress) -> dict[str, Any]:
    began, say = time.monotonic(), progress.say
    tasks = s.data.of_groups(folder, s.tasks.groups)
    rundir.prepare(folder, config, new=mode == "train")
    keep_tasks(tasks, folder, say)
    context = make_context(s, tasks, _models(s, say, None), mode, say)
    context.tick = progress.tick
    sinks = _sinks(context)
    for part, query in sinks.items():
        field = "config.templates" if part == "target" or not s.generator.template else "config.generator.template"
        say(f"warning: the query {query!r} that the {part} reads {SINK}; the fourth text of {field} puts one before it")
    progress.plan(*_work(context, s, mode))
    fingerprint = origin.fingerprint(context.target.params)
    results: dict[str, MethodResult] = {}
    timing: dict[str, Any] = {}
    for method in s.methods:
        name = method.name
        say(f"{'training' if method.trains and mode == 'train' else 'asking'} {name}")
        o = results[name] = method.run(context, folder_of(folder, s, name))
        timing[name] = {
            "query_ms": milliseconds(o.ask, o.questions) if o.ask else None,
            "train_example_ms": o.train_ms,
            "make_seconds": None if o.made is None or np.isnan(o.made.seconds) else o.made.seconds,
        }
        first, whole = (np.mean([o.right[task][kind].mean() for task in s.tasks.seen]) for kind in (0, 1))
        say(f"{name}: accuracy {whole:.2f} on seen tasks (first tokens {first:.2f}), {o.tokens:.0f} tokens a query")
        if o.written:
            source = f"{name}, seed {s.train.seeds[0]}, of the test queries of "
            template = dataclasses.asdict(context.readers["query"].template)
            _save(folder / "vectors", name, o.written, fingerprint, template, source)
    summary = {
        "experiment": "atv",
        "target": {
            "path": str(context.target.source.path),
            "model_type": context.target.source.values["model_type"],
            "num_layers": context.target.config.num_layers,
            "width": context.target.config.width,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(context.target.params)),
        },
        "tasks": {group: list(getattr(s.tasks, group)) for group in ("seen", "unseen", "ambiguous")},
        "num_questions": {name: len(task.questions("test")[: s.evaluation.test]) for name, task in tasks.items()},
        "num_demonstrations": s.vectors.demonstrations,
        "num_seeds": len(s.train.seeds),
        "query_first": list(sinks),
        "layers": list(layers(context)),
        "chance": _chance(context, s),
        "methods": [_row(method, results[method.name], s) for method in s.methods],
        "differences": _differences(results, s),
        "less_few_shot": _less_few_shot(results, s),
        "sensitivity": _sensitivity(context, s, folder, say),
    }
    write_json(folder / "eval" / "timing.json", timing)
    write_json(folder / "eval" / "summary.json", summary)
    say(f"measured in {time.monotonic() - began:.0f} s")
    return summary


def _save(
    folder: Path, name: str, written: Written, fingerprint: str, template: Mapping[str, Any], source: str
) -> None:
    """What a method writes for the test queries, a file a task."""
    for task, vectors in written.vectors.items():
        store.save_vectors(
            folder / f"{name}.{task}.safetensors",
            {"vectors": vectors},
            model=fingerprint,
            layers=written.layers,
            positions=written.positions,
            template=template,
            about={"made_by": f"{source}{task}; to be added"},
        )


def _chance(context: RunContext, s: ATVSettings) -> dict[str, float]:
    """Of each ambiguous task, what one gets who knows all answers but guesses the task among those of its inputs, and
    then one of the answers that are right in that task.
    """
    chances = {}
    answers = {name: context.tasks[name].answers for name in s.tasks.ambiguous}
    for name in s.tasks.ambiguous:
        shares = []
        for x, _ in some(context.tasks[name].questions("test"), s.evaluation.test):
            answer_sets = [other[x] for other in answers.values() if x in other]
            right = sum(len(set(ys) & set(answers[name][x])) / len(ys) for ys in answer_sets)
            shares.append(right / len(answer_sets))
        chances[name] = float(np.mean(shares))
    return chances


def write_vectors(
    model: Model, folder: Path, config: Mapping[str, Any], queries: list[str], method: str, any_model: bool = False
) -> jax.Array:
    """What the run in `folder` writes for `queries` with its first seed, lambda included: ``[L, B, D]``.

    method: "atv_last" or "atv_all"; "" is the first that the run has.
    any_model: whether the vectors may be of another model.

    Raises `UserError` if the run has no such method, and for a model that its vectors are not of, unless `any_model`.
    """
    s = ATVSettings.from_config(config)
    known = {one.name: one for one in ours(s) if one.reads == "query"}
    method = method or next(iter(known), "")
    if method not in known:
        raise reject("method", method, ", ".join(known) or "those of a run that has atv_last or atv_all")
    for file in [] if any_model else sorted((folder / "vectors").glob(f"{method}.*.safetensors"))[:1]:
        origin.check(model, store.load_vectors(file)["vectors"])
    config = {**config, "mesh": {}}  # whatever the run was made on
    s, context = open_context(config, folder, "eval", lambda line: None, model)
    members = known[method].members(context)
    experiment, params = known[method].train(context, folder_of(folder, s, method), members)
    reader = context.readers["query"]
    tokens = pad(reader.tokenizer.encode([reader.template.prompt([], text) for text in queries]), side="right")
    reads, count_B = context.generator or context.target.config, np.asarray(tokens.count_B)
    if reads.positions == "learned" and count_B.max() > reads.max_positions:
        accepted = f"a query that is read in {reads.max_positions} tokens, the positions of the model that reads it"
        raise reject(f"queries[{count_B.argmax()}]", f"{count_B.max()} tokens", accepted)
    read = Queries(tokens.ids_BT, tokens.positions_BT, tokens.last_B, jnp.zeros(len(queries), jnp.int32))
    first = jax.tree.map(lambda p: p[0], params)
    vectors_BLD = experiment.adapter.read(first, experiment.frozen, read, members[1]["scale"][0], None)
    return jnp.asarray(vectors_BLD).swapaxes(0, 1)


def trained_parameters(model: Model, folder: Path, config: Mapping[str, Any], method: str) -> Any:
    """What `method` of the run in `folder` has trained with its first seed: the parameters of its adapter.

    Raises `UserError` if the run has trained no such method, or not whole.
    """
    s = ATVSettings.from_config(config)
    known = {one.name: one for one in s.methods if isinstance(one, Trained)}
    if method not in known:
        raise reject("method", method, ", ".join(known) or "those of a run that trains some")
    s, context = open_context({**config, "mesh": {}}, folder, "eval", lambda line: None, model)
    params = known[method].train(context, folder_of(folder, s, method), known[method].members(context))[1]
    return jax.tree.map(lambda p: p[0], params)


def planned(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """What a plan compiles: the first method that is trained and of which shapes alone say what."""
    s = ATVSettings.from_config(one_step(config))
    trained = [method for method in s.methods if isinstance(method, Trained)]
    method = next((method for method in trained if method.can_be_planned), None)
    if method is None:
        known = [name for name, one in METHODS.items() if isinstance(one, Trained) and one.can_be_planned]
        names = tuple(one.name for one in s.methods)
        raise reject("config.methods", names, f"one that is trained and can be planned: {', '.join(known)}")
    t, training = s.target, s.training
    target = shape_named(t.path, "config.target.path", t.dtype, training.get("target"), 1)
    target = dataclasses.replace(target, matmul_precision=t.matmul_precision)
    check_model(s, target)
    frozen: dict[str, Any] = {"target": Model(abstract_params(target), target)}
    generator = None
    if s.generator.kind == "model":
        read = shape_named(s.generator.path, "config.generator.path", "float32", training.get("generator"), 0)
        read = dataclasses.replace(read, matmul_precision=t.matmul_precision)
        generator = headless(read, s.generator.dtype)
        frozen["generator"] = {name: leaf for name, leaf in abstract_params(read).items() if name != "readout"}
    examples = {"train": (len(s.tasks.trained), s.train.examples), "dev": (len(s.tasks.trained), s.evaluation.dev)}
    shapes = {
        split: blank_examples(c.query_tokens, c.answer_tokens, len(s.templates), *size)
        for split, size in examples.items()
    }
    context = context_of(
        s,
        frozen["target"],
        generator,
        frozen,
        tasks={},
        readers={},
        examples={"query": shapes, "shown": shapes},
        benches=[],
        batches=Batches(s.vectors.memory, s.evaluation.batch),
        finish=_nothing,
    )
    return method.trainer(context, frozen, method.members(context), mesh)[1]


def _nothing(trainer: Trainer, folder: Path) -> Any:
    """A plan trains nothing."""
    raise NotImplementedError


EXPERIMENT = Experiment(name="atv", run=run, settings=ATVSettings.from_config, trainer=planned)
