"""Inputs with several right answers: any is right, a question counts once, demonstrations and targets draw one."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax.errors import UserError
from tvjax.experiments.atv import run as atv
from tvjax.experiments.task_vectors import run as task_vectors
from tvjax.methods.base import RunContext
from tvjax.nn.pretrained.tokenizer import Tokenizer, train_tokenizer
from tvjax.tasks.text import Template, TextTask, split_of
from tvjax.text import adapting
from tvjax.text.bench import Bench, VectorConfig
from tvjax.text.data import DataConfig
from tvjax.text.examples import Reader, make_examples, pairs_of, questions_of

TEMPLATE = Template("", " ->", "\n")
SPLIT = {split: [f"w{n}" for n in range(60) if split_of(f"w{n}") == split] for split in ("train", "dev", "test")}


def task(name, said):
    """A task on all inputs: of every other one two right answers, of one three."""
    inputs = [x for xs in SPLIT.values() for x in xs]
    pairs = [(x, f"{said}{x}") for x in inputs] + [(x, f"or {said}{x}") for x in inputs[::2]]
    return TextTask(name, (*pairs, (SPLIT["test"][0], f"third {said}")))


TASKS = {"up": task("up", "u"), "down": task("down", "d")}


class Says:
    """In the place of a model and its batches: it gives one answer to each query, whatever its demonstrations."""

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.answers = tokenizer, answers

    def __call__(self, program, static, fixed, q, loops=1):
        ids_BT, valid_BT = np.asarray(q.tokens.ids_BT), np.asarray(q.tokens.valid_BT)
        texts = [self.tokenizer.decode(row[valid]) for row, valid in zip(ids_BT, valid_BT, strict=True)]
        last = [text.split("\n")[-1].split(" -> ") for text in texts]
        right = np.array([self.answers.get(x) == y for x, y in last], float)
        if len(fixed) == 1:
            return right
        answers_BA = np.asarray(q.answers_BA)  # as `above.likeliest`: the tokens that are said, with each vector
        said_BA = np.where(right[:, None] == 1, answers_BA, answers_BA + 1)
        return np.broadcast_to(said_BA[:, None, None], (len(right), *fixed[1].shape[:2], answers_BA.shape[1]))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    texts = [TEMPLATE.prompt([pair], "") for task in TASKS.values() for pair in task.pairs]
    (folder / "tokenizer.json").write_text(train_tokenizer(texts, 300))
    return Tokenizer(folder)


@pytest.fixture
def bench(tokenizer):
    config = types.SimpleNamespace(num_layers=2, num_heads=2, width=4, positions="rotary", max_positions=0)
    source = types.SimpleNamespace(tokenizer=tokenizer)
    model = types.SimpleNamespace(config=config, source=source, bare=None)
    settings = VectorConfig(demonstrations=3, prompts=4, questions=6)
    known = {x: answers[-1] for x, answers in TASKS["up"].answers.items()}
    return Bench(model, settings, TEMPLATE, TASKS, batches=Says(tokenizer, known))


class TestBench:
    def test_a_question_is_an_input_and_any_of_its_answers_is_right(self, bench):
        asked = bench.sample("up", "test")
        accepted = bench.accepted("up", asked)
        assert len({x for x, _ in asked}) == len(asked) == 6 and max(map(len, accepted)) > 1
        bare = bench.zero_shot(asked)
        np.testing.assert_array_equal(bench.right(bare, accepted), np.ones(6))
        np.testing.assert_array_equal(bench.right(bench.few_shot("up", asked), accepted), np.ones(6))
        first = bench.right(bare, [answers[:1] for answers in accepted])
        np.testing.assert_array_equal(first, [len(answers) == 1 for answers in accepted])
        wrong = bench.right(bare, bench.accepted("down", asked))
        np.testing.assert_array_equal(wrong, np.zeros(6))

    def test_with_vectors_too(self, bench):
        found = bench.right_on("up", "test", np.zeros((3, 4), np.float32), bench.layers, 0.0)
        np.testing.assert_array_equal(found, np.ones((6, 3)))

    def test_demonstrations_have_each_input_once_and_draw_its_answers(self, bench):
        asked = [pair for pair in bench.tasks["up"].questions("train") for _ in range(20)]
        shown = set()
        for (x, _), prompt in zip(asked, bench.few_shot("up", asked), strict=True):
            *lines, last = prompt.split("\n")
            pairs = [tuple(line.split(" -> ")) for line in lines]
            assert last == f"{x} ->" and len({a for a, _ in pairs} - {x}) == 3
            shown |= set(pairs)
        assert shown == set(bench.tasks["up"].split("train"))

    def test_targets_of_the_train_split_draw_one(self, bench):
        asked = bench.queries("up", 300)
        assert {x for x, _ in asked} == set(SPLIT["train"]) and len(dict(asked)) == len(set(asked))
        assert set(asked) < set(bench.tasks["up"].split("train"))
        assert {y.split(" ")[0] == "or" for _, y in asked} == {True, False}

    def test_tasks_conflict_where_no_answer_is_right_in_both(self, bench):
        asked = bench.sample("up", "test")
        begun = {name: [bench.begun(x, bench.tasks[name].answers) for x, _ in asked] for name in TASKS}
        apart = [x for (x, _), a, b in zip(asked, *begun.values(), strict=True) if not a & b]
        assert 1 < len(apart) < 6, "answers that begin alike, as those of two words do, tell nothing"
        assert [x for _, (x, _) in task_vectors._partners(bench, "up", 1)["down"]] == apart
        bench.tasks = {
            **TASKS,
            "down": TextTask("down", (*TASKS["down"].pairs, (apart[0], TASKS["up"].answers[apart[0]][0]))),
        }
        assert [x for _, (x, _) in task_vectors._partners(bench, "up", 1)["down"]] == apart[1:]
        vectors = {name: np.zeros((3, 4), np.float32) for name in TASKS}
        (entry,) = task_vectors._conflicts(bench, "up", {"down": {"vector_layer": 1}}, vectors, 1)
        assert entry["pairs"] == len(apart) - 1 and entry["moved"] == "down" and entry["says_moved"] == 0


class TestExamples:
    def examples(self, tokenizer, split, of=questions_of):
        return make_examples(TASKS, of(TASKS, split, 5), Reader(tokenizer, TEMPLATE), tokenizer, (TEMPLATE,) * 2, 0)

    def test_what_is_asked_has_each_answer_and_counts_once(self, tokenizer):
        asked = self.examples(tokenizer, "test")
        count = asked.task_I.shape[0]
        said = Says(tokenizer, {x: answers[-1] for x, answers in TASKS["up"].answers.items()})
        first_template = jax.tree.map(lambda a: a[:, 0], asked.prompts)
        rows = said(None, None, (None,), first_template)
        context = types.SimpleNamespace(tasks=TASKS)
        found = RunContext.by_task(context, rows, asked)
        assert count > len(asked.first_of_question) == 10
        np.testing.assert_array_equal(found["up"], np.ones(5))
        np.testing.assert_array_equal(found["down"], np.zeros(5))

    def test_what_is_trained_on_has_every_pair(self, tokenizer):
        examples = self.examples(tokenizer, "train", lambda tasks, split, most: pairs_of(tasks, split, 1000))
        assert examples.task_I.shape[0] == sum(len(task.split("train")) for task in TASKS.values())

    def test_the_dev_split_counts_the_best_answer_of_each_question(self, tokenizer, monkeypatch):
        dev = self.examples(tokenizer, "dev")
        count, first = dev.task_I.shape[0], dev.first_of_question
        right = np.random.default_rng(0).integers(0, 2, (2, count, 2))  # first tokens, whole answers
        risk = np.random.default_rng(1).random((2, count))
        tables = jnp.asarray(right), jnp.asarray(risk, jnp.float32)
        marked = dev.replace(rank_I=jnp.arange(count), task_I=dev.task_I)
        monkeypatch.setattr(type(marked), "rows", lambda self, index: (None, index))
        found_of = lambda a, s, p, g, queries, index, *more: tuple(table[:, index] for table in tables)
        monkeypatch.setattr(adapting, "over_prompts", found_of)
        experiment = adapting.AdapterExperiment(None, None, None, marked, marked, 1, chunk=4)
        found = experiment.evaluate(None, {"dev": marked, "frozen": None}, None, {"scale": None})
        groups = np.split(np.arange(count), first[1:])
        tasks = np.asarray(dev.task_I)[first]
        best = np.array([[*right[:, g].max(1).mean(0), risk[:, g].min(1).mean()] for g in groups])
        expected = np.mean([best[tasks == number].mean(0) for number in range(2)], 0)
        found = [found[name] for name in ("accuracy_first", "accuracy", "risk")]
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_chance_is_a_task_and_then_one_of_its_answers(self):
        x = SPLIT["test"][0]
        tasks = {"a": TextTask("a", ((x, "1"), (x, "2"))), "b": TextTask("b", ((x, "2"), (x, "3"), (x, "4"), (x, "5")))}
        settings = types.SimpleNamespace(
            tasks=types.SimpleNamespace(ambiguous=("a", "b")), evaluation=types.SimpleNamespace(test=3)
        )
        assert atv._chance(types.SimpleNamespace(tasks=tasks), settings) == {"a": 0.625, "b": 0.75}


@pytest.mark.parametrize("path", ["", "a folder"])
def test_a_name_twice_is_refused(path, tmp_path):
    """Of two tasks of one name one would be gone without a word."""
    (tmp_path / "uppercase.json").write_text('[{"input": "a", "output": "A"}]')
    with pytest.raises(UserError, match=r"config\.data\.tasks: .*each name once"):
        DataConfig(path=path and str(tmp_path), tasks=("uppercase", "uppercase")).read()
