"""A language model with the text tasks that it is asked: prompts, whether it answers them, and vectors of each task.

Demonstrations are of the train split, and what is asked is of the split that is named. Prompts that are asked together
are padded to one of a few lengths (`room`), so that few programs are compiled.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import UserError, reject
from tvjax.nn.answers import Questions, earlier, questions
from tvjax.nn.model import Model
from tvjax.nn.pretrained import Tokenizer
from tvjax.nn.tokens import Tokens, pad
from tvjax.parallel.batches import Batches
from tvjax.settings import SEED, setting
from tvjax.tasks.text import Answers, Pair, Template, TextTask, drawn, shots, some
from tvjax.train.flops import total
from tvjax.vectors.above import likeliest, loops
from tvjax.vectors.from_prompts import ADDED, last_outputs, last_states, last_states_and_heads

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class VectorConfig:
    """How prompts are made and asked: the fields of config.vectors."""

    demonstrations: int = setting(about="k, also of k-shot prompts", least=1)
    prompts: int = setting(about="prompts that a vector is the mean of", least=1)
    seed: int = setting(0, "of demonstrations and queries", **SEED)
    memory: float = setting(1.0, "GiB that a pass may take beside the parameters; batches are made to fit", above=0)
    batch: int = setting(64, "most prompts in one pass", least=1)
    questions: int = setting(100, "most inputs of a split that are asked", least=1)


_shown = jax.jit(last_states_and_heads)
_states = jax.jit(last_states)
_outputs = jax.jit(last_outputs)
_likeliest = jax.jit(likeliest)


def room(longest: int) -> int:
    """The length that prompts of at most `longest` tokens are padded to: few programs, and little padding.

    A multiple of 16, or of an eighth of the power of two below it.
    """
    step = max(16, (1 << longest.bit_length()) // 16)
    return -(-longest // step) * step


Position = Literal["last", "query"]
"""Where a state is read and written: the prompt's last token, or the last one of its query (`Bench.back`)."""


class Right(NamedTuple):
    """Whether answers are right: their first tokens, which is what a vector steers, and all of their tokens."""

    first: np.ndarray
    whole: np.ndarray


def graded(q: Questions, tokens: np.ndarray, back_B: np.ndarray, begin: np.ndarray) -> Right:
    """Which prompts are given one of their right answers, ``[B, ...]``.

    q, back_B, begin: what `Bench.ask_all` returns.
    tokens: the likeliest token at each place of the answers, ``[rows, ..., A]``.
    """
    extra = tuple(range(1, tokens.ndim - 1))
    wide = functools.partial(np.expand_dims, axis=extra)
    right = tokens == wide(np.asarray(q.answers_BA))
    counted = np.asarray(q.real_BA) & (np.arange(tokens.shape[-1])[None] >= back_B[:, None])
    first = np.take_along_axis(right, wide(back_B[:, None]), -1)[..., 0]
    whole = (right | ~wide(counted)).all(-1)
    return Right(*(np.maximum.reduceat(a.astype(float), begin) for a in (first, whole)))


@dataclasses.dataclass(frozen=True)
class Spent:
    """What has been spent. seconds: those of compiling left out. flops: of matrix products."""

    seconds: float = 0.0
    flops: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.seconds + other.seconds, self.flops + other.flops)

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.seconds - other.seconds, self.flops - other.flops)

    def __truediv__(self, parts: float) -> "Spent":
        return Spent(self.seconds / parts, self.flops / parts)


SINK = "is in its prompt's first token, of which a model reads next to nothing"


def sink(tokenizer: Tokenizer, template: Template, tasks: Mapping[str, TextTask]) -> str:
    """A query of `tasks` that is in the first token of its prompt in `template`; "" for none."""
    before = len(template.start + template.before)
    queries = [task.pairs[0][0] for task in tasks.values()]
    prompts = [template.prompt([], x) for x in queries]
    for x, tokens in zip(queries, tokenizer.encode_with_spans(prompts), strict=True):
        if tokens[0][1][1] > before:
            return x
    return ""


class Bench:
    """A language model that is asked text tasks in one template.

    batches: those of another bench, to share its programs.
    seen: the tasks by which is chosen what all tasks share, as the heads of function vectors (empty: all).
    tick: is called with the name of what has been done.

    Raises `UserError` for a model or tasks that do not fit the settings.
    """

    def __init__(
        self,
        model: Model,
        config: VectorConfig,
        template: Template,
        tasks: Mapping[str, TextTask],
        *,
        batches: Batches | None = None,
        seen: Sequence[str] = (),
        tick: Callable[[str], None] = lambda what: None,
    ) -> None:
        if model.source.tokenizer is None:
            raise UserError(f"{model.source.path}: no tokenizer.json in it; text tasks need one")
        self.tokenizer: Tokenizer = model.source.tokenizer
        self.model, self.config, self.tasks, self.tick = model, config, tasks, tick
        self.template = template.led_by(self.tokenizer)
        self.seen = tuple(seen) or tuple(tasks)
        for name, task in tasks.items():
            for split, least in (("train", config.demonstrations + 1), ("dev", 1), ("test", 1)):
                count = len(task.questions(split))
                if count < least:
                    value = f"{name} with {count} inputs of the {split} split"
                    raise reject("config.data.tasks", value, f"tasks that have {least} or more")
        limit, longest = model.config.max_positions, self._longest()
        if model.config.positions == "learned" and longest > limit:
            raise reject("config.vectors.demonstrations", config.demonstrations, f"prompts of {limit} tokens")
        self.batches = batches or Batches(config.memory, config.batch, total)
        self._known: dict[Hashable, tuple[Any, Spent]] = {}
        self._charged: dict[Hashable, Spent] = {}

    def _longest(self) -> int:
        """At least as many tokens as any prompt with its answer has."""
        pairs = [pair for task in self.tasks.values() for pair in task.pairs]
        alone = self.tokenizer.encode([self.template.prompt([], x) + self.template.answer(y) for x, y in pairs])
        shown = self.tokenizer.encode([self.template.prompt([pair], "") for pair in pairs])
        return max(map(len, alone)) + self.config.demonstrations * max(map(len, shown))

    def sink(self) -> str:
        """A query that is in its prompt's first token, an attention sink of which little can be read; "" for none."""
        return sink(self.tokenizer, self.template, self.tasks)

    def _bare(self, query: str) -> str:
        return self.template.prompt([], query)

    @property
    def layers(self) -> range:
        """0..L."""
        return range(self.model.config.num_layers + 1)

    def random(self, *what: Any) -> np.random.Generator:
        """Randomness that depends on the seed and on what it is for, not on what was drawn before."""
        return np.random.default_rng([self.config.seed, *"/".join(map(str, what)).encode()])

    def sample(self, name: str, split: str) -> tuple[Pair, ...]:
        """At most `questions` inputs of a split, each with the first of its right answers."""
        return some(self.tasks[name].questions(split), self.config.questions)

    def accepted(self, name: str, pairs: Sequence[Pair]) -> list[Answers]:
        """All right answers of each of some inputs."""
        return [self.tasks[name].answers[x] for x, _ in pairs]

    def paired(self, name: str, pairs: Sequence[Pair], *what: Any) -> list[Pair]:
        """Some inputs, each with one of its right answers, drawn by `random` of `what`."""
        known = zip(pairs, self.accepted(name, pairs), strict=True)
        return drawn(self.random(name, "answers", *what), {x: answers for (x, _), answers in known})

    def zero_shot(self, pairs: Sequence[Pair]) -> list[str]:
        """The bare query of each pair."""
        return [self._bare(x) for x, _ in pairs]

    def shots(
        self, name: str, pairs: Sequence[Pair], *, count: int = 0, shuffled: bool = False
    ) -> Iterator[tuple[list[Pair], str]]:
        """Demonstrations of the train split for each input that is asked; count: of them, 0: as the config says."""
        train, random = self.tasks[name].split("train"), self.random(name, "shots")
        for x, _ in pairs:
            yield shots(random, train, count or self.config.demonstrations, apart_from=x, shuffled=shuffled), x

    def few_shot(self, name: str, pairs: Sequence[Pair], *, shuffled: bool = False) -> list[str]:
        """A prompt with demonstrations of the train split for each pair that is asked."""
        return list(itertools.starmap(self.template.prompt, self.shots(name, pairs, shuffled=shuffled)))

    def queries(self, name: str, count: int) -> list[Pair]:
        """Pairs of the train split to read vectors at, their inputs drawn with replacement."""
        train = self.paired(name, self.tasks[name].questions("train"))
        return [train[i] for i in self.random(name, "queries").choice(len(train), count)]

    def ask(self, prompts: Sequence[str], outputs: Sequence[str]) -> Questions:
        """Prompts with the answer that is expected of each, padded to the `room` of the longest."""
        answers = [self.template.answer(y) for y in outputs]
        q = questions(self.tokenizer, prompts, answers)
        length, width = q.tokens.ids_BT.shape[1], q.answers_BA.shape[1]
        more = [(0, 0), (0, room(length) - length)]
        wider = [(0, 0), (0, (1 << (width - 1).bit_length()) - width)]
        return Questions(
            tokens=Tokens(jnp.pad(q.tokens.ids_BT, more), jnp.pad(q.tokens.valid_BT, more)),
            last_B=q.last_B,
            answers_BA=jnp.pad(q.answers_BA, wider),
            real_BA=jnp.pad(q.real_BA, wider),
        )

    def scores(
        self,
        prompts: Sequence[str],
        accepted: Sequence[Answers],
        vectors_LUD: np.ndarray,
        layers: Sequence[int],
        keep_LU: np.ndarray,
        position: Position = "last",
    ) -> Right:
        """Whether each prompt is given one of its right answers, with each of some vectors in place: ``[B, L, U]``.

        layers: the number of each layer, which may be named more than once.
        keep_LU: the factor of the state that a vector is added to, 0 if the vector replaces the state.
        """
        q, back_B, begin = self.ask_all(prompts, accepted, position)
        return graded(q, self.likeliest(q, vectors_LUD, layers, keep_LU), back_B, begin)

    def ask_all(
        self, prompts: Sequence[str], accepted: Sequence[Answers], position: Position = "last"
    ) -> tuple[Questions, np.ndarray, np.ndarray]:
        """Each prompt with each of its right answers, asked from `position` on.

        Also how many tokens before each one's last that is, and which rows are the first of a prompt.
        """
        flat = [(prompt, y) for prompt, answers in zip(prompts, accepted, strict=True) for y in answers]
        begin = np.cumsum([0, *map(len, accepted)])[:-1]
        q = self.ask([prompt for prompt, _ in flat], [y for _, y in flat])
        back_B = np.repeat(self.back(prompts, position), [len(answers) for answers in accepted])
        return earlier(q, back_B) if back_B.any() else q, back_B, begin

    def back(self, prompts: Sequence[str], position: Position) -> np.ndarray:
        """How many tokens before its last one a prompt has its `position`: ``[B]``.

        "last" is the last token itself; "query" is the token that holds the last character of the input that is asked,
        before `between`. Where one token holds both they are the same. [ours]
        """
        if position == "last":
            return np.zeros(len(prompts), int)
        ends = [len(prompt) - len(self.template.between) for prompt in prompts]
        spans = [[span for _, span in tokens] for tokens in self.tokenizer.encode_with_spans(prompts)]
        return np.array([sum(begin >= end for begin, _ in row) for row, end in zip(spans, ends, strict=True)])

    def likeliest(
        self, q: Questions, vectors_LUD: np.ndarray, layers: Sequence[int], keep_LU: np.ndarray
    ) -> np.ndarray:
        """The likeliest token at each place of the answers with each vector, `above.likeliest`: ``[B, L, U, A]``."""
        return np.asarray(self.write(_likeliest, q, vectors_LUD, layers, keep_LU))

    def write(
        self, program: Any, asked: Any, vectors_LUD: np.ndarray, layers: Sequence[int], keep_LU: np.ndarray
    ) -> Any:
        """What a program such as `above.likeliest` gives of questions with each vector: arrays ``[B, L, U, ...]``."""
        arrays = (jnp.asarray(vectors_LUD, jnp.float32), jnp.asarray(list(layers)), jnp.asarray(keep_LU, jnp.float32))
        times = loops(layers, self.model.config.num_layers)
        return self.batches(program, (), (self.model.bare, *arrays), asked, loops=times)

    def begun(self, x: str, answers: Mapping[str, Answers]) -> set[int]:
        """The tokens that the right answers of an input begin with, in `answers`."""
        prompt = self._bare(x)
        alone, *whole = self.tokenizer.encode([prompt, *(prompt + self.template.answer(y) for y in answers[x])])
        return {ids[len(alone)] for ids in whole}

    def plain(self, prompts: Sequence[str], accepted: Sequence[Answers]) -> Right:
        """The same of the prompts alone, ``[B]``: a vector of zeros is added."""
        right = self.scores(prompts, accepted, *self._nothing())
        return Right(right.first[:, 0, 0], right.whole[:, 0, 0])

    def answered(self, q: Questions) -> np.ndarray:
        """The likeliest token at each place of the answers, with nothing written: ``[B, A]``."""
        return self.likeliest(q, *self._nothing())[:, 0, 0]

    def _nothing(self) -> tuple[np.ndarray, list[int], np.ndarray]:
        """A vector that changes nothing, at the layer at which it costs least: vectors, layers and keep."""
        c = self.model.config
        return np.zeros((1, 1, c.width)), [c.num_layers], np.ones((1, 1))

    def right(self, prompts: Sequence[str], accepted: Sequence[Answers]) -> np.ndarray:
        """Whether each prompt is given one of its right answers, whole: ``[B]``."""
        return self.plain(prompts, accepted).whole

    def right_with(
        self,
        prompts: Sequence[str],
        accepted: Sequence[Answers],
        vectors_LD: np.ndarray,
        layers: Sequence[int],
        keep: float = 0.0,
    ) -> np.ndarray:
        """Whether each prompt is given one of its right answers, whole, with each vector at its layer: ``[B, L]``.

        keep: 0 replaces the state, 1 adds to it.
        """
        keep_L1 = np.full((len(layers), 1), keep)
        return self.scores(prompts, accepted, np.asarray(vectors_LD)[:, None], layers, keep_L1).whole[..., 0]

    def shown(self, name: str, *, shuffled: bool = False) -> dict[str, np.ndarray]:
        """The mean of what stands at the last tokens of `prompts` few-shot prompts, read once.

        "states", h^0..h^L ``[L+1, D]``, and "heads", what each head writes ``[L, H, C]``.
        """

        def read() -> dict[str, np.ndarray]:
            """Now."""
            arrays = self.read(_shown, self._to_read(name, shuffled))
            self.tick("shown")
            return {kind: a.mean(0) for kind, a in arrays.items()}

        return self.once(("shown", name, shuffled), read)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes, made once for all methods that ask for it by the same key."""
        if key not in self._known:
            began = self.clock()
            made = make()
            self._known[key] = made, self.clock() - began
            self._charged.setdefault(key, Spent())
        known, spent = self._known[key]
        self._charged.setdefault(key, spent)
        value: T = known
        return value

    def clock(self) -> Spent:
        """What has been spent up to now, of which differences tell."""
        return Spent(time.perf_counter() - self.batches.compiling, self.batches.operations)

    def cost(self, make: Callable[[], T]) -> tuple[T, Spent]:
        """What `make` makes, and what that takes for itself: what it shares with others (`once`) counts in full."""
        self._charged = {}
        began = self.clock()
        made = make()
        spent = self.clock() - began
        return made, sum(self._charged.values(), spent)

    def few_shot_states(self, name: str) -> np.ndarray:
        """h^0..h^L at the last tokens of `prompts` few-shot prompts, ``[prompts, L+1, D]``."""
        return self.read(_states, self._to_read(name, False))

    def _to_read(self, name: str, shuffled: bool) -> list[str]:
        return self.few_shot(name, self.queries(name, self.config.prompts), shuffled=shuffled)

    def states(self, prompts: Sequence[str]) -> np.ndarray:
        """h^0..h^L at the last tokens of prompts, ``[B, L+1, D]``."""
        return self.read(_states, prompts)

    def summaries(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What attention and the MLPs add at the last tokens of texts, a mean: ``{"attn_out", "mlp_out": [L, D]}``."""
        return dict(zip(ADDED, self.read(_outputs, texts).mean(0), strict=True))

    def right_on(self, name: str, split: str, vectors_LD: np.ndarray, layers: Sequence[int], keep: float) -> np.ndarray:
        """Whether each question of a split is answered right with each of some vectors at its layer: ``[n, L]``."""
        pairs = self.sample(name, split)
        return self.right_with(self.zero_shot(pairs), self.accepted(name, pairs), vectors_LD, layers, keep)

    def swept(
        self, name: str, split: str, vectors_LD: np.ndarray, layers: Sequence[int], keep: float, scales: Sequence[float]
    ) -> Right:
        """Whether each question is answered right with vectors ``[layers, D]`` at their layers, times each scale.

        ``[n, layers, scales]``.
        """
        pairs = self.sample(name, split)
        vectors_LUD = np.asarray(vectors_LD)[:, None] * np.asarray(scales)[None, :, None]
        keep_LU = np.full(vectors_LUD.shape[:2], keep)
        return self.scores(self.zero_shot(pairs), self.accepted(name, pairs), vectors_LUD, layers, keep_LU)

    def read(self, program: Any, prompts: Sequence[str]) -> Any:
        """What ``program(model, tokens)``, jitted, makes of prompts, in float32: arrays with a row a prompt."""
        ids = self.tokenizer.encode(prompts)
        tokens = pad(ids, side="right", length=room(max(map(len, ids))))
        arrays = self.batches(program, (), (self.model.bare,), tokens)
        return jax.tree.map(lambda a: np.asarray(a, np.float32), arrays)


def best_layer_and_scale(dev: Right) -> tuple[int, int]:
    """The layer (or its place in a list) and the scale that are best on the dev split, ``[n, layers, scales]``.

    By the first token, which the vector steers; of those that are equal, by the whole answer.
    """
    mean_LU = dev.first.mean(0) + 1e-3 * dev.whole.mean(0)
    layer, scale = np.unravel_index(mean_LU.argmax(), mean_LU.shape)
    return int(layer), int(scale)
