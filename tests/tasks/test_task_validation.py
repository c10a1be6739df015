"""Impossible settings are refused in one line that names the field."""

import math

import pytest

from tvjax.errors import UserError
from tvjax.tasks import DecisionTree, Linear, LinearClassification, Quadratic, ReLUNetwork, Sinusoid, TokenOffset

REFUSED = [
    (Linear, "input_width", {"input_width": 0}),
    (Linear, "noise", {"noise": -0.1}),
    (Linear, "noise", {"noise": math.nan}),
    (Linear, "noise", {"noise": math.inf}),
    (Linear, "nonzero", {"nonzero": 5}),
    (Linear, "nonzero", {"nonzero": -1}),
    (Linear, "pool", {"pool": -1}),
    (Linear, "pool_seed", {"pool_seed": -1}),
    (Linear, "outputs", {"outputs": 0}),
    (Sinusoid, "input_width", {"input_width": 0}),
    (Sinusoid, "noise", {"noise": -1.0}),
    (Sinusoid, "amplitude", {"amplitude": (2.0, 1.0)}),
    (Sinusoid, "amplitude", {"amplitude": (-1.0, 1.0)}),
    (Sinusoid, "frequency", {"frequency": (0.0, math.inf)}),
    (Sinusoid, "held_out_phase", {"held_out_phase": (1.0,)}),
    (Sinusoid, "held_out_frequency", {"held_out_frequency": (1.0, 2.0)}),
    (Sinusoid, "grid", {"grid": (16, 48)}),
    (Sinusoid, "grid", {"grid": (16, 0, 64)}),
    (Sinusoid, "grid_width", {"grid_width": 0.0}),
    (TokenOffset, "vocab_size", {"vocab_size": 1}),
    (TokenOffset, "offsets", {"offsets": ()}),
    (TokenOffset, "offsets", {"offsets": (1, 1)}),
    (TokenOffset, "offsets", {"offsets": (20,)}),
    (TokenOffset, "offsets", {"offsets": (1.0,)}),
    (TokenOffset, "held_out_offsets", {"held_out_offsets": (-1,)}),
    (TokenOffset, "held_out_offsets", {"held_out_offsets": (3, 5)}),
    (TokenOffset, "held_out_pairs", {"held_out_pairs": 20}),
    (TokenOffset, "held_out_pairs", {"held_out_pairs": -1}),
    (TokenOffset, "pair_seed", {"pair_seed": -1}),
    (TokenOffset, "noise", {"noise": 1.5}),
    (Quadratic, "input_width", {"input_width": 0}),
    (Quadratic, "noise", {"noise": -0.1}),
    (ReLUNetwork, "input_width", {"input_width": 0}),
    (ReLUNetwork, "hidden_width", {"hidden_width": 0}),
    (DecisionTree, "noise", {"noise": math.inf}),
    (DecisionTree, "depth", {"depth": 0}),
    (DecisionTree, "depth", {"depth": 13}),
    (LinearClassification, "input_width", {"input_width": -1}),
    (LinearClassification, "noise", {"noise": 1.5}),
]


@pytest.mark.parametrize(
    ("family", "field", "given"), REFUSED, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_refused(family, field, given):
    with pytest.raises(UserError) as error:
        family(**given)
    (value,) = given.values()
    message = str(error.value)
    assert message.startswith(f"config.task.{field}: given {value!r}; accepted: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("family", "given"),
    [
        (Linear, {"nonzero": 4, "pool": 1, "noise": 2.0}),
        (Sinusoid, {"held_out_frequency": (0.5, 1.5)}),
        (Sinusoid, {"phase": (0.5, 0.5), "held_out_phase": (1.0, 1.0), "held_out_frequency": (0.5, 1.5)}),
        (Sinusoid, {"phase": (-1.0, 1.0)}),
        (TokenOffset, {"held_out_offsets": (), "held_out_pairs": 0}),
    ],
    ids=str,
)
def test_accepted(family, given):
    made = family(**given)
    assert {name: getattr(made, name) for name in given} == given


def test_lists_from_a_json_file_become_tuples():
    assert hash(TokenOffset(offsets=[1, 2])) == hash(TokenOffset(offsets=(1, 2)))
    assert Sinusoid(phase=[0.0, 1.0], grid=[2, 2, 2]) == Sinusoid(phase=(0.0, 1.0), grid=(2, 2, 2))


def test_a_finite_pool_has_one_output():
    with pytest.raises(
        UserError, match=r"config\.task\.outputs: given 2; accepted: 1, where the tasks come from a finite"
    ):
        Linear(pool=4, outputs=2)
