"""What a method is, and what all methods of a run share.

A method is one record (`Method`) in a file of its own: its name, what it knows, its fields, and how it runs. The
config, the run, the plan, the table and the page read the record and know no method by name.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from tvjax.errors import UserError
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.model import Model, forward
from tvjax.parallel.batches import Batches
from tvjax.parallel.mesh import MeshConfig
from tvjax.settings import setting
from tvjax.tasks.text import TextTask
from tvjax.text.adapting import ExampleConfig
from tvjax.text.bench import Bench, Spent, room
from tvjax.text.examples import Examples, Reader
from tvjax.text.measures import Measured, measured
from tvjax.train.flops import total
from tvjax.train.loop import Trainer
from tvjax.train.state import OptimizerConfig, TrainConfig, TrainState
from tvjax.vectors.adapters import Frozen
from tvjax.vectors.atv import Positions

Kind = Literal["prompts", "vectors", "trained", "atv"]
"""Prompts alone; vectors that are not trained; baselines that are; adaptive task vectors."""
Knows = Literal["query", "demonstrations", "task"]
"""What a method knows of a question: the query alone, demonstrations beside the query, or which task it is of."""
Answered = dict[str, Measured]
"""Of each task what is measured of the answers to its questions, ``[n, seeds * templates]``."""


@dataclasses.dataclass(frozen=True)
class QuestionConfig:
    """How many questions of a task validate and test."""

    dev: int = setting(20, "most questions of a task, to choose the best checkpoint by", least=1)
    test: int = setting(100, "most questions of a task", least=1)
    batch: int = setting(128, "questions in one pass, at most", least=1)


@dataclasses.dataclass(frozen=True)
class Training:
    """How all that is trained in a run is trained. remat: of the target, as `DecoderConfig` has it."""

    examples: ExampleConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    remat: Literal["none", "full", "dots"] = "none"


class Written(NamedTuple):
    """What is added to a frozen model for each query: by task ``[questions, L, D]``, for `layers`."""

    vectors: dict[str, np.ndarray]
    layers: tuple[int, ...]
    positions: Positions


@dataclasses.dataclass
class MethodResult:
    """What is known of a method: which questions it answers right, and what an answer takes.

    right: of each task what is measured of its answers, ``[n, seeds * templates]``.
    tokens: of a query, with what stands before the query.
    ask: asks some questions again, by programs that are compiled, to be timed (None: the method is not timed).
    questions: how many questions `ask` asks.
    trainable: how many numbers are trained.
    generator_tokens: how many tokens the generator reads of a query.
    about: what else the summary says of the method.
    written: what the method writes for the test queries.
    train_ms: milliseconds of a trained example.
    query_flops: FLOPs of the matrix products by which one query more is answered, up to the answer's first token.
    made: what making it takes, for all tasks, once: of one template and seed, if there are several (None: not known).
    """

    right: Answered
    tokens: float
    ask: Callable[[], Any] | None = None
    questions: int = 0
    trainable: int = 0
    generator_tokens: float = 0.0
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    written: Written | None = None
    train_ms: float | None = None
    query_flops: float | None = None
    made: Spent | None = None


@dataclasses.dataclass
class RunContext:
    """What all methods of a run share.

    own: the settings of methods, by group.
    generator: the decoder of what reads queries (None: the first `below` blocks of the target).
    frozen: what nobody trains.
    trained: the tasks that are trained on, the first of `tasks`.
    examples: of "query" and "shown" readings, by split.
    benches: one a template and seed.
    templates: how many templates there are.
    finish: trains with a trainer in a folder, or reads there what was trained.
    tick: is called with the name of a method of which a part is done.
    vectors: the vectors of the methods that have run, which other methods may use (a bench each).
    """

    own: Mapping[str, Any]
    training: Training
    evaluation: QuestionConfig
    target: Model
    generator: DecoderConfig | None
    below: int
    frozen: Frozen
    tasks: Mapping[str, TextTask]
    trained: tuple[str, ...]
    readers: Mapping[str, Reader]
    examples: Mapping[str, Mapping[str, Examples]]
    benches: list[Bench]
    templates: int
    batches: Batches
    finish: Callable[[Trainer, Path], TrainState]
    tick: Callable[[str], None] = lambda name: None
    vectors: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def bare_tokens(self) -> float:
        """How many tokens the bare query takes, over questions and templates."""
        test = self.examples["query"]["test"]
        return float(np.mean(np.asarray(test.prompts.last_B)[test.first_of_question] + 1))

    @property
    def shown_tokens(self) -> float:
        """About how many tokens a few-shot prompt takes, padding counted."""
        return room(int(5.0 * self.benches[0].config.demonstrations + self.bare_tokens))

    def by_task(self, values: np.ndarray, examples: Examples) -> dict[str, np.ndarray]:
        """Of the values of `examples`, ``[I, ...]``, those of the questions of each task, ``[n, ...]``.

        A question counts as right if one of its right answers is given.
        """
        first = examples.first_of_question
        values, numbers = np.maximum.reduceat(values, first), np.asarray(examples.task_I)[first]
        return {task: values[numbers == i] for i, task in enumerate(self.tasks)}


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Of a method without fields of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to have a frozen model do a task.

    Methods of one group share their fields.

    name: in config.methods and in the summary.
    label: as readers know the method; ``{k}`` is the number of demonstrations.
    source: whose method it is, a sentence for the page.
    settings: a dataclass of the method's fields, which are config.GROUP.
    group: "" is the method's name.
    """

    name: str
    label: str
    knows: Knows
    kind: Kind
    source: str = ""
    settings: type = NoSettings
    group: str = ""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.name)
        for field, values in (("kind", Kind), ("knows", Knows)):
            if getattr(self, field) not in get_args(values):
                value, accepted = getattr(self, field), ", ".join(get_args(values))
                raise UserError(f"method {self.name}: {field}: given {value!r}; accepted: {accepted}")

        if not (isinstance(self.settings, type) and dataclasses.is_dataclass(self.settings)):
            raise UserError(f"method {self.name}: settings: given {self.settings!r}; accepted: a dataclass, the class")

    def described(self) -> dict[str, Any]:
        """What a table and a page need to know of the method."""
        return {field: getattr(self, field) for field in ("name", "label", "kind", "knows", "source")}

    @property
    def trains(self) -> bool:
        """Whether the method trains anything."""
        return False

    def needs(self, own: Any) -> tuple[str, ...]:
        """The methods that must have run before this one. own: the settings of this one."""
        return ()

    def check(self, own: Any, c: DecoderConfig) -> None:
        """Raise `UserError` for settings that do not fit the target."""

    def run(self, context: RunContext, folder: Path) -> MethodResult:
        """Ask the test split of all tasks; what is trained is trained in `folder`."""
        raise NotImplementedError

    def work(self, context: RunContext) -> tuple[int, float]:
        """How many parts `run` has, each a tick, and about how many tokens a part takes through all blocks."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompted(Method):
    """A method that is prompts alone, ``prompts(bench, task)`` for the inputs of the test split.

    each_seed: whether prompts differ from seed to seed.
    shown: whether prompts have demonstrations.
    """

    kind: Kind = "prompts"
    prompts: Callable[[Bench, str], list[str]]
    each_seed: bool = False
    shown: bool = True

    def _benches(self, context: RunContext) -> list[Bench]:
        return context.benches if self.each_seed else context.benches[: context.templates]

    def run(self, context: RunContext, folder: Path) -> MethodResult:
        """Ask with the prompts."""
        right: dict[str, list[Measured]] = {name: [] for name in context.tasks}
        lengths: list[int] = []
        some: list[tuple[str, str]] = []
        first = context.benches[0]
        for bench in self._benches(context):
            for name in context.tasks:
                pairs = bench.sample(name, "test")
                prompts = self.prompts(bench, name)
                right[name].append(measured(bench, name, prompts))
                context.tick(self.name)
                lengths += map(len, bench.tokenizer.encode(prompts))
                some += [(prompt, y) for prompt, (_, y) in zip(prompts, pairs, strict=True)] if bench is first else []
        some = some[:: max(1, len(some) // context.evaluation.batch)]
        q = first.ask([p for p, _ in some], [y for _, y in some])
        tokens = float(np.mean(lengths))
        return MethodResult(
            side_by_side(right),
            tokens,
            lambda: first.answered(q),
            len(some),
            query_flops=pass_flops(context.target, tokens),
            made=Spent(),
        )

    def work(self, context: RunContext) -> tuple[int, float]:
        """A part is a task of a bench."""
        tokens = context.shown_tokens if self.shown else room(int(context.bare_tokens))
        return len(self._benches(context)) * len(context.tasks), context.evaluation.test * tokens


def side_by_side(right: Mapping[str, list[Measured]]) -> Answered:
    """The answers of each bench, ``[n]``, as columns."""
    return {name: Measured(*(np.stack(kind, 1) for kind in zip(*one, strict=True))) for name, one in right.items()}


def pass_flops(model: Model, tokens: float) -> float:
    """FLOPs of the matrix products of one pass over a prompt of about so many tokens, read out at its last token."""
    length = max(1, round(tokens))
    ids = jax.ShapeDtypeStruct((1, length), np.int32)
    return total(
        jax.make_jaxpr(lambda model, ids: forward(model, ids, at=slice(length - 1, length))[0])(model.bare, ids)
    )


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
