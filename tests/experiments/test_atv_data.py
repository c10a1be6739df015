"""The examples of an ATV run, and the order in which they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tvjax.nn.pretrained.tokenizer import Tokenizer, train_tokenizer
from tvjax.tasks.suite import suite
from tvjax.tasks.text import Template
from tvjax.text.examples import Reader, epoch_rows, make_examples, pairs_of

TEMPLATES = (Template("", " ->", "\n"), Template("Q: ", "\nA:", "\n\n"))


@pytest.fixture(scope="module")
def tasks():
    return {name: suite()[name] for name in ("uppercase", "first_of_two")}


@pytest.fixture(scope="module")
def tokenizer(tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    texts = [t.prompt([pair], "") for t in TEMPLATES for task in tasks.values() for pair in task.pairs]
    (folder / "tokenizer.json").write_text(train_tokenizer(texts, 600))
    return Tokenizer(folder)


def test_every_example_has_its_prompts_its_answer_and_its_reading(tasks, tokenizer):
    asked = pairs_of(tasks, "train", 7)
    examples = make_examples(tasks, asked, Reader(tokenizer, TEMPLATES[1]), tokenizer, TEMPLATES, 0)
    pairs = [(i, rank, x, y) for i, some in enumerate(asked.values()) for rank, (x, y) in enumerate(some)]
    assert examples.task_I.shape == (14,)
    index = jnp.array([3, 9])
    queries, q = examples.rows(index)
    for b, i in enumerate(index):
        task, rank, x, y = pairs[int(i)]
        assert (int(queries.task_B[b]), int(examples.rank_I[i])) == (task, rank)
        read = queries.inputs[b, : queries.last_B[b] + 1]
        assert tokenizer.decode(read) == f"Q: {x}\nA:"
        for p, template in enumerate(TEMPLATES):
            count = int(q.tokens.count_B[p, b])
            assert tokenizer.decode(q.tokens.ids_BT[p, b, :count]) == template.prompt([], x) + " " + y
            assert tokenizer.decode(q.tokens.ids_BT[p, b, : q.last_B[p, b] + 1]) == template.prompt([], x)


def test_demonstrations_are_of_the_train_split_and_never_the_query(tasks, tokenizer):
    asked = pairs_of(tasks, "train", 5)
    reader = Reader(tokenizer, TEMPLATES[0], demonstrations=3, draws=4)
    examples = make_examples(tasks, asked, reader, tokenizer, TEMPLATES, 0)
    assert examples.readings.ids_BT.shape[:2] == (10, 4)
    train = {x for task in tasks.values() for x, _ in task.split("train")}
    seen = set()
    for i, (x, _) in enumerate(pair for some in asked.values() for pair in some):
        for r in range(4):
            text = tokenizer.decode(examples.readings.ids_BT[i, r, : examples.readings.count_B[i, r]])
            *shown, last = text.split("\n")
            assert last == f"{x} ->" and len(shown) == 3
            inputs = [line.split(" ->")[0] for line in shown]
            assert x not in inputs and set(inputs) <= train and len(set(inputs)) == 3
            seen.add(text)
    assert len(seen) > 30  # the draws differ


def test_prompts_are_asked_again_behind_demonstrations(tasks, tokenizer):
    """The first are those without; the others differ from them in demonstrations alone, never of the query."""
    asked = pairs_of(tasks, "train", 5)
    plain, both = (
        make_examples(tasks, asked, Reader(tokenizer, TEMPLATES[0]), tokenizer, TEMPLATES, 0, demonstrations=count)
        for count in (0, 2)
    )
    assert both.prompts.last_B.shape == (10, 4)
    np.testing.assert_array_equal(both.prompts.last_B[:, :2], plain.prompts.last_B)
    rows = [(task, x, y) for task, some in asked.items() for x, y in some]
    for i, (task, x, y) in enumerate(rows):
        for p, template in enumerate(TEMPLATES):
            tokens = both.prompts.tokens
            text = tokenizer.decode(tokens.ids_BT[i, 2 + p, : tokens.count_B[i, 2 + p]])
            asks = template.prompt([], x) + " " + y
            assert text.endswith(asks) and text != asks
            shown = text.removesuffix(asks).split(template.after)[:-1]
            pairs = {template.before + a + template.between + " " + b: a for a, b in tasks[task].split("train")}
            assert len(set(shown)) == 2 and all(one in pairs and pairs[one] != x for one in shown)


class TestOrder:
    RANKS = jnp.array([0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3])  # three tasks of 5, 3 and 4 examples

    def rows(self, steps, batch=5, most=10, fewest=12, shuffled=True, seed=0):
        draw = jax.jit(
            lambda step: epoch_rows(
                jax.random.key(seed), step, batch, self.RANKS, jnp.asarray(most), fewest=fewest, shuffled=shuffled
            )
        )
        found = [draw(jnp.asarray(step)) for step in range(steps)]
        return np.concatenate([rows for rows, _ in found]), np.concatenate([epochs for _, epochs in found])

    @pytest.mark.parametrize("batch", [1, 5, 12, 31])
    def test_every_epoch_has_each_example_once(self, batch):
        rows, epochs = self.rows(-(-48 // batch), batch)
        for epoch in range(4):
            assert sorted(rows[epochs == epoch][:12]) == list(range(12))

    def test_epochs_and_seeds_differ(self):
        rows, _ = self.rows(12, 2)
        assert list(rows[:12]) != list(rows[12:])
        assert list(rows[:12]) != list(self.rows(6, 2, seed=1)[0])

    def test_task_by_task_is_the_order_of_the_examples(self):
        rows, _ = self.rows(4, 6, shuffled=False)
        assert list(rows) == [*range(12), *range(12)]

    def test_examples_beyond_the_most_of_a_task_are_left_out(self):
        rows, epochs = self.rows(9, 4, most=2, fewest=6)
        kept = [0, 1, 5, 6, 8, 9]
        for epoch in range(6):
            assert sorted(rows[epochs == epoch]) == kept
