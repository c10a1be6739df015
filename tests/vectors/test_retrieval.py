"""What is looked up for a query: demonstrations by BM25, and vectors by their nearest neighbour."""

import math

import numpy as np
import pytest

from tvjax.vectors.elicit import nearest


class TestBM25:
    PAIRS = (("a b", "A B"), ("a a c", "A A C"), ("d", "D"), ("b d e", "B D E"), ("c", "C"))
    IDS = ((0, 1), (0, 0, 2), (3,), (1, 3, 4), (2,))

    @pytest.fixture
    def retriever(self):
        pytest.importorskip("bm25s")
        from tvjax.tasks.retrieval import Retriever

        return Retriever(self.PAIRS, self.IDS)

    def scores(self, query, k1=1.5, b=0.75):
        """BM25 by its formula, idf with + 1 inside the logarithm (Lucene's, the library's default)."""
        count, mean = len(self.IDS), sum(map(len, self.IDS)) / len(self.IDS)
        found = []
        for ids in self.IDS:
            score = 0.0
            for term in query:
                held = sum(term in other for other in self.IDS)
                idf = math.log(1 + (count - held + 0.5) / (held + 0.5))
                times = ids.count(term)
                score += idf * times / (times + k1 * (1 - b + b * len(ids) / mean))
            found.append(score)
        return found

    @pytest.mark.parametrize("query", [[0], [1, 3], [2, 2, 0], [4, 1]])
    def test_the_best_match_stands_next_to_the_query(self, retriever, query):
        order = sorted(range(5), key=lambda i: -self.scores(query)[i])
        chosen = retriever.shots("none of them", query, 3)
        assert chosen == [self.PAIRS[i] for i in order[:3]][::-1]

    def test_the_query_itself_is_never_shown(self, retriever):
        assert ("d", "D") not in retriever.shots("d", [3], 4)
        assert retriever.shots("other", [3], 4)[-1] == ("d", "D")

    def test_without_a_common_term_the_order_stays(self, retriever):
        assert retriever.shots("x", [9], 2) == [self.PAIRS[1], self.PAIRS[0]]


class TestNearest:
    KNOWN = np.array([[10.0, 11.0], [10.0, 9.0], [12.0, 10.0], [8.0, 10.0]])  # around (10, 10)
    OWNER = np.array([3, 1, 4, 2])

    def test_the_owner_of_the_direction_from_the_middle(self):
        owner, near = nearest(np.array([[10.2, 14.0], [10.0, 3.0], [99.0, 11.0]]), self.KNOWN, self.OWNER, 0.0)
        assert list(owner) == [3, 1, 4]
        np.testing.assert_allclose(near[1], 1.0)

    def test_none_below_the_threshold(self):
        owner, near = nearest(np.array([[11.0, 11.0], [10.0, 12.0]]), self.KNOWN, self.OWNER, 0.9)
        np.testing.assert_allclose(near, [2**-0.5, 1.0])
        assert list(owner) == [-1, 3]
