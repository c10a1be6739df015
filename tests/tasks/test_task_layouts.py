"""Where the parts of a prompt lie in the sequence."""

import jax
import numpy as np
import pytest

from tvjax.tasks import LAYOUTS, Linear, TokenOffset
from tvjax.tasks.prompt import NUM_KINDS, X, Y, Z

ORDER = {"xzy": [X, Z, Y], "xy": [X, Y]}
layouts = pytest.mark.parametrize("name", LAYOUTS)
families = pytest.mark.parametrize("task", [Linear(input_width=3), TokenOffset()], ids=["real", "tokens"])


def kinds_of(prompt):
    """What each position is, ``[T]``."""
    return np.array((prompt.layout.parts * prompt.x.shape[1])[: prompt.inputs.shape[1]])


@layouts
@families
@pytest.mark.parametrize("demonstrations", [0, 1, 4])
def test_lengths_and_kinds(name, task, demonstrations):
    prompt = task.sample(jax.random.key(0), 2, demonstrations, LAYOUTS[name])
    expected = (ORDER[name] * (demonstrations + 1))[:-1]
    assert list(kinds_of(prompt)) == expected
    assert prompt.inputs.shape[:2] == (2, len(expected))
    read = Z if name == "xzy" else X
    assert list(range(len(expected)))[prompt.queries] == [i for i, kind in enumerate(expected) if kind == read]


@layouts
def test_real_inputs_hold_each_part_in_its_place(name):
    prompt = Linear(input_width=3).sample(jax.random.key(0), 2, 4, LAYOUTS[name])
    inputs, kinds = np.asarray(prompt.inputs), kinds_of(prompt)
    assert inputs.shape[-1] == 3 + 1 + NUM_KINDS
    np.testing.assert_array_equal(inputs[:, kinds == X, :3], prompt.x)
    np.testing.assert_array_equal(inputs[:, kinds == Y, 3:4], prompt.targets[:, :-1])
    assert not inputs[:, kinds != X, :3].any()
    assert not inputs[:, kinds != Y, 3].any()
    np.testing.assert_array_equal(inputs[0, :, 4:], np.eye(NUM_KINDS)[kinds])


@layouts
def test_tokens_hold_each_part_in_its_place(name):
    prompt = TokenOffset().sample(jax.random.key(0), 2, 4, LAYOUTS[name])
    inputs, kinds = np.asarray(prompt.inputs), kinds_of(prompt)
    np.testing.assert_array_equal(inputs[:, kinds == X], prompt.x)
    np.testing.assert_array_equal(inputs[:, kinds == Y], prompt.targets[:, :-1])
    assert (inputs[:, kinds == Z] == TokenOffset().decoder_inputs()["vocab_size"] - 1).all()
    assert (inputs[:, kinds != Z] < 20).all()


@layouts
@families
def test_zero_shot_is_the_beginning_of_any_longer_prompt(name, task):
    prompt = task.sample(jax.random.key(0), 2, 4, LAYOUTS[name])
    zero_shot = task.zero_shot(LAYOUTS[name], prompt.x[:, 0])
    assert zero_shot.shape[1] == len(ORDER[name]) - 1
    np.testing.assert_array_equal(zero_shot, prompt.inputs[:, : zero_shot.shape[1]])


@layouts
@families
def test_the_last_answer_is_not_in_the_inputs(name, task):
    prompt = task.sample(jax.random.key(0), 2, 4, LAYOUTS[name])
    changed = task.encode(LAYOUTS[name], prompt.x, prompt.targets.at[:, -1].add(1))
    np.testing.assert_array_equal(changed, prompt.inputs)
