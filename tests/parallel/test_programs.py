"""A compiled program is read as it is: products, bytes and collectives with their axes, loops as often as they run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tvjax.parallel.mesh import make_mesh
from tvjax.parallel.programs import _axes, _groups, read

L, B, D = 6, 8, 16


def scanned(w_LDD, x_BD):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_BD, w_LDD)[0]


def program(fun, mesh, *given, **options):
    """The program of `fun` for arrays of (shape, spec)."""
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, spec)) for s, spec in given]
    with jax.set_mesh(mesh):
        compiled = jax.jit(fun, **options).lower(*shapes).compile()
    return read(compiled.as_text(), mesh), compiled


def sent(found):
    return {(one.kind, one.axes): (one.count, one.sent) for one in found.collectives}


def test_a_loop_counts_as_often_as_it_runs():
    mesh = make_mesh()
    found, _ = program(scanned, mesh, ((L, D, D), P()), ((B, D), P()))
    assert found.flops == {"float32": L * 2 * B * D * D}
    assert found.collectives == () and found.callbacks == ()
    once, compiled = program(lambda w, x: scanned(w[:1], x), mesh, ((L, D, D), P()), ((B, D), P()))
    assert once.flops == {"float32": 2 * B * D * D}
    assert once.moved == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.3)  # no loop: XLA's account


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("kind", [jnp.int32, jnp.uint32])
def test_a_loop_is_counted_by_its_condition_in_any_kind_of_number(kind, step):
    """A TPU's compiler does not say how often a loop runs, and unrolls some: their counters grow by more than one."""
    body = lambda carry: (carry[0] + kind(step), jnp.tanh(carry[1] @ carry[1]))
    loop = lambda x: jax.lax.while_loop(lambda carry: carry[0] < kind(L), body, (kind(0), x))[1]
    _, compiled = program(loop, make_mesh(), ((D, D), P()))
    text = compiled.as_text().replace("known_trip_count", "said_elsewhere")
    assert read(text, make_mesh()).flops == {"float32": -(-L // step) * 2 * D**3}


def test_batched_products_count_each_once():
    found, _ = program(lambda a, b: jnp.einsum("gij,gjk->gik", a, b), make_mesh(), ((5, 7, D), P()), ((5, D, 3), P()))
    assert found.flops == {"float32": 2 * 5 * 7 * D * 3}


def cublas(target, precision):
    """A program of one product ``gij,gjk->gik`` that NVIDIA's library does, with 4 MiB to work in."""
    dots = '"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"]}'
    how = f'"precision_config":{{"operand_precision":["{precision}","{precision}"]}}'
    config = f'backend_config={{"operation_queue_id":"0","gemm_backend_config":{{"beta":0,{dots},{how}}}}}'
    return f"""HloModule cublas
ENTRY %main (a: f32[5,7,16], b: f32[5,16,3]) -> f32[5,7,3] {{
  %a = f32[5,7,16]{{2,1,0}} parameter(0)
  %b = f32[5,16,3]{{2,1,0}} parameter(1)
  %call = (f32[5,7,3]{{2,1,0}}, s8[4194304]{{0}}) custom-call(%a, %b), custom_call_target="{target}", {config}
  ROOT %out = f32[5,7,3]{{2,1,0}} get-tuple-element(%call), index=0
}}"""


@pytest.mark.parametrize("target", ["__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8"])
def test_products_of_cublas_are_counted_and_its_room_is_not(target):
    found = read(cublas(target, "HIGHEST"), make_mesh())
    assert found.flops == {"float32_highest": 2 * 5 * 7 * 16 * 3}
    assert found.moved == 4 * (5 * 7 * 16 + 5 * 16 * 3 + 5 * 7 * 3)
    assert read(cublas(target, "DEFAULT"), make_mesh()).flops == {"float32": 2 * 5 * 7 * 16 * 3}
    assert read(cublas("__cudnn$fmhaSoftmax", "DEFAULT"), make_mesh()).flops == {}


def test_each_layer_is_gathered_by_itself_over_fsdp():
    mesh = make_mesh(fsdp=4)
    found, _ = program(scanned, mesh, ((L, D, D), P(None, "fsdp")), ((B, D), P("fsdp")))
    gathered = [one for one in found.collectives if one.kind == "all-gather"]
    assert sum(one.sent for one in gathered) == L * D * D * 4 * 3 / 4
    assert max(one.result for one in gathered) == D * D * 4, "a whole stack is gathered at once"
    assert {one.axes for one in gathered} == {"fsdp"}


def test_a_mean_over_the_batch_is_reduced_over_its_axes():
    mesh = make_mesh(member=2, data=4)
    found, _ = program(lambda x: x.sum(0), mesh, ((B, D), P("data")), out_shardings=NamedSharding(mesh, P()))
    assert sent(found) == {("all-reduce", "data"): (1, 2 * D * 4 * 3 / 4)}


def test_a_donated_argument_is_aliased_and_a_callback_is_seen():
    found, _ = program(lambda x, y: x + y, make_mesh(), ((D,), P()), ((D,), P()), donate_argnums=1)
    assert found.aliased == {1}

    def asks(x):
        return jax.pure_callback(lambda a: np.asarray(a), jax.ShapeDtypeStruct((D,), jnp.float32), x)

    assert program(asks, make_mesh(), ((D,), P()))[0].callbacks


GROUPS = {
    "listed": ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, use_global_device_ids=true", "tensor"),
    "all": ("replica_groups={}, to_apply=%add", "data+fsdp+tensor"),
    "iota": ("replica_groups=[4,2]<=[8], use_global_device_ids=true", "tensor"),
    "transposed": ("replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true", "data"),
    "pairs": ("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}, metadata={}", "fsdp"),
    "mesh": ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_1'}, dimensions={0}", "fsdp"),
    "mesh of others": ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}, dimensions={0}", "tensor"),
    "part of an axis": ("replica_groups=mesh['a'=8] {'a':(2)2}, dimensions={0}", "fsdp"),
    "alone": ("replica_groups={{0},{1}}, to_apply=%add", ""),
    "unheard of": ("replica_groups=anything", "unknown"),
}


@pytest.mark.parametrize(("text", "axes"), GROUPS.values(), ids=GROUPS)
def test_groups_in_every_way_that_they_are_written(text, axes):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert _axes(_groups(text, 8), mesh) == axes


def test_a_gradient_of_many_layers_has_three_products_a_layer():
    grad = jax.grad(functools.partial(lambda w, x: scanned(w, x).sum()), argnums=(0, 1))
    found, _ = program(grad, make_mesh(), ((L, D, D), P()), ((B, D), P()))
    assert found.flops == {"float32": L * 3 * 2 * B * D * D}
