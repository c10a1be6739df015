"""Micro-batches: the same numbers as all at once, within the memory that the user gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax.errors import UserError
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model, forward
from tvjax.parallel.batches import GIB, Batches
from tvjax.train.flops import flops


@functools.partial(jax.jit, static_argnums=0)
def program(power, weights, rows):
    """Takes [B, 64, 64] of scratch memory: 16 KiB an entry."""
    outer = rows["x"][:, :, None] * weights[None] * rows["x"][:, None, :]
    return {"sum": jnp.sort(outer.reshape(len(outer), -1))[:, -3:] ** power}


def inputs(count):
    return jax.random.normal(jax.random.key(0), (64, 64)), {"x": jax.random.normal(jax.random.key(1), (count, 64))}


@pytest.mark.parametrize(("count", "most"), [(1, 4), (3, 4), (4, 4), (9, 4), (9, 100)])
def test_the_numbers_are_those_of_one_pass(count, most):
    weights, rows = inputs(count)
    expected = program(2, weights, rows)["sum"]
    np.testing.assert_array_equal(Batches(1.0, most)(program, (2,), (weights,), rows)["sum"], expected)


@pytest.mark.parametrize("entries", [1, 5, 20])
def test_a_pass_takes_no_more_than_it_may(entries):
    weights, rows = inputs(50)
    batch = lambda size: jax.tree.map(lambda a: a[:size], rows)
    memory = lambda size: program.lower(2, weights, batch(size)).compile().memory_analysis()
    used = lambda size: (memory(size).temp_size_in_bytes + memory(size).output_size_in_bytes) / GIB
    batches = Batches(1.001 * used(entries), most=50)
    expected = program(2, weights, rows)["sum"]
    np.testing.assert_array_equal(batches(program, (2,), (weights,), rows)["sum"], expected)
    ((size, _),) = batches._programs.values()
    assert size <= entries < 2 * size + 1, size


def test_one_program_for_arrays_of_any_length():
    batches = Batches(1.0, 4)
    for count in (3, 4, 11):
        weights, rows = inputs(count)
        batches(program, (2,), (weights,), rows)
    assert len(batches._programs) == 1
    batches(program, (3,), (weights,), rows)
    assert len(batches._programs) == 2


def test_operations_are_those_of_the_entries_and_compiling_has_its_own_seconds():
    """Entries that fill up a batch, and programs that are there already, count as what they are."""
    multiply = jax.jit(lambda weights, rows: rows @ weights)
    batches = Batches(1.0, 4, lambda jaxpr, loops: loops * flops(jaxpr).total())
    weights, rows = jnp.ones((3, 5)), jnp.ones((7, 3))
    batches(multiply, (), (weights,), rows)
    assert batches.operations == 7 * 2 * 3 * 5
    compiling = batches.compiling
    batches(multiply, (), (weights,), rows[:6], loops=10)
    assert batches.operations == (7 + 60) * 2 * 3 * 5 and batches.compiling == compiling > 0
    assert Batches(1.0, 4).operations == 0


def test_models_of_the_same_shapes_have_programs_of_their_own():
    config = DecoderConfig(1, 8, 2, 3, inputs="tokens", vocab_size=3, positions="none")
    params = Decoder(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    readout = jax.jit(lambda model, ids: forward(model, ids)[0])
    ids_BT, batches = jnp.array([[0, 1, 2]]), Batches(1.0, 4)
    for epsilon in (1e-5, 0.5):
        model = Model(params, dataclasses.replace(config, norm_epsilon=epsilon))
        found = batches(readout, (), (model,), ids_BT)
        np.testing.assert_allclose(found, forward(model, ids_BT)[0], rtol=1e-5, atol=1e-6)
    assert len(batches._programs) == 2


def test_memory_that_holds_no_entry_is_refused_with_what_one_takes():
    weights, rows = inputs(4)
    with pytest.raises(UserError, match=r"memory: given 1e-06; accepted: .* or more"):
        Batches(1e-6, 4)(program, (2,), (weights,), rows)
