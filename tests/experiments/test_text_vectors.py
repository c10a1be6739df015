"""Text experiments: the small model learns from demonstrations, and its vectors are measured as they are defined."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tvjax.errors import UserError
from tvjax.experiments.formats import run as formats
from tvjax.experiments.pages import summary_table, write_report
from tvjax.experiments.task_vectors import run as task_vectors
from tvjax.experiments.text_model import run as text_model
from tvjax.nn.answers import correct, questions
from tvjax.nn.decoder import PADDING
from tvjax.nn.model import forward
from tvjax.nn.tokens import pad
from tvjax.tasks.suite import suite
from tvjax.tasks.text import Template
from tvjax.text.data import DataConfig
from tvjax.text.prompts import tables
from tvjax.vectors.from_prompts import at_last, last_states, vocabulary

TRAINING = {
    "experiment": "text_model",
    "data": {"path": "", "tasks": ("next_letter", "previous_letter", "uppercase")},
    "template": {"before": "", "between": " ->", "after": "\n"},
    "model": {"vocab_size": 400, "num_layers": 2, "width": 64, "num_heads": 2},
    "train": {
        "demonstrations": 5,
        "batch": 16,
        "seed": 0,
        "learning_rate": 4e-3,
        "steps": 1200,
        "log_every": 100,
        "evaluate_every": 600,
        "checkpoint_every": 600,
        "tensorboard": False,
    },
    "optimizer": {"warmup_steps": 20, "clip_norm": 1.0},
    "evaluation": {"prompts": 200},
}
VECTORS = {
    "demonstrations": 3,
    "prompts": 12,
    "batch": 8,
    "questions": 20,
    "words": 4,
    "conflicts": 2,
}
METHODS = {
    "methods": ("vector", "function_vector", "learned_vector"),
    "function_vector": {"heads": 2, "shuffled_prompts": 6},
    "learned_vector": {"steps": 20},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small model, trained in half a minute, and the folder of its run."""
    folder = tmp_path_factory.mktemp("text") / "model"
    summary = text_model.run(TRAINING, folder, "train", say=lambda line: None)
    return folder, summary


@pytest.fixture(scope="module")
def model(trained):
    return tvjax.load(trained[0] / "model")


def config_for(trained, **changes):
    return {
        "experiment": "task_vectors",
        "model": {"path": str(trained[0] / "model")},
        "data": copy.deepcopy(TRAINING["data"]),
        "template": dict(TRAINING["template"]),
        "vectors": VECTORS,
        **METHODS,
    } | changes


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "run"
    return folder, task_vectors.run(config_for(trained), folder, "train", say=lambda line: None)


@pytest.mark.slow
class TestTextModel:
    def test_demonstrations_help(self, trained):
        _, summary = trained
        assert summary["accuracy"][5] > summary["accuracy"][0] + 0.3

    def test_it_never_shows_a_pair_twice_nor_mixes_tasks(self, trained):
        settings = text_model.TextModelSettings.from_config(TRAINING)
        tasks, tokenizer = settings.data.read(), tvjax.load(trained[0] / "model").source.tokenizer
        arrays = tables(tasks, settings.template, tokenizer, 5)
        experiment = text_model.TextModelExperiment(settings, settings.decoder(tokenizer.size), arrays)
        prompts = np.asarray(experiment.draw(experiment.data(), jax.random.key(0), 100))
        known = [{(x, y) for x, y in task.pairs} for task in tasks.values()]
        for prompt in prompts:
            text = tokenizer.decode(prompt[prompt >= 0])
            pairs = [tuple(line.split(" -> ")) for line in text.strip().split("\n")]
            assert len(set(pairs)) == 6 and any(set(pairs) <= task for task in known), text

    def test_its_scores_are_those_of_plain_prompts(self, trained, model):
        """Padding inside the training prompts changes nothing: text without any gives the same risks."""
        settings = text_model.TextModelSettings.from_config(TRAINING)
        arrays = tables(settings.data.read(), settings.template, model.source.tokenizer, 5)
        experiment = text_model.TextModelExperiment(settings, model.config, arrays)
        prompts = experiment.draw(experiment.data(), jax.random.key(1), 4)
        scores = experiment.scores(model.params, prompts)
        width = arrays["query"].shape[1]
        for prompt, risks in zip(np.asarray(prompts), np.asarray(scores["risk"]), strict=True):
            ids = prompt[prompt >= 0]
            logs = jax.nn.log_softmax(tvjax.run(model, jnp.asarray(ids)[None])[0])
            seen = 0
            for slot, risk in zip(prompt, risks, strict=True):
                seen += int((slot[:width] >= 0).sum())
                answer = slot[width:][slot[width:] >= 0]
                expected = -np.mean([logs[seen + n - 1, token] for n, token in enumerate(answer)])
                np.testing.assert_allclose(risk, expected, rtol=1e-3, atol=1e-4)
                seen += len(answer)

    @pytest.mark.parametrize(
        ("group", "changes", "says"),
        [
            ("train", {"demonstrations": 30}, "at most 24"),
            ("train", {"learning_rate": 0.0}, "more than 0"),
            ("train", {"steps": 150}, "a positive multiple of log_every = 100"),
            ("model", {"num_heads": 5}, "config.model.num_heads"),
            ("model", {"dtype": "float8"}, "'float32', 'bfloat16'"),
            ("optimizer", {"b1": 1.0}, "config.optimizer.b1"),
            ("model", {"vocab_size": 20}, "257 or more"),
            ("data", {"tasks": ("nowhere",)}, "the built-in suite"),
            ("evaluation", {"questions": 3}, "the fields are prompts"),
        ],
    )
    def test_bad_input_is_refused(self, group, changes, says, tmp_path):
        config = TRAINING | {group: TRAINING[group] | changes}
        with pytest.raises(UserError) as error:
            text_model.run(config, tmp_path / "run", "train", say=lambda line: None)
        assert says in str(error.value)


@pytest.mark.slow
class TestAnswers:
    TEMPLATE = Template(**TRAINING["template"])

    def test_right_is_what_greedy_decoding_says(self, model):
        pairs = [("a", "b"), ("b", "a"), ("c", "D"), ("d", "D"), ("e", "f")]
        prompts = [self.TEMPLATE.prompt([("x", "y"), ("p", "q"), ("s", "t")], x) for x, _ in pairs]
        answers = [self.TEMPLATE.answer(y) for _, y in pairs]
        q = questions(model.source.tokenizer, prompts, answers)
        made = tvjax.generate(model, prompts, max_new_tokens=q.answers_BA.shape[1])
        expected = [text.startswith(answer) for text, answer in zip(made, answers, strict=True)]
        np.testing.assert_array_equal(correct(model, q), expected)

    def test_every_token_of_an_answer_counts(self, model):
        """Two tokens, of which greedy decoding gives the first alone."""
        prompt = self.TEMPLATE.prompt([("x", "y"), ("p", "q"), ("s", "t")], "a")
        first = tvjax.generate(model, [prompt], max_new_tokens=1)[0]
        for answer, expected in ((first, True), (first + " zq", False)):
            q = questions(model.source.tokenizer, [prompt], [answer], width=6)
            assert bool(correct(model, q)[0]) is expected

    def test_a_token_across_the_border_is_refused(self, model):
        with pytest.raises(UserError, match="a token that joins"):
            questions(model.source.tokenizer, ["a -> "], ["b"])


@pytest.mark.slow
class TestVectors:
    def test_states_are_those_of_each_prompts_last_token(self, model):
        prompts = ["a -> b\nc ->", "d ->"]
        ids = model.source.tokenizer.encode(prompts)
        states = last_states(model, pad(ids, side="right"))
        for row, alone in zip(states, ids, strict=True):
            found = tvjax.capture(model, jnp.array([alone]), ["embed", "blocks/resid"])
            expected = jnp.concatenate([found["embed"][None], found["blocks/resid"]])[:, 0, -1]
            np.testing.assert_allclose(row, expected, atol=1e-4)

    def test_written_at_the_last_token_and_nowhere_else(self, model):
        tokens = pad(model.source.tokenizer.encode(["a -> b\nc ->", "d ->"]), side="right")
        vector = jax.random.normal(jax.random.key(0), (model.config.width,))
        tree = at_last(model.config, vector, 2, tokens.last_B, tokens.ids_BT.shape[1])
        positions_BT = tokens.positions_BT
        run = lambda edits: forward(
            model,
            tokens.ids_BT,
            addresses=("blocks/resid",),
            edits=edits,
            positions_BT=positions_BT,
        )[1]["blocks/resid"][1]
        plain, edited = run(None), run(tree)
        changed = np.abs(edited - plain).max(-1) > 1e-6
        np.testing.assert_array_equal(changed, np.arange(tokens.ids_BT.shape[1])[None] == tokens.last_B[:, None])
        np.testing.assert_allclose(edited[np.arange(2), tokens.last_B], np.stack([vector, vector]), rtol=1e-6)
        assert positions_BT[1, -1] == PADDING

    def test_words_of_a_last_state_are_the_models_own_answer(self, model):
        prompt = "a -> b\nc ->"
        found = tvjax.capture(model, [prompt], ["blocks/resid"], positions="last")
        logits = vocabulary(model, found["blocks/resid"][-1, :, 0])
        np.testing.assert_allclose(logits, tvjax.run(model, [prompt], last=True)[:, 0], atol=1e-4)

    def test_the_summary_is_what_its_words_say(self, trained, measured, model):
        """Few-shot beats zero-shot, and each number can be found again by hand."""
        folder, summary = measured
        assert summary["mean"]["few_shot"] > summary["mean"]["zero_shot"] + 0.15
        assert set(summary["tasks"]) == set(TRAINING["data"]["tasks"])
        entry = summary["tasks"]["uppercase"]
        vectors, about = tvjax.load_vectors(folder / "vectors" / "uppercase.safetensors")
        asked = DataConfig(tasks=("uppercase",)).read()["uppercase"].split("test")
        for kind, write in (("vector", tvjax.replace), ("function_vector", tvjax.add), ("learned_vector", tvjax.add)):
            layer, scale = entry[f"{kind}_layer"], entry[f"{kind}_scale"]
            best = [-1 if value is None else value for value in entry[f"{kind}_first_by_layer_dev"]]
            assert layer > 0 and best[layer] == max(best[1:]) == pytest.approx(entry[f"{kind}_dev"])
            assert entry[kind] == pytest.approx(entry[f"{kind}_by_layer_test"][layer])
            assert entry[f"{kind}_first"] == pytest.approx(entry[f"{kind}_first_by_layer_test"][layer])
            assert (about[f"{kind}.layer"], about[f"{kind}.scale"]) == (layer, scale)
            assert scale in ((1.0, 2.0, 4.0) if kind == "function_vector" else (1.0,))
            right = []
            for x, y in asked:
                edits = write(scale * vectors[kind][layer], layers=layer)
                right.append(
                    tvjax.generate(model, f"{x} ->", max_new_tokens=1, edits=edits, during="prompt") == f" {y}"
                )
            assert entry[kind] == pytest.approx(np.mean(right))
        assert 1 <= len(summary["heads"]) <= 2 and set(summary["learned_layers"]["uppercase"]) <= {1, 2}
        assert vectors["learned_vector"][0].any() == 0 and vectors["learned_vector"][1].any()
        effects = np.array(summary["indirect_effect"])
        top = {(head["layer"] - 1, head["head"]) for head in summary["heads"]}
        assert min(effects[place] for place in top) >= max(np.sort(effects, axis=None)[-2], 0)

    def test_a_cell_of_formats_is_what_is_measured_here(self, trained, measured, tmp_path):
        """The same template, seed, tasks and questions: the same vectors, layers and answers."""
        template = TRAINING["template"]
        fields = {"templates": (("same", *template.values()),), "starts": (("nothing", ""),), "seeds": (0,)}
        fields |= {"dev": VECTORS["questions"], **{n: VECTORS[n] for n in ("demonstrations", "prompts", "questions")}}
        config = {n: config_for(trained)[n] for n in ("model", "data")} | {"formats": fields}
        formats.run(config | {"experiment": "formats"}, tmp_path / "run", "train", say=lambda line: None)
        cell = json.loads((tmp_path / "run" / "cells" / "same.nothing.json").read_text())
        for name, entry in measured[1]["tasks"].items():
            found = cell["tasks"][name]
            assert np.mean(found["zero_shot"]["whole"]) == pytest.approx(entry["zero_shot"])
            assert found["last"]["layer"] == entry["vector_layer"] and found["last"]["works"] == entry["vector_works"]
            for kind, suffix in (("whole", ""), ("first", "_first")):
                assert np.mean(found["last"][kind]) == pytest.approx(entry[f"vector{suffix}"])
                assert found["last"][f"dev_{kind}"] == pytest.approx(entry[f"vector{suffix}_by_layer_dev"][1:])

    def test_conflicts_ask_what_both_tasks_answer_differently(self, measured):
        _, summary = measured
        names = {(e["shown"], e["moved"]) for e in summary["conflicts"]}
        assert ("next_letter", "previous_letter") in names and all(a != b for a, b in names)
        for entry in summary["conflicts"]:
            assert entry["says_shown"] + entry["says_moved"] <= 1 + 1e-9

    def test_it_repeats(self, trained, measured, tmp_path):
        again = task_vectors.run(config_for(trained), tmp_path / "run", "train", say=lambda line: None)
        assert again == measured[1]

    def test_it_goes_on_with_the_tasks_that_it_keeps(self, trained, tmp_path):
        """The source may change or vanish: the run has its own copy."""
        pytest.importorskip("tensorflow_datasets")
        source, said = tmp_path / "tasks", lambda line: None
        source.mkdir()
        pairs = suite()["uppercase"].pairs
        (source / "up.json").write_text(json.dumps([{"input": x, "output": y} for x, y in pairs]))
        config = config_for(trained, data={"path": str(source)})
        first = task_vectors.run(config, tmp_path / "run", "train", say=said)
        (source / "up.json").write_text(json.dumps([{"input": x, "output": "?"} for x, _ in pairs]))
        assert task_vectors.run(config, tmp_path / "run", "train", say=said) == first

    @pytest.mark.parametrize(
        ("group", "changes", "says"),
        [
            ("vectors", {"demonstrations": 0}, "config.vectors.demonstrations"),
            ("vectors", {"demonstrations": 17}, "accepted: tasks that have 18 or more"),
            ("vectors", {"shots": 3}, "no such field"),
            ("vectors", {"memory": 0.0}, "config.vectors.memory"),
            ("vectors", {"memory": 1e-9}, "GiB that one entry takes"),
            ("function_vector", {"heads": 0}, "config.function_vector.heads"),
            ("function_vector", {"heads": 5}, "1..4, all heads"),
            ("function_vector", {"scales": ()}, "config.function_vector.scales"),
            ("function_vector", {"scales": (1.0, 0.0)}, "different numbers, each more than 0"),
            ("learned_vector", {"layers": (0,)}, "config.learned_vector.layers"),
            ("learned_vector", {"layers": (3,)}, "layers 1..2"),
            ("data", {"tfds": (("nowhere", "{x}", "{y}"),)}, "a data set that can be read"),
            ("data", {"tfds": (("nowhere", "{x}"),)}, "config.data.tfds"),
            ("model", {"path": "/nowhere"}, "config.json"),
            ("data", {"path": "/nowhere"}, "accepted: a folder"),
        ],
    )
    def test_bad_input_is_refused(self, trained, tmp_path, group, changes, says):
        config = config_for(trained)
        config[group] = config[group] | changes
        if group == "data":
            config["data"]["tasks"] = ()
        with pytest.raises(UserError) as error:
            task_vectors.run(config, tmp_path / "run", "train", say=lambda line: None)
        assert says in str(error.value)


@pytest.mark.slow
class TestReport:
    def test_page_and_table_of_task_vectors(self, measured):
        folder, summary = measured
        page = write_report(folder).read_text()
        table = summary_table(json.loads((folder / "eval" / "summary.json").read_text()))
        for name, entry in summary["tasks"].items():
            assert name in page and f"{entry['few_shot']:.2f} <small>" in page
            (line,) = [row for row in table.splitlines() if row.startswith(name)]
            both = lambda kind, entry=entry: [f"{entry[f'{kind}_first']:.2f}", f"{entry[kind]:.2f}"]
            expected = [text for kind in ("zero_shot", "few_shot", "shuffled_shot") for text in both(kind)]
            for kind in ("vector", "function_vector", "learned_vector"):
                expected += both(kind)
                where = f"at {entry[f'{kind}_layer']}" if entry[f"{kind}_works"] else "none works"
                if entry[f"{kind}_scale"] != 1:
                    where += f"{'' if entry[f'{kind}_works'] else ','} x{entry[f'{kind}_scale']:g}"
                expected += where.split()
            assert line.split()[1:] == [*expected, *both("shuffled_vector")]
        assert "Conflicting tasks" in page
        assert {p.name for p in (folder / "report").iterdir()} == {
            "index.html",
            *(f"{stem}.{form}" for stem in ("layers", "methods", "heads") for form in ("png", "svg", "pdf")),
        }

    def test_page_and_table_of_the_small_model(self, trained):
        folder, summary = trained
        page = write_report(folder).read_text()
        assert f"{summary['accuracy'][5]:.2f} <small>[" in page and "curve.png" in page
        assert len(summary_table(summary).splitlines()) == 2 + 6

    def test_a_broken_summary_is_refused_in_one_line(self, measured, tmp_path):
        folder, summary = measured
        for name in ("config.json", "environment.json"):
            (tmp_path / name).write_text((folder / name).read_text())
        (tmp_path / "eval").mkdir()
        broken = {key: value for key, value in summary.items() if key != "mean"}
        (tmp_path / "eval" / "summary.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match=r"summary\.json: 'mean'"):
            write_report(tmp_path)
