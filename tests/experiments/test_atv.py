"""The ATV experiment on a small random target: its numbers are what they say, and a run is a function of its config."""

import collections
import dataclasses
import itertools
import json
import re
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import tvjax
from tests.conftest import changed
from tests.experiments.test_tvp_language import CONFIG as TUNED
from tests.runs import Runs, logged, past, saving
from tvjax.errors import UserError
from tvjax.experiments.atv import run as atv
from tvjax.experiments.atv.settings import ATVSettings
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.progress import Progress
from tvjax.experiments.text_model.run import corpus
from tvjax.methods import METHODS
from tvjax.methods.base import pass_flops
from tvjax.methods.trained import ask, measure
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.pretrained.tokenizer import Tokenizer, train_tokenizer
from tvjax.nn.pretrained.weights import save_folder
from tvjax.parallel.batches import Batches
from tvjax.parallel.mesh import make_mesh
from tvjax.tasks.suite import suite
from tvjax.tasks.text import Template, some
from tvjax.text.adapting import query_flops
from tvjax.vectors import origin, store

SEEN, AMBIGUOUS, UNSEEN = ("next_letter", "opposite"), ("digits", "double"), ("capital",)
LED = (("", " ->", "\n", "\n"),)
CONFIG = {
    "experiment": "atv",
    "target": {},
    "generator": {"demonstrations": 2, "draws": 2},
    "training": {},
    "data": {},
    "tasks": {"seen": SEEN, "ambiguous": AMBIGUOUS, "unseen": UNSEEN},
    "templates": (("", " ->", "\n"), ("say ", " =", "\n")),
    "methods": ("zero_shot", "few_shot", "atv_last", "atv_all"),
    "atv": {"rate": 3e-3},
    "lora": {"rate": 3e-3},
    "function_vector": {"heads": 2, "shuffled_prompts": 2},
    "distributed_function_vector": {"heads": 2, "shuffled_prompts": 2},
    "in_context_routing": {"rank": 3, "hidden": 5},
    "vectors": {"demonstrations": 2, "prompts": 2},
    "train": {
        "batch": 8,
        "examples": 6,
        "seeds": (0, 1),
        "steps": 40,
        "log_every": 10,
        "evaluate_every": 20,
        "checkpoint_every": 10,
        "keep_checkpoints": 4,
        "tensorboard": False,
        "keep_best": "accuracy",
    },
    "optimizer": {"decay": "constant"},
    "evaluation": {"dev": 3, "test": 5, "batch": 32},
    "sensitivity": {},
    "mesh": {},
}


def model_folder(folder, width, layers, key):
    """A random model of the form of Llama, with a tokenizer of the suite."""
    tasks = {name: suite()[name] for name in (*SEEN, *AMBIGUOUS, *UNSEEN)}
    texts = [text for row in CONFIG["templates"] for text in corpus(tasks, Template(*row))]
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(train_tokenizer(texts, 500))
    size = Tokenizer(folder).size
    config = DecoderConfig(
        num_layers=layers,
        width=width,
        num_heads=2,
        num_outputs=size,
        inputs="tokens",
        vocab_size=size,
        hidden_width=2 * width,
        norm="rmsnorm",
        positions="rotary",
        mlp="gated_silu",
        bias=False,
        tied_readout=True,
        unroll=1,
    )
    params = Decoder(config).init(jax.random.key(key), jnp.zeros((1, 2), jnp.int32))["params"]
    params["front"]["embedding"] *= 25  # so that a state can say a word loudly
    save_folder(folder, config, params)
    return str(folder)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return changed(
        CONFIG,
        target__path=model_folder(folder / "target", 32, 2, 0),
        generator__path=model_folder(folder / "generator", 16, 1, 1),
    )


def run(config, folder, mode="train", say=lambda line: None):
    return atv.run(config, folder, mode, say)


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """The folder of a whole run and its summary."""
    folder = tmp_path_factory.mktemp("runs") / "atv"
    return folder, run(config, folder)


def row(summary, name):
    return next(m for m in summary["methods"] if m["name"] == name)


class TestSummary:
    def test_it_keeps_its_contract(self, done):
        folder, summary = done
        assert summary == json.loads((folder / "eval" / "summary.json").read_text())
        assert summary["tasks"] == {"seen": list(SEEN), "ambiguous": list(AMBIGUOUS), "unseen": list(UNSEEN)}
        assert [m["name"] for m in summary["methods"]] == list(CONFIG["methods"])
        for m in summary["methods"]:
            for group, kind in itertools.product(("seen", "ambiguous", "unseen"), ("", "_first")):
                assert set(m[f"accuracy{kind}"]) == set(m[f"accuracy{kind}_ci"]) == {*SEEN, *AMBIGUOUS, *UNSEEN}
                mean, tasks = m[f"{group}_mean{kind}"], summary["tasks"][group]
                np.testing.assert_allclose(mean, np.mean([m[f"accuracy{kind}"][t] for t in tasks]))
                low, high = m[f"{group}_mean{kind}_ci"]
                assert low <= mean <= high

    def test_atv_learns_and_costs_no_more_tokens_than_zero_shot(self, done):
        _, summary = done
        bare, last = row(summary, "zero_shot"), row(summary, "atv_last")
        assert last["tokens_per_query"] == bare["tokens_per_query"]
        assert row(summary, "few_shot")["tokens_per_query"] > 2 * bare["tokens_per_query"]
        rows = [json.loads(line) for line in (done[0] / "metrics.jsonl").read_text().splitlines()]
        first, final = ([r["risk"] for r in rows if r["step"] == step] for step in (10, 40))
        assert max(final) < 0.8 * min(first)

    def test_trained_numbers_are_those_of_generator_and_expansion(self, done, config):
        generator = tvjax.load(config["generator"]["path"])
        size = sum(leaf.size for leaf in jax.tree.leaves(generator.params))
        assert row(done[1], "atv_last")["trainable_parameters"] == size + (16 + 1) * 2 * 32
        assert row(done[1], "zero_shot")["trainable_parameters"] == 0

    def test_differences_are_of_the_means(self, done):
        _, summary = done
        for ours, others in summary["differences"].items():
            for other, entry in others.items():
                for group, kind in itertools.product(("seen", "ambiguous", "unseen"), ("", "_first")):
                    gap = row(summary, ours)[f"{group}_mean{kind}"] - row(summary, other)[f"{group}_mean{kind}"]
                    np.testing.assert_allclose(entry[f"{group}{kind}"], gap, atol=1e-12)

    def test_chance_is_guessing_among_the_tasks_of_the_same_inputs(self, done):
        """Two tasks share every input; only "zero" has one answer in both, and it is doubled to "zero", not 0."""
        assert done[1]["chance"] == {"digits": 0.5, "double": 0.5}


def log_chances(target, prompt, edits=None):
    """log p of the token behind a prompt, alone and without padding."""
    return np.asarray(jax.nn.log_softmax(tvjax.run(target, [prompt], edits=edits, last=True)[0, 0]))


def distance(target, shown, prompt, edits=None):
    """The divergence from what one prompt says to what another does, in the plainest way."""
    p, q = log_chances(target, shown), log_chances(target, prompt, edits)
    return (np.exp(p) * (p - q)).sum()


class TestMeasured:
    """Distance from k-shot, identity margin and cost, of what is trained and of prompts."""

    @pytest.fixture(scope="class")
    def trained(self, done, config):
        """The target, the context, and `measure` of ATV of another lambda."""
        settings, context = atv.open_context(config, done[0], "eval", lambda line: None)
        method = METHODS["atv_last"]
        members = method.members(context)
        experiment, params = method.train(context, atv.folder_of(done[0], settings, "atv_last"), members)
        asked = context.examples["query"]["test"]
        of = lambda scale: measure(context, experiment, params, scale * members[1]["scale"], asked)
        return tvjax.load(config["target"]["path"]), context, of

    def test_each_seed_and_template_has_its_own_k_shot_prompts(self, trained):
        """With a lambda of 0 it is the target asked zero-shot."""
        target, context, of = trained
        found = of(0.0)["opposite"].d_ntp
        assert found.shape == (5, 4)
        for column, bench in enumerate(context.benches):
            pairs = bench.sample("opposite", "test")
            prompts = zip(bench.few_shot("opposite", pairs), bench.zero_shot(pairs), strict=True)
            oracle = [distance(target, *pair) for pair in prompts]
            np.testing.assert_allclose(found[:, column], oracle, rtol=1e-3, atol=1e-5)
        assert len(np.unique(found.round(4))) > 10

    def test_it_is_that_of_the_vectors_that_are_saved(self, trained, done):
        target, context, of = trained
        vectors = store.load_vectors(done[0] / "vectors" / "atv_last.opposite.safetensors")[0]["vectors"]
        bench, found = context.benches[0], of(1.0)["opposite"].d_ntp[:, 0]
        pairs = bench.sample("opposite", "test")
        prompts = zip(bench.few_shot("opposite", pairs), bench.zero_shot(pairs), vectors, strict=True)
        oracle = [distance(target, *pair, tvjax.add(one[:, None], layers=[1, 2])) for *pair, one in prompts]
        np.testing.assert_allclose(found, oracle, rtol=1e-3, atol=1e-5)

    def test_the_summary_has_their_means(self, trained, done):
        _, context, of = trained
        found = of(1.0)
        for kind in ("d_ntp", "margin"):
            entry = row(done[1], "atv_last")
            known = {task: getattr(one, kind).mean(1) for task, one in found.items()}
            known = {task: values[~np.isnan(values)] for task, values in known.items()}
            for task, values in known.items():
                assert entry[kind][task] == (pytest.approx(values.mean(), abs=1e-5) if len(values) else None)
            means = [values.mean() for values in known.values() if len(values)]
            assert entry[f"{kind}_mean"] == pytest.approx(np.mean(means), abs=1e-5)
            low, high = entry[f"{kind}_mean_ci"]
            assert low <= entry[f"{kind}_mean"] <= high
        for task in context.tasks:
            assert row(done[1], "few_shot")["d_ntp"][task] == pytest.approx(0, abs=1e-5)
            assert (entry["margin"][task] is None) == (task not in AMBIGUOUS)

    def test_each_method_is_held_against_k_shot(self, done):
        summary = done[1]
        assert set(summary["less_few_shot"]) == {*CONFIG["methods"]} - {"few_shot"}
        for name, entry in summary["less_few_shot"].items():
            for group, kind in itertools.product(("seen", "ambiguous", "unseen"), ("", "_first")):
                gap = row(summary, name)[f"{group}_mean{kind}"] - row(summary, "few_shot")[f"{group}_mean{kind}"]
                np.testing.assert_allclose(entry[f"{group}{kind}"], gap, atol=1e-12)

    def test_what_a_query_costs(self, trained, done):
        """LoRA's kernels are sums, made once; ATV's generator reads each query, and its expansion makes vectors."""
        _, context, _ = trained
        tokens, scale, frozen = 7, jnp.ones(2), context.frozen
        bare, cost = pass_flops(context.target, tokens), {}
        for name in ("lora", "atv_last"):
            adapter = METHODS[name].adapter_of(context)
            params = adapter.init(jax.random.key(0), frozen)
            cost[name] = query_flops(adapter, params, scale, frozen, tokens, 3)
        generator = 2 * 3 * (4 * 16**2 + 3 * 16 * 32) + 4 * 3**2 * 16
        expansion = 2 * 16 * 2 * 32
        assert cost["lora"] == bare
        assert cost["atv_last"] == bare + generator + expansion, "of the generator nothing is read out"
        rows = {name: row(done[1], name) for name in CONFIG["methods"]}
        assert rows["zero_shot"]["query_flops"] < rows["atv_last"]["query_flops"] < rows["few_shot"]["query_flops"]
        assert rows["zero_shot"]["make_flops"] == rows["few_shot"]["make_flops"] == 0

    def test_training_takes_its_steps(self, done, trained):
        """Forward and backward, of each query at least three times the products of the expansion and twice the rest."""
        _, context, _ = trained
        made, examples = row(done[1], "atv_all")["make_flops"], CONFIG["train"]["steps"] * CONFIG["train"]["batch"]
        one = row(done[1], "atv_all")["query_flops"]
        assert 2 * one * examples < made < 20 * one * examples * context.templates


class TestVectors:
    def test_the_saved_vectors_give_the_answers_that_are_reported(self, done, config):
        """The first seed's, question by question, with the notebook's own functions."""
        folder, _ = done
        target = tvjax.load(config["target"]["path"])
        tokenizer, template = target.source.tokenizer, Template(*CONFIG["templates"][0])
        settings, context = atv.open_context(config, folder, "eval", lambda line: None)
        for method, positions in (("atv_last", "last"), ("atv_all", "all")):
            found = store.load_vectors(folder / "vectors" / f"{method}.opposite.safetensors")[0]["vectors"]
            members = METHODS[method].members(context)
            experiment, params = METHODS[method].train(context, atv.folder_of(folder, settings, method), members)
            asked = context.examples["query"]["test"]
            right = ask(context, experiment, params, members[1]["scale"], asked)
            right = zip(*(kind[np.asarray(asked.task_I) == 1, 0, 0] for kind in right), strict=True)
            questions = some(suite()["opposite"].split("test"), 5)
            for (x, y), vectors_ND, (first, whole) in zip(questions, found, right, strict=True):
                prompt, answer = tokenizer.encode([template.prompt([], x), template.prompt([], x) + template.answer(y)])
                count = len(answer) - len(prompt)
                edits = tvjax.add(vectors_ND[:, None], layers=[1, 2], positions=positions)
                made = tvjax.generate(target, jnp.array([prompt]), max_new_tokens=count, edits=edits)
                said, expected = list(np.asarray(made.ids_BT)[0]), answer[len(prompt) :]
                assert (said[0] == expected[0], said == expected) == (bool(first), bool(whole)), (method, x)

    def test_a_notebook_gets_the_same_vectors(self, done, config):
        folder, _ = done
        target = tvjax.load(config["target"]["path"])
        queries = [x for x, _ in some(suite()["opposite"].split("test"), 5)]
        for method in ("atv_last", "atv_all"):
            made = tvjax.atv(target, folder, queries, method=method)
            saved = store.load_vectors(folder / "vectors" / f"{method}.opposite.safetensors")[0]["vectors"]
            np.testing.assert_allclose(made.swapaxes(0, 1), saved, rtol=1e-5, atol=1e-6)
        with pytest.raises(UserError, match="method: given 'zero_shot'"):
            tvjax.atv(target, folder, queries, method="zero_shot")
        other = target.replace(params=jax.tree.map(lambda p: 2 * p, target.params))
        with pytest.raises(UserError, match="any_model"):
            tvjax.atv(other, folder, queries)
        with pytest.raises(UserError, match="accepted: the workdir"):
            tvjax.atv(target, folder / "nothing", queries)


class TestGeneratorOfTheTarget:
    """The target's own first block reads the queries, and stays as it is."""

    @pytest.fixture(scope="class")
    def context(self, config, tmp_path_factory):
        config = changed(config, generator__kind="target", generator__path="", templates=LED)
        return atv.open_context(config, tmp_path_factory.mktemp("own"), "train", lambda line: None)[1]

    @pytest.fixture(scope="class")
    def experiments(self, context):
        """Of each method, with all that is read once, and with no memory for that; and its parameters, moved."""
        found = {}
        for name in ("atv_last", "atv_all", "static"):
            members = METHODS[name].members(context)
            tight = dataclasses.replace(context, batches=Batches(1e-7, 32))
            made = [METHODS[name].trainer(one, one.frozen, members, make_mesh())[0] for one in (context, tight)]
            start = made[0].init(jax.random.key(0), made[0].data())
            params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), start)
            found[name] = (*made, params, {name: value[0] for name, value in members[1].items()})
        return found

    def test_its_vectors_are_those_of_the_whole_target_read_at_that_block(self, context, experiments):
        held, plain, params, hyper = experiments["atv_last"]
        rows = jnp.arange(3)
        prompts = [LED[0][3] + x + LED[0][1] for x, _ in some(suite()["next_letter"].split("train"), 6)[:3]]
        assert set(params) == {"expansion"}
        u_BD = [
            np.asarray(tvjax.capture(context.target, [one], "blocks/resid")["blocks/resid"])[0, 0, -1]
            for one in prompts
        ]
        kernel, bias = params["expansion"]["up"]["kernel"], params["expansion"]["up"]["bias"]
        expected = (np.stack(u_BD) @ kernel + bias[None]).reshape(3, 2, 32)
        for experiment in (held, plain):
            queries = experiment.train.rows(rows)[0]
            made = experiment.adapter.read(params, experiment.frozen, queries, hyper["scale"], None)
            np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", ["atv_last", "atv_all", "static"])
    def test_what_is_read_once_changes_no_loss_no_gradient_and_no_score(self, name, experiments):
        held, plain, params, hyper = experiments[name]
        assert (held.train.past is None, held.train.states is None) == (name == "atv_all", name == "static")
        assert plain.train.past is plain.train.states is None
        found = []
        for experiment in (held, plain):
            step = lambda params, e=experiment: e.loss(params, e.data(), jax.random.key(0), jnp.array(1), hyper)[0]
            scores = experiment.evaluate(params, experiment.data(), jax.random.key(0), hyper)
            found.append((jax.value_and_grad(step)(params), scores))
        for one, other in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_layer_and_scale_of_a_function_vector_are_those_of_most_right_first_tokens_on_dev(config, tmp_path):
    config = changed(config, templates=LED, train__seeds=(0,), function_vector__scales=(0.5, 3.0, 30.0))
    _, context = atv.open_context(config, tmp_path, "train", lambda line: None)
    result = METHODS["function_vector"].run(context, tmp_path)
    ((made, *_),), (bench,) = context.vectors["function_vector"], context.benches
    for name in context.tasks:
        layer, scale = result.about["layer"][name], result.about["scale"][name]
        found = {}
        for split in ("dev", "test"):
            asked = bench.sample(name, split)
            for place in itertools.product((1, 2), (0.5, 3.0, 30.0)):
                vector = place[1] * made[name][place[0]][None, None]
                right = bench.scores(
                    bench.zero_shot(asked), bench.accepted(name, asked), vector, place[:1], np.ones((1, 1))
                )
                found[split, place] = right
        best = max(values.first.mean() for (split, _), values in found.items() if split == "dev")
        assert found["dev", (layer, scale)].first.mean() == best
        for kind, direct in found["test", (layer, scale)]._asdict().items():
            ours = getattr(result.right[name], kind)
            np.testing.assert_array_equal(ours[:, 0], direct[:, 0, 0])


class TestTold:
    """What a run says while it works."""

    @pytest.mark.slow
    def test_all_that_is_planned_is_told_of(self, config, tmp_path, monkeypatch):
        planned, ticks = {}, []
        monkeypatch.setattr(Progress, "plan", lambda self, counts, costs: planned.update(counts))
        monkeypatch.setattr(Progress, "tick", lambda self, kind: ticks.append(kind))
        config = changed(config, methods=("zero_shot", "vector", "atv_last"), templates=LED, train__seeds=(0,))
        run(changed(config, sensitivity={"scales": (0.1, 1.0)}), tmp_path / "run")
        assert collections.Counter(ticks) == planned and set(planned) == {"sensitivity", *config["methods"]} - {
            "atv_all"
        }

    @pytest.mark.parametrize("led", [False, True])
    def test_a_query_in_the_first_token_is_warned_of(self, led, config, tmp_path):
        lines = []
        config = changed(config, methods=("zero_shot",), **({"templates": LED} if led else {}))
        summary = run(config, tmp_path / "run", say=lines.append)
        warnings = [line for line in lines if line.startswith("warning: the query")]
        assert summary["query_first"] == ([] if led else ["target", "generator"])
        assert len(warnings) == (0 if led else 2) and all("config.templates" in line for line in warnings)


class TestRun:
    @pytest.mark.slow
    def test_the_target_stays_as_it_is_bit_for_bit(self, done, config, tmp_path):
        _, context = atv.open_context(config, done[0], "train", lambda line: None)
        before = origin.fingerprint(context.target.params)
        METHODS["lora"].train(context, tmp_path, METHODS["lora"].members(context))
        assert origin.fingerprint(context.target.params) == before
        assert before == origin.fingerprint(tvjax.load(config["target"]["path"]).params)

    def test_stopped_between_methods_it_ends_with_the_same_bits(self, done, config, tmp_path):
        class Enough(Exception):
            pass

        def say(line):
            if line == "training atv_all":
                raise Enough

        with pytest.raises(Enough):
            run(config, tmp_path / "run", say=say)
        assert not (tmp_path / "run" / "eval" / "summary.json").exists()
        assert run(config, tmp_path / "run") == done[1]
        for path in ("", "methods/atv_all"):
            assert logged(done[0] / path) == logged(tmp_path / "run" / path)

    @pytest.mark.parametrize(
        "chosen", [pytest.param((3,), marks=pytest.mark.slow), pytest.param((0, 1, 2, 4), marks=pytest.mark.exhaustive)]
    )
    def test_killed_and_stopped_at_any_moment_it_ends_with_the_same_bits(self, config, chosen, tmp_path):
        runs = Runs("atv", config, tmp_path)
        assert runs.finish(runs.whole) == (0, "")
        folder, second = tmp_path / "killed", Path("methods/atv_all")
        moments = (
            (past(10), signal.SIGKILL, -signal.SIGKILL),
            (saving(after=10), signal.SIGKILL, -signal.SIGKILL),
            (lambda f: past(20)(f / second), signal.SIGTERM, 143),
            (lambda f: saving(after=20)(f / second), signal.SIGKILL, -signal.SIGKILL),
            (lambda f: (f / "vectors" / "atv_all.double.safetensors").exists(), signal.SIGKILL, -signal.SIGKILL),
        )
        for when, number, code in (moments[number] for number in chosen):
            assert runs.stop(folder, when, number)[0] == code
            assert not (folder / "eval" / "summary.json").exists()
        assert runs.finish(folder) == (0, "")
        assert (folder / "eval" / "summary.json").read_bytes() == (runs.whole / "eval" / "summary.json").read_bytes()
        for path in ("", second):
            assert logged(folder / path) == logged(runs.whole / path)
        for file in (runs.whole / "vectors").iterdir():
            assert (folder / "vectors" / file.name).read_bytes() == file.read_bytes()

    def test_asked_again_it_says_the_same(self, done, config):
        folder, summary = done
        assert run(config, folder, "eval") == summary

    @pytest.mark.exhaustive
    def test_a_mesh_changes_nothing_but_rounding(self, done, config, tmp_path):
        """After 20 steps losses and parameters agree, at the end accuracies do within their intervals."""
        summary = run(changed(config, mesh={"member": 2, "data": 4}, methods=("atv_last",)), tmp_path / "run")
        folders = (tmp_path / "run", done[0])
        for ours, theirs in zip(*([r for r in logged(f) if r["step"] == 20] for f in folders), strict=True):
            np.testing.assert_allclose(ours["risk"], theirs["risk"], rtol=1e-4)
        spread, one = (ocp.PyTreeCheckpointer().restore(f / "checkpoints" / "20" / "state")["params"] for f in folders)
        for ours, theirs in zip(jax.tree.leaves(spread), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
        ours, theirs = row(summary, "atv_last"), row(done[1], "atv_last")
        for group in ("seen", "ambiguous", "unseen"):
            low, high = theirs[f"{group}_mean_ci"]
            assert low <= ours[f"{group}_mean"] <= high

    def test_its_report_says_what_the_summary_says(self, done):
        folder, summary = done
        page = write_report(folder).read_text()
        for name in ("methods", "tasks", "pca", "cosines"):
            assert (folder / "report" / f"{name}.png").stat().st_size > 5000
            assert f'src="{name}.png"' in page
        text = summary_table(summary)
        assert "Queries that the target and the generator read are in their prompts" in page
        for m in summary["methods"]:
            first, whole = m["seen_mean_first"], m["seen_mean"]
            cell = rf"<td>{first:.2f} <small>[^<]*</small><br>{whole:.2f} <small>[^<]*</small></td>"
            assert re.search(cell, page), m["name"]
            assert f" {first:.2f} {whole:.2f} [" in text


@pytest.mark.slow
def test_every_method_runs_and_trained_ones_are_of_one_size(config, tmp_path):
    config = changed(
        config,
        methods=tuple(METHODS),
        templates=CONFIG["templates"][:1],
        train__steps=10,
        train__evaluate_every=10,
        train__seeds=(0,),
        lora__sites=("query", "key", "value", "out", "up", "gate", "down"),
        sensitivity={"scales": (0.1,), "layers": ((2,),), "examples": (1,)},
    )
    summary = run(config, tmp_path / "run")
    sizes = {m["name"]: m["trainable_parameters"] for m in summary["methods"]}
    units = {"lora": 2 * (4 * (32 + 32) + 3 * (32 + 64)), "prefix": 2 * 2 * 32}  # a rank, and a token
    for name, unit in units.items():
        assert abs(sizes[name] - sizes["atv_last"]) <= unit / 2
    assert row(summary, "prefix")["tokens_per_query"] > sizes["prefix"] / units["prefix"]
    assert sizes["static"] == 4 * 2 * 32
    assert sizes["i2cl"] == 4 * 2 * 2 * 2
    assert sizes["soft_injection"] == 4 * 2 * 2
    assert sizes["stave"] == 4 * 2 * 32
    assert sizes["in_context_routing"] == (16 + 1) * 5 + (5 + 1) * 2 * (3 + 2)
    assert 0 <= row(summary, "elicit")["retrieved_its_own_task"] <= 1
    assert [e["kind"] for e in summary["sensitivity"]] == ["scale", "layers", "examples"]
    assert write_report(tmp_path / "run").is_file()


@pytest.mark.slow
def test_each_member_has_its_own_lambda_and_layers(config, tmp_path):
    """A member whose lambda is 0 is the frozen target, whatever it was trained to do."""
    config = changed(
        config,
        methods=("zero_shot", "atv_last"),
        atv__scale=(1.0, 1.0),
        train__seeds=(0,),
        sensitivity={"scales": (0.0, 1.0), "layers": ((1, 2),)},
    )
    summary = run(config, tmp_path / "run")
    nothing, one, both = summary["sensitivity"]
    for group in ("seen", "ambiguous", "unseen"):
        assert nothing[f"{group}_mean"] == row(summary, "zero_shot")[f"{group}_mean"]
        assert one[f"{group}_mean"] == both[f"{group}_mean"] == row(summary, "atv_last")[f"{group}_mean"]


WRONG = {
    "unknown field": ({"atv__lambda": 1.0}, "config.atv.lambda", "scale"),
    "unknown group": ({"adaptive": {}}, "config.adaptive", "fields are"),
    "unknown method": (
        {"methods": ("zero_shot", "atv")},
        "config.methods",
        "--plugins=MODULE, or one of zero_shot",
        "atv_last",
    ),
    "ELICIT without its vectors": ({"methods": ("elicit",)}, "config.methods", "function_vector"),
    "ELICIT of what makes no vectors": ({"elicit": {"vectors": "lora"}}, "config.elicit.vectors", "'function_vector'"),
    "no ATV to train again": ({"sensitivity": {"method": "lora"}}, "config.sensitivity.method", "atv_last"),
    "ELICIT before its vectors": ({"methods": ("elicit", "function_vector")}, "config.methods", "before elicit"),
    "a metric to keep the worst by": ({"train__keep_best": "risk"}, "config.train.keep_best", "accuracy_first"),
    "negative L2": ({"optimizer__l2": -1.0}, "config.optimizer.l2", "0 or more"),
    "layers that are not written to": (
        {"atv__layers": (1,), "sensitivity__layers": ((2,),)},
        "config.sensitivity.layers",
        "config.atv.layers: 1",
    ),
    "a target that has not seen the tasks": (
        {"target__path": "", "data__path": "/tasks", "training__target": {"data": {}}},
        "config.data.path",
        "config.target.path",
    ),
    "no seen task": ({"tasks__seen": ()}, "config.tasks.seen", "at least one"),
    "a task twice": ({"tasks__unseen": ("digits",)}, "config.tasks", "'digits'"),
    "unknown task": ({"tasks__seen": ("chess",)}, "config.tasks.seen", "next_letter"),
    "no template": ({"templates": ()}, "config.templates", "at least one"),
    "half a template": ({"templates": (("a", "b"),)}, "config.templates", "at least one (before, between, after)"),
    "a layer too many": ({"atv__layers": (1, 3)}, "config.atv.layers", "1..2"),
    "layer 0": ({"atv__layers": (0,)}, "config.atv.layers", "1 or more"),
    "lambdas for no layers": ({"atv__scale": (1.0, 2.0, 3.0)}, "config.atv.scale", "one for each of the 2 layers"),
    "lambdas for other layers": (
        {"atv__layers": (1,), "atv__scale": (1.0, 2.0)},
        "config.atv.scale",
        "one for each of the 1 layers",
    ),
    "dropout of everything": ({"atv__dropout": 1.0}, "config.atv.dropout", "0 up to"),
    "negative rank": ({"atv__rank": -1}, "config.atv.rank", "0 or more"),
    "odd micro-batches": ({"train__micro_batches": 3}, "config.train.micro_batches", "divisor"),
    "no seed": ({"train__seeds": ()}, "config.train.seeds", "at least one"),
    "a rate of zero": ({"lora__rate": 0.0}, "config.lora.rate", "more than 0"),
    "unknown site": ({"lora__sites": ("heads",), "methods": ("zero_shot", "lora")}, "config.lora.sites", "query"),
    "more members than the mesh divides": ({"mesh__member": 3}, "config.mesh.member", "divisor"),
    "no such target": ({"target__path": "/nowhere"}, "/nowhere/config.json", "a Hugging Face folder"),
    "blocks that are not there": (
        {"generator__kind": "target", "generator__below": 2},
        "config.generator.below",
        "1..1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_one_line(name, config, tmp_path):
    fields, *words = WRONG[name]
    with pytest.raises(UserError) as error:
        run(changed(config, **fields), tmp_path / "run")
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("variant", ["released_code", "paper"])
def test_the_published_settings_differ_in_their_target_alone(variant):
    """So that what starts for one starts for the other, below."""
    pytest.importorskip("ml_collections")
    from tests.experiments.test_configs import read

    llama, mistral = (read(f"{file}.py:{variant}") for file in ("atv_llama3_8b", "atv_mistral_7b"))
    assert mistral == changed(llama, target__path="Mistral-7B-v0.3") != llama


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["released_code", "paper"])
def test_the_published_setting_starts(variant, config, tmp_path):
    """With made-up pairs for its 25 tasks, a shrunken target and generator, and two steps."""
    pytest.importorskip("ml_collections")
    from tests.experiments.test_configs import read

    published = read(f"atv_llama3_8b.py:{variant}")
    names = [name for group in published["tasks"].values() for name in group]
    assert len(names) == 25
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name in names:
        pairs = [{"input": f"{name} {i}", "output": "yes" if i % 2 else "no"} for i in range(40)]
        (tasks / f"{name}.json").write_text(json.dumps(pairs))
    published = changed(
        published,
        target__path=config["target"]["path"],
        target__dtype="",
        generator__path=config["generator"]["path"],
        data__path=str(tasks),
        evaluation__test=2,
        evaluation__dev=1,
        vectors__demonstrations=2,
        train__seeds=(0,),
        train__steps=2,
        train__log_every=2,
        train__evaluate_every=2,
        train__checkpoint_every=2,
        methods=published["methods"][-1:],
    )
    summary = run(published, tmp_path / "run")
    assert len(summary["tasks"]["seen"]) == 20 and len(summary["tasks"]["unseen"]) == 5
    settings = ATVSettings.from_config(published)
    assert settings.optimizer.l2 == 1e-5 and settings.optimizer.clip_norm == 0 and settings.own["atv"].scale == (0.001,)
    assert not settings.train.shuffled and settings.train.batch == 1


def test_data_sets_are_the_same_as_lists_and_as_tuples():
    """A run's config.json has lists: `tvjax.atv` reads the settings of the run from them."""
    rows = [["glue/sst2", "{sentence}", "{label}"]]
    small = changed(TUNED["training"], data={"tfds": rows})
    fields = {"target__path": "", "generator": {"kind": "target"}, "data": {"tfds": rows}}
    config = changed(CONFIG, **fields, training={"target": small})
    assert ATVSettings.from_config(config).data.tfds == (tuple(rows[0]),)
    with pytest.raises(UserError, match=r"config\.data\.tfds: .*that of config\.training\.target\.data\.tfds too"):
        ATVSettings.from_config(changed(config, training__target__data={}))
