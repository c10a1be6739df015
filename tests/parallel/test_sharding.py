"""How a run is laid out over devices, members and loop iterations changes where it is computed, not what."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import TINY, changed
from tvjax.experiments.tvp import run as tvp
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import make_trainer
from tvjax.methods.atv import ATV
from tvjax.nn.answers import Questions
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.model import Model, forward
from tvjax.nn.tokens import Tokens
from tvjax.parallel.mesh import RULES, compiler_options, make_mesh, path_of
from tvjax.parallel.mesh import place as place_on
from tvjax.parallel.programs import read
from tvjax.text.adapting import AdapterExperiment, ExampleConfig
from tvjax.text.examples import Examples
from tvjax.train.loop import Trainer
from tvjax.train.state import OptimizerConfig, TrainConfig, TrainState

STEPS = 20
TOLERANCE = 1e-4
CONFIG = changed(TINY, train={"batch": 8, "steps": STEPS, "log_every": 5, "evaluate_every": 20, "checkpoint_every": 20})


@dataclasses.dataclass(frozen=True)
class Trained:
    """Where a run of 20 steps began (on the host), its losses ``[dispatches, M]`` and its last state."""

    trainer: Trainer
    first: Any
    losses: np.ndarray
    state: TrainState

    @property
    def params(self) -> Any:
        return jax.device_get(self.state.params)


def train(first: Any = None, **fields: Any) -> Trained:
    """Train from fresh parameters, or from the state `first`."""
    trainer = make_trainer(TVPSettings.from_config(changed(CONFIG, **fields)))
    with jax.set_mesh(trainer.mesh):
        state = trainer.init(trainer.hyper, {}) if first is None else place(first, trainer)
        first, losses = jax.device_get(state), []
        while int(state.step) < trainer.config.steps:
            state, metrics = trainer.dispatch(state, {}, trainer.hyper)
            losses.append(jax.device_get(metrics["loss"]))
    return Trained(trainer, first, np.stack(losses), state)


def place(state: Any, trainer: Trainer) -> TrainState:
    return jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), state, trainer.abstract)


def assert_close(found: Any, expected: Any) -> None:
    """Each array to a part in 10^4 of its own norm.

    Save the keys' biases: softmax does not see what is added to every key, so their gradients are rounding errors,
    which Adam scales up to whole steps.
    """

    def close(keys: Any, x: np.ndarray, y: np.ndarray) -> None:
        if path_of(keys) == "blocks/key/bias":
            return
        error, size = np.linalg.norm((x - y).ravel()), np.linalg.norm(y.ravel())
        assert error <= TOLERANCE * size, f"{path_of(keys)}: off by {error:.2e} of {size:.2e}"

    jax.tree_util.tree_map_with_path(close, found, expected)


@pytest.fixture(scope="module")
def alone() -> Trained:
    """On one device."""
    return train()


@pytest.mark.slow
def test_training_moves_every_parameter(alone):
    """Were this not so, agreement would say nothing."""

    def move(keys: Any, before: np.ndarray, after: np.ndarray) -> None:
        moved = np.linalg.norm((after - before).ravel()) / np.linalg.norm(after.ravel())
        assert moved > 20 * TOLERANCE, f"{path_of(keys)}: moved by {moved:.2e}"

    jax.tree_util.tree_map_with_path(move, alone.first.params, alone.params)


MESHES = {
    "members": {"member": 2},
    "batch": {"data": 4},
    "parameters": {"fsdp": 4},
    "all": {"member": 2, "data": 2, "tensor": 2},
    "cut twice": {"data": 2, "fsdp": 2, "tensor": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES.keys())
def test_a_mesh_gives_what_one_device_gives(alone, mesh):
    spread = train(None if "tensor" in mesh else alone.first, mesh=mesh)
    assert_close(spread.first.params, alone.first.params)
    np.testing.assert_allclose(spread.losses, alone.losses, rtol=TOLERANCE)
    assert_close(spread.params, alone.params)

    for keys, leaf in jax.tree_util.tree_leaves_with_path(spread.state):
        assert len(leaf.sharding.device_set) == np.prod(list(mesh.values())), path_of(keys)
    kernel = spread.state.params["blocks"]["query"]["kernel"]
    second = spread.state.opt_state[1].nu["blocks"]["query"]["kernel"]
    for leaf in (kernel, second):
        members, layers, width, heads, channels = leaf.shape
        held = leaf.sharding.shard_shape(leaf.shape)
        cut = {axis: mesh.get(axis, 1) for axis in ("member", "fsdp", "tensor")}
        assert held == (members // cut["member"], layers, width // cut["fsdp"], heads // cut["tensor"], channels)


@pytest.mark.slow
def test_a_whole_run_on_a_mesh_ends_within_the_bootstrap_intervals(tmp_path):
    """Training amplifies the rounding in which meshes differ, so more than this cannot be asked of a whole run."""
    config = changed(
        CONFIG,
        train={"batch": 32, "steps": 160, "log_every": 40, "evaluate_every": 160, "checkpoint_every": 160},
        evaluation__prompts=256,
    )
    one, spread = (
        tvp.run(changed(config, mesh=mesh), tmp_path / str(len(mesh)), "train", say=lambda line: None)
        for mesh in ({}, {"member": 2, "data": 4})
    )
    for ours, theirs in zip(spread["members"], one["members"], strict=True):
        for risk in ("icl_risk", "tvp_risk_by_layer"):
            low, high = np.array(theirs[f"{risk}_ci"]).T
            assert (low <= ours[risk]).all() and (ours[risk] <= high).all(), f"{ours['name']}: {risk}"


@pytest.mark.slow
def test_a_member_does_not_depend_on_its_company(alone):
    single = train(
        jax.tree.map(lambda x: x[1:] if x.ndim else x, alone.first),
        population__name=("tvp",),
        population__tvp_weight=(1.0,),
    )
    np.testing.assert_allclose(single.losses[:, 0], alone.losses[:, 1], rtol=TOLERANCE)
    assert_close(single.params, jax.tree.map(lambda p: p[1:], alone.params))


@pytest.mark.slow
def test_unrolling_the_layers_changes_nothing(alone):
    unrolled = train(alone.first, model__unroll=0)
    np.testing.assert_allclose(unrolled.losses, alone.losses, rtol=TOLERANCE)
    assert_close(unrolled.params, alone.params)


@pytest.mark.slow
def test_the_same_program_twice_gives_the_same_bits(alone):
    trainer = alone.trainer
    with jax.set_mesh(trainer.mesh):
        state = trainer.init(trainer.hyper, {})
        while int(state.step) < STEPS:
            state, _ = trainer.dispatch(state, {}, trainer.hyper)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(alone.state))


TASKS = {"real": CONFIG["task"], "tokens": {"name": "token_offset"}}


def abstracts() -> list[Any]:
    """The shapes of states that have every kind of parameter."""
    mesh = {"fsdp": 2, "tensor": 2}
    configs = [
        changed(CONFIG, model__mlp=mlp, task=TASKS[task], mesh=mesh)
        for mlp, task in (("gelu", "real"), ("gated_silu", "tokens"))
    ]
    found = [make_trainer(TVPSettings.from_config(config)).abstract for config in configs]
    return [*found, atv_trainer(mesh).abstract]


def test_every_rule_finds_parameters_and_their_optimizer_state():
    leaves = [row for state in abstracts() for row in jax.tree_util.tree_leaves_with_path(state)]
    rows = [(path_of(keys), leaf.shape[::-1], tuple(reversed(leaf.sharding.spec))) for keys, leaf in leaves]
    for number, (pattern, axes) in enumerate(RULES):
        earlier = [other for other, _ in RULES[:number]]
        found = [row for row in rows if re.search(pattern, row[0]) and not any(re.search(e, row[0]) for e in earlier)]
        for root in ("params/", "opt_state/1/mu/", "opt_state/1/nu/"):
            modules = {path.split("/")[-2] for path, *_ in found if path.startswith(root)}
            named = re.match(r"blocks/\(([a-z|]+)\)", pattern)
            assert modules and (named is None or modules == set(named.group(1).split("|"))), f"{pattern} in {root}"
        for path, shape, spec in found:
            for size, axis, given in zip(shape, axes, spec, strict=False):
                assert given == (axis if size % 2 == 0 else None), path  # an odd vocabulary is whole everywhere


def atv_experiment(dtype: str = "float32") -> AdapterExperiment:
    """ATV with a small random target and generator, on random examples."""
    sizes = {"inputs": "tokens", "vocab_size": 12, "num_outputs": 12, "num_heads": 2, "unroll": 1, "dtype": dtype}
    target = DecoderConfig(**sizes, num_layers=2, width=16, positions="rotary", norm="rmsnorm", bias=False)
    generator = DecoderConfig(**sizes, num_layers=1, width=8, max_positions=8, tied_readout=True, unbiased=("readout",))
    random = np.random.default_rng(0)
    ids = lambda *shape: random.integers(0, 12, shape, np.int32)
    count, prompts, length, answer = 16, 2, 6, 2
    whole = Tokens(ids(count, prompts, length), np.ones((count, prompts, length), bool))
    asked = np.ones((count, prompts, answer), bool)
    last = np.full((count, prompts), length - answer - 1, np.int32)
    examples = Examples(
        Tokens(ids(count, 1, 4), np.ones((count, 1, 4), bool)),
        Questions(whole, last, whole.ids_BT[..., -answer:], asked),
        np.zeros(count, np.int32),
        np.arange(count, dtype=np.int32),
    )
    given = {
        name: Decoder(config).init(jax.random.key(key), jnp.zeros((1, 2), jnp.int32))["params"]
        for key, (name, config) in enumerate({"target": target, "generator": generator}.items())
    }
    return AdapterExperiment(
        ExampleConfig(batch=8, examples=count),
        ATV(target, generator, (1, 2), positions="all"),
        given | {"target": Model(given["target"], target)},
        examples,
        examples,
        fewest=count,
        chunk=3,
    )


def atv_trainer(mesh: dict[str, int], devices: Any = None, dtype: str = "float32") -> Trainer:
    """The programs that train two members of it."""
    experiment = atv_experiment(dtype)
    hyper = {"seed": jnp.arange(2), "learning_rate": jnp.full(2, 3e-3), "scale": jnp.ones((2, 2))}
    hyper["examples"] = jnp.full(2, experiment.fewest)
    train = TrainConfig(steps=STEPS, log_every=5, evaluate_every=STEPS, checkpoint_every=STEPS)
    optimizer = OptimizerConfig(warmup_steps=4, clip_norm=1.0)
    return Trainer(
        experiment, train, optimizer, make_mesh(**mesh, devices=devices), ("a", "b"), hyper, jax.random.key(0)
    )


def train_atv(trainer: Trainer) -> tuple[np.ndarray, Any, Any]:
    """The losses, the last parameters and the scores after 20 steps."""
    losses = []
    with jax.set_mesh(trainer.mesh):
        state = trainer.init(trainer.hyper, trainer.data)
        while int(state.step) < STEPS:
            state, metrics = trainer.dispatch(state, trainer.data, trainer.hyper)
            losses.append(jax.device_get(metrics["loss"]))
        scores = trainer.evaluate(state.params, trainer.data, jax.random.key(0), trainer.hyper)
    return np.stack(losses), jax.device_get(state.params), jax.device_get(scores)


@pytest.fixture(scope="module")
def atv_alone() -> tuple[np.ndarray, Any, Any]:
    return train_atv(atv_trainer({}))


@pytest.mark.slow
def test_atv_on_a_sharded_target_gives_what_one_device_gives(atv_alone):
    trainer = atv_trainer({"data": 2, "fsdp": 2, "tensor": 2})
    kernel = trainer.data["frozen"]["target"].params["blocks"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16 // 2, 64 // 2)  # the frozen target is cut too
    losses, params, scores = train_atv(trainer)
    np.testing.assert_allclose(losses, atv_alone[0], rtol=TOLERANCE)
    assert_close(params["expansion"], atv_alone[1]["expansion"])
    assert_close(params["generator"], atv_alone[1]["generator"])
    np.testing.assert_allclose(scores["risk"], atv_alone[2]["risk"], rtol=TOLERANCE)


@pytest.mark.slow
def test_an_evaluation_over_fsdp_gathers_the_frozen_target_once():
    """A device holds as many examples in a pass as a device alone would, and so there are as few passes."""
    trainer = atv_trainer({"fsdp": 8})
    with jax.set_mesh(trainer.mesh):
        compiled = trainer.lower()["evaluate"].compile(compiler_options())
    gathered = [one for one in read(compiled.as_text(), trainer.mesh).collectives if one.kind == "all-gather"]
    kernels = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.data["frozen"]["target"].params))
    assert 0.3 * kernels < sum(one.sent for one in gathered) < 2 * kernels


def test_what_is_captured_lies_with_its_batch():
    config = DecoderConfig(2, 16, 2, 4, positions="none", unroll=1)
    decoder, inputs = Decoder(config), jnp.ones((8, 5, 3))
    params = decoder.init(jax.random.key(0), inputs)["params"]
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        addresses = ("blocks/resid", "blocks/heads", "blocks/attn_patterns", "logits")
        _, found = forward(Model(place_on(mesh, params), config), inputs, addresses=addresses)
    held = {name: value.sharding.shard_shape(value.shape) for name, value in found.items() if name != "logits"}
    assert held == {
        "blocks/resid": (2, 8 // 4, 5, 16),
        "blocks/heads": (2, 8 // 4, 5, 2 // 2, 8),
        "blocks/attn_patterns": (2, 8 // 4, 5, 2 // 2, 5),
    }
    _, alone = forward(Model(params, config), inputs, addresses=addresses)
    for name, value in found.items():
        np.testing.assert_allclose(value, alone[name], atol=1e-5)


@pytest.mark.slow
def test_micro_batches_give_what_the_whole_batch_gives(alone):
    """To a part in 10^5 after one step; then rounding is amplified as anywhere."""
    one, parts = (train(alone.first, train__micro_batches=n, **ONE_STEP) for n in (1, 4))
    np.testing.assert_allclose(parts.losses, one.losses, rtol=1e-5)
    for ours, theirs in zip(*(jax.tree.leaves(t.state.opt_state[1].mu) for t in (parts, one)), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs) + 1e-7


ONE_STEP = {f"train__{name}": 1 for name in ("steps", "log_every", "evaluate_every", "checkpoint_every")}
