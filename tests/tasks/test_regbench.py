"""RegBench: automata of the stated form, words that they accept, and an oracle that is Bayes over all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks.test_ginc import fits
from tvjax.errors import UserError
from tvjax.tasks import LAYOUTS, RegBench
from tvjax.tasks.automata import NO_EDGE, Alphabet, distinct_automata, draw_automaton, minimize

TASK = RegBench(automata=30, held_out_automata=10, word=5)


def words_of(next_QV, length):
    """All words of at most `length` symbols."""
    found, here = {()}, {(): 0}
    for _ in range(length):
        here = {
            (*word, int(symbol)): next_QV[state, symbol]
            for word, state in here.items()
            for symbol in np.flatnonzero(next_QV[state] != NO_EDGE)
        }
        found |= set(here)
    return found


def automaton(edges, symbols=3):
    next_QV = np.full((len(edges), symbols), NO_EDGE)
    for state, row in enumerate(edges):
        for symbol, after in row.items():
            next_QV[state, symbol] = after
    return next_QV


class TestAutomata:
    def test_drawn_ones_have_the_stated_distribution(self):
        random, a = np.random.RandomState(0), Alphabet()
        drawn = [draw_automaton(random, a) for _ in range(3000)]
        states = np.bincount([len(next_QV) for next_QV, _ in drawn], minlength=13)
        letters = np.bincount([len(letters) for _, letters in drawn], minlength=19)
        edges = np.bincount(np.concatenate([(next_QV != NO_EDGE).sum(1) for next_QV, _ in drawn]), minlength=4)
        for counts, low in ((states, 4), (letters, 4), (edges, 1)):
            assert counts[:low].sum() == 0
            assert fits(counts[low:], np.full(len(counts) - low, 1 / (len(counts) - low)))
        for next_QV, letters in drawn:
            for state, row in enumerate(next_QV):
                after = row[row != NO_EDGE]
                assert len(set(after)) == len(after) and state not in after
                assert set(np.flatnonzero(row != NO_EDGE)) <= set(letters)

    def test_states_alike_become_one(self):
        twins = automaton([{0: 1, 1: 2}, {2: 3}, {2: 3}, {0: 0}])
        np.testing.assert_array_equal(minimize(twins), automaton([{0: 1, 1: 1}, {2: 2}, {0: 0}]))
        unreached = automaton([{0: 1}, {1: 0}, {2: 0}])
        np.testing.assert_array_equal(minimize(unreached), automaton([{0: 1}, {1: 0}]))

    @pytest.mark.parametrize("seed", range(5))
    def test_the_least_automaton_has_the_same_words_and_one_name(self, seed):
        random = np.random.RandomState(seed)
        drawn, _ = draw_automaton(random, Alphabet(symbols=5, max_states=6))
        least = minimize(drawn)
        assert words_of(least, 5) == words_of(drawn, 5)
        copied = np.concatenate([drawn, drawn])  # a twin of each state, to which some edges go
        move = (copied != NO_EDGE) & (random.uniform(size=copied.shape) < 0.5)
        copied = np.where(move, copied + len(drawn), copied)
        order = np.concatenate([[0], 1 + random.permutation(len(copied) - 1)])
        place = np.argsort(order)
        shuffled = np.where(copied == NO_EDGE, NO_EDGE, place[copied])[order]
        np.testing.assert_array_equal(minimize(shuffled), least)

    def test_no_two_are_alike_and_all_keep_their_form(self):
        found = distinct_automata(Alphabet(), 300, 0)
        assert len({one.tobytes() for one in found}) == 300
        for one in found:
            states = int((one != NO_EDGE).any(1).sum())
            assert 4 <= states <= 12
            assert (one[states:] == NO_EDGE).all() and one[:states].max() < states
            assert not (one[:states] == np.arange(states)[:, None]).any()
            for row in one[:states]:
                after = row[row != NO_EDGE]
                assert 1 <= len(after) <= 3 and len(set(after)) == len(after)
            assert (minimize(one[:states]) == one[:states]).all()


def test_words_are_accepted_by_their_automaton_and_answers_legal():
    prompt = TASK.sample(jax.random.key(0), 40, 9, LAYOUTS["xzy"].wide(5))
    x, y, which = (np.asarray(a) for a in (prompt.x, prompt.targets, prompt.parameters["automaton"]))
    lengths = []
    for b in range(40):
        next_QV = TASK.next_ZQV[which[b]]
        for i in range(10):
            tokens = [int(t) for t in x[b, i] if t != TASK.empty]
            assert tokens[0] == TASK.bar and all(t == TASK.empty for t in x[b, i, : 5 - len(tokens)])
            state = 0
            for symbol in tokens[1:]:
                state = next_QV[state, symbol]
                assert state != NO_EDGE
            legal = next_QV[state] != NO_EDGE
            np.testing.assert_array_equal(y[b, i, 1:], [*legal, False, False])
            assert legal[y[b, i, 0]]
            lengths.append(len(tokens))
    assert fits(np.bincount(lengths, minlength=6)[1:], np.full(5, 1 / 5))


def test_answers_are_uniform_over_the_legal_symbols():
    x = jnp.full((1, 6000, 5), TASK.empty).at[..., -1].set(TASK.bar)
    for which in range(3):
        y = np.asarray(TASK.answers(jax.random.key(which), {"automaton": jnp.array([which])}, x))[0]
        legal = TASK.next_ZQV[which, 0] != NO_EDGE
        assert fits(np.bincount(y[:, 0], minlength=18)[legal], np.full(legal.sum(), 1 / legal.sum()))


def test_documents_have_the_stated_words():
    task = RegBench(automata=30, held_out_automata=10)
    which = jnp.arange(400) % 30
    tokens, count = jax.jit(task.documents)(jax.random.key(0), which)
    assert tokens.shape == (400, 949)
    lengths = []
    for row, words, m in zip(np.asarray(tokens), np.asarray(count), np.asarray(which), strict=True):
        used = row[row != task.empty]
        assert (row[len(used) :] == task.empty).all()
        parts = np.split(used, np.flatnonzero(used == task.bar))
        parts = [part[part != task.bar] for part in parts]
        assert len(parts) == words
        for part in parts:
            state = 0
            for symbol in part:
                state = task.next_ZQV[m, state, symbol]
                assert state != NO_EDGE
        lengths += map(len, parts)
    assert fits(np.bincount(np.asarray(count), minlength=20)[10:], np.full(10, 0.1))
    assert fits(np.bincount(lengths, minlength=50)[1:], np.full(49, 1 / 49))


@pytest.mark.parametrize("held_out", [False, True])
def test_the_oracle_is_bayes_over_the_automata_of_its_split(held_out):
    prompt = TASK.sample(jax.random.key(1), 5, 6, LAYOUTS["xzy"].wide(5), held_out=held_out)
    x, y = np.asarray(prompt.x), np.asarray(prompt.targets)
    said = np.exp(TASK.oracle(prompt.x, prompt.targets, prompt.x, held_out=held_out))
    pool = TASK.next_ZQV[30:] if held_out else TASK.next_ZQV[:30]

    def read(next_QV, tokens):
        chance, state = 1.0, 0
        for symbol in (t for t in tokens if t < 18):
            edges = next_QV[state] != NO_EDGE
            if not edges[symbol]:
                return 0.0, np.zeros(20)
            chance, state = chance / edges.sum(), next_QV[state, symbol]
        legal = np.append(next_QV[state] != NO_EDGE, [False, False])
        return chance, legal / legal.sum()

    for b in range(5):
        weights = np.ones(len(pool))
        for i in range(7):
            each = [read(next_QV, x[b, i]) for next_QV in pool]
            here = weights * [chance for chance, _ in each]
            expected = sum(w * share for w, (_, share) in zip(here / here.sum(), each, strict=True))
            np.testing.assert_allclose(said[b, i], expected, atol=1e-4)
            weights = here * [share[y[b, i, 0]] for _, share in each]
            weights = weights / weights.sum()


def test_total_variation_of_the_automaton_to_itself_is_nothing():
    prompt = TASK.sample(jax.random.key(0), 20, 9, LAYOUTS["xzy"].wide(5))
    legal = prompt.targets[..., 1:]
    itself = TASK.scores(jnp.log(legal / legal.sum(-1, keepdims=True) + 1e-12), prompt.targets)
    np.testing.assert_allclose(itself["total_variation"], 0, atol=1e-6)
    assert (itself["accuracy"] == 1).all()
    np.testing.assert_allclose(itself["risk"], np.log(legal.sum(-1)), rtol=1e-5)
    oracle = TASK.scores(TASK.oracle(prompt.x, prompt.targets, prompt.x), prompt.targets)
    assert oracle["total_variation"][:, -1].max() < 1e-3
    nothing = TASK.scores(jnp.zeros((20, 10, 20)), prompt.targets)
    np.testing.assert_allclose(nothing["total_variation"], 1 - legal.sum(-1) / 20, rtol=1e-5)


def test_no_test_automaton_is_one_of_training():
    train, test = ({one.tobytes() for one in part} for part in (TASK.next_ZQV[:30], TASK.next_ZQV[30:]))
    assert len(train) == 30 and len(test) == 10 and not train & test
    for held_out, known in ((False, range(30)), (True, range(30, 40))):
        drawn = TASK.parameters(jax.random.key(0), 300, held_out=held_out)["automaton"]
        assert set(drawn.tolist()) == set(known)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"automata": 0}, "config.task.automata: given 0"),
        ({"word": 0}, "config.task.word: given 0"),
        ({"min_symbols": 19}, "config.task.min_symbols: given 19"),
        ({"min_states": 13}, "config.task.min_states: given 13"),
        ({"max_edges": 4}, "config.task.max_edges: given 4"),
    ],
)
def test_impossible_settings_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        RegBench(**fields)
