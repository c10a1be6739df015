"""Every product of a decoder, forward and backward, has the precision that its config says; measurements are exact.

By the lowered text, for a TPU and a GPU that are not here: on a CPU all precisions are one.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.conftest import SMALL, TINY, changed
from tests.nn.golden import GOLDEN, each_family
from tests.parallel.test_sharding import atv_experiment
from tests.tasks.test_families import SETTINGS
from tvjax.errors import UserError
from tvjax.experiments import identity, rundir
from tvjax.experiments.atv.settings import TargetConfig
from tvjax.experiments.models import ModelConfig
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import make_trainer
from tvjax.files import write_json
from tvjax.methods.lora import LoRA
from tvjax.nn.decoder import PRECISIONS, Decoder, DecoderConfig
from tvjax.nn.decoding import generate
from tvjax.nn.model import Model, forward
from tvjax.nn.pretrained.families import read_config
from tvjax.nn.pretrained.weights import abstract_params
from tvjax.nn.tokens import pad
from tvjax.settings import build
from tvjax.tasks import LAYOUTS, NO_SHIFT, draw, reference_scores

BASE = DecoderConfig(3, 16, 4, 7, inputs="tokens", vocab_size=7, max_positions=80)
VARIANTS = {
    "rolled": {"unroll": 1},
    "unrolled": {},
    "remat": {"unroll": 1, "remat": "full"},
    "remat of dots": {"unroll": 1, "remat": "dots"},
    "grouped, tied": {"num_kv_heads": 2, "tied_readout": True, "positions": "rotary", "mlp": "gated_silu"},
    "capped": {"attention_cap": 5.0, "readout_cap": 5.0, "windows": (2, 0, 2)},
    "real inputs": {"inputs": "real", "vocab_size": 0},
    "in bfloat16": {"dtype": "bfloat16", "unroll": 1},
}
INPUTS = {"tokens": jnp.zeros((2, 64), jnp.int32), "real": jnp.zeros((2, 64, 5))}
"""So long that a CPU's attention is cut in two."""


def precisions(function, *arguments, platform="cpu"):
    """Those of all products in the program of `function`."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert lines
    found = [re.search(r"precision = \[(\w+), (\w+)\]", line) for line in lines]
    return {"none" if one is None else "/".join(sorted(set(one.groups()))) for one in found}


def loss(config, params, inputs):
    return forward(Model(params, config), inputs)[0].sum()


def both_passes(precision, **changes):
    """The value and the gradient of a decoder, and what they are of."""
    config = dataclasses.replace(BASE, matmul_precision=precision, **changes)
    inputs = INPUTS[config.inputs]
    params = jax.eval_shape(Decoder(config).init, jax.random.key(0), inputs)["params"]
    return jax.value_and_grad(lambda params, inputs: loss(config, params, inputs)), params, inputs


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_all_products_of_both_passes_have_it(changes):
    for precision in ("highest", "default"):
        assert precisions(*both_passes(precision, **changes)) == {precision.upper()}


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_so_it_is_on_accelerators_and_for_members_side_by_side(platform):
    function, params, inputs = both_passes("high", unroll=1)
    members = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), params)
    assert precisions(jax.vmap(function, (0, None)), members, inputs, platform=platform) == {"HIGH"}


@each_family
def test_a_folder_of_every_family_is_read_and_asked_at_full_precision(name):
    config = read_config(tvjax.files.read_json(GOLDEN / name / "config.json", ""), name)
    params, ids = abstract_params(config), jnp.zeros((1, 5), jnp.int32)
    assert precisions(lambda p, i: jax.value_and_grad(loss, 1)(config, p, i), params, ids) == {"HIGHEST"}


@pytest.mark.parametrize("unroll", [0, 1])
def test_decoding_with_a_cache_has_it(unroll):
    config = dataclasses.replace(BASE, unroll=unroll, matmul_precision="high")
    params = abstract_params(config)
    assert precisions(lambda p: generate(Model(p, config), pad([[1, 2], [3]]), 3), params) == {"HIGH"}


def test_training_with_the_tvp_loss_has_it_too(precision="high"):
    s = TVPSettings.from_config(changed(TINY, model__matmul_precision=precision))
    trainer = make_trainer(s)
    with jax.set_mesh(trainer.mesh):
        texts = {name: program.as_text() for name, program in trainer.lower().items()}
    for name in ("dispatch", "evaluate"):
        assert f"[{precision.upper()}, {precision.upper()}]" in texts[name]
        assert texts[name].count("dot_general") == texts[name].count(f"[{precision.upper()}, {precision.upper()}]")


@pytest.mark.parametrize("precision", ["highest", "default"])
@pytest.mark.parametrize("kind", ["atv", "lora"])
def test_what_is_trained_on_a_frozen_target_has_its_precision(kind, precision):
    """The expansion of ATV and LoRA's sums are outside of any decoder."""
    whole = atv_experiment()
    at = lambda config: dataclasses.replace(config, matmul_precision=precision)
    adapter = dataclasses.replace(whole.adapter, target=at(whole.adapter.target), generator=at(whole.adapter.generator))
    adapter = LoRA(adapter.target, 2) if kind == "lora" else dataclasses.replace(adapter, rank=2)
    target = whole.frozen["target"]
    given = whole.frozen | {"target": target.replace(config=at(target.config))}
    experiment = dataclasses.replace(whole, adapter=adapter, frozen=given)
    data, hyper = (
        jax.tree.map(jnp.asarray, experiment.data()),
        {"seed": 0, "scale": jnp.ones(2), "examples": jnp.asarray(16)},
    )
    params = jax.eval_shape(experiment.init, jax.random.key(0), data)
    step = jax.value_and_grad(lambda p: experiment.loss(p, data, jax.random.key(0), jnp.asarray(0), hyper)[0])
    assert precisions(step, params) == {precision.upper()}


@pytest.mark.parametrize("task", SETTINGS, ids=str)
def test_a_task_and_its_oracle_are_exact(task):
    """Whatever a run computes in: they are what it is measured against."""

    def drawn(key):
        shown = draw(NO_SHIFT, task, LAYOUTS["xzy"].wide(task.x_tokens), key, 2, 3)
        return shown.prompt.inputs, reference_scores(NO_SHIFT, task, shown)

    text = jax.jit(drawn).trace(jax.random.key(0)).lower(lowering_platforms=("tpu",)).as_text()
    for line in text.splitlines():
        assert "dot_general" not in line or "[HIGHEST, HIGHEST]" in line, line


@pytest.mark.parametrize("wrong", ["tf32", "HIGHEST", "float32", "", None, 2])
class TestOnlyWhatThereIs:
    @pytest.mark.parametrize("kind", [TargetConfig, ModelConfig])
    def test_in_a_config(self, kind, wrong):
        with pytest.raises(UserError, match=r"model.matmul_precision: given .*; accepted: .*'highest', 'high', 'def"):
            build(kind, {"matmul_precision": wrong}, "config.model")
        with pytest.raises(UserError, match=r"config.model.matmul_precision: given .*'highest'"):
            TVPSettings.from_config(changed(TINY, model__matmul_precision=wrong))

    def test_in_load(self, wrong):
        if wrong is not None:
            with pytest.raises(UserError, match=r"precision: given .*highest, high, default"):
                tvjax.load(GOLDEN / "llama3", precision=wrong)


@pytest.mark.parametrize("precision", [None, *PRECISIONS])
def test_a_model_is_loaded_with_it(precision):
    model = tvjax.load(GOLDEN / "llama3", precision=precision)
    assert model.config.matmul_precision == (precision or "highest")
    ids = jnp.arange(10).reshape(2, 5)
    expected = tvjax.run(tvjax.load(GOLDEN / "llama3"), ids)
    np.testing.assert_array_equal(tvjax.run(model, ids), expected, "on a CPU all are the same")


class TestARunOfBefore:
    """Its config.json has no such field."""

    def test_it_goes_on_with_the_default(self, tmp_path):
        write_json(tmp_path / "config.json", SMALL)
        before = identity.run_of(tmp_path)
        rundir.prepare(tmp_path, changed(SMALL, model__matmul_precision="highest"), new=True)
        assert identity.run_of(tmp_path) == before, "its checkpoints are still its own"
        rundir.prepare(tmp_path, SMALL, new=True)

    def test_another_precision_is_refused(self, tmp_path):
        write_json(tmp_path / "config.json", SMALL)
        with pytest.raises(UserError, match=r"matmul_precision: given 'high'; accepted: 'highest', as in"):
            rundir.prepare(tmp_path, changed(SMALL, model__matmul_precision="high"), new=True)
        write_json(tmp_path / "config.json", changed(SMALL, model__matmul_precision="high"))
        with pytest.raises(UserError, match=r"matmul_precision: given 'highest'; accepted: 'high', as in"):
            rundir.prepare(tmp_path, SMALL, new=True)
