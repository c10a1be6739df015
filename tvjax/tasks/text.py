"""Text tasks: pairs of an input and an output, how a prompt shows them, and which split each pair belongs to."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tvjax.errors import reject
from tvjax.settings import setting

SPLITS = {"train": 0.5, "dev": 0.2, "test": 0.3}
Pair = tuple[str, str]
Answers = tuple[str, ...]
"""All right answers of an input: any of them is right."""


def split_of(text: str) -> str:
    """The split of an input, by a hash of its content: the same in every task, file and run. [ours]"""
    rest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    for name, share in SPLITS.items():
        rest -= share
        if rest < 0:
            return name
    return "test"


@dataclasses.dataclass(frozen=True)
class TextTask:
    """A named list of (input, output) pairs, no pair twice. An input of several pairs has several right answers."""

    name: str
    pairs: tuple[Pair, ...]

    @functools.cached_property
    def answers(self) -> dict[str, Answers]:
        """The inputs in the order of their first pairs, each with all its right answers."""
        return answers_of(self.pairs)

    def split(self, name: str) -> tuple[Pair, ...]:
        """The pairs of "train", "dev" or "test": no input is in two of them."""
        if name not in SPLITS:
            raise reject("split", name, ", ".join(SPLITS))
        return tuple(pair for pair in self.pairs if split_of(pair[0]) == name)

    def questions(self, name: str) -> tuple[Pair, ...]:
        """The inputs of a split, each once, with the first of its right answers."""
        return tuple((x, answers[0]) for x, answers in answers_of(self.split(name)).items())


def answers_of(pairs: Sequence[Pair]) -> dict[str, Answers]:
    """The inputs of some pairs, in the order of their first pairs, each with all its outputs."""
    known: dict[str, dict[str, None]] = {}
    for x, y in pairs:
        known.setdefault(x, {})[y] = None
    return {x: tuple(answers) for x, answers in known.items()}


def drawn(random: np.random.Generator, answers: Mapping[str, Answers]) -> list[Pair]:
    """Each input with one of its right answers; nothing is drawn for an input with a single answer."""
    return [(x, ys[random.integers(len(ys))] if len(ys) > 1 else ys[0]) for x, ys in answers.items()]


def some(pairs: Sequence[Pair], most: int) -> tuple[Pair, ...]:
    """`most` of some pairs, chosen by a hash of the input, in their order: a file may be sorted by its answers."""
    chosen = sorted(pairs, key=lambda pair: hashlib.sha256(f"some {pair[0]}".encode()).digest())[:most]
    kept = set(chosen)
    return tuple(pair for pair in pairs if pair in kept)


@dataclasses.dataclass(frozen=True)
class Template:
    """How a prompt shows pairs: `start`, then ``before + input + between + answer + after``, one after another.

    The query ends with `between`; a vector is read and written at its last token. An answer begins with a space, so a
    tokenizer cuts the answer off from the text before it.
    """

    before: str = setting("Q: ", "in front of an input")
    between: str = setting("\nA:", "between an input and its answer")
    after: str = setting("\n\n", "behind an answer")
    start: str = setting("", "once, in front of the whole prompt, where the tokenizer puts no token of its own (BOS)")

    def led_by(self, tokenizer: Any) -> "Template":
        """The template for a tokenizer: without `start` if the tokenizer itself puts a token (BOS) before every text.

        A prompt's first token is an attention sink, from which a model reads next to nothing; no query should be there.
        """
        own = tokenizer.encode(["a"]) != tokenizer.encode(["a"], special=False)
        return dataclasses.replace(self, start="") if own else self

    def answer(self, output: str) -> str:
        """What the model has to say."""
        return " " + output

    def prompt(self, demonstrations: Sequence[Pair], query: str) -> str:
        """The demonstrations, then the query without its answer."""
        shown = (self.before + x + self.between + self.answer(y) + self.after for x, y in demonstrations)
        return self.start + "".join(shown) + self.before + query + self.between


def without_repetition(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Each pair once, in order."""
    return tuple(dict.fromkeys(pairs))


def shots(
    random: np.random.Generator, pairs: Sequence[Pair], count: int, *, apart_from: str = "", shuffled: bool = False
) -> list[Pair]:
    """`count` demonstrations of different inputs, each with one of its right answers.

    apart_from: an input that is no demonstration.
    shuffled: whether the outputs are permuted, so that the pairs show the words of a task but not the task.

    Raises `UserError` if there are too few inputs.
    """
    answers = answers_of(pairs)
    others = [x for x in answers if x != apart_from]
    if len(others) < count:
        raise reject("demonstrations", count, f"at most {len(others)}, the pairs that the task has for them")
    inputs = [others[i] for i in random.choice(len(others), count, replace=False)]
    chosen = drawn(random, {x: answers[x] for x in inputs})
    if not shuffled:
        return chosen
    order = random.permutation(count)
    return [(x, chosen[j][1]) for (x, _), j in zip(chosen, order, strict=True)]
