"""The functions that a notebook uses, on a run that was really trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.conftest import SMALL, changed
from tvjax.errors import UserError
from tvjax.experiments.tvp import run as experiment


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    config = changed(
        SMALL, train__steps=10, train__tensorboard=False, model__num_layers=2, population__prescribed_layer=(1,)
    )
    experiment.run(config, folder, "train", lambda line: None)
    return folder


@pytest.fixture(scope="module")
def model(run_dir):
    return tvjax.load(run_dir, member="tvp")


@pytest.fixture(scope="module")
def prompt(model):
    return model.source.task.sample(jax.random.key(0), 5, 4, model.source.layout)


def test_members_are_told_apart_by_name(run_dir, model):
    other = tvjax.load(run_dir, member="icl")
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), model.params, other.params)))
    with pytest.raises(UserError, match="icl, tvp"):
        tvjax.load(run_dir, member="atv")
    with pytest.raises(UserError, match="no such folder"):
        tvjax.load(run_dir / "nothing")


def test_capture_then_replace_moves_a_state(model, prompt):
    states = tvjax.capture(model, prompt, ["blocks/resid"], positions="last")["blocks/resid"]
    assert states.shape == (2, 5, 1, 16)
    same = tvjax.run(model, prompt, edits=tvjax.replace(states[0, :, 0], layers=1))
    np.testing.assert_allclose(same, tvjax.run(model, prompt), rtol=1e-4, atol=1e-5)
    moved = tvjax.run(model, prompt, edits=tvjax.replace(jnp.roll(states[1, :, 0], 1, axis=0), layers=2))
    np.testing.assert_allclose(moved[:, -1], jnp.roll(tvjax.run(model, prompt)[:, -1], 1, axis=0), rtol=1e-4, atol=1e-5)


def test_a_sweep_is_one_run_for_each_layer(model, prompt):
    vectors = jax.random.normal(jax.random.key(1), (3, 5, 16))
    for edit, build in (("replace", tvjax.replace), ("add", tvjax.add)):
        swept = tvjax.sweep(model, prompt, vectors, edit=edit)
        for layer in range(3):
            alone = tvjax.run(model, prompt, edits=build(vectors[layer], layers=layer))[:, -1]
            np.testing.assert_allclose(swept[layer], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m, p: tvjax.run(m, p, edits=tvjax.add(jnp.ones(16), layers=3)), "layers: given 3; accepted: 0..2"),
        (lambda m, p: tvjax.run(m, p, edits=tvjax.add(jnp.ones(16), layers=1, positions=[99])), "positions: given 99"),
        (lambda m, p: tvjax.add(jnp.ones((3, 16)), layers=[0, 1]), "vectors"),
        (lambda m, p: tvjax.add(jnp.ones(16), layers=1, positions="first"), "'first'"),
        (lambda m, p: tvjax.sweep(m, p, jnp.ones((2, 5, 16))), "L . 1 = 3"),
        (lambda m, p: tvjax.capture(m, p, ["resid"]), "blocks/resid"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(model, prompt, call, line):
    with pytest.raises(UserError, match=line):
        call(model, prompt)


def test_a_run_leaves_what_the_contract_names(run_dir):
    import json

    summary = json.loads((run_dir / "eval" / "summary.json").read_text())
    assert {"task", "num_layers", "num_demonstrations", "prior_risk", "oracle_risk", "members", "shifts"} <= set(
        summary
    )
    member = summary["members"][1]
    assert (member["name"], member["prescribed_layer"], member["tvp_weight"]) == ("tvp", 1, 1.0)
    assert len(member["icl_risk"]) == len(summary["oracle_risk"]) == 5
    assert len(member["tvp_risk_by_layer"]) == len(member["tvp_risk_by_layer_ci"]) == 3
    low, high = member["zero_shot_risk_ci"]
    assert low <= member["zero_shot_risk"] <= high
    for name in (
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "vectors/icl.safetensors",
        "vectors/tvp.safetensors",
    ):
        assert (run_dir / name).is_file()
    theta = tvjax.load_vectors(run_dir / "vectors" / "tvp.safetensors")[0]["theta"]
    assert theta.shape == (3, 32, 16)
