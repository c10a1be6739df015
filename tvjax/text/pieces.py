"""Prompts as tokens part by part: a query, its answer, the next query, .. are those of the whole text, or are refused.

How a part is cut into tokens may depend on what stands beside it: at the beginning of a text some tokenizers put a
space, two newlines may be one token at its end and two within. A part is therefore never cut alone.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tvjax.errors import UserError
from tvjax.nn.pretrained import Tokenizer

MOST, PROMPTS = 200, 16
"""What is tried of a task: neighbours at most, one for each pair of an end and a beginning, and whole prompts."""
CHUNK = 1000
"""Texts that are cut at a time."""
Ids = list[int]


def crossing(parts: Sequence[str], number: int, what: str = "has a token that joins") -> UserError:
    """What to raise for parts of a prompt (query, answer, query, ..), of which `number` and the next are no two."""
    left, right = parts[number][-20:], parts[number + 1][:20]
    names = ("a query and its answer", "an answer and the next query")[number % 2]
    field = ("`between` ends", "`after` ends, and whose `before` begins,")[number % 2]
    return UserError(
        f"config.template: {left!r} + {right!r} {what} {names}; accepted: a template whose {field} where a token ends"
    )


def pieces(tokenizer: Tokenizer, prompts: Sequence[Sequence[str]]) -> list[list[Ids]]:
    """The tokens of prompts, by the parts that each is joined from; the first has those that stand before every text.

    Raises `UserError` if a token is of two parts, and for a tokenizer that puts tokens behind every text.
    """
    tokenizer.check_open()
    return [
        _cut(parts, tokens)
        for some in _chunks(prompts)
        for parts, tokens in zip(some, tokenizer.encode_with_spans(["".join(parts) for parts in some]), strict=True)
    ]


def _cut(parts: Sequence[str], tokens: Sequence[tuple[int, tuple[int, int]]]) -> list[Ids]:
    ends = list(itertools.accumulate(map(len, parts)))
    ids: list[Ids] = [[] for _ in parts]
    part = 0
    for number, (start, end) in tokens:
        while part < len(parts) - 1 and start >= ends[part]:
            part += 1
        if end > ends[part]:
            raise crossing(parts, part)
        ids[part].append(number)
    return ids


class Pieces:
    """The queries and answers of one task as tokens, in each of the places that they can have in a prompt.

    first: of each query, at the beginning of a prompt.
    query: of each query, behind another pair.
    answer: of each answer, before another query.
    last: of each answer, at the end of a prompt.
    owner: which query each answer belongs to.
    start: what stands before the first query of every prompt.

    Raises `UserError` if tokens cross parts, or if a part depends on which part stands beside it. Tried are the
    beginnings of all prompts that have each pair once before and once behind another, then neighbours and whole prompts
    of `count` pairs. [ours: all prompts would be too many]
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        queries: Sequence[str],
        answers: Sequence[str],
        owner: Sequence[int],
        count: int,
        start: str = "",
    ) -> None:
        self.tokenizer, self.queries, self.answers, self.owner, self.start = tokenizer, queries, answers, owner, start
        rows = range(len(answers))
        pairs = [(row, (row + 1) % len(rows)) for row in rows]
        cut = pieces(tokenizer, [self._parts(pair) for pair in pairs])
        self.first: list[Ids] = [[] for _ in queries]
        self.query: list[Ids] = [[] for _ in queries]
        self.answer: list[Ids] = [[] for _ in answers]
        self.last: list[Ids] = [[] for _ in answers]
        for (row, after), (first, answer, query, last) in zip(pairs, cut, strict=True):
            self.first[owner[row]], self.answer[row] = first, answer
            self.query[owner[after]], self.last[after] = query, last
        for length in (1, 3):  # what is read before an answer stands there must be what it is with the answer
            self._try(pairs, length)
        self._try(_neighbours(queries, answers, owner), 4)
        random = np.random.default_rng(0)
        size = min(count, len(rows))
        self._try([tuple(random.choice(len(rows), size, replace=False).tolist()) for _ in range(PROMPTS)], 2 * size)

    def _parts(self, rows: Sequence[int]) -> list[str]:
        parts = [part for row in rows for part in (self.queries[self.owner[row]], self.answers[row])]
        return [self.start + parts[0], *parts[1:]]

    def _tokens(self, rows: Sequence[int]) -> list[Ids]:
        """The tokens of the parts of a prompt, as they are assembled."""
        tokens = []
        for number, row in enumerate(rows):
            tokens.append((self.query if number else self.first)[self.owner[row]])
            tokens.append((self.answer if number < len(rows) - 1 else self.last)[row])
        return tokens

    def _try(self, prompts: Sequence[Sequence[int]], length: int) -> None:
        """Whether the first `length` parts of prompts are as their texts are cut."""
        for some in _chunks(prompts):
            texts = ["".join(self._parts(rows)[:length]) for rows in some]
            for rows, ids in zip(some, self.tokenizer.encode(texts), strict=True):
                if list(itertools.chain(*self._tokens(rows)[:length])) != ids:
                    raise self._crossing(rows, length)

    def _crossing(self, rows: Sequence[int], length: int) -> UserError:
        """What to raise for a prompt whose first `length` parts are not as its text is cut."""
        parts, tokens = self._parts(rows), self._tokens(rows)
        if length % 2:
            return crossing(parts, length - 1)
        cut = pieces(self.tokenizer, [parts])[0]
        number = next(n for n, (one, other) in enumerate(zip(cut, tokens, strict=True)) if one != other)
        number = min(max(number - (number % 2 == 0), 0), length - 2)
        return crossing(parts, number, "is cut otherwise than elsewhere between")


def _neighbours(queries: Sequence[str], answers: Sequence[str], owner: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of answers, the first one's end before the beginning of the second one's query, each kind of both once.

    What stands in a template is the same in all, and how far it goes is where they begin to differ.
    """
    before, after = (_common(texts) for texts in (queries, [answer[::-1] for answer in answers]))
    ends = {answer[-after - 1 :]: row for row, answer in enumerate(answers)}
    starts = {queries[query][: before + 1]: row for row, query in enumerate(owner)}
    left, right = list(ends.values()), list(starts.values())
    total = len(left) * len(right)
    chosen = np.random.default_rng(0).choice(total, min(MOST, total), replace=False).tolist()
    return [(left[i // len(right)], right[i % len(right)]) for i in chosen]


def _chunks(prompts: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Some prompts at a time: texts may be long."""
    return (prompts[start : start + CHUNK] for start in range(0, len(prompts), CHUNK))


def _common(texts: Sequence[str]) -> int:
    """How many characters all texts begin with."""
    return sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], zip(min(texts), max(texts), strict=False)))
