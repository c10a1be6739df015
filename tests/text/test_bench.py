"""What a bench asks: lengths of prompts, what leads them, and the choice of layer and scale."""

import types

import numpy as np
import pytest

from tests.text.test_pieces import begun, byte_level, opened
from tvjax.evals.learned import clearly_above
from tvjax.tasks.text import Template, TextTask, split_of
from tvjax.text.bench import Bench, Right, VectorConfig, best_layer_and_scale, room

INPUTS = [f"{a}{b}" for a in "abcd" for b in "efgh"]
TASK = TextTask("twice", tuple((x, x + x) for x in INPUTS))


def bench_of(tokenizer, template):
    config = types.SimpleNamespace(num_layers=2, num_heads=2, width=4, positions="rotary", max_positions=0)
    model = types.SimpleNamespace(config=config, source=types.SimpleNamespace(tokenizer=tokenizer))
    assert {split_of(x) for x in INPUTS} == {"train", "dev", "test"}
    return Bench(model, VectorConfig(demonstrations=2, prompts=2), template, {"twice": TASK})


def test_lengths_are_few_and_not_much_longer():
    lengths = [room(n) for n in range(1, 2049)]
    assert all(length >= n and length - n < max(16, n / 4) for n, length in enumerate(lengths, 1))
    assert len(set(lengths)) < 60 and room(1) == room(16) == 16 and room(17) == 32


def test_prompts_have_the_length_of_their_own_batch(tmp_path):
    bench = bench_of(opened(byte_level(), tmp_path), Template("", ">", ";"))
    short, long = (bench.ask([text], ["abc"]) for text in ("ab>", "cdefgh" * 8 + ">"))
    assert (short.tokens.ids_BT.shape, long.tokens.ids_BT.shape) == ((1, 16), (1, 64))
    assert short.answers_BA.shape == (1, 4) and short.real_BA.sum() == 4, "a space and three letters"
    assert int(short.last_B[0]) == 2 and short.tokens.valid_BT.sum() == 7


@pytest.mark.parametrize("first", [False, True], ids=["bare", "BOS"])
@pytest.mark.parametrize("start", ["", "\n"])
def test_a_query_in_the_first_token_is_known(first, start, tmp_path):
    """What the tokenizer puts in front does, and then `start` is not put there too."""
    tokenizer = opened(begun(byte_level()) if first else byte_level(), tmp_path)
    bench = bench_of(tokenizer, Template("", ">", ";", start=start))
    assert bench.template.start == ("" if first else start)
    assert bench.sink() == ("" if first or start else INPUTS[0])
    assert bench_of(tokenizer, Template("Q:", ">", ";")).sink() == ""


def test_layer_and_scale_are_chosen_by_first_tokens_then_by_whole_answers():
    first, whole = np.zeros((2, 4, 3, 2))
    first[:3, 1, 1] = first[:3, 2, 0] = 1
    whole[:1, 2, 0] = whole[:, 0, 0] = 1
    assert best_layer_and_scale(Right(first, whole)) == (2, 0)
    first[3, 1, 1] = 1
    assert best_layer_and_scale(Right(first, whole)) == (1, 1)


def test_more_right_answers_than_by_chance_are_clearly_above():
    zero_shot = np.array([1.0] * 3 + [0.0] * 17)
    assert not clearly_above(zero_shot, zero_shot)
    assert clearly_above(np.array([1.0] * 7 + [0.0] * 13), zero_shot)
    assert not clearly_above(np.array([0.0] * 3 + [1.0] * 4 + [0.0] * 13), zero_shot)  # others, and hardly more
    one = np.array([1.0] + [0.0] * 19)
    assert not clearly_above(one, zero_shot * 0)
