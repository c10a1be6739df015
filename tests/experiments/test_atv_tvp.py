"""ATV on a TVP-trained model: the numbers are what their names say, and the target stays as it is."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import TINY, changed, quiet
from tvjax.errors import UserError
from tvjax.evals import recovery
from tvjax.experiments.atv_tvp import report as atv_tvp_report
from tvjax.experiments.atv_tvp import run as atv_tvp
from tvjax.experiments.atv_tvp.settings import ATVTVPSettings
from tvjax.experiments.atv_tvp.writer import Target, WriterExperiment
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.tvp import load as tvp_load
from tvjax.experiments.tvp.training import TVPExperiment
from tvjax.nn.model import Model
from tvjax.report.reader import read_run
from tvjax.tasks import NO_SHIFT, draw
from tvjax.vectors.adapters import Queries
from tvjax.vectors.origin import fingerprint
from tvjax.vectors.store import load_vectors
from tvjax.vectors.tvp import prompt_with

K, PROMPTS = TINY["prompt"]["demonstrations"], 32
TRAINING = changed(
    TINY,
    population__name=("icl", "tvp"),
    train__tensorboard=False,
    train__checkpoint_every=20,
    evaluation__prompts=PROMPTS,
    evaluation__seed=1000,
)
CONFIG = {
    "experiment": "atv_tvp",
    "target": {"trained": "to be put in"},
    "training": TRAINING,
    "writer": {"num_layers": 1, "width": 8, "num_heads": 2},
    "train": {
        "batch": 8,
        "seeds": (0, 1),
        "learning_rate": 1e-2,
        "steps": 20,
        "log_every": 10,
        "evaluate_every": 20,
        "checkpoint_every": 10,
        "tensorboard": False,
    },
    "optimizer": {"warmup_steps": 2},
    "evaluation": {"training_prompts": 8, "prompts": PROMPTS},
    "mesh": {},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The target is trained by the first run that needs it."""
    return changed(CONFIG, target__trained=str(tmp_path_factory.mktemp("target") / "run"))


@pytest.fixture(scope="module")
def ran(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("writers") / "run"
    return folder, atv_tvp.run(config, folder, "train", quiet)


@pytest.fixture(scope="module")
def experiment(config, ran):
    """What the run was made of, opened again."""
    s = ATVTVPSettings.from_config(config)
    return WriterExperiment(s, atv_tvp.open_target(s, quiet))


@pytest.fixture(scope="module")
def drawn(experiment):
    """The evaluation's prompts: they are one chunk."""
    t = experiment.target.settings
    return draw(
        NO_SHIFT, t.task, t.layout, jax.random.fold_in(jax.random.fold_in(jax.random.key(1000), 1), 0), PROMPTS, K
    )


@pytest.fixture(scope="module")
def writers(experiment, ran):
    return atv_tvp.make_trainer(experiment).restore(ran[0], quiet)[1].params


def files(folder):
    return {path.stem: load_vectors(path)[0] for path in sorted((folder / "vectors").iterdir())}


@pytest.mark.slow
class TestSummary:
    def test_theta_has_the_risks_of_the_targets_own_evaluation(self, config, ran):
        own = json.loads((Path(config["target"]["trained"]) / "eval" / "summary.json").read_text())
        member, summary = own["members"][-1], ran[1]
        assert summary["prescribed_layer"] == member["prescribed_layer"] == 1
        assert len(summary["theta_risk"]) == K + 1
        for mine, its in (
            (summary["theta_risk"][-1], member["tvp_risk_by_layer"][1]),
            (summary["zero_shot_risk"], member["zero_shot_risk"]),
            (summary["prior_risk"], own["prior_risk"]),
            (summary["oracle_risk"], own["oracle_risk"]),
        ):
            np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-9)

    def test_risks_are_those_of_the_answers_prompt_by_prompt(self, experiment, drawn, writers, ran):
        t, target = experiment.target, experiment.target.settings
        vectors = files(ran[0])
        said = {"theta": vectors["theta"]["theta"], "written": vectors["seed_1"]["written"]}
        said["shuffled"] = np.roll(said["written"], 1, axis=0)
        risk = {}
        for name, theta in said.items():
            out = prompt_with(t.model, target.task, target.layout, jnp.asarray(theta), 1, drawn.fresh_x)
            risk[name] = float(jnp.square(out - drawn.fresh_answers).mean())
        entry = ran[1]["members"][1]
        assert entry["written_risk"][-1] == pytest.approx(risk["written"], rel=1e-4)
        assert entry["shuffled_risk"][-1] == pytest.approx(risk["shuffled"], rel=1e-4)
        assert entry["risk_minus_theta"][-1] == pytest.approx(risk["written"] - risk["theta"], rel=1e-3)

    def test_shares_are_those_of_the_saved_vectors(self, ran):
        summary, vectors = ran[1], files(ran[0])
        theta, w = (vectors["theta"][name].astype(np.float64) for name in ("theta", "task.w"))
        for m, entry in enumerate(summary["members"]):
            written = vectors[f"seed_{m}"]["written"].astype(np.float64)
            total = ((theta - theta.mean(0)) ** 2).sum()
            assert entry["explained_variance"] == pytest.approx(1 - ((theta - written) ** 2).sum() / total)
            moved = theta - theta.mean(0) - written + written.mean(0)
            assert entry["centred_explained_variance"] == pytest.approx(1 - (moved**2).sum() / total, rel=1e-4)
            for wanted, value in ((theta, entry["linear_explained_variance"]), (w, entry["task_r2"]["w"])):
                middle, asked = written[::2].mean(0), wanted[1::2]
                centred = written[::2] - middle
                small = np.sqrt(recovery.RIDGE * (centred**2).sum() / 8) * np.eye(8)
                rows = np.concatenate([wanted[::2] - wanted[::2].mean(0), np.zeros((8, wanted.shape[1]))])
                kernel = np.linalg.lstsq(np.concatenate([centred, small]), rows, rcond=None)[0]
                said = (written[1::2] - middle) @ kernel + wanted[::2].mean(0)
                left = ((asked - said) ** 2).sum() / ((asked - asked.mean(0)) ** 2).sum()
                assert value == pytest.approx(1 - left, rel=1e-4)

    def test_every_estimate_lies_in_its_interval(self, ran):
        def check(entry):
            names = [name for name in entry if f"{name}_ci" in entry]
            for name in names:
                values, ends = entry[name], entry[f"{name}_ci"]
                if isinstance(values, dict):
                    values, ends = list(values.values()), list(ends.values())
                low, high = np.moveaxis(np.array(ends), -1, 0)
                assert (low <= np.array(values) + 1e-12).all() and (np.array(values) <= high + 1e-12).all(), name
            return names

        assert {"theta_risk", "oracle_risk", "theta_explained_by_task"} <= set(check(ran[1]))
        for member in ran[1]["members"]:
            assert len(check(member)) == 7

    def test_repeats_to_the_bit(self, config, ran, tmp_path):
        atv_tvp.run(config, tmp_path / "again", "train", quiet)
        text = (ran[0] / "eval" / "summary.json").read_text()
        assert (tmp_path / "again" / "eval" / "summary.json").read_text() == text
        jax.tree.map(np.testing.assert_array_equal, files(tmp_path / "again"), files(ran[0]))
        atv_tvp.run(config, ran[0], "eval", quiet)
        assert (ran[0] / "eval" / "summary.json").read_text() == text


@pytest.mark.slow
class TestWriter:
    def test_it_reads_all_queries_as_if_one_by_one(self, experiment, drawn, writers):
        params = jax.tree.map(lambda p: p[1], writers)
        written = experiment.write(params, drawn.prompt)
        assert written.shape == (PROMPTS, K + 1, TINY["model"]["width"])
        for k in (0, K - 1):
            inputs = drawn.prompt.inputs[:, : 3 * k + 2]
            places = jnp.broadcast_to(jnp.arange(3 * k + 2)[None], inputs.shape[:2])
            asked = Queries(inputs, places, jnp.full(PROMPTS, 3 * k + 1), jnp.zeros(PROMPTS, int))
            alone = experiment.adapter.read(params, {}, asked, jnp.ones(1), None)[:, 0]
            np.testing.assert_allclose(written[:, k], alone, rtol=1e-4, atol=1e-6)

    def test_the_target_stays_to_the_bit(self, config, experiment, ran):
        folder = Path(config["target"]["trained"])
        params = tvp_load.load(folder, config["training"], "tvp").params
        jax.tree.map(np.testing.assert_array_equal, params, experiment.target.model.params)
        kept = load_vectors(folder / "vectors" / "tvp.safetensors")[1]["model"]
        assert fingerprint(params) == kept == ran[1]["target"]["fingerprint"]

    def test_its_loss_is_the_risk_at_fresh_queries_and_needs_no_theta(self, experiment, writers, monkeypatch):
        monkeypatch.setattr(type(experiment.target), "theta", lambda *_: pytest.fail("theta was read"))
        params, key, s = jax.tree.map(lambda p: p[0], writers), jax.random.key(3), experiment.target.settings
        loss, metrics = jax.jit(lambda p: experiment.loss(p, experiment.data(), key, jnp.array(0), {}))(params)
        prompt_key, query_key = jax.random.split(key)
        prompt = s.task.sample(prompt_key, 8, K, s.layout)
        written = experiment.write(params, prompt)
        x, y = s.task.draw_pairs(query_key, prompt.parameters, K)
        risks = [
            jnp.square(
                prompt_with(experiment.target.model, s.task, s.layout, written[:, k + 1], 1, x[:, k]) - y[:, k]
            ).mean()
            for k in range(K)
        ]
        assert float(loss) == pytest.approx(float(np.mean(risks)), rel=1e-4)
        assert metrics.keys() == {"written_loss"}

    def test_gradients_reach_all_that_is_used(self, experiment, writers):
        params = jax.tree.map(lambda p: p[0], writers)
        loss = lambda p: experiment.loss(p, experiment.data(), jax.random.key(3), 0, {})[0]
        grads = jax.jit(jax.grad(loss))(params)
        idle = {jax.tree_util.keystr(k) for k, g in jax.tree_util.tree_leaves_with_path(grads) if not g.any()}
        assert all("readout" in name or "key']['bias" in name for name in idle), idle


@pytest.mark.parametrize(
    "task, layout, edit",
    [({"name": "token_offset"}, "xzy", "replace"), ({"name": "sinusoid", "input_width": 1}, "xy", "add")],
)
def test_its_programs_trace_for_other_tasks_layouts_and_edits(task, layout, edit):
    config = changed(CONFIG, training__task=task, training__prompt__layout=layout, training__tvp__edit=edit)
    s = ATVTVPSettings.from_config(config)
    t = s.target_settings()
    shapes = jax.eval_shape(lambda key: TVPExperiment(t).init(key, {}), jax.random.key(0))
    experiment = WriterExperiment(s, Target(t, Model(shapes, t.decoder), "tvp", 1))
    data, key = experiment.data(), jax.random.key(0)
    params = jax.eval_shape(experiment.init, key, data)
    loss, metrics = jax.eval_shape(lambda p, d: experiment.loss(p, d, key, 0, {}), params, data)
    assert loss.shape == () and "written_loss" in metrics
    drawn = draw(NO_SHIFT, t.task, t.layout, key, 4, K)
    members = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), params)
    found = jax.eval_shape(experiment.score, members, data, drawn)
    assert found["members"]["written"]["risk"].shape == (2, 4, K + 1)
    assert ("accuracy" in found["theta"]) == (task["name"] == "token_offset")


@pytest.mark.slow
class TestTheta:
    def test_vectors_that_are_theta_have_all_of_it(self, experiment, drawn):
        t = experiment.target
        theta = t.theta(t.model, drawn.prompt)
        scores = t.ask_all(t.model, theta, drawn)
        found = {
            "members": {
                "written": {"risk": np.stack([scores["risk"]] * 2, 1)},
                "shuffled": {"risk": np.stack([t.ask_all(t.model, jnp.roll(theta, 1, 0), drawn)["risk"]] * 2, 1)},
                "vectors": np.stack([theta[:, -1]] * 2, 1),
            },
            "theta": scores,
            "zero_shot": {"risk": scores["risk"][:, :1]},
            "vectors": np.asarray(theta[:, -1]),
        }
        references = {"oracle_risk": scores["risk"], "prior_risk": scores["risk"][:, 0]}
        tasks = {"references": references, "task": drawn.prompt.parameters}
        summary = atv_tvp.summarize(experiment, jax.device_get(tasks), jax.device_get(found))
        entry = summary["members"][0]
        assert entry["explained_variance"] == pytest.approx(1)
        assert entry["linear_explained_variance"] == pytest.approx(1, abs=1e-3)
        assert entry["task_r2"] == summary["theta_task_r2"]
        assert entry["risk_minus_theta"] == [0.0] * (K + 1)

    def test_training_on_theta_comes_near_it(self, config, ran, tmp_path):
        """Near enough to tell: the same writer, trained as long on the risk, does not."""
        steps = {"steps": 400, "log_every": 200, "evaluate_every": 400, "checkpoint_every": 400}
        told = changed(config, writer__objective="theta", train=config["train"] | steps | {"seeds": (0,)})
        summary = atv_tvp.run(told, tmp_path / "told", "train", quiet)
        assert summary["members"][0]["explained_variance"] > 0.8 > 0.3 > ran[1]["members"][0]["explained_variance"]


class TestRecovery:
    def test_a_linear_image_holds_all_and_noise_nothing(self):
        rng = np.random.default_rng(0)
        theta, noise = rng.normal(size=(400, 5)), rng.normal(size=(400, 5))
        image = theta @ rng.normal(size=(5, 7)) + 3
        assert recovery.explained(theta, theta)[0] == 1
        assert recovery.explained(*recovery.mapped(image, theta))[0] == pytest.approx(1, abs=1e-3)
        assert recovery.explained(*recovery.mapped(noise, theta))[0] == pytest.approx(0, abs=0.06)
        assert recovery.explained(theta, np.tile(theta.mean(0), (400, 1)))[0] == pytest.approx(0)

    def test_a_map_is_scored_on_prompts_that_did_not_make_it(self):
        """As many directions as prompts: it would learn these by heart."""
        rng = np.random.default_rng(0)
        share = recovery.explained(*recovery.mapped(rng.normal(size=(60, 40)), rng.normal(size=(60, 2))))[0]
        assert share < 0

    def test_what_never_varies_has_nothing_to_explain(self):
        assert recovery.explained(np.ones((8, 2)), np.zeros((8, 2))) == (0.0, [0.0, 0.0])
        assert np.isfinite(recovery.mapped(np.ones((8, 2)), np.arange(8.0)[:, None])[1]).all()

    def test_parameters_as_a_linear_map_can_say_them(self):
        said = recovery.readable({"c": np.array([5, 1, 5]), "phase": np.array([0.0, np.pi / 2, 1.0]), "w": np.eye(3)})
        assert said["c"].tolist() == [[0, 1], [1, 0], [0, 1]]
        np.testing.assert_allclose(said["phase"][:2], [[1, 0], [0, 1]], atol=1e-12)
        assert said["w"].shape == (3, 3)


@pytest.mark.slow
class TestReport:
    def test_the_page_and_the_table_say_the_numbers(self, ran):
        folder, summary = ran
        page = write_report(folder).read_text()
        text = summary_table(json.loads((folder / "eval" / "summary.json").read_text()))
        for name in ("atv_by_demonstrations", "atv_pca"):
            assert (folder / "report" / f"{name}.png").stat().st_size > 10_000 and f"{name}.png" in page
        share = f"{summary['members'][1]['explained_variance']:.2f}"
        assert share in text and share in page
        assert "written, seed 1" in text and "oracle" in text

    def test_a_task_without_an_oracle_has_no_row_and_no_line_of_it(self, ran):
        summary = {name: value for name, value in ran[1].items() if not name.startswith("oracle")}
        assert "oracle" not in summary_table(summary) and "prior" in summary_table(summary)
        run = dataclasses.replace(read_run(ran[0]), summary=summary)
        curve = atv_tvp_report.contents(run).exhibits[0].draw()
        assert not any("oracle" in text.get_text() for text in curve.legends[0].get_texts())

    def test_a_broken_file_of_vectors_is_named(self, ran):
        path = ran[0] / "vectors" / "seed_0.safetensors"
        whole = path.read_bytes()
        try:
            path.write_bytes(whole[:100])
            with pytest.raises(UserError, match=r"seed_0\.safetensors.*--mode=eval"):
                write_report(ran[0])
        finally:
            path.write_bytes(whole)


ROWS = {
    "unknown field": ({"writer__widht": 3}, "config.writer.widht", "3", "width"),
    "unknown group": ({"writers": {}}, "config.writers", "fields are"),
    "heads that do not divide": ({"writer__num_heads": 3}, "config.writer.num_heads", "3", "width = 8"),
    "no layers": ({"writer__num_layers": 0}, "config.writer.num_layers", "0", "1 or more"),
    "unknown objective": ({"writer__objective": "both"}, "config.writer.objective", "'both'", "theta"),
    "S beyond K": ({"writer__demonstrations": (1, 3)}, "config.writer.demonstrations", "(1, 3)", "0..2"),
    "no seeds": ({"train__seeds": ()}, "config.train.seeds", "()", "at least one"),
    "equal seeds": ({"train__seeds": (1, 1)}, "config.train.seeds", "(1, 1)", "different"),
    "rate": ({"train__learning_rate": 0.0}, "config.train.learning_rate", "0.0", "more than 0"),
    "keep_best": ({"train__keep_best": "risk"}, "config.train.keep_best", "risk", "accepted: ''"),
    "too few prompts": ({"evaluation__prompts": 3}, "config.evaluation.prompts", "3", "4 or more"),
    "mesh": ({"mesh__member": 3}, "config.mesh.member", "3", "2 seeds"),
    "a wrong target": ({"training__model__width": -1}, "config.training", "config.model.width", "-1"),
    "no target": ({"training": 3}, "config.training", "3", "a group"),
    "unknown member": ({"target__member": "atv"}, "config.target.member", "'atv'", "icl, tvp"),
    "no run": ({"target__run": "FOLDER/none"}, "FOLDER/none/config.json", "missing", "workdir of a run"),
    "another experiment": ({"target__run": "FOLDER/text"}, "config.target.run", "FOLDER/text", "TVP run"),
    "a run without a checkpoint": ({"target__run": "FOLDER/bare"}, "FOLDER/bare", "no checkpoint", "has saved one"),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_wrong_value_is_named_with_what_is_accepted(row, tmp_path):
    fields, *said = row
    for name, values in {"text": {"experiment": "text_model"}, "bare": TRAINING}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
    fields = {k: v.replace("FOLDER", str(tmp_path)) if isinstance(v, str) else v for k, v in fields.items()}
    config = changed(CONFIG, target__trained=str(tmp_path / "target"))
    with pytest.raises(UserError) as caught:
        atv_tvp.run(changed(config, **fields), tmp_path / "run", "train", quiet)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(said[0].replace("FOLDER", str(tmp_path)))
    assert all(words.replace("FOLDER", str(tmp_path)) in line for words in said), line


@pytest.mark.slow
def test_a_target_of_another_config_is_not_taken(config, ran, tmp_path):
    with pytest.raises(UserError, match=r"config\.training\.train\.steps: given 40.*another config\.target\.trained"):
        atv_tvp.run(changed(config, training__train__steps=40), tmp_path / "run", "train", quiet)


@pytest.mark.slow
def test_writers_keep_to_the_target_that_they_were_trained_on(config, ran, tmp_path):
    path = ran[0] / "target.json"
    text = path.read_text()
    try:
        path.write_text(text.replace(ran[1]["target"]["fingerprint"], "0" * 16))
        with pytest.raises(UserError, match=r"target\.json: the writers' target was 0{16}"):
            atv_tvp.run(config, ran[0], "eval", quiet)
    finally:
        path.write_text(text)
