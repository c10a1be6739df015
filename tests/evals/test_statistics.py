"""Means of groups and their intervals; the bootstrap over prompts is tested with what it is used for."""

import numpy as np
import pytest
from scipy.stats import t

from tvjax.evals.statistics import macro, of_known, of_metric, over_seeds, over_tasks, student


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


class TestOfKnown:
    def test_what_is_nan_does_not_count_nor_does_a_group_without_more(self):
        groups = [np.array([1.0, np.nan, 3.0]), np.full(4, np.nan), np.array([5.0])]
        found = of_known("x", groups)
        assert found["x"] == 3.5 and (3.5, found["x_ci"]) == macro([np.array([1.0, 3.0]), np.array([5.0])])
        assert of_known("x", groups[1:2]) == {"x": None, "x_ci": None}


class TestOverTasks:
    def test_the_tasks_are_drawn_too(self):
        """Of two tasks, one all right and one all wrong, a quarter of the draws is the one twice, and so the other."""
        mean, interval = over_tasks([np.ones(90), np.zeros(10)])
        assert mean == 0.5 and interval == [0.0, 1.0]

    def test_its_interval_has_the_variance_of_tasks_and_that_of_questions(self):
        random = np.random.default_rng(0)
        chances = random.uniform(0.1, 0.9, size=12)
        groups = [(random.uniform(size=30) < chance).astype(float) for chance in chances]
        mean, (low, high) = over_tasks(groups)
        within = np.mean([g.var() / len(g) for g in groups])
        error = np.sqrt((np.var([g.mean() for g in groups]) + within) / len(groups))
        np.testing.assert_allclose([low, high], [mean - 1.645 * error, mean + 1.645 * error], atol=0.02)

    def test_of_one_task_it_is_that_of_its_questions(self):
        values = (np.random.default_rng(0).uniform(size=60) < 0.4).astype(float)
        found, expected = over_tasks([values]), macro([values])
        assert found[0] == expected[0]
        np.testing.assert_allclose(found[1], expected[1], atol=0.02)


class TestSeeds:
    VALUES = (0.31, 0.45, 0.38, 0.52)

    def test_intervals_are_those_of_scipy(self):
        mean, interval = student(self.VALUES)
        error = np.std(self.VALUES, ddof=1) / 2
        assert mean == pytest.approx(np.mean(self.VALUES))
        assert interval == pytest.approx(t.interval(0.9, 3, mean, error))
        logs = np.log(self.VALUES)
        found, limits = over_seeds(self.VALUES)
        assert found == pytest.approx(np.exp(logs.mean()))
        assert limits == pytest.approx(np.exp(t.interval(0.9, 3, logs.mean(), logs.std(ddof=1) / 2)))

    def test_one_seed_says_nothing_of_another(self):
        assert student([0.3]) == (0.3, None)
        found, limits = over_seeds([0.3])
        assert found == pytest.approx(0.3) and limits is None


@pytest.mark.parametrize(
    ("name", "values", "rule"),
    [
        ("icl_risk", [0.01, 0.1, 0.02], over_seeds),
        ("eval.tvp_risk_by_layer", [0.01, 0.1, 0.02], over_seeds),
        ("icl_loss", [0.01, 0.1], over_seeds),
        ("icl_risk", [0.01, 0.0], student),
        ("icl_accuracy", [0.5, 0.7], student),
        ("risk_difference", [0.5, 0.7], student),
        ("icl_risk", [0.3], over_seeds),
    ],
)
def test_risks_have_the_geometric_mean(name, values, rule):
    assert of_metric(name, values) == rule(values)
    ends = of_metric(name, values)[1]
    assert rule is student or ends is None or 0 < ends[0] < min(values)
