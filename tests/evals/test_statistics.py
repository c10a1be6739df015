"""Means of groups and their intervals; the bootstrap over prompts is tested with what it is used for."""

import numpy as np

from tvjax.evals.statistics import macro


class TestMacro:
    def test_groups_count_alike_however_many_they_are(self):
        mean, interval = macro([np.ones(90), np.zeros(10)])
        assert mean == 0.5 and interval == [0.5, 0.5]

    def test_its_interval_is_that_of_the_mean_of_independent_means(self):
        random = np.random.default_rng(0)
        groups = [(random.uniform(size=n) < 0.5).astype(float) for n in (400, 100, 25)]
        mean, (low, high) = macro(groups)
        error = np.sqrt(sum(g.var() / len(g) for g in groups)) / 3
        np.testing.assert_allclose([low, high], [mean - 1.645 * error, mean + 1.645 * error], atol=0.012)

    def test_differences_of_the_same_questions_are_paired(self):
        """Two methods that differ on few questions: the interval of the difference is far below those of both."""
        random = np.random.default_rng(1)
        first = (random.uniform(size=200) < 0.5).astype(float)
        second = first.copy()
        second[:4] = 1 - second[:4]
        width = lambda values: np.ptp(macro([values])[1])
        assert width(first - second) < 0.5 * min(width(first), width(second))
