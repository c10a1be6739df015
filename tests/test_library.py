"""The functions that a notebook uses, on a run that was really trained."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.conftest import SMALL, changed
from tests.nn.golden import GOLDEN
from tvjax.errors import UserError
from tvjax.experiments.tvp import run as experiment
from tvjax.nn.model import ATTENTION, READOUT, forward
from tvjax.nn.pretrained import load_model
from tvjax.nn.tokens import pad
from tvjax.vectors.edits import edit_at, merge, place


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


def test_a_load_imports_what_a_model_needs(run_dir):
    code = f"import sys, tvjax; tvjax.load({str(run_dir)!r}); print(*sys.modules)"
    here = Path(tvjax.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    names = [name for name in done.stdout.split() if name.split(".")[0] == "tvjax"]
    assert len(names) <= 45, names
    assert not {name.split(".")[1] for name in names if "." in name} & {"evals", "methods", "report", "text"}


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


@pytest.fixture(scope="module")
def words():
    return load_model(GOLDEN / "llama3", unroll=1)


def test_the_lens_at_the_last_layer_is_what_the_model_says(words, model, prompt):
    for one, prompts in ((words, jnp.array([[3, 1, 4], [1, 5, 9]])), (model, prompt)):
        states = tvjax.capture(one, prompts, "blocks/resid")["blocks/resid"]
        seen = tvjax.logit_lens(one, states)
        np.testing.assert_allclose(seen[-1], tvjax.run(one, prompts), atol=1e-4)
        assert seen.shape[:3] == states.shape[:3] and np.abs(seen[0] - seen[-1]).max() > 1e-2
        with pytest.raises(UserError, match="states: given 'shape"):
            tvjax.logit_lens(one, states[..., 1:])


@pytest.mark.parametrize(
    "address", ["blocks/resid", "blocks/heads", "embed", "blocks/mlp_hidden", *ATTENTION, *READOUT]
)
def test_attributions_are_slopes_of_the_log_probability(words, address):
    """Against the difference that a small write makes, with another write in place."""
    prompts, tokens = [[3, 1, 4], [1, 5]], np.array([7, 2])
    tokens_of = pad(prompts, side="left")
    held = tvjax.add(0.5 * np.ones(words.config.width), layers=1)
    slope = np.asarray(tvjax.attribute(words, tokens_of, tokens, address, edits=held))
    alone = not address.startswith("blocks/")
    where = (slice(None), slice(2, 3)) if alone else (slice(1, 2), slice(None), slice(2, 3))
    step = np.zeros_like(slope)
    step[where] = np.random.default_rng(0).normal(size=step[where].shape)

    def log_chance(size):
        probe = edit_at(address, jnp.asarray(size * step), keep=1.0)
        tree = merge(place(held, words.config, tokens_of.positions_BT, 2), probe)
        out = forward(words, tokens_of.ids_BT, edits=tree, positions_BT=tokens_of.positions_BT)[0][:, -1]
        return np.asarray(jax.nn.log_softmax(out))[np.arange(2), tokens].astype(float)

    axes = tuple(axis for axis in range(step.ndim) if axis != (0 if alone else 1))
    expected = (log_chance(1e-2) - log_chance(-1e-2)) / 2e-2
    np.testing.assert_allclose((slope * step).sum(axes), expected, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m: tvjax.attribute(m, jnp.array([[1, 2]]), [1, 2], "embed"), "tokens: given"),
        (lambda m: tvjax.attribute(m, jnp.array([[1, 2]]), [10**6], "embed"), "tokens: given"),
        (lambda m: tvjax.attribute(m, jnp.array([[1, 2]]), [1], "blocks/logits"), "blocks/resid"),
    ],
)
def test_what_has_no_attribution_is_refused(words, call, line):
    with pytest.raises(UserError, match=line):
        call(words)
