"""Methods that train an adapter of the frozen target on the tasks that are trained on, a population of seeds."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tvjax.errors import UserError, warn
from tvjax.methods.base import Answered, Kind, Method, MethodResult, RunContext
from tvjax.nn.model import Model
from tvjax.parallel import processes
from tvjax.parallel.mesh import make_mesh, place
from tvjax.settings import setting
from tvjax.text.adapting import AdapterExperiment, answers, held, measured, query_flops, trainable
from tvjax.text.bench import Right, Spent
from tvjax.text.examples import Examples
from tvjax.text.measures import Measured, reference
from tvjax.train.log import read_rows
from tvjax.train.loop import Trainer
from tvjax.train.state import Hyper, TrainState, unreached
from tvjax.vectors.adapters import Adapter, Frozen
from tvjax.vectors.next_token import Reference


@dataclasses.dataclass(frozen=True)
class TrainedSettings:
    """What every method that trains has."""

    rate: float = setting(1e-3, "peak learning rate", above=0)


@dataclasses.dataclass(frozen=True)
class FastSettings(TrainedSettings):
    """Of methods that train few numbers, which take larger steps."""

    rate: float = setting(1e-2, "peak learning rate", above=0)


SHOTS = "shots"
"""The kind of examples whose prompts are asked without demonstrations and with some."""
Members = tuple[tuple[str, ...], Hyper]
"""The names of members that train side by side, and their numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained(Method):
    """A method that trains an adapter.

    adapter: ``adapter(context, own)``; `own` are the method's settings, of which `rate` is the learning rate.
    frozen: the arrays that the adapter needs beside those of the target, ``frozen(context, own)``; None: no more. A
        method that needs more cannot be planned without data, nor can one with `shots`.
    reads: which examples, "query" alone or "shown" with demonstrations.
    shots: whether it is trained on prompts with demonstrations beside those without, as many of each.
    more: what else the summary says of the method, ``more(adapter, frozen)``.
    in_front: how many tokens of `frozen` stand before each prompt.
    """

    kind: Kind = "trained"
    settings: type = TrainedSettings
    adapter: Callable[[RunContext, Any], Adapter]
    frozen: Callable[[RunContext, Any], Frozen] | None = None
    reads: Literal["query", "shown"] = "query"
    shots: bool = False
    more: Callable[[Any, Frozen], dict[str, Any]] = lambda adapter, frozen: {}
    in_front: Callable[[Frozen], int] = lambda frozen: 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if "rate" not in {field.name for field in dataclasses.fields(self.settings)}:
            given = f"{self.settings.__name__}, which has no rate"
            raise UserError(f"method {self.name}: settings: given {given}; accepted: a dataclass under TrainedSettings")

    @property
    def trains(self) -> bool:
        """It does."""
        return True

    @property
    def can_be_planned(self) -> bool:
        """Whether shapes alone say what it trains."""
        return self.frozen is None and not self.shots

    def adapter_of(self, context: RunContext) -> Adapter:
        """What is trained."""
        return self.adapter(context, context.own[self.group])

    def frozen_of(self, context: RunContext) -> Frozen:
        """What the adapter gets, that nobody trains."""
        return context.frozen | (self.frozen(context, context.own[self.group]) if self.frozen else {})

    def scale(self, context: RunContext) -> np.ndarray:
        """lambda, for each layer that is written to: of ATV, and ones of what has none."""
        return np.ones(context.target.config.num_layers, np.float32)

    def members(self, context: RunContext) -> Members:
        """A member for each seed."""
        examples, scale_L = context.training.examples, self.scale(context)
        count = len(examples.seeds)
        return tuple(f"seed{seed}" for seed in examples.seeds), {
            "seed": jnp.array(examples.seeds),
            "learning_rate": jnp.full(count, context.own[self.group].rate),
            "scale": jnp.asarray(np.tile(scale_L, (count, 1))),
            "examples": jnp.full(count, examples.examples),
        }

    def trainer(
        self, context: RunContext, frozen: Frozen, members: Members, mesh: Mesh
    ) -> tuple[AdapterExperiment, Trainer]:
        """What is trained, and the programs that train `members` on `mesh`."""
        how, adapter = context.training, self.adapter_of(context)
        names, hyper = members
        examples = context.examples[self.reads]
        ranks = np.asarray(examples["train"].rank_I)
        target = dataclasses.replace(context.target.config, remat=how.remat)
        frozen = frozen | {"target": Model(frozen["target"].params, target)}
        train = context.examples[SHOTS if self.shots else self.reads]["train"]
        splits = {"train": train, "dev": examples["dev"]}
        known = held(context.batches, adapter, frozen, splits)
        experiment = AdapterExperiment(
            how.examples,
            adapter,
            place(mesh, frozen),
            known["train"],
            known["dev"],
            fewest=int(min((ranks < most).sum() for most in np.asarray(hyper["examples"]))),
            chunk=context.evaluation.batch,
        )
        rest = how.train, how.optimizer, mesh, names, hyper, jax.random.key(0)
        return experiment, _Ticking(lambda: context.tick(self.name), experiment, *rest)

    def train(self, context: RunContext, folder: Path, members: Members) -> tuple[AdapterExperiment, Any]:
        """Train `members` in `folder`, or read there what was trained; the best parameters of each by the dev split."""
        experiment, state, _ = self._train(context, folder, members)
        return experiment, state.chosen

    def _train(
        self, context: RunContext, folder: Path, members: Members
    ) -> tuple[AdapterExperiment, TrainState, Trainer]:
        mesh = make_mesh(**dataclasses.asdict(context.training.mesh))
        frozen = self.frozen_of(context)
        experiment, trainer = self.trainer(context, frozen, members, mesh)
        state = context.finish(trainer, folder)
        if processes.count() > 1:  # what is measured, each measures alone
            experiment = dataclasses.replace(experiment, frozen=frozen)
        return experiment, state, trainer

    def run(self, context: RunContext, folder: Path) -> MethodResult:
        """Train a member a seed and ask them."""
        members = self.members(context)
        (experiment, state, trainer), spent = context.benches[0].cost(lambda: self._train(context, folder, members))
        params, idle = state.chosen, unreached(state)
        if idle:
            paths = ", ".join(path or "its parameters" for path in idle)
            warn(
                f"method {self.name}: no gradient has reached {paths} in training: what it says does not depend on them"
            )
        examples, scale_ML = context.examples[self.reads]["test"], members[1]["scale"]
        right = measure(context, experiment, params, scale_ML, examples)
        context.tick(self.name)
        count = examples.task_I.shape[0]
        some = jax.tree.map(lambda a: a[:: max(1, count // context.evaluation.batch)], examples)
        one = jax.tree.map(lambda p: p[:1], params)
        train_ms = _train_ms(folder, context.training.examples.batch * len(members[0]))
        result = MethodResult(
            right,
            context.bare_tokens + self.in_front(experiment.frozen),
            lambda: ask(context, experiment, one, scale_ML[:1], some),
            int(some.task_I.shape[0]),
            trainable=trainable(params),
            about=self.more(experiment.adapter, experiment.frozen) | ({"unreached": idle} if idle else {}),
            train_ms=train_ms,
            query_flops=query_flops(
                experiment.adapter,
                jax.tree.map(lambda p: p[0], params),
                scale_ML[0],
                experiment.frozen,
                context.bare_tokens,
                float(np.mean(np.asarray(examples.readings.last_B) + 1)),
            ),
            made=_made(trainer, train_ms, spent),
        )
        self.add(context, result, experiment, params, scale_ML)
        return result

    def add(
        self, context: RunContext, result: MethodResult, experiment: AdapterExperiment, params: Any, scale_ML: jax.Array
    ) -> None:
        """Add to the result what else is known of what was trained."""

    def work(self, context: RunContext) -> tuple[int, float]:
        """A part is a dispatch of training; the last is the asking."""
        how = context.training
        answer = context.examples["query"]["train"].prompts.answers_BA.shape[-1]
        tokens = answer if self.adapter_of(context).from_last else context.bare_tokens + answer
        rows = len(how.examples.seeds) * how.train.log_every * how.examples.batch * context.templates
        return how.train.steps // how.train.log_every + 1, 3 * rows * tokens


class _Ticking(Trainer):
    """A trainer that ticks at each dispatch, when the one before it is done or nearly so."""

    def __init__(self, tick: Callable[[], None], *args: Any) -> None:
        super().__init__(*args)
        self._tick = tick

    def compile(self) -> list[Callable[..., Any]]:
        init, dispatch, evaluate = super().compile()

        def ticking(*args: Any) -> Any:
            """A dispatch."""
            self._tick()
            return dispatch(*args)

        return [init, ticking, evaluate]


def ask(
    context: RunContext, experiment: AdapterExperiment, params: Any, scale_ML: jax.Array, examples: Examples
) -> Right:
    """Whether each member answers each example right: ``[I, M, templates]``."""
    right = context.batches(answers, (experiment.adapter,), (params, scale_ML, experiment.frozen), examples)
    return Right(*np.moveaxis(np.asarray(right, float), -1, 0))


def measure(
    context: RunContext, experiment: AdapterExperiment, params: Any, scale_ML: jax.Array, examples: Examples
) -> Answered:
    """Of each task what is measured of the answers to its test examples, a member a seed: ``[n, M * templates]``."""
    fixed = (params, scale_ML, experiment.frozen)
    found = context.batches(measured, (experiment.adapter,), fixed, (examples, *_references(context)))
    by_kind = {
        kind: context.by_task(np.asarray(a, np.float64).reshape(len(a), -1), examples) for kind, a in found.items()
    }
    return {task: Measured(**{kind: by_task[task] for kind, by_task in by_kind.items()}) for task in context.tasks}


def _references(context: RunContext) -> tuple[Reference, np.ndarray]:
    """What the test examples are held against, with leaves ``[I, templates, ...]``, and k-shot's states of each seed,
    ``[I, seeds, templates, D]``.
    """
    by_bench = []
    for bench in context.benches:
        rows = []
        for name in context.tasks:
            counts = [len(answers) for answers in bench.accepted(name, bench.sample(name, "test"))]
            rows.append(jax.tree.map(lambda a, n=counts: np.repeat(a, n, axis=0), reference(bench, name)))
        by_bench.append(jax.tree.map(lambda *a: np.concatenate(a), *rows))
    known = jax.tree.map(
        lambda *a: np.stack(a, 1).reshape(len(a[0]), -1, context.templates, *a[0].shape[1:]), *by_bench
    )
    return jax.tree.map(lambda a: a[:, 0], known), known.state_BD


def _made(trainer: Trainer, train_ms: float | None, read: Spent) -> Spent:
    """What a member's training takes. read: what is read for all members, of which the FLOPs count."""
    c, members = trainer.config, len(trainer.names)
    with jax.set_mesh(trainer.mesh):
        of_dispatch = sum(trainer.flops().values())
    seconds = float("nan") if train_ms is None else train_ms * c.steps * trainer.examples / members / 1000
    return Spent(seconds, read.flops + of_dispatch * c.steps / c.log_every / members)


def _train_ms(folder: Path, examples: int) -> float | None:
    """Milliseconds of a trained example, of `examples` a step: evaluations counted, compilation and restarts not."""
    clock = [(row["step"], row["seconds"]) for row in read_rows(folder / "metrics.jsonl")]
    pairs = [(a, b) for a, b in itertools.pairwise(clock) if b[0] > a[0] > 0 and b[1] > a[1]]
    steps = sum(b[0] - a[0] for a, b in pairs)
    return 1000 * sum(b[1] - a[1] for a, b in pairs) / (steps * examples) if steps else None
