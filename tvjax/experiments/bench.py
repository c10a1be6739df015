"""A language model with the text tasks that it is asked: prompts, whether it answers them, and vectors of each task.

Demonstrations are of the train split, and what is asked is of the split that is named. All prompts of a kind have one
length, so that each program compiles once.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import UserError, reject
from tvjax.experiments.settings import at_least, check_seed
from tvjax.nn.answers import Questions, correct, from_last, questions
from tvjax.nn.decoder import Decoder
from tvjax.nn.model import Model
from tvjax.nn.pretrained import Tokenizer
from tvjax.nn.tokens import Tokens, pad
from tvjax.parallel.batches import Batches
from tvjax.tasks.text import Answers, Pair, Template, TextTask, drawn, shots, some
from tvjax.vectors import learned
from tvjax.vectors.from_prompts import ADDED, at_last, last_outputs, last_states
from tvjax.vectors.function_vectors import function_vector, indirect_effects, last_heads, strongest


@dataclasses.dataclass(frozen=True)
class VectorConfig:
    """How vectors are made and asked: the fields of config.vectors, which says what each is."""

    demonstrations: int
    prompts: int
    seed: int = 0
    memory: float = 1.0
    batch: int = 64
    questions: int = 100
    words: int = 8
    conflicts: int = 5
    heads: int = 10
    shuffled_prompts: int = 25
    learned_steps: int = 100
    learned_rate: float = 0.03
    learned_batch: int = 16


def check_vectors(v: VectorConfig) -> None:
    """Raise `UserError` for the first value that no vector can be made with."""
    at_least(1, "config.vectors", demonstrations=v.demonstrations, prompts=v.prompts, batch=v.batch)
    at_least(1, "config.vectors", questions=v.questions, words=v.words, conflicts=v.conflicts, heads=v.heads)
    at_least(1, "config.vectors", shuffled_prompts=v.shuffled_prompts, learned_batch=v.learned_batch)
    at_least(0, "config.vectors", learned_steps=v.learned_steps)
    for name in ("memory", "learned_rate"):
        if getattr(v, name) <= 0:
            raise reject(f"config.vectors.{name}", getattr(v, name), "more than 0")
    check_seed("config.vectors.seed", v.seed)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _right(decoder: Decoder, first: bool, params: Any, q: Questions) -> jax.Array:
    return correct(decoder, params, q, first=first)


_states = jax.jit(last_states, static_argnums=0)
_heads = jax.jit(last_heads, static_argnums=0)
_outputs = jax.jit(last_outputs, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _right_with(
    decoder: Decoder,
    first: bool,
    params: Any,
    vectors_ND: jax.Array,
    layers_N: jax.Array,
    keep: jax.Array,
    q: Questions,
) -> jax.Array:
    """Whether each answer is right with each vector at its layer: ``[B, N]``, one `vmap` over vectors and layers."""
    past, q = from_last(decoder, params, q)

    def one(vector_D: jax.Array, layer: jax.Array) -> jax.Array:
        tree = at_last(decoder, vector_D, layer, q.last_B, q.tokens.ids_BT.shape[1], keep)
        return correct(decoder, params, q, tree, past, first=first)

    return jax.vmap(one, out_axes=1)(vectors_ND, layers_N)


class Bench:
    """first: whether only the first token of an answer counts. batches: those of another bench, to share its programs.

    heads_by: the tasks by which the heads of function vectors are chosen (empty: all).

    Raises `UserError` for a model or tasks that do not fit the settings.
    """

    def __init__(
        self,
        model: Model,
        config: VectorConfig,
        template: Template,
        tasks: Mapping[str, TextTask],
        *,
        first: bool = False,
        batches: Batches | None = None,
        heads_by: Sequence[str] = (),
    ) -> None:
        self.model, self.config, self.template, self.tasks, self.first = model, config, template, tasks, first
        self.heads_by = tuple(heads_by) or tuple(tasks)
        if model.source.tokenizer is None:
            raise UserError(f"{model.source.path}: no tokenizer.json in it; text tasks need one")
        self.tokenizer: Tokenizer = model.source.tokenizer
        for name, task in tasks.items():
            for split, least in (("train", config.demonstrations + 1), ("dev", 1), ("test", 1)):
                count = len(task.questions(split))
                if count < least:
                    given = f"{name} with {count} inputs of the {split} split"
                    raise reject("config.data.tasks", given, f"tasks that have {least} or more")
        if config.heads > model.config.num_layers * model.config.num_heads:
            most = model.config.num_layers * model.config.num_heads
            raise reject("config.vectors.heads", config.heads, f"1..{most}, the heads of all layers")
        pairs = [pair for task in tasks.values() for pair in task.pairs]
        alone = self.tokenizer.encode([template.prompt([], x) + template.answer(y) for x, y in pairs])
        shown = self.tokenizer.encode([template.prompt([pair], "") for pair in pairs])
        self.short = max(map(len, alone))
        self.long = self.short + config.demonstrations * max(map(len, shown))
        limit = model.config.max_positions
        if model.config.positions == "learned" and self.long > limit:
            raise reject("config.vectors.demonstrations", config.demonstrations, f"prompts of {limit} tokens")
        bare = self.tokenizer.encode([template.prompt([], x) for x, _ in pairs])
        self.width = 2 + max(len(whole) - len(query) for whole, query in zip(alone, bare, strict=True))
        self.batches = batches or Batches(config.memory, config.batch)

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

    def accepted(self, name: str, asked: Sequence[Pair]) -> list[Answers]:
        """All right answers of each of some inputs."""
        return [self.tasks[name].answers[x] for x, _ in asked]

    def paired(self, name: str, asked: Sequence[Pair], *what: Any) -> list[Pair]:
        """Some inputs, each with one of its right answers, drawn by `random` of `what`."""
        known = zip(asked, self.accepted(name, asked), strict=True)
        return drawn(self.random(name, "answers", *what), {x: answers for (x, _), answers in known})

    def zero_shot(self, asked: Sequence[Pair]) -> list[str]:
        """The bare query of each pair."""
        return [self.template.prompt([], x) for x, _ in asked]

    def few_shot(self, name: str, asked: Sequence[Pair], *, shuffled: bool = False) -> list[str]:
        """A prompt with demonstrations of the train split for each pair that is asked."""
        train, random = self.tasks[name].split("train"), self.random(name, "shots")
        draw = functools.partial(shots, random, train, self.config.demonstrations, shuffled=shuffled)
        return [self.template.prompt(draw(apart_from=x), x) for x, _ in asked]

    def queries(self, name: str, count: int) -> list[Pair]:
        """Pairs of the train split to read vectors at, their inputs drawn with replacement."""
        train = self.paired(name, self.tasks[name].questions("train"))
        return [train[i] for i in self.random(name, "queries").choice(len(train), count)]

    def ask(self, prompts: Sequence[str], outputs: Sequence[str], length: int) -> Questions:
        """Prompts with the answer that is expected of each."""
        answers = [self.template.answer(y) for y in outputs]
        return questions(self.tokenizer, prompts, answers, length=length, width=self.width)

    def ask_all(
        self, prompts: Sequence[str], accepted: Sequence[Answers], length: int
    ) -> tuple[Questions, Callable[[np.ndarray], np.ndarray]]:
        """Each prompt with each of its right answers, and what makes values of prompts of theirs: the greatest."""
        flat = [(prompt, y) for prompt, answers in zip(prompts, accepted, strict=True) for y in answers]
        begin = np.cumsum([0, *map(len, accepted)])[:-1]
        q = self.ask([prompt for prompt, _ in flat], [y for _, y in flat], length)
        return q, lambda said: np.maximum.reduceat(said, begin)

    def right(self, prompts: Sequence[str], accepted: Sequence[Answers], length: int) -> np.ndarray:
        """Whether each prompt, padded to `length` (`short` or `long`), is given one of its right answers: ``[B]``."""
        q, any_of = self.ask_all(prompts, accepted, length)
        return any_of(self.answered(q))

    def answered(self, q: Questions) -> np.ndarray:
        """Whether each question is given its answer: ``[B]``."""
        return np.asarray(self.batches(_right, (self.model.decoder, self.first), (self.model.params,), q), float)

    def right_with(
        self,
        prompts: Sequence[str],
        accepted: Sequence[Answers],
        vectors_ND: np.ndarray,
        layers: Sequence[int],
        length: int,
        keep: float = 0.0,
    ) -> np.ndarray:
        """The same with each of some vectors at its layer: ``[B, N]``. keep: 0 replaces the state, 1 adds to it."""
        static = (self.model.decoder, self.first)
        fixed = (self.model.params, jnp.asarray(vectors_ND), jnp.asarray(list(layers)), jnp.asarray(keep))
        q, any_of = self.ask_all(prompts, accepted, length)
        return any_of(np.asarray(self.batches(_right_with, static, fixed, q), float))

    def read(self, name: str, program: Any, *, shuffled: bool = False) -> np.ndarray:
        """What `program` reads at the last tokens of `prompts` few-shot prompts, ``[prompts, ...]``."""
        prompts = self.few_shot(name, self.queries(name, self.config.prompts), shuffled=shuffled)
        tokens: Tokens = pad(self.tokenizer.encode(prompts), side="right", length=self.long)
        return self._read(program, tokens)

    def few_shot_states(self, name: str, *, shuffled: bool = False) -> np.ndarray:
        """h^0..h^L at the last tokens of `prompts` few-shot prompts, ``[prompts, L+1, D]``."""
        return self.read(name, _states, shuffled=shuffled)

    def states(self, prompts: Sequence[str]) -> np.ndarray:
        """h^0..h^L at the last tokens of zero-shot prompts, ``[B, L+1, D]``."""
        return self._read(_states, pad(self.tokenizer.encode(prompts), side="right", length=self.short))

    def summaries(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What attention and the MLPs add at the last tokens of texts as long as a query and its answer, their means.

        ``{"attn_out", "mlp_out": [L, D]}``.
        """
        both = self._read(_outputs, pad(self.tokenizer.encode(texts), side="right", length=self.short)).mean(0)
        return dict(zip(ADDED, both, strict=True))

    def by_layer(self, name: str, split: str, kind: str, vectors_LD: np.ndarray) -> np.ndarray:
        """Whether each question of a split is answered right with the vector of each layer there: ``[n, L+1]``."""
        return self.asked_with(name, split, vectors_LD, self.layers, METHODS[kind].keep)

    def asked_with(
        self, name: str, split: str, vectors_ND: np.ndarray, layers: Sequence[int], keep: float
    ) -> np.ndarray:
        """Whether each question of a split is answered right with each of some vectors at its layer: ``[n, N]``."""
        asked = self.sample(name, split)
        return self.right_with(self.zero_shot(asked), self.accepted(name, asked), vectors_ND, layers, self.short, keep)

    def _read(self, program: Any, tokens: Tokens) -> np.ndarray:
        found = self.batches(program, (self.model.decoder,), (self.model.params,), tokens)
        return np.asarray(found, np.float32)


def best_layer(dev_BL: np.ndarray) -> int:
    """The layer that is best on the dev split; never 0: the last token's embedding is the same in every prompt."""
    return 1 + int(dev_BL.mean(0)[1:].argmax())


Vectors = dict[str, np.ndarray]


def state_vectors(bench: Bench, *, shuffled: bool = False) -> tuple[Vectors, dict[str, Any]]:
    """The mean state at the last token of few-shot prompts, at every layer (Hendel et al. 2023)."""
    return {name: bench.few_shot_states(name, shuffled=shuffled).mean(0) for name in bench.tasks}, {}


def head_vectors(bench: Bench) -> tuple[Vectors, dict[str, Any]]:
    """The summed output of the heads of the greatest indirect effect, averaged over tasks (Todd et al. 2024)."""
    means = {name: bench.read(name, _heads).mean(0) for name in bench.tasks}
    effects = []
    for name in bench.heads_by:
        mean_LHC = means[name]
        asked = bench.queries(name, bench.config.shuffled_prompts)
        q = bench.ask(bench.few_shot(name, asked, shuffled=True), [y for _, y in asked], bench.long)
        model = bench.model
        effects.append(indirect_effects(model.decoder, model.params, q, jnp.asarray(mean_LHC), bench.batches))
    effect_LH = np.mean(effects, 0)
    chosen = strongest(effect_LH, bench.config.heads)
    about = {
        "indirect_effect": effect_LH.tolist(),
        "heads": [{"layer": layer + 1, "head": head} for layer, head in chosen],
    }
    make = functools.partial(function_vector, bench.model.params, heads=chosen)
    return {name: np.tile(make(mean), (len(bench.layers), 1)) for name, mean in means.items()}, about


def learned_vectors(bench: Bench) -> tuple[Vectors, dict[str, Any]]:
    """A vector for every layer, learned by gradient descent on zero-shot prompts of the train split. [ours]"""
    c, made = bench.config, {}
    for name in bench.tasks:
        held = bench.paired(name, bench.sample(name, "train"))
        asked = [held[i % len(held)] for i in range(c.questions)]  # as many for each task: one program for all
        drawn = bench.random(name, "learned").choice(len(held), c.learned_steps * c.learned_batch)
        q = bench.ask(bench.zero_shot(asked), [y for _, y in asked], bench.short)
        rows = jnp.asarray(drawn.reshape(c.learned_steps, c.learned_batch))
        fixed = (bench.model.params, q, rows, jnp.asarray(c.learned_rate))
        made[name] = np.asarray(bench.batches(learned.learn, (bench.model.decoder,), fixed, jnp.array(bench.layers)))
    return made, {}


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to make vectors: ``make(bench)`` gives ``[L+1, D]`` for each task, and what else the summary should say.

    keep: of the state where a vector is written: 0 it is replaced, 1 it is added to.
    """

    make: Callable[[Bench], tuple[Vectors, dict[str, Any]]]
    keep: float


METHODS = {
    "vector": Method(state_vectors, 0.0),
    "function_vector": Method(head_vectors, 1.0),
    "learned_vector": Method(learned_vectors, 1.0),
}
"""The ways that are compared, by their names in the summary: a new one is a function and a row here."""
