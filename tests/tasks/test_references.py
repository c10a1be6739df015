"""What a model is measured against: the oracle, and the prior of families with and without one."""

import jax
import numpy as np

from tvjax.tasks import (
    LAYOUTS,
    NO_SHIFT,
    DecisionTree,
    LinearClassification,
    Quadratic,
    draw,
    oracle_scores,
    reference_scores,
    shifts_for,
)

LAYOUT = LAYOUTS["xzy"]


def shifted_of(task, name):
    shift = {shift.name: shift for shift in (NO_SHIFT, *shifts_for(task, 4))}[name]
    return shift, draw(shift, task, LAYOUT, jax.random.key(0), 2000, 4)


class TestReferences:
    def test_the_prior_answers_the_mean(self):
        task = DecisionTree(input_width=3, depth=2)
        shift, shifted = shifted_of(task, "output_scale_2")
        references = reference_scores(shift, task, shifted)
        assert set(references) == {"prior_risk"} and references["prior_risk"].shape == (2000,)
        np.testing.assert_allclose(references["prior_risk"], np.square(shifted.answers[:, 0, 0]), rtol=1e-6)
        np.testing.assert_allclose(references["prior_risk"].mean(), 4, rtol=0.1)

    def test_it_guesses_labels_half_right(self):
        task = LinearClassification(input_width=3)
        references = reference_scores(NO_SHIFT, task, shifted_of(task, "in_distribution")[1])
        assert {name: set(np.unique(value)) for name, value in references.items()} == {
            "prior_risk": {1.0},
            "prior_accuracy": {0.5},
        }

    def test_with_an_oracle_the_prior_is_the_one_that_has_seen_nothing(self):
        task = Quadratic(input_width=3)
        shift, shifted = shifted_of(task, "quadrants")
        references = reference_scores(shift, task, shifted)
        np.testing.assert_array_equal(references["oracle_risk"], oracle_scores(shift, task, shifted)["risk"])
        np.testing.assert_array_equal(references["prior_risk"], references["oracle_risk"][:, 0])
        assert references["oracle_risk"][:, 3:].mean() < 1e-3

    def test_label_noise_replaces_labels(self):
        shifted = shifted_of(LinearClassification(), "label_noise")[1]
        assert set(np.unique(shifted.shown)) == {-1.0, 1.0}
        np.testing.assert_allclose((shifted.shown != shifted.prompt.targets).mean(), 0.1, atol=0.01)
