"""The examples of an ATV run as arrays: what the generator reads of each query, and the prompts that ask it.

Everything is cut into tokens once and stays on the device; a batch is a few rows of it. An example has a prompt for
each template, which share what is made of its query, and readings of it: one, or with demonstrations, several choices
of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from tvjax.nn.answers import Questions, questions
from tvjax.nn.decoder import Past
from tvjax.nn.pretrained import Tokenizer
from tvjax.nn.tokens import Tokens, pad
from tvjax.tasks.text import Pair, Template, TextTask, shots, some
from tvjax.vectors.adapters import Queries


@struct.dataclass
class Examples:
    """I examples, and what a frozen model has read of them (`adapting.read_once`).

    readings: of their queries, ``[I, readings, T]``.
    prompts: with the leaves of `Questions`, ``[I, templates, ...]``.
    task_I: the number of each example's task.
    rank_I: its place among the examples of its task.
    question_I: the number of its question, if some have several right answers, each an example, one behind another;
        None if all have one.
    past: what stands before `prompts`, which then begin at their last tokens, or None; keys and values
        ``[I, templates, L, G, S, C]``, positions ``[I, templates, S]``.
    states: the generator's, of each reading, ``[I, readings, D]``, or None.
    """

    readings: Tokens
    prompts: Questions
    task_I: jax.Array
    rank_I: jax.Array
    question_I: jax.Array | None = None
    past: Past | None = None
    states: jax.Array | None = None

    @property
    def first_of_question(self) -> np.ndarray:
        """The first example of each question."""
        if self.question_I is None:
            return np.arange(self.task_I.shape[0])
        return np.flatnonzero(np.diff(np.asarray(self.question_I), prepend=-1))

    def rows(self, index_B: jax.Array, reading: Any = 0) -> tuple[Queries, Questions]:
        """Some examples with one of their readings: queries, and prompts with leaves ``[templates, B, ...]``."""
        tokens = jax.tree.map(lambda a: a[index_B, reading], self.readings)
        state_BD = None if self.states is None else self.states[index_B, reading]
        queries = Queries(tokens.ids_BT, tokens.positions_BT, tokens.last_B, self.task_I[index_B], state_BD)
        return queries, jax.tree.map(lambda a: a[index_B].swapaxes(0, 1), self.prompts)

    def before(self, index_B: jax.Array) -> Past | None:
        """What stands before the prompts of some examples, with the templates in front of the axes of a `Past`."""
        if self.past is None:
            return None
        keys, values = (a[index_B].transpose(1, 2, 0, 3, 4, 5) for a in (self.past.keys, self.past.values))
        return Past(keys, values, self.past.positions_BS[index_B].swapaxes(0, 1))


class Reader:
    """How a query is shown to the generator: by its own tokenizer and template, after `demonstrations` of its task."""

    def __init__(self, tokenizer: Tokenizer, template: Template, demonstrations: int = 0, draws: int = 1) -> None:
        self.tokenizer, self.template = tokenizer, template.led_by(tokenizer)
        self.demonstrations, self.draws = demonstrations, draws if demonstrations else 1

    def read(self, task: TextTask, queries: Sequence[Pair], seed: int) -> list[list[list[int]]]:
        """The token ids of each reading of each query, by query; demonstrations are of the train split."""
        texts, train = [], task.split("train")
        for x, _ in queries:
            for draw in range(self.draws):
                random = np.random.default_rng([seed, draw, *f"{task.name}/{x}".encode()])
                pairs = shots(random, train, self.demonstrations, apart_from=x)
                texts.append(self.template.prompt(pairs, x))
        ids = self.tokenizer.encode(texts)
        return [ids[i : i + self.draws] for i in range(0, len(ids), self.draws)]


def pairs_of(tasks: Mapping[str, TextTask], split: str, most: int) -> dict[str, tuple[Pair, ...]]:
    """At most `most` pairs of a split of each task: of an input with several right answers, each is one to learn."""
    return {name: some(task.split(split), most) for name, task in tasks.items()}


def questions_of(tasks: Mapping[str, TextTask], split: str, most: int) -> dict[str, tuple[Pair, ...]]:
    """At most `most` inputs of a split of each task, with each of their right answers, one behind another."""
    inputs = {name: some(task.questions(split), most) for name, task in tasks.items()}
    return {name: tuple((x, y) for x, _ in inputs[name] for y in task.answers[x]) for name, task in tasks.items()}


def make_examples(
    tasks: Mapping[str, TextTask],
    by_task: Mapping[str, Sequence[Pair]],
    reader: Reader,
    tokenizer: Tokenizer,
    templates: Sequence[Template],
    seed: int,
    *,
    demonstrations: int = 0,
) -> Examples:
    """The pairs of each task as arrays.

    tasks: all tasks; the number of a task is its place among them.
    by_task: the pairs of each task.
    reader: how a query is shown to the generator.
    tokenizer: that of the prompts.
    templates: of the prompts, one each.
    seed: of the demonstrations that the reader shows, and of those in the prompts.
    demonstrations: if it is more than 0, each example has as many prompts again, behind so many demonstrations of its
        task, which are drawn once for each.

    Raises `UserError` for a template in which tokens cross from the query to the answer.
    """
    templates = [template.led_by(tokenizer) for template in templates]
    number = {name: i for i, name in enumerate(tasks)}
    readings = [one for name, pairs in by_task.items() for one in reader.read(tasks[name], pairs, seed)]
    flat = pad([ids for one in readings for ids in one], side="right")
    rows = [(name, rank, x, y) for name, pairs in by_task.items() for rank, (x, y) in enumerate(pairs)]
    counts = [
        (template, count) for count in ((0, demonstrations) if demonstrations else (0,)) for template in templates
    ]
    prompts = [
        template.prompt(_shown(tasks[name], x, count, seed), x) for name, _, x, _ in rows for template, count in counts
    ]
    answers = [template.answer(y) for _, _, _, y in rows for template, _ in counts]
    shape, count = (len(rows), len(counts)), (len(rows), reader.draws)
    known = {question: i for i, question in enumerate(dict.fromkeys((name, x) for name, _, x, _ in rows))}
    return Examples(
        jax.tree.map(lambda a: a.reshape(*count, *a.shape[1:]), flat),
        jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), questions(tokenizer, prompts, answers)),
        jnp.array([number[name] for name, *_ in rows]),
        jnp.array([rank for _, rank, *_ in rows]),
        None if len(known) == len(rows) else jnp.array([known[name, x] for name, _, x, _ in rows]),
    )


def _shown(task: TextTask, x: str, count: int, seed: int) -> list[Pair]:
    """Demonstrations of the train split for a prompt that asks x."""
    random = np.random.default_rng([seed, *f"{task.name}/{x}/shots".encode()])
    return shots(random, task.split("train"), count, apart_from=x) if count else []


def epoch_rows(
    key: jax.Array, step: jax.Array, batch: int, rank_I: jax.Array, most: jax.Array, *, fewest: int, shuffled: bool
) -> tuple[jax.Array, jax.Array]:
    """The rows of a step's batch, ``[B]``, and the epoch of each: every epoch has each example once.

    An epoch is a permutation by `key` and its number, or the order of the examples; those of rank `most` and above are
    left out (a number that may differ between members, for which `fewest` examples are left or more). Nothing is
    carried from step to step.
    """
    kept_I = rank_I < most
    count = kept_I.sum()
    index_B = step * batch + jnp.arange(batch)
    epoch_B, index_B = index_B // count, index_B % count

    def order(epoch: jax.Array) -> jax.Array:
        """The rows of one epoch in their order; what is left out comes last."""
        luck_I = jax.random.uniform(jax.random.fold_in(key, epoch), rank_I.shape)
        first_I = luck_I if shuffled else jnp.linspace(0.0, 0.5, rank_I.shape[0])
        return jnp.argsort(jnp.where(kept_I, first_I, 2.0))

    first = epoch_B[0]
    epochs = 2 + (batch - 1) // fewest  # a batch touches two, or more where it is longer than they are
    orders = jax.vmap(order)(first + jnp.arange(epochs))
    return orders[jnp.minimum(epoch_B - first, epochs - 1), index_B], epoch_B


def blank_examples(query_tokens: int, answer_tokens: int, templates: int, tasks: int, each: int) -> Examples:
    """The shapes of so many examples of each task; their tasks and ranks are known."""
    count = tasks * each

    def shape(dtype: Any, *dims: int) -> Any:
        return jax.ShapeDtypeStruct((count, *dims), dtype)

    def tokens(*dims: int) -> Tokens:
        return Tokens(shape(jnp.int32, *dims), shape(jnp.bool_, *dims))

    answers = shape(jnp.int32, templates, answer_tokens), shape(jnp.bool_, templates, answer_tokens)
    prompts = Questions(tokens(templates, query_tokens + answer_tokens), shape(jnp.int32, templates), *answers)
    number: Any = np.repeat(np.arange(tasks), each)
    rank: Any = np.tile(np.arange(each), tasks)
    return Examples(tokens(1, query_tokens), prompts, number, rank)
