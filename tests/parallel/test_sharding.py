"""How a run is laid out over devices, members and loop iterations changes where it is computed, not what."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest

from tests.conftest import TINY, changed
from tvjax.experiments import tvp
from tvjax.experiments.tvp_settings import TVPSettings
from tvjax.parallel.mesh import RULES, path_of
from tvjax.train.loop import Trainer
from tvjax.train.state import TrainState

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
    trainer = tvp.make_trainer(TVPSettings.from_config(changed(CONFIG, **fields)))
    with jax.set_mesh(trainer.mesh):
        state = trainer.init(trainer.hyper, {}) if first is None else place(first, trainer)
        first, losses = jax.device_get(state), []
        while int(state.step) < STEPS:
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


MESHES = {"members": {"member": 2}, "batch": {"data": 4}, "all": {"member": 2, "data": 2, "tensor": 2}}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES.keys())
def test_a_mesh_gives_what_one_device_gives(alone, mesh):
    spread = train(None if mesh == MESHES["all"] else alone.first, mesh=mesh)
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
        assert held == (members // mesh.get("member", 1), layers, width, heads // mesh.get("tensor", 1), channels)


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


@pytest.mark.parametrize(("mlp", "task"), [("gelu", "real"), ("gated_silu", "tokens")])
def test_every_rule_finds_parameters_and_their_optimizer_state(mlp, task):
    config = changed(CONFIG, model__mlp=mlp, task=TASKS[task], mesh={"tensor": 2})
    abstract = tvp.make_trainer(TVPSettings.from_config(config)).abstract
    specs = {path_of(keys): tuple(leaf.sharding.spec) for keys, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    shapes = {path_of(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    absent = {"real": {"gate", "front"}, "tokens": set()}[task]
    for pattern, axes in RULES:
        found = [path for path in specs if re.search(pattern, path)]
        named = re.sub(r"^blocks/", "", pattern).split("/")[0]
        for root in ("params/", "opt_state/1/mu/", "opt_state/1/nu/"):
            modules = {path.split("/")[-2] for path in found if path.startswith(root)}
            assert modules == set(re.findall(r"\w+", named)) - absent, f"{pattern} in {root}"
        for path in found:
            shape, spec = shapes[path][::-1], tuple(reversed(specs[path]))
            for size, axis, given in zip(shape, axes, spec, strict=False):
                assert given == (axis if size % 2 == 0 else None), path  # an odd vocabulary is whole everywhere
