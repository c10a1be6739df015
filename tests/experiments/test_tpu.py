"""Every config compiles for a TPU, whole: the training step and the evaluation. There is no TPU: its compiler is here.

One after another, in one process: a compilation takes a gigabyte or two.
"""

import jax
import pytest

from tests.conftest import TINY, changed, quiet
from tests.experiments.compiled import FOUND, LARGE, SOURCES, UNTRAINED, assert_sound, plan_of
from tests.experiments.test_configs import read
from tests.parallel.test_sharding import atv_trainer
from tvjax.errors import UserError
from tvjax.experiments import planned
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import make_trainer
from tvjax.parallel.hardware import CHIPS
from tvjax.parallel.mesh import make_mesh
from tvjax.parallel.topology import devices_of
from tvjax.train.plan import make_plan

pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install 'tvjax[tpu]'")

IN_CI = (
    *("tvp_synthetic.py:token_offset", "tvp_garg.py:linear"),
    *("atv_text.py:smollm2", "atv_llama3_8b.py:paper", "tvp_language.py:small"),
)
"""One of each kind: the others differ from these by their task or their sizes, and are compiled before a release."""
FULL_SIZE = ("tvp_garg.py:", "emergence.py:full", "tvp_ginc.py:published", "tvp_regbench.py:published")
"""What not all fits into the 16 GiB of a v5e chip."""


@pytest.fixture
def quickly():
    """The compiler looks for a program that fits and runs, not for the fastest: half the time."""
    names = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
    for name in names:
        jax.config.update(name, -1.0)
    yield
    for name in names:
        jax.config.update(name, 0.0)


def marked(source):
    return pytest.param(source, marks=pytest.mark.slow if source in IN_CI else pytest.mark.exhaustive)


def test_what_is_compiled_in_ci_is_there():
    assert set(IN_CI) <= set(SOURCES)


@pytest.mark.parametrize("source", map(marked, SOURCES))
def test_it_compiles_for_a_tpu(source, tmp_path, quickly):
    hardware = {"hardware": "tpu-v5p" if source.startswith((*LARGE, *FULL_SIZE)) else "tpu-v5e"}
    if source.startswith(LARGE):
        hardware["devices"] = 64
    found = plan_of(source, tmp_path, **hardware)
    assert_sound(found)


@pytest.mark.parametrize("source", UNTRAINED)
def test_where_nothing_is_trained_there_is_nothing_to_plan(source, tmp_path):
    assert source in FOUND
    with pytest.raises(UserError, match=r"config.model.path: given 'smollm2'; .*nothing is trained"):
        planned.plan({**read(source), "plan": {"hardware": "tpu-v5e"}}, tmp_path, quiet)


def described(count, name="tpu-v5p"):
    return devices_of(CHIPS[name], count)


SMALL = changed(TINY, train={"batch": 8, "steps": 4, "log_every": 1, "evaluate_every": 4, "checkpoint_every": 4})


def tvp_plan(mesh, count, **fields):
    settings = TVPSettings.from_config(changed(SMALL, mesh=mesh, **fields))
    return make_plan(make_trainer(settings, make_mesh(**mesh, devices=described(count))), CHIPS["tpu-v5p"])


@pytest.mark.slow
def test_members_talk_neither_in_training_nor_in_evaluation():
    names = tuple("abcdefgh")
    many = {"population__name": names, "population__tvp_weight": (1.0,), "population__seed": tuple(range(8))}
    found = tvp_plan({"member": 8}, 8, **many)
    assert found["step"]["collectives"] == found["evaluation"]["collectives"] == []
    beside = tvp_plan({"member": 4, "data": 2}, 8, **many)["step"]["collectives"]
    assert {one["axes"] for one in beside} == {"data"}


@pytest.mark.slow
def test_products_are_in_bfloat16_where_asked():
    flops = tvp_plan({}, 4, model__dtype="bfloat16", model__width=64)["step"]["flops"]
    assert flops["bfloat16"] > 0.95 * sum(flops.values())


@pytest.mark.slow
def test_over_fsdp_a_layer_is_gathered_at_a_time():
    """A target of two layers: the largest of its kernels is [2, 16, 64]."""
    found = make_plan(atv_trainer({"fsdp": 8}, described(8)), CHIPS["tpu-v5p"])
    gathered = [one for one in found["step"]["collectives"] if one["kind"] == "all-gather" and "blocks" in one["name"]]
    assert gathered and max(one["result"] for one in gathered) <= 16 * 64 * 4
