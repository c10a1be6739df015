"""What is measured of answers: whether they are right, how far they are from k-shot's, and from those of other tasks.

A method's distribution at the first token of each answer is held against that of the k-shot prompt with which
`Bench.few_shot` asks the same question. Of k-shot's distribution the state from which it is read out is kept: as good,
and a hundredth of its size. Nothing is asked twice.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.nn.answers import Questions
from tvjax.tasks.text import Pair
from tvjax.text.bench import Bench, Right, graded
from tvjax.vectors.above import alone, written
from tvjax.vectors.next_token import Reference, Said

_written = jax.jit(written)
_alone = jax.jit(alone)


class Measured(NamedTuple):
    """What is measured of answers, an array of one shape each, over questions first.

    first, whole: as `Right` has them.
    d_ntp: KL from k-shot's distribution at the answer's first token to that of what is measured, nats.
    margin: the identity margin there, nan of a question without a rival (`tvjax.vectors.next_token`).
    """

    first: np.ndarray
    whole: np.ndarray
    d_ntp: np.ndarray
    margin: np.ndarray


class Asked(NamedTuple):
    """Questions, a row for each right answer of each, and what they are held against.

    begin: the first row of each question.
    reference: a row for each of `q`, or None.
    here_BT: the tokens at which something is written; None: the last of each prompt.
    """

    q: Questions
    begin: np.ndarray
    reference: Reference | None = None
    here_BT: np.ndarray | None = None

    def graded(self, said: Said) -> Right:
        """Which questions are given one of their right answers, ``[n, ...]``. said: with leaves ``[rows, ...]``."""
        return graded(self.q, np.asarray(said.tokens_BA), np.zeros(len(self.q.last_B), int), self.begin)

    def measured(self, said: Said) -> Measured:
        """What is measured of the questions, ``[n, ...]``. said: with leaves ``[rows, ...]``, by `reference`."""
        near: Any = (np.asarray(a, np.float64)[self.begin] for a in (said.d_ntp_B, said.margin_B))
        return Measured(*self.graded(said), *near)


def asked(
    bench: Bench, name: str, split: str, *, compared: bool = False, prompts: Sequence[str] | None = None
) -> Asked:
    """The inputs of a split of a task, with each of their right answers.

    compared: whether they are held against k-shot prompts, of the test split.
    prompts: one an input; None: zero-shot.
    """
    pairs = bench.sample(name, split)
    prompts = bench.zero_shot(pairs) if prompts is None else prompts
    return _asked(bench, name, prompts, pairs, reference(bench, name) if compared else None)


def _asked(bench: Bench, name: str, prompts: Sequence[str], pairs: Sequence[Pair], known: Reference | None) -> Asked:
    """Prompts that ask `pairs`. known: a row a question."""
    accepted = bench.accepted(name, pairs)
    q, _, begin = bench.ask_all(prompts, accepted)
    row_B = np.repeat(np.arange(len(accepted)), [len(answers) for answers in accepted])
    return Asked(q, begin, jax.tree.map(lambda a: a[row_B], known))


def said(bench: Bench, asked: Asked, vectors_LUD: np.ndarray, layers: Sequence[int], keep_LU: np.ndarray) -> Said:
    """What is said with each vector at its layer, ``[rows, L, U, ...]``: `above.written`."""
    if asked.reference is None:
        return Said(jnp.asarray(bench.likeliest(asked.q, vectors_LUD, layers, keep_LU)))
    found: Said = bench.write(_written, (asked.q, asked.reference), vectors_LUD, layers, keep_LU)
    return found


def measured(bench: Bench, name: str, prompts: Sequence[str]) -> Measured:
    """What is measured of prompts alone that ask the test inputs of a task: ``[n]``."""
    pairs = bench.sample(name, "test")
    if list(prompts) == bench.few_shot(name, pairs):
        return k_shot(bench, name)
    one = _asked(bench, name, prompts, pairs, reference(bench, name))
    return one.measured(_say(bench, one)[0])


def k_shot(bench: Bench, name: str) -> Measured:
    """What is measured of the prompts of `Bench.few_shot` that ask the test inputs of a task: ``[n]``, asked once.

    d_ntp is that from what is kept of k-shot's distributions to these: 0 but for rounding.
    """
    return _k_shot(bench, name)[0]


def reference(bench: Bench, name: str) -> Reference:
    """What the answers to the test inputs of a task are held against, a row a question."""
    return _k_shot(bench, name)[1]


def _k_shot(bench: Bench, name: str) -> tuple[Measured, Reference]:
    def ask() -> tuple[Measured, Reference]:
        """Now."""
        pairs = bench.sample(name, "test")
        c = bench.model.config
        blank_BD = jnp.full((len(pairs), c.width), jnp.nan, c.dtype)
        known = Reference(*_first_tokens(bench, name, pairs), blank_BD)
        one = _asked(bench, name, bench.few_shot(name, pairs), pairs, known)
        found, state_BD = _say(bench, one)
        return one.measured(found), dataclasses.replace(known, state_BD=state_BD[one.begin])

    return bench.once(("k-shot", name), ask)


def _say(bench: Bench, asked: Asked) -> tuple[Said, jax.Array]:
    found: tuple[Said, jax.Array] = bench.batches(_alone, (), (bench.model.bare,), (asked.q, asked.reference))
    return found


def _first_tokens(bench: Bench, name: str, pairs: Sequence[Pair]) -> tuple[jax.Array, jax.Array]:
    """The tokens that right answers begin with, and those of other tasks' answers alone: ``[n, K]``, -1 for none."""
    own, rivals = [], []
    for x, _ in pairs:
        begun = {task: bench.begun(x, bench.tasks[task].answers) for task in _knowing(bench, x)}
        own.append(begun[name])
        rivals.append(set().union(*begun.values()) - begun[name])
    most = bench.once("most answers", lambda: _most_answers(bench))
    return _table(own, most), _table(rivals, most)


def _knowing(bench: Bench, x: str) -> list[str]:
    """The tasks that have an input."""
    return [name for name, task in bench.tasks.items() if x in task.answers]


def _most_answers(bench: Bench) -> int:
    """How many answers a test input has at most, those of all tasks together: one width of arrays for all tasks."""
    inputs = {x for name in bench.tasks for x, _ in bench.sample(name, "test")}
    return max(sum(len(bench.tasks[name].answers[x]) for name in _knowing(bench, x)) for x in inputs)


def _table(rows: Sequence[set[int]], width: int) -> jax.Array:
    """Sets of tokens as rows, filled up with -1: ``[n, width]``."""
    return jnp.array([[*sorted(row), *[-1] * (width - len(row))] for row in rows], jnp.int32)
