"""Demonstrations that look like the query: BM25 (Robertson and Zaragoza 2009), by the library `bm25s`."""

import logging
from collections.abc import Sequence

from tvjax.tasks.text import Pair


class Retriever:
    """Pairs of a task, no input twice, looked up by their inputs.

    Terms are tokens, so words also match in their pieces.
    """

    def __init__(self, pairs: Sequence[Pair], ids: Sequence[Sequence[int]]) -> None:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index
        self.pairs = tuple(pairs)
        self._index = bm25s.BM25()
        self._index.index([list(map(str, one)) for one in ids], show_progress=False)

    def shots(self, query: str, ids: Sequence[int], count: int) -> list[Pair]:
        """The `count` pairs that match the query best, never the query itself.

        The best pair is last, next to the query.
        Pairs that share no term with the query follow in their order.
        """
        scores = self._index.get_scores([str(i) for i in ids])
        order = sorted(range(len(self.pairs)), key=lambda i: -float(scores[i]))
        return [self.pairs[i] for i in order if self.pairs[i][0] != query][:count][::-1]
