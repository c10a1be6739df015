"""GINC: its models are walked as they say, and its oracle is the sum over all that can have happened."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tvjax.errors import UserError
from tvjax.tasks import GINC, LAYOUTS
from tvjax.tasks.ginc import DELIMITER
from tvjax.tasks.prompt import X, Y, Z

SMALL = GINC(vocab_size=4, length=3, concepts=2, held_out_concepts=1, slots=3, values=2)
CONVINCING = 1e-3


def fits(counts, shares):
    """Whether `counts` are of a multinomial with these shares, by chi-square; what is rare is one class."""
    expected = counts.sum() * shares
    common = expected >= 5
    rare = ~common
    if rare.any():
        counts, expected = np.append(counts[common], counts[rare].sum()), np.append(expected[common], 0)
        expected[-1] = counts.sum() - expected.sum()
        if expected[-1] < 1:
            assert counts[-1] <= 10
            counts, expected = counts[:-1], expected[:-1] * counts[:-1].sum() / expected[:-1].sum()
    return len(counts) < 2 or stats.chisquare(counts, expected).pvalue > CONVINCING


def strings(task):
    """Each possible x and y of `task` with its probability under each model and slot, by all paths: numpy, float64."""
    m, found = task.models, {}
    states = list(itertools.product(range(task.values), range(task.slots)))
    for c, first in itertools.product(range(len(m.slot_ZJJ)), range(1, task.slots)):
        start_V = m.start_ZQJ[c, :, first] / m.start_ZQJ[c, :, first].sum()
        for path in itertools.product(states, repeat=task.length):
            if path[0][1] != first:
                continue
            chance = start_V[path[0][0]]
            for (v, s), (v_next, s_next) in itertools.pairwise(path):
                chance *= m.value_QQ[v, v_next] * m.slot_ZJJ[c, s, s_next]
            words = tuple(int(m.words_QJ[state]) for state in path)
            table = found.setdefault((c, first), {})
            table[words] = table.get(words, 0.0) + chance
    return found


def test_the_models_are_as_described():
    m = GINC().models
    assert m.slot_ZJJ.shape == (10, 10, 10)
    for matrix in (m.value_QQ, *m.slot_ZJJ):
        np.testing.assert_allclose(matrix.sum(0), 1)
        np.testing.assert_allclose(matrix.sum(1), 1)
    assert (np.diag(m.value_QQ) >= 0.9).all()
    assert (m.words_QJ[:, 0] == DELIMITER).all()
    assert m.words_QJ[:, 1:].min() >= 1 and m.words_QJ.max() <= 49
    np.testing.assert_allclose(m.start_ZQJ.sum((1, 2)), 1)
    spread_Z = m.start_ZQJ.max((1, 2)) / m.start_ZQJ.min((1, 2))
    assert (spread_Z > 1).all() and (spread_Z < np.exp(0.1)).all()
    assert len({matrix.tobytes() for matrix in m.slot_ZJJ}) == 10


def test_walks_have_the_transitions_of_the_models():
    task = GINC()
    concept_B = jnp.repeat(jnp.arange(2), 100)
    start = jax.random.randint(jax.random.key(1), (2, 200), 0, 10)
    value_BT, slot_BT = map(np.asarray, task.walk(jax.random.key(0), concept_B, *start, 201))
    for c in range(2):
        rows = np.asarray(concept_B) == c
        for states_BT, matrix in ((slot_BT[rows], task.models.slot_ZJJ[c]), (value_BT[rows], task.models.value_QQ)):
            counts = np.zeros((10, 10))
            np.add.at(counts, (states_BT[:, :-1].ravel(), states_BT[:, 1:].ravel()), 1)
            assert counts.sum() == 20_000
            for i in range(10):
                assert fits(counts[i], matrix[i]), (c, i)


def test_strings_are_as_likely_as_the_sum_over_their_paths():
    """x is drawn by walking, y by filtering: together they are one walk."""
    table = strings(SMALL)
    parameters = {"concept": jnp.array([1]), "slot": jnp.array([2])}
    x = SMALL.inputs(jax.random.key(0), parameters, 20_000)
    y = SMALL.answers(jax.random.key(1), parameters, x)
    assert (x[..., 0] == DELIMITER).all()
    drawn = np.concatenate([x[0, :, 1:], y[0, :, :1]], axis=1)
    known = table[1, 2]
    counts = np.array([(drawn == words).all(1).sum() for words in known])
    assert counts.sum() == 20_000
    assert fits(counts, np.array(list(known.values())))


def test_the_oracle_is_the_sum_over_all_hidden_paths():
    table = strings(SMALL)
    prompt = SMALL.sample(jax.random.key(3), 6, 4, LAYOUTS["xzy"].wide(3))
    x, y = np.asarray(prompt.x), np.asarray(prompt.targets)
    with jax.enable_x64(True):
        said = np.asarray(SMALL.oracle(jnp.array(x), jnp.array(y), jnp.array(x)))
    assert said.dtype == np.float64
    weights = {kind: 1.0 for kind in table if kind[0] < SMALL.concepts}
    for b in range(len(x)):
        weights = dict.fromkeys(weights, 1.0)
        for i in range(x.shape[1]):
            seen = tuple(int(word) for word in x[b, i, 1:])
            joint = [sum(w * table[kind].get((*seen, word), 0.0) for kind, w in weights.items()) for word in range(4)]
            np.testing.assert_allclose(np.exp(said[b, i]), np.array(joint) / sum(joint), atol=1e-10)
            weights = {kind: w * table[kind].get((*seen, int(y[b, i, 0])), 0.0) for kind, w in weights.items()}


def test_the_likeliest_word_is_what_accuracy_asks_for():
    table = strings(SMALL)
    parameters = {"concept": jnp.array([0]), "slot": jnp.array([1])}
    x = SMALL.inputs(jax.random.key(0), parameters, 50)
    y = SMALL.answers(jax.random.key(1), parameters, x)[0]
    for words, best in zip(np.asarray(x[0, :, 1:]), np.asarray(y[:, 1]), strict=True):
        chances = [table[0, 1].get((*map(int, words), word), 0.0) for word in range(4)]
        np.testing.assert_allclose(chances[best], max(chances), rtol=1e-6)
    out = 9 * jax.nn.one_hot(y[None, :, 1], 4)
    assert (SMALL.scores(out, y[None])["accuracy"] == 1).all()
    risk = SMALL.scores(jnp.zeros_like(out), y[None])["risk"]
    np.testing.assert_allclose(risk, np.log(4), rtol=1e-6)


def test_a_prompt_is_its_strings_one_behind_the_other():
    task, layout = GINC(length=4), LAYOUTS["xzy"].wide(4)
    prompt = task.sample(jax.random.key(0), 2, 2, layout)
    assert layout.length(3) == 6 * 2 + 5 == prompt.inputs.shape[1]
    kinds = (prompt.layout.parts * 3)[: prompt.inputs.shape[1]]
    np.testing.assert_array_equal(kinds, [X, X, X, X, Z, Y, X, X, X, X, Z, Y, X, X, X, X, Z])
    assert layout.queries(3) == slice(4, 17, 6)
    rows = [[*prompt.x[b, i], 50, prompt.targets[b, i, 0]] for b in range(2) for i in range(3)]
    np.testing.assert_array_equal(prompt.inputs, np.array(rows).reshape(2, -1)[:, :-1])
    np.testing.assert_array_equal(task.zero_shot(layout, prompt.x[:, 0]), prompt.inputs[:, :5])
    assert LAYOUTS["xy"].wide(4).offset == 3
    assert LAYOUTS["xzy"].wide(1) == LAYOUTS["xzy"]


def test_documents_are_walks_and_held_out_concepts_are_others():
    task = GINC()
    tokens = task.documents(jax.random.key(0), jnp.array([0, 0, 9]), 2000)
    assert tokens.shape == (3, 2000)
    assert 0.02 < (tokens == DELIMITER).mean() < 0.3
    drawn = {
        split: set(task.parameters(jax.random.key(0), 200, held_out=split)["concept"].tolist()) for split in (0, 1)
    }
    assert drawn == {0: {0, 1, 2, 3, 4}, 1: {5, 6, 7, 8, 9}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocab_size": 1}, "config.task.vocab_size: given 1"),
        ({"length": 1}, "config.task.length: given 1"),
        ({"concepts": 0}, "config.task.concepts: given 0"),
        ({"slots": 1}, "config.task.slots: given 1"),
        ({"seed": -1}, "config.task.seed: given -1"),
    ],
)
def test_impossible_settings_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        GINC(**fields)
