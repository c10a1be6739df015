"""Every config compiles for NVIDIA GPUs, whole: the training step and the evaluation. No GPU is here: its compiler is.

The kernels are made down to the GPU's own instructions, but none is timed: where a GPU would choose between two ways to
multiply, here it is Triton's.
"""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.conftest import TINY, changed
from tests.experiments.compiled import LARGE, SOURCES, assert_sound, plan_of
from tvjax.experiments.tvp import training
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.parallel.hardware import CHIPS, chip_of
from tvjax.parallel.mesh import make_mesh
from tvjax.parallel.programs import read
from tvjax.parallel.topology import HOST, devices_of
from tvjax.train.plan import make_plan

pytest.importorskip("jax_cuda13_plugin", reason="the GPU compiler is not installed: pip install 'tvjax[gpu-compiler]'")

GPUS = [chip for chip in CHIPS.values() if chip.platform == "gpu"]
PLANS = [(source, "h100", {"fsdp": 8} if source.startswith(LARGE) else {}) for source in SOURCES]
IN_CI = (
    ("tvp_synthetic.py:token_offset", "a100-40g", {"member": 2}),
    ("atv_llama3_8b.py:paper", "h100", {"fsdp": 2 * HOST}),
)
"""Two kinds of GPU, members that stay apart, and two hosts; all configs on H100s are compiled before a release."""


def marked(row):
    return pytest.param(*row, marks=pytest.mark.slow if row in IN_CI else pytest.mark.exhaustive)


@pytest.mark.parametrize(("source", "hardware", "mesh"), map(marked, [*IN_CI, *PLANS]))
def test_it_compiles_for_gpus(source, hardware, mesh, tmp_path):
    fields = {"mesh": mesh} if mesh else {}  # which not every experiment has
    found = plan_of(source, tmp_path, fields, hardware=hardware)
    assert found["compiled_for"] == CHIPS[hardware].processor.name and found["devices"] == math.prod(mesh.values())
    assert_sound(found)
    if source.startswith(LARGE):
        flops = found["step"]["flops"]
        assert flops["bfloat16"] > 0.95 * sum(flops.values())
        frozen = found["devices"] * found["bytes"]["frozen_and_data"]
        # Once, or where what stands before the last tokens is read by itself (`from_last`), twice.
        assert found["evaluation"]["bytes_sent"] < 2 * frozen, "the target is gathered in many passes"


@pytest.mark.parametrize("chip", GPUS, ids=lambda chip: chip.name)
def test_every_gpu_of_the_table_is_compiled_for(chip):
    devices = devices_of(chip, 2 * HOST + 1)
    assert [device.process_index for device in devices] == [0] * HOST + [1] * HOST + [2]
    assert all(chip_of(device.device_kind) is chip for device in devices)
    mesh = make_mesh(data=len(devices), devices=devices)
    x = jax.ShapeDtypeStruct((17 * 64, 64), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("data")))
    found = read(jax.jit(lambda x: x.T @ x).lower(x).compile().as_text(), mesh)
    assert found.flops == {"bfloat16": 2 * 64 * 64 * 64} and {one.axes for one in found.collectives} == {"data"}


SMALL = changed(TINY, train={"batch": 8, "steps": 4, "log_every": 1, "evaluate_every": 4, "checkpoint_every": 4})
FOUR = changed(SMALL, mesh={"member": 4, "data": 2}, population__seed=(0, 1, 2, 3), population__tvp_weight=(1.0,))
FOUR["population"]["name"] = tuple("abcd")


def trainer_of(config):
    devices = devices_of(CHIPS["h100"], math.prod(config["mesh"].values()))
    return training.make_trainer(TVPSettings.from_config(config), make_mesh(**config["mesh"], devices=devices))


@pytest.mark.slow
def test_products_are_counted_alike_by_triton_and_by_cublas():
    """A GPU chooses between the two by timing them. In bfloat16, as asked."""
    one = {"population__name": ("icl",), "population__tvp_weight": (0.0,)}
    trainer = trainer_of(changed(SMALL, model__dtype="bfloat16", model__width=64, **one))
    with jax.set_mesh(trainer.mesh):
        hyper = jax.eval_shape(lambda: trainer.hyper)
        lowered = trainer.dispatch.lower(trainer.abstract, trainer.data, hyper)
    texts = [lowered.compile({"xla_gpu_enable_triton_gemm": triton}).as_text() for triton in (True, False)]
    assert "__cublas$lt$matmul" in texts[1]
    triton, cublas = (read(text, trainer.mesh) for text in texts)
    assert cublas.flops == pytest.approx(triton.flops, rel=1e-3)
    assert triton.flops["bfloat16"] > 0.95 * sum(triton.flops.values())
    assert cublas.moved == pytest.approx(triton.moved, rel=0.5)


def test_a_callback_is_refused(monkeypatch):
    loss = training.TVPExperiment.loss

    def asking(self, params, data, key, step, hyper):
        jax.debug.callback(print, step)
        return loss(self, params, data, key, step, hyper)

    monkeypatch.setattr(training.TVPExperiment, "loss", asking)
    with pytest.raises(RuntimeError, match="gpu"):
        make_plan(trainer_of(SMALL), CHIPS["h100"])


@pytest.mark.exhaustive
def test_members_talk_neither_in_training_nor_in_evaluation():
    assert_sound(make_plan(trainer_of(FOUR), CHIPS["h100"]))


PROGRAM = {"callbacks": (), "flops": {"bfloat16": 1e9}, "collectives": [{"axes": "data"}], "bytes_donated": 12}
STATE = {"parameters": 4, "optimizer": 8, "best": 0}
SOUND = {"fits": True, "advice": "", "mesh": {"member": 2, "data": 2}, "bytes": STATE}
SOUND |= {"step": PROGRAM, "evaluation": PROGRAM}
UNSOUND = {
    "too large": ({"fits": False, "advice": "activations do not fit"}, {}, "activations do not fit"),
    "held twice": ({}, {"bytes_donated": 4}, "held twice"),
    "a callback": ({}, {"callbacks": ("host",)}, "calls the host"),
    "members that talk": ({}, {"collectives": [{"axes": "member+data"}]}, "sends over"),
    "an axis that is not cut": ({}, {"collectives": [{"axes": "tensor"}]}, "sends over"),
    "unknown groups": ({}, {"collectives": [{"axes": "unknown"}]}, "sends over"),
}


@pytest.mark.parametrize(("whole", "step", "why"), UNSOUND.values(), ids=UNSOUND)
def test_a_plan_that_is_not_sound_is_seen(whole, step, why):
    assert_sound(SOUND)
    with pytest.raises(AssertionError, match=why):
        assert_sound({**SOUND, **whole, "step": {**PROGRAM, **step}})
