"""What is computed in may be bfloat16 or float16: what is trained, and Adam's moments, are float32 always."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.conftest import TINY, changed, quiet
from tests.experiments.test_tvp_language import CONFIG as LANGUAGE
from tests.nn.golden import GOLDEN
from tests.parallel.test_sharding import atv_experiment, atv_trainer
from tvjax.errors import UserError
from tvjax.experiments.atv.settings import TargetConfig
from tvjax.experiments.models import ModelConfig
from tvjax.experiments.text_model.run import TextModelExperiment
from tvjax.experiments.text_model.settings import TextModelSettings
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import TVPExperiment, make_trainer
from tvjax.experiments.tvp_language import run as tvp_language
from tvjax.experiments.tvp_language.settings import TVPLanguageSettings
from tvjax.experiments.tvp_language.tuning import TuningExperiment
from tvjax.methods.i2cl import I2CL
from tvjax.methods.in_context_routing import Routing
from tvjax.methods.lora import LoRA
from tvjax.methods.prefix import Prefix
from tvjax.methods.static import StaticVectors
from tvjax.settings import build
from tvjax.train.checkpoint import Checkpoints
from tvjax.train.state import OptimizerConfig, TrainState, init_state, make_step, optimizer, schedule
from tvjax.vectors import store
from tvjax.vectors.learned import learn

LOW = ("bfloat16", "float16")


def cast(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype) if a.dtype == jnp.float32 else a, tree)


def floats(tree):
    """The dtypes of all floating-point leaves."""
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


def training(experiment, steps, **hyper):
    """The program of one member: its first and its last state, and the metrics, of what stays on the device."""
    settings = OptimizerConfig(decay="constant", clip_norm=1.0)
    hyper = {"seed": jnp.array([0]), "learning_rate": jnp.array([1e-3]), **hyper}
    tx = optimizer(settings)
    step = make_step(experiment, tx, schedule(settings, steps))

    def run(data):
        first = init_state(experiment, tx, hyper, data, best=True)
        return first, *jax.lax.scan(lambda state, _: step(state, data, hyper), first, length=steps)

    return run


def train(experiment, steps, **hyper):
    """The first and the last state, and the losses."""
    first, last, metrics = jax.jit(training(experiment, steps, **hyper))(experiment.data())
    return first, last, np.asarray(metrics["loss"][:, 0])


def check_width(*states):
    """Everything that is trained, its moments and its best are float32."""
    for state in states:
        assert floats(state.params) | floats(state.opt_state) | floats(state.best.params) == {"float32"}


def check(first, last, losses):
    """And nothing of it is NaN."""
    check_width(first, last)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last.params)), "also what has no gradient"
    assert np.isfinite(losses).all()


def still(first, last):
    """The norms of which some scale did not move."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(first.params), jax.tree.leaves(last.params), strict=True)
    names = [(jax.tree_util.keystr(keys), before, after) for (keys, before), after in pairs]
    norms = [(name, before, after) for name, before, after in names if name.endswith("['scale']")]
    assert norms
    return [name for name, before, after in norms if (before == after).any()]


# What is trained on a frozen target of 2 layers, by name: the adapter, of the ATV that `atv_experiment` has.
ADAPTERS = {
    "static": lambda atv: StaticVectors(atv.target, atv.layers, 1),
    "i2cl": lambda atv: I2CL(atv.target, 1),
    "in_context_routing": lambda atv: Routing(atv.target, atv.generator, rank=1, hidden=2),
    "lora": lambda atv: LoRA(atv.target, 2),
    "prefix": lambda atv: Prefix(atv.target),
    "atv": lambda atv: dataclasses.replace(atv, rank=2, learned_scale=True, dropout=0.1),
    "atv_fresh": lambda atv: atv,
    "atv_of_target": lambda atv: dataclasses.replace(atv, generator=None, positions="last"),
}


def adapter_experiment(name, dtype):
    """A frozen target, and a generator, whose parameters lie in `dtype` too."""
    whole = atv_experiment(dtype)
    given = cast(whole.frozen, dtype)
    if name == "atv_fresh":
        del given["generator"]
    given["words"] = jnp.arange(3)
    target = given["target"]
    shape = (1, target.config.num_layers, target.config.width)
    given["summaries"] = {part: jnp.ones(shape, dtype) for part in ("attn_out", "mlp_out")}
    heads = {"queries": target.config.num_heads, "keys": target.config.kv_heads}
    shapes = {part: (target.config.num_layers, 1, count, target.config.channels) for part, count in heads.items()}
    given["directions"] = {part: jnp.ones(shape, dtype) for part, shape in shapes.items()}
    low = lambda config: dataclasses.replace(config, param_dtype=dtype)
    atv = dataclasses.replace(whole.adapter, target=low(whole.adapter.target), generator=low(whole.adapter.generator))
    given["target"] = target.replace(config=low(target.config))
    return dataclasses.replace(whole, adapter=ADAPTERS[name](atv), frozen=given)


MEMBER = {"scale": jnp.ones((1, 2)), "examples": jnp.array([16])}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", ADAPTERS)
def test_what_is_trained_on_a_frozen_target_in_half_precision_is_float32(name, dtype):
    experiment = adapter_experiment(name, dtype)
    assert floats(experiment.frozen["target"]) == {dtype}
    check_width(*jax.eval_shape(training(experiment, 2, **MEMBER), experiment.data())[:2])


def test_the_target_stays_as_it_is_and_all_norms_of_the_generator_move():
    experiment = adapter_experiment("atv", "bfloat16")
    before = store.fingerprint(experiment.frozen["target"].params)
    first, last, losses = train(experiment, 30, **MEMBER)
    check(first, last, losses)
    assert store.fingerprint(experiment.frozen["target"].params) == before
    assert not still(first, last)


@pytest.mark.parametrize("dtype", LOW)
def test_a_vector_that_is_learned_is_float32(dtype):
    experiment = adapter_experiment("static", dtype)
    q = jax.tree.map(lambda a: a[:, 0], experiment.train.prompts)
    model, rows = experiment.frozen["target"], jnp.arange(8)[None].repeat(10, 0)
    first = jnp.zeros(model.config.width)
    arguments = (model, model, q, rows[None], jnp.asarray(1e-3), jnp.asarray(0.0), first, jnp.arange(3))
    assert jax.eval_shape(learn, *arguments).dtype == jnp.float32


def pairs_of(vocabulary):
    """`text_prompts.tables` of two tasks, of random tokens below half of the vocabulary: the others never occur."""
    random = np.random.default_rng(0)
    query, answer = (random.integers(0, vocabulary // 2, (16, width)).astype(np.int32) for width in (3, 2))
    rows = {"first": query, "query": query, "answer": answer, "last": answer}
    return {**rows, "start": np.array([0, 8]), "count": np.array([8, 8])}


def text_model(dtype):
    model = {"vocab_size": 300, "num_layers": 3, "width": 16, "num_heads": 2, "dtype": dtype}
    config = changed(LANGUAGE["training"], model=model, train__batch=4)
    s = TextModelSettings.from_config(config)
    return TextModelExperiment(s, s.decoder(300), pairs_of(300)), {}


def tuned(dtype):
    """A Llama of a folder of `dtype`, tuned with the TVP-loss."""
    model = tvjax.load(GOLDEN / "llama3", dtype="bfloat16" if dtype == "bfloat16" else "float32")
    s = TVPLanguageSettings.from_config(changed(LANGUAGE, model__path="x", train__batch=4))
    weights = {"tvp_weight": jnp.ones(1), "prescribed_layer": jnp.array([1])}
    return TuningExperiment(s, model.config, model.params, pairs_of(model.config.vocab_size)), weights


def synthetic(dtype):
    s = TVPSettings.from_config(changed(TINY, model__dtype=dtype, train__batch=4))
    weights = {"tvp_weight": jnp.ones(1), "prescribed_layer": jnp.array([1])}
    return TVPExperiment(s), weights


@pytest.mark.parametrize("make", [synthetic, text_model, tuned])
def test_every_norm_of_a_decoder_that_computes_in_bfloat16_moves(make):
    """In 50 steps of 1e-3 from 1, each of which bfloat16 would round away."""
    experiment, hyper = make("bfloat16")
    first, last, losses = train(experiment, 50, **hyper)
    check(first, last, losses)
    assert not still(first, last)


class Untouched:
    """Two scales that start at 1: the first is drawn to 0, nothing depends on the second."""

    batch = 1

    def __init__(self, dtype):
        self.dtype = dtype

    def init(self, key, data):
        return {"norm": {"scale": jnp.ones(2, self.dtype)}, "steps": jnp.zeros(1)}

    def data(self):
        return {}

    def loss(self, params, data, key, step, hyper):
        return jnp.square(params["norm"]["scale"][0].astype(jnp.float32)), {}


@pytest.mark.parametrize("dtype", [*LOW, "float8_e4m3fn"])
def test_whatever_dtype_an_experiment_begins_in_is_trained_as_float32_is(dtype):
    expected = train(Untouched("float32"), 100)
    found = train(Untouched(dtype), 100)
    check(*found)
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    assert found[1].params["norm"]["scale"][0, 0] < 0.95


def tvp_trainer(dtype):
    train = {"batch": 8, "steps": 20, "log_every": 5, "evaluate_every": 20, "checkpoint_every": 20}
    return make_trainer(TVPSettings.from_config(changed(TINY, train=train, model__dtype=dtype)))


def trained(trainer):
    """The state and the loss after five steps, at the learning rate of a warm-up: steps that bfloat16 cannot say."""
    with jax.set_mesh(trainer.mesh):
        state = trainer.init(trainer.hyper, trainer.data)
        first = jax.device_get(state.params)
        hyper = trainer.hyper | {"learning_rate": 1e-4 * trainer.hyper["learning_rate"]}
        state, metrics = trainer.dispatch(state, trainer.data, hyper)
    return first, jax.device_get(state), np.asarray(metrics["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("make", [tvp_trainer, lambda dtype: atv_trainer({}, dtype=dtype)], ids=["tvp", "atv"])
def test_masters_and_moments_stay_in_float32(make):
    first, state, loss = trained(make("bfloat16"))
    _, _, expected = trained(make("float32"))
    for tree in (state.params, state.opt_state):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree) if leaf.dtype.kind != "i"} == {np.dtype("float32")}
    np.testing.assert_allclose(loss, expected, rtol=0.03)
    assert (loss != expected).all(), "nothing was computed in bfloat16"
    moved = [
        np.abs(a - b).max() / (np.abs(a).max() or np.inf)
        for a, b in zip(*map(jax.tree.leaves, (first, state.params)), strict=True)
    ]
    assert 0 < np.median(moved) < 2**-9, "steps that bfloat16 would round away are kept"


class TestAFolderThatIsTuned:
    def opened(self, path, dtype):
        config = changed(LANGUAGE, model={"path": str(path), "dtype": dtype})
        return tvp_language._open(TVPLanguageSettings.from_config(config), quiet)

    @pytest.mark.parametrize(("stored", "dtype"), [("bfloat16", ""), ("float32", "bfloat16"), ("bfloat16", "float32")])
    def test_its_parameters_are_float32_and_not_rounded(self, tmp_path, stored, dtype):
        whole = tvjax.load(GOLDEN / "llama3", dtype=stored)
        tvjax.export(whole, tmp_path)
        model = self.opened(tmp_path, dtype)
        assert (model.config.dtype, model.config.param_dtype) == (dtype or stored, "float32")
        assert floats(model.params) == {"float32"}
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype("float32")), model.params, whole.params)

    def test_exported_it_says_that_it_is_float32(self, tmp_path):
        tvjax.export(tvjax.load(GOLDEN / "llama3", dtype="bfloat16"), tmp_path / "low")
        model = self.opened(tmp_path / "low", "")
        tvjax.export(model, tmp_path / "out")
        again = tvjax.load(tmp_path / "out")
        assert again.config.dtype == again.config.param_dtype == "float32"
        jax.tree.map(np.testing.assert_array_equal, again.params, model.params)

    @pytest.mark.parametrize("dtype", ["", "float16"])
    def test_float16_is_refused(self, tmp_path, dtype):
        tvjax.export(tvjax.load(GOLDEN / "llama3", dtype="float16"), tmp_path)
        config = changed(LANGUAGE, model={"path": str(tmp_path), "dtype": dtype})
        with pytest.raises(UserError, match=r"config.model.dtype: given .*float16.*float32 or bfloat16"):
            s = TVPLanguageSettings.from_config(config)
            s.check_model(tvp_language._open(s, quiet).config)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "int8"])
def test_parameters_of_what_trains_may_be_float32_alone(dtype):
    with pytest.raises(UserError, match=f"config.model.param_dtype: given '{dtype}'; accepted: float32.*model.dtype"):
        TVPSettings.from_config(changed(TINY, model__param_dtype=dtype))


@pytest.mark.parametrize("kind", [TargetConfig, ModelConfig])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "half", "fp32", "int8", None])
def test_the_dtype_of_a_folder_is_checked_where_it_is_read(kind, dtype):
    with pytest.raises(UserError, match=r"config.model.dtype: given .*; accepted: .*'bfloat16'"):
        build(kind, {"dtype": dtype}, "config.model")


def test_a_text_model_is_written_in_float32():
    assert text_model("bfloat16")[0].config.param_dtype == "float32"


@pytest.mark.parametrize("dtype", LOW)
def test_a_checkpoint_in_half_precision_is_refused_by_name(tmp_path, dtype):
    def state(dtype):
        leaves = {"norm": {"scale": jnp.ones((1, 3), dtype)}}
        return TrainState(jnp.asarray(5), leaves, {"mu": leaves})

    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(state(dtype))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), state("float32"))
    with pytest.raises(UserError, match=f"step 5: .*norm/scale: given {dtype}; accepted: float32"):
        checkpoints.restore(wanted)
