"""The TVP-loss on text: the loss is what its definition says, held-out tasks stay out, and the numbers are right."""

import json
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.conftest import changed, quiet
from tests.runs import Runs, logged, past
from tvjax.errors import UserError
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.tvp_language import measures
from tvjax.experiments.tvp_language import report as language
from tvjax.experiments.tvp_language import run as tvp_language
from tvjax.experiments.tvp_language.settings import TVPLanguageSettings
from tvjax.tasks.suite import suite
from tvjax.tasks.text import Template
from tvjax.text.bench import Bench
from tvjax.text.prompts import answer_scores, ask, draw_pairs, draw_prompts, longest
from tvjax.text.shifts import SHIFTS, shifted
from tvjax.vectors.origin import fingerprint
from tvjax.vectors.store import load_vectors

K = 3
TRAIN, HELDOUT = ("next_letter", "digits", "uppercase"), ("previous_letter", "double")
TEMPLATE = {"before": "", "between": " ->", "after": "\n"}
STEPS = {"log_every": 10, "evaluate_every": 20, "checkpoint_every": 10, "tensorboard": False}
OPTIMIZER = {"warmup_steps": 5, "clip_norm": 1.0}
CONFIG = {
    "experiment": "tvp_language",
    "tasks": {"train": TRAIN, "heldout": HELDOUT},
    "model": {"trained": "to be put in", "dtype": "float32"},
    "training": {
        "experiment": "text_model",
        "data": {"tasks": TRAIN},
        "template": TEMPLATE,
        "model": {"vocab_size": 400, "num_layers": 3, "width": 32, "num_heads": 2, "hidden_width": 64},
        "train": {
            "demonstrations": K,
            "batch": 32,
            "seed": 0,
            "learning_rate": 6e-3,
            "steps": 400,
            "log_every": 100,
            "evaluate_every": 400,
            "checkpoint_every": 400,
            "tensorboard": False,
        },
        "optimizer": OPTIMIZER,
        "evaluation": {"prompts": 64},
    },
    "data": {},
    "template": TEMPLATE,
    "tvp": {},
    "population": {
        "name": ("icl", "tvp"),
        "seed": (0,),
        "tvp_weight": (0.0, 1.0),
        "prescribed_layer": (1, 2),
        "learning_rate": (2e-3,),
    },
    "train": {"demonstrations": K, "batch": 8, "steps": 40} | STEPS,
    "optimizer": OPTIMIZER,
    "vectors": {"prompts": 6, "batch": 16, "questions": 15},
    "evaluation": {"training_prompts": 16, "single": 2},
    "mesh": {},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The small model is trained by the first run that needs it."""
    return changed(CONFIG, model__trained=str(tmp_path_factory.mktemp("base") / "run"))


@pytest.fixture(scope="module")
def ran(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("language") / "run"
    return folder, tvp_language.run(config, folder, "train", quiet)


@pytest.fixture(scope="module")
def model(config, ran):
    return tvjax.load(Path(config["model"]["trained"]) / "model")


def experiment_of(config, model):
    s = TVPLanguageSettings.from_config(config)
    return tvp_language.make_experiment(s, suite(), model)


def tokens(slots):
    """The real tokens of some columns of a prompt."""
    ids = np.asarray(slots).reshape(-1)
    return ids[ids >= 0]


def plain_risk(model, query, answer, edits=None):
    """The mean cross-entropy of the tokens of an answer behind a query, one prompt without padding."""
    logs = jax.nn.log_softmax(tvjax.run(model, jnp.asarray([*query, *answer])[None], edits=edits)[0])
    return -np.mean([logs[len(query) + n - 1, token] for n, token in enumerate(answer)])


@pytest.mark.slow
class TestLoss:
    @pytest.mark.parametrize(
        ("layer", "choice"),
        [
            pytest.param(1, {}, id="replace"),
            pytest.param(2, {"edit": "add"}, id="add", marks=pytest.mark.exhaustive),
            pytest.param(2, {"demonstrations": (1, 3)}, id="S", marks=pytest.mark.exhaustive),
            pytest.param(1, {"query": "shared"}, id="shared", marks=pytest.mark.exhaustive),
        ],
    )
    def test_it_is_what_plain_prompts_one_by_one_give(self, config, model, layer, choice):
        experiment = experiment_of(changed(config, tvp=choice), model)
        data, key, batch, width = experiment.data(), jax.random.key(5), 3, experiment.arrays["query"].shape[1]
        found = jax.jit(experiment.scores, static_argnums=(3, 5))(
            model.params, data, key, batch, jnp.array(layer), "vector"
        )
        prompt_key, pair_key = jax.random.split(key)
        task_B, prompts = experiment.draw(data, prompt_key, batch)
        chosen = choice.get("demonstrations", (1, 2, 3))
        fresh = draw_pairs(data, pair_key, task_B, 1 if choice.get("query") == "shared" else len(chosen))
        lengths = {len(tokens(prompt[: i + 1])) for prompt in prompts for i in chosen}
        assert len(lengths) > len(chosen), "prompts of one length would not tell where theta is read"
        write = tvjax.add if choice.get("edit") == "add" else tvjax.replace
        for b, prompt in enumerate(prompts):
            for place, i in enumerate(chosen):
                shown = np.concatenate([tokens(prompt[:i]), tokens(prompt[i, :width])])
                read = tvjax.capture(model, jnp.asarray(shown)[None], ["blocks/resid"], layers=[layer])
                theta = read["blocks/resid"][0, 0, -1]
                pair = fresh[b, min(place, fresh.shape[1] - 1)]
                query, answer = tokens(pair[:width]), tokens(pair[width:])
                edits = write(theta, layers=layer, positions=[len(query) - 1])
                expected = plain_risk(model, query, answer, edits)
                np.testing.assert_allclose(found["tvp_risk"][b, place], expected, rtol=1e-4, atol=1e-5)
        assert found["tvp_risk"].shape == (batch, len(chosen))
        np.testing.assert_allclose(
            found["icl_risk"][0, K],
            plain_risk(
                model, np.append(tokens(prompts[0, :K]), tokens(prompts[0, K, :width])), tokens(prompts[0, K, width:])
            ),
            rtol=1e-4,
            atol=1e-5,
        )

    def test_the_control_asks_the_same_pairs_behind_the_same_demonstrations(self, config, model):
        experiment = experiment_of(config, model)
        jitted = jax.jit(experiment.scores, static_argnums=(3, 5))
        data, key, width = experiment.data(), jax.random.key(5), experiment.arrays["query"].shape[1]
        found = jitted(model.params, data, key, 3, jnp.array(1), "demonstrations")
        prompt_key, pair_key = jax.random.split(key)
        task_B, prompts = experiment.draw(data, prompt_key, 3)
        fresh = draw_pairs(data, pair_key, task_B, K, behind=True)
        alone = draw_pairs(data, pair_key, task_B, K)
        for b, prompt in enumerate(prompts):
            for place, count in enumerate((1, 2, 3)):
                pair = fresh[b, place]
                same = [model.source.tokenizer.decode(tokens(p)).strip() for p in (pair, alone[b, place])]
                assert same[0] == same[1], "the TVP-loss would ask another pair"
                query = np.concatenate([tokens(prompt[:count]), tokens(pair[:width])])
                expected = plain_risk(model, query, tokens(pair[width:]))
                np.testing.assert_allclose(found["query_risk"][b, place], expected, rtol=1e-4, atol=1e-5)
        bare = jitted(model.params, data, key, 3, jnp.array(1), "")
        np.testing.assert_allclose(found["icl_risk"], bare["icl_risk"], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("pairs", [1, 2, K + 1])
    def test_prompts_have_room_for_the_longest_and_no_more(self, config, model, pairs):
        experiment = experiment_of(config, model)
        arrays, most = experiment.arrays, longest(experiment.arrays, pairs)
        drawn = [draw_prompts(experiment.data(), jax.random.key(n), 64, pairs, 40)[1] for n in range(20)]
        lengths = [(np.asarray(prompts) >= 0).sum((1, 2)).max() for prompts in drawn]
        assert max(lengths) <= most <= max(lengths) + pairs
        for prompts in drawn[:3]:
            asked = ask(prompts, arrays)
            for b, prompt in enumerate(np.asarray(prompts)):
                real = prompt[prompt >= 0]
                np.testing.assert_array_equal(asked.ids_BT[b, : len(real)], real[: asked.ids_BT.shape[1]])

    def test_fresh_pairs_are_of_the_prompts_task(self, config, model):
        experiment = experiment_of(config, model)
        data, width = experiment.data(), experiment.arrays["query"].shape[1]
        pairs = draw_pairs(data, jax.random.key(0), jnp.repeat(jnp.arange(3), 20), 4)
        seen = {name: set() for name in TRAIN}
        for number, row in enumerate(np.asarray(pairs)):
            for pair in row:
                text = model.source.tokenizer.decode(tokens(pair))
                seen[TRAIN[number // 20]].add(tuple(text.strip().split(" -> ")))
        for name, found in seen.items():
            known = set(suite()[name].split("train"))
            assert found <= known and len(found) > 0.9 * len(known)
        assert pairs.shape[-1] == width + experiment.arrays["answer"].shape[1]

    def test_total_is_icl_plus_weight_times_tvp_from_its_first_step(self, config, model):
        experiment = experiment_of(changed(config, tvp__start_step=5), model)
        jitted = jax.jit(experiment.loss)
        for step, weight, counted in ((4, 1.0, 0.0), (5, 1.0, 1.0), (9, 0.5, 0.5), (9, 0.0, 0.0)):
            hyper = {"prescribed_layer": jnp.array(2), "tvp_weight": jnp.array(weight)}
            loss, m = jitted(model.params, experiment.data(), jax.random.key(1), jnp.array(step), hyper)
            assert float(loss) == pytest.approx(float(m["icl_loss"] + counted * m["tvp_loss"]))

    @pytest.mark.parametrize("flows", [True, False])
    def test_the_gradient_flows_through_theta_or_not(self, config, model, flows):
        experiment = experiment_of(changed(config, tvp__gradient=flows), model)
        data, (prompt_key, pair_key) = experiment.data(), jax.random.split(jax.random.key(2))
        task_B, prompts = experiment.draw(data, prompt_key, 4)
        asked = ask(prompts, experiment.arrays)
        _, theta = answer_scores(model.replace(config=experiment.config), asked, layers=(1, 2))

        def loss(theta):
            return experiment.tvp_scores(model.params, data, pair_key, task_B, theta, jnp.array(2))["risk"].mean()

        grads = np.abs(jax.jit(jax.grad(loss))(theta)).max((1, 3))
        assert (grads[1, 1:] > 0).all() == flows
        assert not grads[0].any() and not grads[:, 0].any(), "of layer 2 and of queries after a demonstration alone"

    def test_a_member_without_a_weight_is_the_same_without_the_other(self, config, ran, tmp_path):
        alone = changed(config, population={k: v[:1] for k, v in config["population"].items()})
        summary = tvp_language.run(alone, tmp_path / "run", "train", quiet)
        rows = [row for row in logged(ran[0]) if row["member"] == "icl"]
        for row, other in zip(rows, logged(tmp_path / "run"), strict=True):
            for name in ("icl_loss", "eval_icl_risk", "eval_tvp_risk"):
                if name in row or name in other:
                    np.testing.assert_allclose(row[name], other[name], rtol=1e-3)
            assert "tvp_loss" not in other
        assert [d["of"] for d in summary["differences"]] == ["icl"]


@pytest.mark.slow
class TestTasks:
    def test_training_has_the_train_split_of_the_train_tasks_and_no_more(self, config, model):
        experiment = experiment_of(config, model)
        rows = np.concatenate([experiment.arrays["query"], experiment.arrays["answer"]], axis=1)
        seen = [tuple(model.source.tokenizer.decode(tokens(row)).strip().split(" -> ")) for row in rows]
        assert seen == [pair for name in TRAIN for pair in suite()[name].split("train")]
        assert set(experiment.data()) == {"base", *experiment.arrays}

    def test_the_small_model_has_not_seen_the_held_out_tasks(self, config, ran):
        said = json.loads((Path(config["model"]["trained"]) / "eval" / "summary.json").read_text())
        assert tuple(said["tasks"]) == TRAIN


@pytest.mark.slow
class TestSummary:
    def test_it_has_what_it_promises(self, ran):
        summary = ran[1]
        assert summary == json.loads((ran[0] / "eval" / "summary.json").read_text())
        assert summary["experiment"] == "tvp_language" and summary["num_layers"] == 3
        assert summary["num_demonstrations"] == K and summary["tasks"] == {"train": [*TRAIN], "heldout": [*HELDOUT]}
        about = [(m["name"], m["tvp_weight"], m["prescribed_layer"], m["seed"]) for m in summary["members"]]
        assert about == [("base", None, 2, None), ("icl", 0.0, 1, 0), ("tvp", 1.0, 2, 0)]
        assert [(d["of"], d["minus"]) for d in summary["differences"]] == [
            ("tvp", "icl"),
            ("icl", "base"),
            ("tvp", "base"),
        ]
        for m in summary["members"]:
            assert set(m["accuracy"]) == set(measures.ASKED)
            for kind, values in m["accuracy"].items():
                assert tuple(values) == TRAIN + HELDOUT
                for group, names in summary["tasks"].items():
                    assert m["means"][group][kind] == pytest.approx(np.mean([values[name] for name in names]))
                for name, value in values.items():
                    low, high = m["accuracy_ci"][kind][name]
                    assert low <= value + 1e-12 and value <= high + 1e-12
            for name, curve in m["vector_by_layer"].items():
                assert len(curve) == 4 and curve[m["prescribed_layer"]] == m["accuracy"]["vector"][name]
                assert curve[m["best_layer"][name]] == m["accuracy"]["best_vector"][name]
                assert curve[0] == m["accuracy"]["zero_shot"][name], "the embedding is the same in every prompt"

    def test_differences_are_those_of_the_means(self, ran):
        members = {m["name"]: m["means"] for m in ran[1]["members"]}
        layers = {m["name"]: m["prescribed_layer"] for m in ran[1]["members"]}
        seen = set()
        for d in ran[1]["differences"]:
            for group in ("train", "heldout"):
                for kind in measures.kinds_of(members["base"]["train"]):
                    if layers[d["of"]] != layers[d["minus"]] and kind in ("vector", "single_vector", *measures.GAINS):
                        continue  # those are compared at one layer, which the other member's means are not of
                    gap = members[d["of"]][group][kind] - members[d["minus"]][group][kind]
                    assert d[group][kind] == pytest.approx(gap, abs=1e-9)
                    assert d[group][f"{kind}_ci"][0] - 1e-9 <= gap <= d[group][f"{kind}_ci"][1] + 1e-9
                    seen.add(round(gap, 6))
        assert len(seen) > 3, "members that answer alike would not tell"

    def test_accuracies_can_be_found_again_by_hand(self, config, ran, model):
        """Of the base model, prompt by prompt through the library; a vector at its prescribed layer."""
        entry = ran[1]["members"][0]
        vectors, about = load_vectors(ran[0] / "vectors" / "base.safetensors")
        assert about["model"] == fingerprint(model.params) and about["prescribed_layer"] == 2
        s = TVPLanguageSettings.from_config(config)
        bench = Bench(model, s.vectors, s.template, {n: suite()[n] for n in TRAIN + HELDOUT})

        def right(prompts, asked, vector=None):
            edits = None if vector is None else tvjax.replace(jnp.asarray(vector), layers=2)
            said = tvjax.generate(model, prompts, max_new_tokens=4, edits=edits, during="prompt")
            return np.mean([text.startswith(f" {y}\n") for text, (_, y) in zip(said, asked, strict=True)])

        for name in ("next_letter", "previous_letter"):
            asked = bench.sample(name, "test")
            bare = [f"{x} ->" for x, _ in asked]
            assert entry["accuracy"]["zero_shot"][name] == pytest.approx(right(bare, asked))
            assert entry["accuracy"]["few_shot"][name] == pytest.approx(right(bench.few_shot(name, asked), asked))
            assert entry["accuracy"]["vector"][name] == pytest.approx(right(bare, asked, vectors[name][2]))
            states = bench.few_shot_states(name)
            np.testing.assert_allclose(states.mean(0), vectors[name], rtol=1e-4, atol=1e-5)
            alone = np.mean([right(bare, asked, state[2]) for state in states[:2]])
            assert entry["accuracy"]["single_vector"][name] == pytest.approx(alone)

    def test_every_member_leaves_its_vectors(self, ran):
        files = {path.stem: load_vectors(path) for path in (ran[0] / "vectors").iterdir()}
        assert set(files) == {"base", "icl", "tvp"}
        assert len({about["model"] for _, about in files.values()}) == 3
        for arrays, about in files.values():
            assert set(arrays) == {*TRAIN, *HELDOUT} and arrays["double"].shape == (4, 32)
            assert about["edit"] == "replace"

    def test_the_tvp_loss_lowers_the_risk_that_it_is(self, ran):
        """Enough to show that it is trained on; whether it helps is what the report says."""
        last = {row["member"]: row for row in logged(ran[0])}
        assert (np.array(last["tvp"]["eval_tvp_risk"]) < np.array(last["icl"]["eval_tvp_risk"])).all()


@pytest.mark.slow
class TestRun:
    def test_on_a_mesh_it_measures_the_same(self, config, ran, tmp_path):
        shutil.copytree(ran[0], tmp_path / "run")
        mesh = {"member": 2, "data": 2, "tensor": 2}
        again = tvp_language.run(changed(config, mesh=mesh), tmp_path / "run", "eval", quiet)
        assert again == ran[1]

    @pytest.mark.exhaustive
    def test_stopped_and_started_again_it_ends_with_the_same_bits(self, config, ran, tmp_path):
        runs = Runs("tvp_language", config, tmp_path)
        assert runs.finish(runs.whole) == (0, "")
        assert runs.stop(tmp_path / "stopped", past(10), signal.SIGTERM)[0] == 143
        assert not (tmp_path / "stopped" / "eval" / "summary.json").exists()
        assert runs.finish(tmp_path / "stopped") == (0, "")
        assert logged(tmp_path / "stopped") == logged(runs.whole)
        text = (runs.whole / "eval" / "summary.json").read_bytes()
        assert (tmp_path / "stopped" / "eval" / "summary.json").read_bytes() == text


@pytest.fixture(scope="module")
def seeds(config, tmp_path_factory):
    """Two seeds of three arms, one member after another."""
    rows = [(f"{a}_{seed}", seed, w, source) for seed in (0, 1) for a, w, source in ARMS]
    names, seed, weight, source = zip(*rows, strict=True)
    population = {"name": names, "seed": seed, "tvp_weight": weight, "answered_from": source, "prescribed_layer": (2,)}
    several = changed(config, population=config["population"] | population, train__at_once=1, train__export=("tvp_1",))
    folder = tmp_path_factory.mktemp("seeds") / "run"
    return several, folder, tvp_language.run(several, folder, "train", quiet)


ARMS = (("icl", 0.0, "vector"), ("tvp", 1.0, "vector"), ("control", 1.0, "demonstrations"))


@pytest.mark.slow
class TestOneAfterAnother:
    def test_a_member_is_what_it_is_beside_others(self, ran, seeds):
        """Of seed 0 and layer 2, in the run of two members that train side by side."""
        beside = next(m for m in ran[1]["members"] if m["name"] == "tvp")
        alone = next(m for m in seeds[2]["members"] if m["name"] == "tvp_0")
        rows = [row for row in logged(ran[0]) if row["member"] == "tvp"]
        for row, other in zip(rows, logged(seeds[1] / "parts" / "tvp_0"), strict=True):
            if "eval_tvp_risk" in row:
                np.testing.assert_allclose(row["eval_tvp_risk"], other["eval_tvp_risk"], rtol=1e-2)
        for kind in measures.ASKED:
            for task, value in beside["accuracy"][kind].items():
                assert abs(value - alone["accuracy"][kind][task]) < 0.2

    def test_arms_are_means_over_seeds(self, seeds):
        summary = seeds[2]
        members = {m["name"]: m for m in summary["members"]}
        assert [(arm["name"], arm["members"]) for arm in summary["arms"]] == [
            ("base", ["base"]),
            *((name, [f"{name}_0", f"{name}_1"]) for name, _, _ in ARMS),
        ]
        for arm in summary["arms"][1:]:
            for kind in (*measures.ASKED, *measures.GAINS, *SHIFTS):
                each = [members[name]["means"]["train"][kind] for name in arm["members"]]
                mean, (low, high) = arm["means"]["train"][kind], arm["means"]["train"][f"{kind}_ci"]
                assert mean == pytest.approx(np.mean(each))
                # Student's t of two: 6.314 halves of their distance.
                assert high - low == pytest.approx(6.3138 * abs(each[0] - each[1]), rel=1e-3, abs=1e-9)

    def test_differences_are_paired_by_seed(self, seeds):
        members = {m["name"]: m["means"]["heldout"] for m in seeds[2]["members"]}
        found = {(d["of"], d["minus"]): d for d in seeds[2]["differences"]}
        assert set(found) == {("tvp", "icl"), ("tvp", "control"), *((name, "base") for name, _, _ in ARMS)}
        for (of, minus), d in found.items():
            less = [members["base" if minus == "base" else f"{minus}_{seed}"]["few_shot"] for seed in (0, 1)]
            gaps = [members[f"{of}_{seed}"]["few_shot"] - less[seed] for seed in (0, 1)]
            assert d["heldout"]["few_shot"] == pytest.approx(np.mean(gaps), abs=1e-9)

    def test_gains_are_what_their_names_say(self, seeds):
        for m in seeds[2]["members"]:
            for group in ("train", "heldout"):
                e = m["means"][group]
                assert e["over_zero_shot"] == pytest.approx(e["single_vector"] - e["zero_shot"])
                assert e["over_half"] == pytest.approx(e["single_vector"] - e["few_shot"] / 2)

    def test_what_was_asked_is_not_asked_again(self, seeds, tmp_path, monkeypatch):
        shutil.copytree(seeds[1], tmp_path / "run")
        for name in ("tvp_1", "control_1"):
            (tmp_path / "run" / "eval" / "members" / f"{name}.json").unlink()
            shutil.rmtree(tmp_path / "run" / "parts" / name)
        asked = []
        measure = measures.measured
        monkeypatch.setattr(measures, "measured", lambda *a, **k: asked.append(a[1]) or measure(*a, **k))
        again = tvp_language.run(seeds[0], tmp_path / "run", "train", quiet)
        assert again == seeds[2] and asked == [2, 2]

    def test_an_exported_member_is_the_model_that_was_asked(self, seeds):
        model = tvjax.load(seeds[1] / "models" / "tvp_1")
        _, about = load_vectors(seeds[1] / "vectors" / "tvp_1.safetensors")
        assert fingerprint(model.params) == about["model"]
        assert [path.name for path in (seeds[1] / "models").iterdir()] == ["tvp_1"]
        assert not list(seeds[1].rglob("checkpoints")), "nothing large stays of members that were asked"

    def test_the_page_shows_arms(self, seeds):
        page, text = write_report(seeds[1]).read_text(), summary_table(seeds[2])
        for arm in seeds[2]["arms"]:
            low, high = arm["means"]["heldout"]["vector_ci"]
            said = f"{arm['means']['heldout']['vector']:.2f} [{low:.2f}, {high:.2f}]"
            assert said in text and said.replace(" [", " <small>[") in page
        assert "tvp_1" not in text and "2 seeds" in page

    @pytest.mark.parametrize(
        ("kind", "of", "interval", "says"),
        [
            ("vector", "difference", [0.01, 0.2], "yes"),
            ("vector", "difference", [-0.02, 0.04], "no"),
            ("vector", "difference", [-0.02, 0.06], "not known"),
            ("half", "arm", [0.01, 0.2], "yes"),
            ("half", "arm", [-0.2, -0.01], "no"),
            ("half", "arm", [-0.2, 0.01], "not known"),
            ("icl", "difference", [-0.04, -0.01], "yes"),
            ("icl", "difference", [-0.2, -0.01], "no"),
            ("icl", "difference", [-0.2, 0.01], "not known"),
            ("shifts", "difference", [-0.2, -0.01], "no"),
        ],
    )
    def test_what_is_known_follows_the_rules(self, seeds, kind, of, interval, says):
        summary = json.loads(json.dumps(seeds[2]))
        field = {"vector": "single_vector", "half": "over_half", "icl": "few_shot", "shifts": "joined_shot"}[kind]
        arm = next(arm for arm in summary["arms"] if arm["name"] == "tvp")
        d = next(d for d in summary["differences"] if (d["of"], d["minus"]) == ("tvp", "icl"))
        (arm["means"] if of == "arm" else d)["heldout"][f"{field}_ci"] = interval
        rows = language.verdicts(summary)
        assert [(row["arm"], row["group"]) for row in rows] == [("tvp", "train"), ("tvp", "heldout")]
        assert rows[1][kind] == says

    @pytest.mark.parametrize("kept", ["{", "{}", '{"right": {"zero_shot": 3}, "model": "", "best_layer": {}}'])
    def test_answers_that_no_run_wrote_are_named(self, seeds, tmp_path, kept):
        shutil.copytree(seeds[1], tmp_path / "run")
        path = tmp_path / "run" / "eval" / "members" / "icl_0.json"
        path.write_text(kept)
        with pytest.raises(UserError, match=r"icl_0\.json: not "):
            tvp_language.run(seeds[0], tmp_path / "run", "train", quiet)


@pytest.mark.slow
class TestShifts:
    def test_prompts_are_shifted_as_they_say(self, config, model):
        s = TVPLanguageSettings.from_config(config)
        bench = Bench(model, s.vectors, s.template, {n: suite()[n] for n in ("uppercase", "double")})
        known, other = dict(suite()["double"].pairs), Template("in ", " out", ";")
        asked = bench.sample("double", "test")
        found = shifted(bench, "double", asked, other)
        assert set(found) == set(SHIFTS)
        plain = bench.few_shot("double", asked)
        for number, (x, y) in enumerate(asked):
            shown = [line.split(" -> ") for line in plain[number].split("\n")[:-1]]
            assert all(known[a] == b for a, b in shown) and len(shown) == K
            shuffled = [line.split(" -> ") for line in found["shuffled_shot"][0][number].split("\n")[:-1]]
            assert sorted(b for _, b in shuffled) == sorted(known[a] for a, _ in shuffled) and len(shuffled) == K
            expected = "".join(f"in {a} out {b};" for a, b in shown) + f"in {x} out"
            assert found["template_shot"][0][number] == expected
            more = [line.split(" -> ") for line in found["more_shot"][0][number].split("\n")[:-1]]
            assert len({a for a, _ in more}) == 2 * K and all(known[a] == b for a, b in more)
            *joined, query = found["joined_shot"][0][number].split("\n")
            following = asked[(number + 1) % len(asked)]
            assert query == f"{x}, {following[0]} ->" and found["joined_shot"][1][number] == (f"{y}, {following[1]}",)
            for line in joined:
                both, answers = (side.split(", ") for side in line.split(" -> "))
                assert len(both) == 2 and [known[a] for a in both] == answers
            assert len(joined) == K

    def test_a_task_of_few_inputs_shows_those_that_it_has(self, config, model):
        s = TVPLanguageSettings.from_config(changed(config, train__demonstrations=12))
        bench = Bench(model, s.vectors, s.template, {"uppercase": suite()["uppercase"]})
        found = shifted(bench, "uppercase", bench.sample("uppercase", "test"), Template())
        have = len(suite()["uppercase"].split("train"))
        assert {prompt.count("\n") for prompt in found["more_shot"][0]} == {have}
        assert {prompt.count("\n") for prompt in found["joined_shot"][0]} == {have // 2}


@pytest.mark.slow
class TestReport:
    def test_the_page_and_the_table_say_the_numbers(self, ran):
        folder, summary = ran
        page, text = write_report(folder).read_text(), summary_table(summary)
        for name in ("accuracies", "layers", "training"):
            assert (folder / "report" / f"{name}.png").stat().st_size > 10_000 and f"{name}.png" in page
        for entry in (*(m["means"] for m in summary["members"]), *summary["differences"]):
            for group in ("train", "heldout"):
                form = "+.2f" if "of" in entry else ".2f"
                low, high = entry[group]["vector_ci"]
                said = f"{entry[group]['vector']:{form}} <small>[{low:{form}}, {high:{form}}]</small>"
                assert said in page and said.replace(" <small>", " ").replace("</small>", "") in text
        for task in TRAIN + HELDOUT:
            assert f'<th scope="row">{task}</th>' in page
        assert "To join them is ours" in page
        assert all("another seed or other tasks" in " ".join(said.split()) for said in (page, text))

    @pytest.mark.parametrize(
        ("gap", "interval", "says"),
        [
            (0.3, [0.2, 0.4], "of tvp is better than that of icl"),
            (-0.3, [-0.4, -0.2], "of tvp is worse than that of icl"),
            (0.01, [-0.02, 0.04], "of tvp is neither clearly better nor clearly worse than that of icl"),
        ],
    )
    def test_the_headline_follows_the_numbers(self, ran, gap, interval, says):
        summary = json.loads(json.dumps(ran[1]))
        summary["differences"][0]["heldout"] |= {"vector": gap, "vector_ci": interval}
        for member in summary["arms"]:
            member["means"]["heldout"] |= {"zero_shot": 0.1, "vector_ci": [0.4, 0.6]}
        (line,) = [row for row in language.headline(summary) if row.startswith("On held-out tasks the vector")]
        assert says in line and f"{gap:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]" in line

    def test_without_two_members_to_compare_it_says_so(self, ran):
        summary = ran[1] | {"differences": [d for d in ran[1]["differences"] if d["minus"] == "base"]}
        assert language.headline(summary)[-1] == (
            "No member differs from another by the TVP-loss alone: the table compares each with the model."
        )

    def test_a_broken_summary_is_refused_in_one_line(self, ran, tmp_path):
        shutil.copytree(ran[0], tmp_path / "run")
        broken = {key: value for key, value in ran[1].items() if key != "differences"}
        (tmp_path / "run" / "eval" / "summary.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match=r"summary\.json: 'differences'"):
            write_report(tmp_path / "run")


ROWS = {
    "unknown task": ({"tasks__train": ("cubes",), "training__data__tasks": ("digits",)}, "config.tasks.train", "cubes"),
    "unknown held-out task": ({"tasks__heldout": ("cubes",)}, "config.tasks.heldout", "'cubes'", "digits"),
    "a task in both": (
        {"tasks__heldout": ("digits",)},
        "config.tasks.heldout",
        "'digits'",
        "not in config.tasks.train",
    ),
    "no held-out task": ({"tasks__heldout": ()}, "config.tasks.heldout", "()", "at least one"),
    "a task twice": ({"tasks__train": ("digits", "digits")}, "config.tasks.train", "different names"),
    "a base that knows": ({"training__data__tasks": ("double",)}, "config.training.data.tasks", "held-out double"),
    "a base that knows all": ({"training__data__tasks": ()}, "config.training.data.tasks", "held-out previous_letter"),
    "layer 0": ({"population__prescribed_layer": (0,)}, "config.population.prescribed_layer", "0", "1..2"),
    "layer L": ({"population__prescribed_layer": (3,)}, "config.population.prescribed_layer", "3", "1..2"),
    "base as a name": ({"population__name": ("base", "tvp")}, "config.population.name", "'base'", "before"),
    "negative weight": ({"population__tvp_weight": (-1.0,)}, "config.population.tvp_weight", "0 or more"),
    "S beyond K": ({"tvp__demonstrations": (4,)}, "config.tvp.demonstrations", "(4,)", "0..3"),
    "unknown edit": ({"tvp__edit": "mix"}, "config.tvp.edit", "'mix'", "replace"),
    "unknown field": ({"tvp__weight": 1.0}, "config.tvp.weight", "no such field"),
    "unknown group": ({"tpv": {}}, "config.tpv", "the fields are"),
    "a kind that is not made": ({"vectors__heads": 2}, "config.vectors.heads", "no such field"),
    "no demonstrations": ({"train__demonstrations": 0}, "config.train.demonstrations", "0", "1 or more"),
    "too many demonstrations": ({"train__demonstrations": 30}, "config.data.tasks", "31 or more"),
    "a layer beyond the last": ({"evaluation__layers": (4,)}, "config.evaluation.layers", "(4,)", "0..3"),
    "fewer shifted questions than none": ({"evaluation__shifts": -1}, "config.evaluation.shifts", "0 or more"),
    "no prompts": ({"evaluation__training_prompts": 0}, "config.evaluation.training_prompts", "1 or more"),
    "more single than prompts": ({"evaluation__single": 7}, "config.evaluation.single", "7", "1 to", "6"),
    "two sources side by side": (
        {
            "population__name": ("tvp", "control"),
            "population__answered_from": ("vector", "demonstrations"),
            "population__tvp_weight": (1.0, 1.0),
        },
        "config.population.answered_from",
        "at_once = 1",
    ),
    "an unknown source": ({"population__answered_from": ("x",)}, "config.population.answered_from[0]", "'x'", "vector"),
    "a control for all": ({"tvp__answered_from": "demonstrations"}, "config.tvp.answered_from", "no such field"),
    "an export of none": ({"train__export": ("tpv",)}, "config.train.export", "tpv", "icl, tvp"),
    "more layers than there are": ({"train__unroll": 4}, "config.train.unroll", "4", "num_layers = 3"),
    "fewer than none at once": ({"train__at_once": -1}, "config.train.at_once", "0 or more"),
    "steps": ({"train__steps": 15}, "config.train.steps", "15", "log_every = 10"),
    "seed": ({"population__seed": (-1,)}, "config.population.seed", "-1"),
    "mesh": ({"mesh__member": 3}, "config.mesh.member", "3", "2 members"),
    "no model": ({"model__path": "/nowhere"}, "/nowhere", "config.json"),
    "a wrong small model": ({"training__model__width": -1}, "config.model.width", "-1"),
    "layer of another model": (
        {"model__path": "BASE", "population__prescribed_layer": (3,)},
        "prescribed_layer",
        "1..2",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_wrong_value_is_named_with_what_is_accepted(config, ran, row, tmp_path):
    fields, *said = row
    base = f"{config['model']['trained']}/model"
    fields = {name: base if value == "BASE" else value for name, value in fields.items()}
    with pytest.raises(UserError) as caught:
        tvp_language.run(changed(config, **fields), tmp_path / "run", "train", quiet)
    line = str(caught.value)
    assert "\n" not in line and all(words in line for words in said), line


def test_vectors_are_compared_at_one_layer():
    """An arm whose vectors were asked at layer 5, against one that has layer 2: there, by the vector of all prompts."""
    random = np.random.default_rng(0)

    def right(layer):
        by_layer = random.integers(0, 2, (6, 2)).astype(float)
        asked = {
            kind: {"a": random.integers(0, 2, 6).astype(float)} for kind in ("zero_shot", "few_shot", "best_vector")
        }
        asked |= {"single_vector": {"a": random.random(6)}, "vector": {"a": by_layer[:, (2, 5).index(layer)]}}
        for gain, (kind, share) in measures.GAINS.items():
            asked[gain] = {"a": asked["single_vector"]["a"] - share * asked[kind]["a"]}
        return {**asked, measures.BY_LAYER: {"a": by_layer}}

    about = {"learning_rate": 1.0, "answered_from": "vector", "seeds": [0]}
    arms = [
        {"name": "base", "members": ["base"], "tvp_weight": None, "prescribed_layer": 2, **about, "seeds": [None]},
        {"name": "icl", "members": ["icl"], "tvp_weight": 0.0, "prescribed_layer": 5, **about},
        {"name": "tvp", "members": ["tvp"], "tvp_weight": 1.0, "prescribed_layer": 2, **about},
        {"name": "deep", "members": ["deep"], "tvp_weight": 1.0, "prescribed_layer": 5, **about},
    ]
    rights = {arm["name"]: right(arm["prescribed_layer"]) for arm in arms}
    rows = {(d["of"], d["minus"]): d["g"] for d in measures.differences({"g": ["a"]}, arms, rights, [2, 5])}
    tvp, icl, deep = (rights[name] for name in ("tvp", "icl", "deep"))
    there = icl[measures.BY_LAYER]["a"][:, 0]
    row = rows["tvp", "icl"]
    np.testing.assert_allclose(row["vector"], (tvp["vector"]["a"] - there).mean())
    np.testing.assert_allclose(row["single_vector"], (tvp["single_vector"]["a"] - there).mean())
    np.testing.assert_allclose(row["over_half"], (tvp["over_half"]["a"] - (there - 0.5 * icl["few_shot"]["a"])).mean())
    np.testing.assert_allclose(row["few_shot"], (tvp["few_shot"]["a"] - icl["few_shot"]["a"]).mean())
    same = rows["deep", "icl"]
    np.testing.assert_allclose(same["single_vector"], (deep["single_vector"]["a"] - icl["single_vector"]["a"]).mean())
