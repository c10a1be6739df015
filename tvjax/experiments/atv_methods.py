"""The methods of an ATV run, each a function from what they all share to what the table says of it.

A new method is a function here, in `UNTRAINED`, and its name in `atv_settings`; one that is trained is an adapter
(`vectors.adapters`), a line in `adapter_of`, and its name.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tvjax.experiments import rundir
from tvjax.experiments.adapting import AdapterExperiment, answers, held, trainable, written
from tvjax.experiments.atv_data import Examples, Reader
from tvjax.experiments.atv_settings import TRAINED, ATVSettings
from tvjax.experiments.bench import METHODS as VECTORS
from tvjax.experiments.bench import Bench, Right, Vectors, best_place, room
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.lora import per_rank, sites
from tvjax.nn.model import Model
from tvjax.nn.prefix import per_token
from tvjax.parallel import processes
from tvjax.parallel.batches import Batches
from tvjax.parallel.mesh import make_mesh, place
from tvjax.tasks.retrieval import Retriever
from tvjax.tasks.text import TextTask
from tvjax.train.log import read_rows
from tvjax.train.loop import Trainer
from tvjax.train.state import Hyper
from tvjax.vectors import adapters
from tvjax.vectors.adapters import Adapter, Given
from tvjax.vectors.elicit import nearest

Answered = dict[str, Right]
Place = tuple[int, float]
"""The layer of a vector, and what it is multiplied with."""


@dataclasses.dataclass
class Outcome:
    """What is known of a method: whether each question of each task was answered right, ``[n, seeds * templates]``.

    ask: asks some questions again, by programs that are compiled, to be timed (None: it is not); asked: how many.
    """

    right: Answered
    tokens: float
    ask: Callable[[], Any] | None = None
    asked: int = 0
    trainable: int = 0
    generator_tokens: float = 0.0
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    vectors: dict[str, np.ndarray] | None = None
    train_ms: float | None = None


@dataclasses.dataclass
class Arena:
    """What all methods share. examples: of "query" and "shown" readings, by split; benches: one a template and seed.

    tick: is told the name of the method of which a part is done, as `plan` counts them.
    """

    settings: ATVSettings
    folder: Path
    mode: str
    say: Callable[[str], None]
    target: Model
    generator: DecoderConfig | None
    given: Given
    tasks: Mapping[str, TextTask]
    readers: Mapping[str, Reader]
    examples: Mapping[str, Mapping[str, Examples]]
    benches: list[Bench]
    batches: Batches
    made: dict[str, list[tuple[Vectors, dict[str, Place]]]] = dataclasses.field(default_factory=dict)
    tick: Callable[[str], None] = lambda name: None

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are written to."""
        return self.settings.atv.layers or tuple(range(1, self.target.config.num_layers + 1))

    @property
    def scale(self) -> np.ndarray:
        """lambda, for each of them."""
        return np.broadcast_to(np.array(self.settings.atv.scale, np.float32), len(self.layers))

    @property
    def bare_tokens(self) -> float:
        """How many tokens the bare query takes, over questions and templates."""
        test = self.examples["query"]["test"]
        return float(np.mean(np.asarray(test.prompts.last_B)[test.first_of_question] + 1))

    def by_task(self, values: np.ndarray, asked: Examples) -> dict[str, np.ndarray]:
        """Of what was found for the examples `asked`, ``[I, ...]``, the questions of each task ``[n, ...]``.

        A question counts as right if one of its right answers is given.
        """
        first = asked.first_of_question
        values, task_n = np.maximum.reduceat(values, first), np.asarray(asked.task_I)[first]
        return {task: values[task_n == i] for i, task in enumerate(self.tasks)}

    @functools.cached_property
    def atv_size(self) -> int:
        """How many numbers ATV trains: what LoRA and the prefix are made as large as."""
        adapter = adapter_of(self, "atv_last")
        shapes = jax.eval_shape(adapter.init, jax.random.key(0), self.given)
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _side_by_side(right: Mapping[str, list[Right]]) -> Answered:
    """The answers of each bench, ``[n]``, as columns."""
    return {name: Right(*(np.stack(kind, 1) for kind in zip(*one, strict=True))) for name, one in right.items()}


def _prompted(
    arena: Arena, method: str, prompts_of: Callable[[Bench, str], list[str]], benches: list[Bench]
) -> Outcome:
    """The outcome of asking with prompts alone."""
    right: dict[str, list[Right]] = {name: [] for name in arena.tasks}
    lengths: list[int] = []
    some: list[tuple[str, str]] = []
    for bench in benches:
        for name in arena.tasks:
            asked = bench.sample(name, "test")
            prompts = prompts_of(bench, name)
            right[name].append(bench.plain(prompts, bench.accepted(name, asked)))
            arena.tick(method)
            lengths += map(len, bench.tokenizer.encode(prompts))
            some += [(prompt, y) for prompt, (_, y) in zip(prompts, asked, strict=True)] if bench is benches[0] else []
    bench, some = benches[0], some[:: max(1, len(some) // arena.settings.evaluation.batch)]
    q = bench.ask([p for p, _ in some], [y for _, y in some])
    return Outcome(
        _side_by_side(right),
        float(np.mean(lengths)),
        lambda: bench.answered(q),
        len(some),
    )


def zero_shot(arena: Arena) -> Outcome:
    """The bare query."""
    one_seed = arena.benches[: len(arena.settings.templates)]
    return _prompted(arena, "zero_shot", lambda bench, name: bench.zero_shot(bench.sample(name, "test")), one_seed)


def few_shot(arena: Arena) -> Outcome:
    """Demonstrations drawn from the train split."""
    shown = lambda bench, name: bench.few_shot(name, bench.sample(name, "test"))  # noqa: E731
    return _prompted(arena, "few_shot", shown, arena.benches)


def bm25_shot(arena: Arena) -> Outcome:
    """Demonstrations of the train split that look like the query, each with one of its right answers."""
    encode = functools.partial(arena.benches[0].tokenizer.encode, special=False)
    found = {}
    for name, task in arena.tasks.items():
        train = arena.benches[0].paired(name, task.questions("train"))
        found[name] = Retriever(train, encode([" " + x for x, _ in train]))

    def prompts(bench: Bench, name: str) -> list[str]:
        asked = bench.sample(name, "test")
        k, ids = bench.config.demonstrations, encode([" " + x for x, _ in asked])
        shown = [found[name].shots(x, one, k) for (x, _), one in zip(asked, ids, strict=True)]
        return [bench.template.prompt(pairs, x) for pairs, (x, _) in zip(shown, asked, strict=True)]

    return _prompted(arena, "bm25_shot", prompts, arena.benches[: len(arena.settings.templates)])


def _vectors(arena: Arena, kind: str) -> Outcome:
    """A vector of each task at the layer, and of the scale, that are best on its dev split (`best_place`)."""
    method = VECTORS[kind]
    right: dict[str, list[Right]] = {name: [] for name in arena.tasks}
    arena.made[kind] = []
    for bench in arena.benches:
        scales = bench.config.scales if method.scaled else (1.0,)
        made, _ = method.make(bench)
        best: dict[str, Place] = {}
        for name in arena.tasks:
            # At layer 0 every prompt has the same state.
            dev = bench.swept(name, "dev", made[name][1:], bench.layers[1:], method.keep, scales)
            place, number = best_place(dev)
            layer, scale = best[name] = 1 + place, scales[number]
            test = bench.swept(name, "test", made[name][[layer]], [layer], method.keep, (scale,))
            right[name].append(Right(*(a[:, 0, 0] for a in test)))
            arena.tick(kind)
        arena.made[kind].append((made, best))
    first = arena.made[kind][0][1]
    about: dict[str, Any] = {"layer": {name: layer for name, (layer, _) in first.items()}}
    if method.scaled:
        about["scale"] = {name: scale for name, (_, scale) in first.items()}
    return Outcome(_side_by_side(right), arena.bare_tokens, about=about)


def elicit(arena: Arena) -> Outcome:
    """The vector of the trained task whose queries are nearest in the target's own states; none, if none is near."""
    s, names = arena.settings, arena.settings.tasks.trained
    kind, middle = s.baselines.elicit_vectors, (arena.target.config.num_layers + 1) // 2
    right: dict[str, list[Right]] = {name: [] for name in arena.tasks}
    told: list[bool] = []
    for bench, (made, best) in zip(arena.benches, arena.made[kind], strict=True):
        known = [bench.states(bench.zero_shot(bench.sample(name, "train")))[:, middle] for name in names]
        owner_N = np.repeat(np.arange(len(names)), [len(one) for one in known])
        layers = [best[name][0] for name in names]
        vectors_N1D = np.stack([best[name][1] * made[name][[best[name][0]]] for name in names])
        for name in arena.tasks:
            asked = bench.sample(name, "test")
            prompts, outputs = bench.zero_shot(asked), bench.accepted(name, asked)
            which_B, _ = nearest(
                bench.states(prompts)[:, middle], np.concatenate(known), owner_N, s.baselines.elicit_threshold
            )
            keep_N1 = np.full((len(names), 1), VECTORS[kind].keep)
            found = bench.scores(prompts, outputs, vectors_N1D, layers, keep_N1)
            its_own = [with_BN1[np.arange(len(asked)), which_B, 0] for with_BN1 in found]
            alone = bench.plain(prompts, outputs)
            right[name].append(Right(*(np.where(which_B < 0, *pair) for pair in zip(alone, its_own, strict=True))))
            arena.tick("elicit")
            told += [which == names.index(name) for which in which_B] if name in names else []
    about = {"retrieved_its_own_task": float(np.mean(told)), "state_layer": middle}
    return Outcome(_side_by_side(right), arena.bare_tokens, about=about)


def adapter_of(arena: Arena, name: str) -> Adapter:
    """What is trained under the name of a method. LoRA and the prefix are as large as ATV, unless the config says."""
    s, c = arena.settings, arena.target.config
    if name == "static":
        return adapters.StaticVectors(c, arena.layers, len(s.tasks.trained))
    if name == "i2cl":
        return adapters.I2CL(c, len(s.tasks.trained))
    if name == "lora":
        equal = max(1, round(arena.atv_size / per_rank(c, s.baselines.lora_sites)))
        full = min(math.prod(shape) for site in s.baselines.lora_sites for shape in sites(c)[site])
        rank = s.baselines.lora_rank or min(equal, full)
        return adapters.LoRA(c, rank, s.baselines.lora_sites)
    if name == "prefix":
        return adapters.Prefix(c)
    return adapters.ATV(
        c,
        arena.generator,
        arena.layers,
        positions="all" if name == "atv_all" else "last",
        rank=s.atv.rank,
        start=s.atv.start,
        dropout=s.atv.dropout,
        learned_scale=s.atv.learned_scale,
        below=s.generator.below,
    )


def _given(arena: Arena, name: str) -> Given:
    """The arrays that an adapter gets, made where it needs more than all have."""
    given, c = dict(arena.given), arena.target.config
    if name == "prefix":
        length = arena.settings.baselines.prefix_length or max(1, round(arena.atv_size / per_token(c)))
        bench = arena.benches[0]
        known = [bench.paired(task, bench.sample(task, "train")) for task in arena.settings.tasks.trained]
        pairs = [pair for row in itertools.zip_longest(*known) for pair in row if pair]  # all tasks, by turns
        text = "".join(bench.template.prompt([pair], "") for pair in pairs)
        ids = bench.tokenizer.encode([text])[0]
        given["words"] = jnp.asarray((ids * (1 + length // len(ids)))[:length])
    if name == "i2cl":
        given["summaries"] = _summaries(arena)
    return given


def _summaries(arena: Arena) -> dict[str, jax.Array]:
    """What attention and MLPs add at the last token of demonstrations, means over those of each task: ``[T, L, D]``."""
    bench, found = arena.benches[0], []
    for name in arena.tasks:
        shown = bench.paired(name, bench.sample(name, "train"))[: bench.config.demonstrations]
        found.append(bench.summaries([bench.template.prompt([], x) + bench.template.answer(y) for x, y in shown]))
    return {name: jnp.stack([one[name] for one in found]) for name in found[0]}


def population(arena: Arena, rate: float) -> tuple[tuple[str, ...], Hyper]:
    """The seeds of a method, by name, with their numbers."""
    seeds, e = arena.settings.examples.seeds, arena.settings.examples
    return tuple(f"seed{seed}" for seed in seeds), {
        "seed": jnp.array(seeds),
        "learning_rate": jnp.full(len(seeds), rate),
        "scale": jnp.asarray(np.tile(arena.scale, (len(seeds), 1))),
        "examples": jnp.full(len(seeds), e.examples),
    }


def make_trainer(
    arena: Arena, name: str, given: Given, names: tuple[str, ...], hyper: Hyper, mesh: Mesh
) -> tuple[AdapterExperiment, Trainer]:
    """What a method trains, and the programs that train its members on `mesh`."""
    s, adapter = arena.settings, adapter_of(arena, name)
    examples = arena.examples["shown" if name == "atv_shown" else "query"]
    ranks = np.asarray(examples["train"].rank_I)
    decoder = Decoder(dataclasses.replace(arena.target.config, remat=s.target.remat))
    splits = {split: examples[split] for split in ("train", "dev")}
    known = held(arena.batches, adapter, decoder, given, splits)
    experiment = AdapterExperiment(
        s.examples,
        adapter,
        decoder,
        place(mesh, given),
        known["train"],
        known["dev"],
        fewest=int(min((ranks < most).sum() for most in np.asarray(hyper["examples"]))),
        chunk=s.evaluation.batch,
    )
    return experiment, _Told(
        lambda: arena.tick(name), experiment, s.train, s.optimizer, mesh, names, hyper, jax.random.key(0)
    )


class _Told(Trainer):
    """A trainer that tells of each dispatch, when the one before it is done or nearly so."""

    def __init__(self, tick: Callable[[], None], *given: Any) -> None:
        super().__init__(*given)
        self._tick = tick

    def compile(self) -> list[Callable[..., Any]]:
        init, dispatch, evaluate = super().compile()

        def told(*given: Any) -> Any:
            """A dispatch."""
            self._tick()
            return dispatch(*given)

        return [init, told, evaluate]


def train(arena: Arena, name: str, folder: Path, names: tuple[str, ...], hyper: Hyper) -> tuple[AdapterExperiment, Any]:
    """Train a method's members in `folder`, or in mode "eval" read them there; the best of each by the dev split."""
    mesh = make_mesh(**dataclasses.asdict(arena.settings.mesh))
    given = _given(arena, name)
    experiment, trainer = make_trainer(arena, name, given, names, hyper, mesh)
    state = rundir.trained_state(trainer, folder, arena.mode, arena.say)
    if processes.count() > 1:  # what is measured, each measures alone
        experiment = dataclasses.replace(experiment, given=given)
    return experiment, state.chosen


def ask(arena: Arena, experiment: AdapterExperiment, params: Any, scale_MN: jax.Array, asked: Examples) -> Right:
    """Whether each member answers each example right: ``[I, M, P]``."""
    static = (experiment.adapter, Decoder(arena.target.config))
    found = arena.batches(answers, static, (params, scale_MN, experiment.given), asked)
    return Right(*np.moveaxis(np.asarray(found, float), -1, 0))


def answered(arena: Arena, found: Right, asked: Examples) -> Answered:
    """Of each task whether its questions were answered right by what `ask` found: ``[n, M * P]``."""
    kinds = [arena.by_task(values.reshape(len(values), -1), asked) for values in found]
    return {task: Right(*(kind[task] for kind in kinds)) for task in arena.tasks}


def trained(arena: Arena, name: str, folder: Path) -> Outcome:
    """A method that is trained, one member a seed."""
    s = arena.settings
    rate = getattr(s.rates, name.partition("_")[0])
    names, hyper = population(arena, rate)
    experiment, params = train(arena, name, folder, names, hyper)
    shown = name == "atv_shown"
    asked = arena.examples["shown" if shown else "query"]["test"]
    found = ask(arena, experiment, params, hyper["scale"], asked)
    arena.tick(name)
    some = jax.tree.map(lambda a: a[:: max(1, len(found.first) // s.evaluation.batch)], asked)
    one = jax.tree.map(lambda p: p[:1], params)
    outcome = Outcome(
        answered(arena, found, asked),
        arena.bare_tokens,
        lambda: ask(arena, experiment, one, hyper["scale"][:1], some),
        int(some.task_I.shape[0]),
        trainable=trainable(params),
    )
    outcome.train_ms = _train_ms(folder, s.examples.batch * len(names))
    if name == "prefix":
        outcome.tokens += int(experiment.given["words"].shape[0])
    if isinstance(experiment.adapter, adapters.LoRA):
        outcome.about = {"rank": experiment.adapter.rank}
    if isinstance(experiment.adapter, adapters.ATV):
        outcome.generator_tokens = float(np.mean(np.asarray(asked.readings.last_B)[asked.first_of_question] + 1))
        first = jax.tree.map(lambda p: p[0], params)
        fixed = (first, hyper["scale"][0], experiment.given)
        made = arena.batches(written, (experiment.adapter,), fixed, asked)
        outcome.vectors = arena.by_task(np.asarray(made, np.float32), asked)
    return outcome


def _train_ms(folder: Path, examples: int) -> float | None:
    """Milliseconds of a trained example, of `examples` a step: evaluations counted, compilation and restarts not."""
    clock = [(row["step"], row["seconds"]) for row in read_rows(folder / "metrics.jsonl")]
    pairs = [(a, b) for a, b in itertools.pairwise(clock) if b[0] > a[0] > 0 and b[1] > a[1]]
    steps = sum(b[0] - a[0] for a, b in pairs)
    return 1000 * sum(b[1] - a[1] for a, b in pairs) / (steps * examples) if steps else None


def plan(arena: Arena) -> tuple[dict[str, int], dict[str, float]]:
    """How many parts each method has, and about how many tokens one takes through all blocks."""
    s, c, benches = arena.settings, arena.target.config, len(arena.benches)
    tasks, templates, members = len(arena.tasks), len(s.templates), len(s.examples.seeds)
    bare, answer = arena.bare_tokens, arena.examples["query"]["train"].prompts.answers_BA.shape[-1]
    long, asked = room(int(5.0 * s.vectors.demonstrations + bare)), s.evaluation.dev * c.num_layers / 2
    effects = len(s.tasks.trained) / tasks * s.vectors.shuffled_prompts * (long + c.num_layers * c.num_heads / 2)
    costs = {
        "zero_shot": s.evaluation.test * room(int(bare)),
        "few_shot": s.evaluation.test * long,
        "bm25_shot": s.evaluation.test * long,
        "vector": s.vectors.prompts * long + asked,
        "function_vector": effects + len(s.vectors.scales) * asked,
        "elicit": s.evaluation.test * len(s.tasks.trained),
    }
    counts = dict.fromkeys(costs, benches * tasks) | dict.fromkeys(("zero_shot", "bm25_shot"), templates * tasks)
    parts = s.train.steps // s.train.log_every if arena.mode == "train" else 0
    for name in (*TRAINED, "sensitivity"):
        from_last = (s.sensitivity.method if name == "sensitivity" else name) in ("static", "atv_last")
        tokens = answer if from_last else bare + answer
        counts[name], costs[name] = parts + 1, 3 * members * s.train.log_every * s.examples.batch * templates * tokens
    of = s.sensitivity
    costs["sensitivity"] *= len(of.scales + of.layers + of.examples) / members
    return {name: count for name, count in counts.items() if name in (*s.methods, "sensitivity")}, costs


UNTRAINED: dict[str, Callable[[Arena], Outcome]] = {
    "zero_shot": zero_shot,
    "few_shot": few_shot,
    "bm25_shot": bm25_shot,
    "vector": functools.partial(_vectors, kind="vector"),
    "function_vector": functools.partial(_vectors, kind="function_vector"),
    "elicit": elicit,
}


def milliseconds(ask: Callable[[], Any], count: int, rounds: int = 5, enough: float = 5.0) -> float:
    """The median time that a question takes in a batch, its programs compiled.

    Of `rounds` passes, or as many as begin within `enough` seconds.
    """
    jax.block_until_ready(ask())
    times: list[float] = []
    while len(times) < rounds and sum(times) < enough:
        start = time.perf_counter()
        jax.block_until_ready(ask())
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times)) / count
