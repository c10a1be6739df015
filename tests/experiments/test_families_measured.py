"""A run on a family without an oracle is measured, reported and tabled; baselines stand where the oracle cannot."""

import jax
import numpy as np
import pytest

from tests.conftest import TINY, changed
from tvjax.evals import geometry
from tvjax.evals.measure import Measure
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.tvp import measures as tvp_measures
from tvjax.experiments.tvp import run as tvp
from tvjax.experiments.tvp.report.summary import parse_summary
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.experiments.tvp.training import TVPExperiment
from tvjax.nn.model import Model
from tvjax.tasks import shifts_for
from tvjax.vectors.store import load_vectors

TREE = {"name": "decision_tree", "input_width": 2, "depth": 1}
RUN = {"steps": 5, "log_every": 5, "evaluate_every": 5, "checkpoint_every": 5}


@pytest.mark.slow
def test_a_whole_run_of_decision_trees(tmp_path):
    config = changed(TINY, task=TREE, train=TINY["train"] | RUN)
    said = tvp.run(config, tmp_path, "train", lambda line: None)
    summary = parse_summary(said)
    assert "oracle_risk" not in said
    assert tuple(summary.base.risk.baselines) == TVPSettings.from_config(config).task.baselines
    np.testing.assert_allclose([row.icl.value[0] for row in summary.base.risk.baselines.values()], said["prior_risk"])
    assert "prior" in summary_table(said) and "oracle  " not in summary_table(said).split("shifts")[0]
    page = write_report(tmp_path).read_text()
    assert "3 nearest neighbours" in page and "greedy decision tree of the signs" in page
    assert "this family has no oracle" in page and "closer a curve is to the oracle" not in page


@pytest.mark.parametrize("name", ["linear", "linear_classification"])
def test_baselines_are_asked_what_the_model_is(name):
    settings = TVPSettings.from_config(changed(TINY, task={"name": name, "input_width": 2}))
    params = jax.eval_shape(TVPExperiment(settings).init, jax.random.key(0), {})
    params = jax.tree.map(lambda p: jax.numpy.zeros((2, *p.shape), p.dtype), params)
    summary, seen = tvp_measures.measure(settings, params)
    again = tvp_measures.measure(settings, params)[0]
    assert summary == again
    entry = summary["baselines"]["averaging"]
    x, y = np.asarray(seen["x"], float), np.asarray(seen["shown"], float)
    assert x.shape == (32, 3, 2) and y.shape == (32, 3, 1)
    first = (x[:, 1] * y[:, 0] * x[:, 0]).sum(-1) - y[:, 1, 0]
    np.testing.assert_allclose(entry["risk"][1], np.square(first).mean(), rtol=1e-4)
    assert entry["num_prompts"] == 32
    if name == "linear":
        w = np.asarray(seen["parameters"]["w"], float)
        np.testing.assert_allclose(y[..., 0], np.einsum("pnx,px->pn", x, w), rtol=1e-4, atol=1e-5)
        assert "oracle_risk" in summary and "accuracy" not in entry
    else:
        assert summary["prior_accuracy"] == 0.5 == entry["accuracy"][0]
        assert summary["members"][0]["icl_accuracy"] == [0.5] * 3


@pytest.mark.exhaustive
def test_a_whole_run_of_maps_with_probes(tmp_path):
    """y = W x: every part takes several outputs, and the probes look at the rank of what a vector carries."""
    task = {"name": "linear", "input_width": 3, "outputs": 2}
    config = changed(TINY, task=task, train=TINY["train"] | RUN, evaluation__probes=True, evaluation__probe_prompts=20)
    config = changed(config, evaluation__shifts=True, prompt__demonstrations=2, model__max_positions=16)
    config = changed(config, evaluation__prompts=500)
    said = tvp.run(config, tmp_path, "train", lambda line: None)
    summary = parse_summary(said)
    assert summary.base.risk.prior.value == pytest.approx(1, abs=0.25) and summary.shifts
    for member in summary.members:
        assert member.probes.num_prompts == 20 and set(member.probes.rank) == {"prescribed", "best"}
        assert member.probes.rank["best"]["captured"].value.shape == (2,)
        assert member.probes.read["linear"].value.shape == (3,)
    page = write_report(tmp_path).read_text()
    assert (
        "Probing the vectors" in page
        and "The map that a vector carries" in page
        and "probes at l*" in summary_table(said)
    )
    vectors = load_vectors(tmp_path / "vectors" / "tvp.safetensors")[0]
    assert vectors["task.w"].shape == (500, 2, 3)
    # Measured again they are the same, and decodability is of the vectors that the run left behind.
    again = tvp.run(config, tmp_path, "eval", lambda line: None)
    assert again["members"] == said["members"]
    found = geometry.decodability(vectors["theta"].swapaxes(0, 1), {"w": vectors["task.w"]})
    np.testing.assert_allclose(
        found["linear"]["w"]["explained"],
        said["members"][1]["probes"]["decodability"]["linear"]["w"]["explained"],
        atol=1e-6,
    )


def test_probes_are_made_only_where_asked_for():
    settings = TVPSettings.from_config(changed(TINY, task={"name": "linear", "input_width": 2}))
    assert not settings.evaluation.probes
    params = jax.eval_shape(TVPExperiment(settings).init, jax.random.key(0), {})
    params = jax.tree.map(lambda p: jax.numpy.zeros((2, *p.shape), p.dtype), params)
    assert "probes" not in tvp_measures.measure(settings, params)[0]["members"][0]


@pytest.mark.slow
def test_a_family_whose_tasks_can_be_listed_is_asked_which_of_them_a_vector_holds():
    """A model that is not trained holds none: each member has an entry for each pool, and the page can read it."""
    config = changed(TINY, task={"name": "token_offset"}, evaluation__probes=True, evaluation__probe_prompts=4)
    settings = TVPSettings.from_config(changed(config, evaluation__prompts=4))
    init = jax.vmap(lambda seed: settings.init(jax.random.key(seed)))
    summary, _ = tvp_measures.measure(settings, init(jax.numpy.arange(2)))
    for member in parse_summary(summary | {"identical_members": []}).members:
        assert set(member.probes.operands) == {12, 9, 6, 4}
        for pool in member.probes.operands.values():
            assert (np.abs(pool["margin_by_layer"].value) < 0.5).all()
            assert pool["accuracy_outside_by_layer"].value.shape == (settings.decoder.num_layers + 1,)


def test_a_shift_without_an_oracle_has_its_prior():
    """And what is seen is what the model is shown, here noisy labels."""
    settings = TVPSettings.from_config(changed(TINY, task=TREE))
    params = jax.eval_shape(TVPExperiment(settings).init, jax.random.key(0), {})
    params = jax.tree.map(lambda p: jax.numpy.zeros((2, *p.shape), p.dtype), params)
    model = Model(params, settings.decoder)
    measured = Measure(model, settings.task, settings.layout, 2, edit="replace", prompts=300, seed=0)
    (shift,) = (shift for shift in shifts_for(settings.task, 2) if shift.name == "label_noise")
    entry, seen = measured(shift)
    assert entry["prior_risk"] == pytest.approx(entry["members"][0]["icl_risk"][0]) == pytest.approx(1, abs=0.3)
    assert "oracle_risk" not in entry
    assert np.square(seen["shown"]).mean() == pytest.approx(1.25, abs=0.2) and seen["x"].shape == (300, 3, 2)
