"""The study of formats: its positions are those of the characters, its numbers those of plain prompts, it goes on."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tvjax
from tests.conftest import quiet
from tests.text.test_pieces import KINDS, begun, opened
from tvjax.errors import UserError
from tvjax.experiments.formats import run as formats
from tvjax.experiments.formats.answers import summarized, verdict
from tvjax.experiments.pages import summary_table, write_report
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.pretrained.tokenizer import Tokenizer, train_tokenizer
from tvjax.nn.pretrained.weights import save_folder
from tvjax.tasks.text import Template, TextTask, some, split_of
from tvjax.text.bench import Bench, VectorConfig

TASKS, WORDS = ("one", "two"), tuple("abcdefghijklmnopqrstuvwxyz")
CONFIG = {
    "experiment": "formats",
    "model": {"path": ""},
    "data": {"path": ""},
    "formats": {
        "templates": (("arrow", "", " ->", "\n"), ("say", "say ", " =", "\n")),
        "starts": (("nothing", ""), ("newline", "\n"), ("end", "<|end|>")),
        "seeds": (0, 1),
        "demonstrations": 2,
        "prompts": 3,
        "dev": 6,
        "questions": 4,
    },
}


def folders(place):
    """A random llama that says letters, and tasks in which half of the letters, others for each input, are right.

    So about half of what it says is right, and which half depends on every token of the prompt and on what is written.
    """
    random = np.random.default_rng(0)
    inputs = [f"{a}{b}" for a in "bcdfgh" for b in "aeiou"]
    (place / "tasks").mkdir(parents=True)
    for name in TASKS:
        rows = [(x, y) for x in inputs for y in random.permutation(WORDS)[:13]]
        (place / "tasks" / f"{name}.json").write_text(json.dumps([{"input": x, "output": y} for x, y in rows]))
    texts = [f"say {x} -> {y}\n{x} = {y}" for x in inputs for y in WORDS]
    folder = place / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(train_tokenizer(texts, 400))
    tokenizer = Tokenizer(folder)
    model = DecoderConfig(
        num_layers=3,
        width=32,
        num_heads=2,
        num_outputs=tokenizer.size,
        inputs="tokens",
        vocab_size=tokenizer.size,
        hidden_width=64,
        norm="rmsnorm",
        positions="rotary",
        mlp="gated_silu",
        bias=False,
        tied_readout=False,
        unroll=1,
    )
    params = Decoder(model).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    letters = np.array([tokenizer.token(i) in {f"\u0120{word}" for word in WORDS} for i in range(tokenizer.size)])
    assert letters.sum() == len(WORDS)
    params["readout"]["kernel"] *= np.where(letters, 100.0, 1.0)[None]
    params = {**params, "blocks": jax.tree.map(lambda a: 3 * a, params["blocks"])}  # so that blocks count
    save_folder(folder, model, params)
    return {"model": {"path": str(folder)}, "data": {"path": str(place / "tasks")}}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return CONFIG | folders(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """The folder of a whole run and its summary."""
    folder = tmp_path_factory.mktemp("runs") / "formats"
    return folder, formats.run(config, folder, "train", quiet)


def with_fields(config, **fields):
    return config | {"formats": config["formats"] | fields}


def bench_of(tokenizer, template, tasks):
    config = types.SimpleNamespace(num_layers=2, num_heads=2, width=4, positions="rotary", max_positions=0)
    model = types.SimpleNamespace(config=config, source=types.SimpleNamespace(tokenizer=tokenizer))
    return Bench(model, VectorConfig(demonstrations=2, prompts=2), template, tasks)


class TestPositions:
    @pytest.mark.parametrize("first", [False, True], ids=["bare", "BOS"])
    @pytest.mark.parametrize("kind", ["bytes", "bytes, two newlines", "bytes, spans with their spaces", "never"])
    def test_the_query_ends_where_its_characters_end(self, kind, first, tmp_path):
        """Random queries behind random demonstrations: token by token, the text up to the position holds the query."""
        made = KINDS[kind]()
        tokenizer = opened(begun(made) if first else made, tmp_path)
        random = np.random.default_rng(0)
        letters = list("abcdehlopx" if kind == "never" else "abco d\né")
        word = lambda: "".join(random.choice(letters, random.integers(1, 6))).strip() or "a"
        inputs = sorted({word() for _ in range(60)})
        task = TextTask("any", tuple((x, "co") for x in inputs))
        assert {split_of(x) for x in inputs} == {"train", "dev", "test"}
        for template in (Template("", "->", "\n"), Template("Q: ", "\nA:", "\n\n"), Template("", ":", "\n", "\n")):
            bench = bench_of(tokenizer, template, {"any": task})
            asked = [(word(), "co") for _ in range(20)]
            for prompts in (bench.zero_shot(asked), bench.few_shot("any", asked)):
                assert not bench.back(prompts, "last").any()
                for prompt, back in zip(prompts, bench.back(prompts, "query"), strict=True):
                    end = len(prompt) - len(template.between)
                    spans = [span for _, span in tokenizer.encode_with_spans([prompt])[0]]
                    place = len(spans) - 1 - back
                    assert spans[place][0] < end <= max(stop for _, stop in spans[: place + 1]), (prompt, back)
                    assert all(start >= end for start, _ in spans[place + 1 :]), (prompt, back)

    def test_a_vector_is_written_there_and_nowhere_else(self, config):
        """What is said with it is what `tvjax.run` says with the same write, at an index counted by hand."""
        model = tvjax.load(config["model"]["path"])
        settings = formats.FormatSettings.from_config(config)
        cell = formats.cells(settings.formats, model, settings.data.read(), quiet)[4]
        assert (cell.template, cell.start) == ("say", "newline")
        bench = cell.benches[0]
        vector = np.random.default_rng(0).normal(size=model.config.width).astype(np.float32) * 5
        asked = bench.sample("one", "test")
        changed = 0
        for layer in range(model.config.num_layers + 1):
            for position in ("last", "query"):
                prompts = bench.zero_shot(asked)
                q, back_B, _ = bench.ask_all(prompts, [(y,) for _, y in asked], position)
                said = bench.likeliest(q, vector[None, None], [layer], np.zeros((1, 1)))[:, 0, 0]
                for prompt, (x, y), back, row in zip(prompts, asked, back_B, said, strict=True):
                    ids = model.source.tokenizer.encode([prompt + f" {y}"])[0]
                    behind = len(model.source.tokenizer.encode([" ="])[0]) if position == "query" else 0
                    last = len(model.source.tokenizer.encode([prompt])[0]) - 1
                    edits = tvjax.replace(vector, layers=layer, positions=[last - behind])
                    out = np.asarray(tvjax.run(model, jnp.array([ids]), edits=edits))[0].argmax(-1)
                    assert back == behind
                    np.testing.assert_array_equal(row[back : back + len(ids) - 1 - last], out[last:-1], err_msg=x)
                    plain = np.asarray(tvjax.run(model, jnp.array([ids])))[0].argmax(-1)
                    changed += out[last] != plain[last]
        assert changed > len(asked), "a write that changes nothing would prove nothing"


class TestCells:
    def test_every_number_is_that_of_plain_prompts(self, done, config):
        """Zero-shot, k-shot and the vector at its layer, each found again by `tvjax` calls on single prompts."""
        folder, _ = done
        model = tvjax.load(config["model"]["path"])
        settings, layers = formats.FormatSettings.from_config(config), set()
        for cell in formats.cells(settings.formats, model, settings.data.read(), quiet)[2:4]:
            kept = json.loads(cell.path(folder).read_text())["tasks"]
            for name in TASKS:
                entry, bench = kept[name], cell.benches[0]
                prompts, right, states = [], [], {"last": [], "query": []}
                for seeded in cell.benches:
                    asked = seeded.queries(name, 3)
                    prompts += seeded.few_shot(name, asked)
                    right += [seeded.begun(x, seeded.tasks[name].answers) for x, _ in asked]
                for prompt in prompts:
                    found = tvjax.capture(model, [prompt], ["embed", "blocks/resid"])
                    whole = np.concatenate([found["embed"][None], found["blocks/resid"]])[:, 0]
                    for position, rows in states.items():
                        rows.append(whole[:, whole.shape[1] - 1 - int(bench.back([prompt], position)[0])])
                said = [int(np.asarray(tvjax.run(model, [prompt], last=True)).argmax()) for prompt in prompts]
                known = [s in tokens for s, tokens in zip(said, right, strict=True)]
                assert entry["few_shot"]["first"] == [int(x) for x in known]
                asked = some(bench.tasks[name].questions("test"), 4)
                for position, rows in states.items():
                    layer = entry[position]["layer"]
                    layers.add(layer)
                    for seed, vector in enumerate(np.array(rows).reshape(2, 3, *rows[0].shape).mean(1)):
                        for number, (x, _) in enumerate(asked):
                            bare = bench.zero_shot([(x, "")])[0]
                            place = -1 - int(bench.back([bare], position)[0])
                            edits = tvjax.replace(vector[layer], layers=layer, positions=[place])
                            said = int(np.asarray(tvjax.run(model, [bare], edits=edits, last=True)).argmax())
                            expected = said in bench.begun(x, bench.tasks[name].answers)
                            assert entry[position]["first"][number][seed] == expected
        assert len(layers) > 1, "one layer would not show that each has its own"

    def test_alike_is_the_mean_cosine_of_pairs(self):
        states = np.random.default_rng(0).normal(size=(5, 3, 4))
        pairs = [(i, j) for i in range(5) for j in range(i)]
        cosine = lambda a, b: (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        expected = np.mean([cosine(states[i], states[j]) for i, j in pairs], 0)
        np.testing.assert_allclose(formats.alike(states), expected, rtol=1e-10)
        np.testing.assert_allclose(formats.alike(np.ones((4, 2, 3))), 1)


class TestRuns:
    def test_a_run_that_was_stopped_ends_as_one_that_was_not(self, config, done, tmp_path, monkeypatch):
        measured, real = [], formats.measure

        def stopping(benches, name, c):
            measured.append((benches[0].template, name))
            if len(measured) == 6:  # the second task of the third cell
                raise KeyboardInterrupt
            return real(benches, name, c)

        monkeypatch.setattr(formats, "measure", stopping)
        with pytest.raises(KeyboardInterrupt):
            formats.run(config, tmp_path / "run", "train", quiet)
        assert len(list((tmp_path / "run" / formats.CELLS).iterdir())) == 2
        said = []
        summary = formats.run(config, tmp_path / "run", "train", said.append)
        assert summary == done[1] and len(measured) == 6 + (6 - 2) * 2, "cells that are there were measured again"
        assert "2 of 6 cells are there" in said
        monkeypatch.setattr(formats, "measure", None)
        assert formats.run(config, tmp_path / "run", "eval", quiet) == summary

    def test_a_broken_cell_is_refused(self, config, done, tmp_path):
        folder = tmp_path / "run"
        formats.run(with_fields(config, starts=(("nothing", ""),)), folder, "train", quiet)
        (folder / formats.CELLS / "arrow.nothing.json").write_text("{")
        with pytest.raises(UserError, match=r"arrow\.nothing\.json: not whole JSON.*a cell of this run"):
            formats.run(with_fields(config, starts=(("nothing", ""),)), folder, "eval", quiet)

    def test_the_page_and_the_table_show_all_cells(self, done):
        folder, summary = done
        page, table = write_report(folder).read_text(), summary_table(json.loads(json.dumps(summary)))
        keys = [(cell["template"], cell["start"]) for cell in summary["cells"]]
        assert keys == [(t, s) for t in ("arrow", "say") for s in ("nothing", "newline", "end")]
        for cell in summary["cells"]:
            (line,) = [row for row in table.splitlines() if row.split()[:2] == [cell["template"], cell["start"]]]
            for found in cell["positions"].values():
                value, (low, high) = found["vector_first"], found["vector_first_ci"]
                assert f"{value:.2f} <small>[{low:.2f}, {high:.2f}]" in page
                assert f"{value:.2f} [{low:.2f}, {high:.2f}]" in line
        for stem in ("formats", "tasks", "layers", "cosine", "reading"):
            assert (folder / "report" / f"{stem}.png").stat().st_size > 5000 and f"{stem}.png" in page

    def test_what_failed_is_said_first(self, done):
        """A random model learns nothing in context."""
        _, summary = done
        text = summary_table(summary)
        assert "Not learned in context" in text.splitlines()[1]
        first = next(cell for cell in summary["cells"] if cell["template"] == "say")
        assert not first["query_first"] and summary["cells"][0]["query_first"]
        assert "The start end is " in text, "a special token that this tokenizer lacks"
        assert [len(start["tokens"]) for start in summary["starts"]][:2] == [0, 1]

    @pytest.mark.parametrize(
        ("fields", "says"),
        [
            ({"templates": ()}, "config.formats.templates"),
            ({"templates": (("a", "", ">", ""), ("a", "", ":", ""))}, "different names of different texts"),
            ({"templates": (("a/b", "", ">", ""),)}, "config.formats.templates: given 'a/b'"),
            ({"templates": (("a", "", ">"),)}, "config.formats.templates"),
            ({"starts": (("a", ""), ("b", ""))}, "config.formats.starts"),
            ({"positions": ("last", "first")}, "config.formats.positions[1]: given 'first'"),
            ({"positions": ()}, "config.formats.positions"),
            ({"positions": ("last", "last")}, "config.formats.positions"),
            ({"seeds": (1, 1)}, "config.formats.seeds"),
            ({"seeds": ()}, "config.formats.seeds"),
            ({"dev": 0}, "config.formats.dev: given 0; accepted: 1 or more"),
            ({"prompts": 0}, "config.formats.prompts"),
            ({"memory": 0.0}, "config.formats.memory"),
            ({"demonstrations": 30}, "inputs of the train split"),
            ({"shots": 3}, "config.formats.shots"),
        ],
    )
    def test_bad_input_is_refused(self, config, tmp_path, fields, says):
        with pytest.raises(UserError) as error:
            formats.run(with_fields(config, **fields), tmp_path / "run", "train", quiet)
        assert says in str(error.value) and "\n" not in str(error.value)

    def test_starts_are_refused_where_the_tokenizer_has_a_first_token(self, config, tmp_path):
        tokenizer = opened(begun(KINDS["bytes"]()), tmp_path)
        task = TextTask("any", tuple((f"{a}{b}", "x") for a in "abcd" for b in "efgh"))
        model = bench_of(tokenizer, Template(), {"any": task}).model
        c = formats.FormatConfig(templates=(("a", "", ">", ""),), starts=(("none", ""), ("line", "\n")))
        c = dataclasses.replace(c, demonstrations=2)
        with pytest.raises(UserError, match=r"config.formats.starts.*BOS"):
            formats.cells(c, model, {"any": task}, quiet)


class TestRules:
    def cells(self, few, plain, behind, cosines=(0.5, 0.5)):
        """Two cells of two tasks of 20 questions: so many are right of each. cosines: at the middle layer."""
        right = lambda count: np.repeat([1, 0], [count, 20 - count])

        def measured(count, cosine):
            place = {"cosine": [1.0, cosine, 0.5], "dev_first": [0.0, 0.5], "dev_whole": [0.0, 0.5], "layer": 2}
            rows = right(count)[:, None].tolist()
            place |= {"works": True, "first": rows, "whole": rows}
            shot = lambda n: {kind: right(n).tolist() for kind in ("first", "whole")}
            entry = {"zero_shot": shot(1), "few_shot": shot(few), "shuffled_shot": shot(few // 3), "last": place}
            return {"query_first": False, "tasks": {"a": entry, "b": entry}}

        found = {("t", "nothing"): measured(plain, cosines[0]), ("t", "newline"): measured(behind, cosines[1])}
        return summarized(found, ("last",))

    def test_differences_are_paired_and_failures_are_not_compared(self):
        (row,) = self.cells(18, 2, 15)["compared"]["starts"]
        assert row["difference"] == pytest.approx(13 / 20) and row["verdict"] == "higher"
        assert row["less"] == {"template": "t", "start": "nothing"} and row["start"] == "newline"
        assert self.cells(18, 15, 2)["compared"]["starts"][0]["verdict"] == "lower"
        assert self.cells(18, 12, 12)["compared"]["starts"][0]["verdict"] == "not clear"
        assert self.cells(18, 1, 1)["compared"]["starts"][0]["verdict"] == "neither works"

    def test_a_verdict_asks_the_whole_interval(self):
        assert [verdict(ci, True) for ci in ((0.01, 0.2), (-0.2, -0.01), (-0.1, 0.1), (0.0, 0.2))] == [
            "higher",
            "lower",
            "not clear",
            "not clear",
        ]
        assert verdict((0.1, 0.2), False) == "neither works"

    def test_a_task_is_destroyed_where_half_of_it_is_lost(self):
        tasks = self.cells(18, 2, 15)["tasks"]
        assert tasks["a"]["destroyed"] and tasks["a"]["loss"] == pytest.approx(12 / 20)
        assert not self.cells(2, 2, 15)["tasks"]["a"]["loss"] > 2 / 20

    def test_without_variation_there_is_no_rank_correlation(self):
        found = self.cells(18, 2, 15)["reading"]
        assert found["rank_correlation_by_layer"] == [None] * 3 and not found["explains"]
        assert found["rank_correlation"] is None and (found["position"], found["layer"]) == ("last", 1)

    def test_reading_explains_where_vectors_fail_as_queries_look_alike(self):
        for cosines, correlation in (((0.9, 0.4), -1), ((0.4, 0.9), 1)):
            found = self.cells(18, 2, 15, cosines)["reading"]
            assert found["rank_correlation_by_layer"] == [None, pytest.approx(correlation), None]
            assert found["rank_correlation"] == pytest.approx(correlation) and found["explains"] == (correlation < 0)
