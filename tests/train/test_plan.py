"""A plan says what training really takes: bytes of state, the compiler's peak, and who talks to whom."""

import math

import jax
import pytest

from tests.conftest import TINY, changed
from tests.parallel.test_sharding import atv_trainer
from tvjax.errors import UserError
from tvjax.experiments import planned
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import make_trainer
from tvjax.parallel.hardware import CHIPS
from tvjax.parallel.mesh import compiler_options
from tvjax.parallel.programs import Collective, Program
from tvjax.parallel.topology import devices_of
from tvjax.train.plan import advice, as_text, make_plan, work

TRAIN = {"batch": 8, "steps": 4, "log_every": 1, "evaluate_every": 4, "checkpoint_every": 4}
CONFIG = changed(TINY, train=TRAIN, model__max_positions=16)
MESHES = [{}, {"member": 2, "data": 2}, {"data": 2, "fsdp": 2, "tensor": 2}]


def bytes_on_a_device(tree):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def marked(mesh):
    return pytest.param(mesh, marks=pytest.mark.slow if mesh == MESHES[-1] else pytest.mark.exhaustive)


@pytest.mark.parametrize("mesh", map(marked, MESHES), ids=str)
def test_it_is_what_training_takes(mesh, tmp_path):
    found = planned.plan({**CONFIG, "mesh": mesh, "plan": {}}, tmp_path, lambda line: None)
    trainer = make_trainer(TVPSettings.from_config(changed(CONFIG, mesh=mesh)))
    with jax.set_mesh(trainer.mesh):
        state = trainer.init(trainer.hyper, {})
        compiled = trainer.lower()["dispatch"].compile(compiler_options())
    assert found["bytes"]["parameters"] == bytes_on_a_device(state.params)
    assert found["bytes"]["optimizer"] == bytes_on_a_device(state.opt_state)
    m = compiled.memory_analysis()
    peak = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes
    assert found["step"]["bytes"]["peak"] == peak
    assert found["devices"] == math.prod(mesh.values()) and (tmp_path / "plan.json").is_file()
    if "fsdp" not in mesh:
        assert not [one for one in found["step"]["collectives"] if "member" in one["axes"]], "members talk"


@pytest.mark.slow
def test_members_cost_no_communication():
    config = changed(CONFIG, mesh={"member": 2})
    found = make_plan(make_trainer(TVPSettings.from_config(config)), CHIPS["cpu"])
    assert found["step"]["collectives"] == found["evaluation"]["collectives"] == []


@pytest.mark.slow
def test_the_plan_of_a_frozen_target_counts_its_parts():
    trainer = atv_trainer({"fsdp": 4, "tensor": 2})
    found = make_plan(trainer, CHIPS["h100"])
    assert found["bytes"]["frozen_and_data"] == bytes_on_a_device(trainer.data)
    assert {one["axes"] for one in found["step"]["collectives"]} <= {"fsdp", "tensor", "fsdp+tensor"}
    assert "h100" in as_text(found) and found["fits"]


@pytest.mark.parametrize(
    ("flops", "moved", "sent", "binds"),
    [(1e15, 1e9, 1e6, "compute"), (1e9, 1e12, 1e6, "memory"), (1e9, 1e9, 1e12, "network")],
)
def test_the_slowest_of_three_binds(flops, moved, sent, binds):
    chip = CHIPS["tpu-v5p"]
    collective = Collective("all-reduce", "data", 1, sent, 1, "sum")
    found = work(Program({"bfloat16": flops}, moved, (collective,), (), frozenset()), chip)
    assert found["binds"] == binds
    assert found["least_seconds"] == max(flops / 459e12, moved / 2765e9, sent / 600e9)


STATE = {"parameters": 2e11, "optimizer": 0}
PEAKS = {
    "state": (STATE, 3e11, 3e11, "config.mesh.fsdp"),
    "activations": ({"parameters": 1e9}, 3e11, 1e9, "micro_batches"),
    "evaluation": ({"parameters": 1e9}, 1e10, 3e11, "config.evaluation"),
    "an unknown peak": ({"parameters": 1e9}, None, 1e9, "micro_batches"),
}


@pytest.mark.parametrize(("state", "step", "evaluation", "field"), PEAKS.values(), ids=PEAKS)
def test_what_does_not_fit_is_told_what_to_change(state, step, evaluation, field):
    found = {"bytes": state, "step": {"bytes": {"peak": step}}, "evaluation": {"bytes": {"peak": evaluation}}}
    assert field in advice(found, CHIPS["tpu-v5p"])


WRONG = {
    "unknown hardware": ({"hardware": "tpu-v99"}, {}, "config.plan.hardware", "tpu-v99", "tpu-v5p"),
    "another number of devices": ({"devices": 8}, {"data": 4}, "config.plan.devices", "8", "4, the product"),
    "no slice": ({"devices": 6, "hardware": "tpu-v5e"}, {}, "config.plan.devices", "6", "power of two"),
    "fewer than none": ({"devices": -1}, {}, "config.plan.devices", "-1", "0 or more"),
    "no such field": ({"chips": 4}, {}, "config.plan.chips", "4", "hardware"),
    "no tokens": ({"query_tokens": 0}, {}, "config.plan.query_tokens", "0", "1 or more"),
}


def test_a_batch_that_does_not_divide_is_noted():
    sizes = {"data": 2, "fsdp": 4}
    assert planned.notes({"train": {"batch": 16, "micro_batches": 2}}, sizes) == []
    assert "batch of 4" in planned.notes({"train": {"batch": 8, "micro_batches": 2}}, sizes)[0]
    assert planned.notes({}, sizes) == []


@pytest.mark.parametrize(("plan", "mesh", "field", "given", "accepted"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_planned_is_refused(plan, mesh, field, given, accepted, tmp_path):
    if "tpu" in plan.get("hardware", "") and plan["hardware"] in CHIPS:
        pytest.importorskip("libtpu")
    with pytest.raises(UserError) as error:
        planned.plan({**CONFIG, "mesh": mesh, "plan": plan}, tmp_path)
    line = str(error.value)
    assert line.startswith(field) and given in line and accepted in line and "\n" not in line


def test_a_study_is_planned_on_the_mesh_of_its_base(tmp_path):
    config = {"experiment": "sweep", "base": {**CONFIG, "mesh": {"data": 4}}, "plan": {"devices": 8}}
    with pytest.raises(UserError, match=r"config.plan.devices: given 8; .*4, the product of config.base.mesh"):
        planned.plan(config, tmp_path)


def test_without_libtpu_a_tpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"config.plan.hardware.*'tpu-v5e'.*libtpu"):
        planned.plan({**CONFIG, "plan": {"hardware": "tpu-v5e"}}, tmp_path)


def test_without_its_compiler_a_gpu_is_planned_by_virtual_cpu_devices_which_the_plan_says(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert {device.platform for device in devices_of(CHIPS["h100"], 8)} == {"cpu"}
    assert "compiled for virtual CPU devices" in planned.limits(CHIPS["h100"], {"fsdp": 8})[0]
    assert planned.limits(CHIPS["cpu"], {"fsdp": 16}) == []


def test_with_its_compiler_a_plan_for_one_host_has_no_limits(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert planned.limits(CHIPS["h100"], {"data": 2, "fsdp": 4}) == []
    assert "NVLink" in planned.limits(CHIPS["h100"], {"data": 2, "fsdp": 8})[0]
