"""Random deterministic automata, minimized, no two alike (Akyurek et al. 2024); drawn on the host, kept as arrays."""

import dataclasses
import functools

import numpy as np

NO_EDGE = -1


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """What automata are drawn from: the number of symbols, and the bounds on states, symbols and edges."""

    symbols: int = 18
    min_states: int = 4
    max_states: int = 12
    min_symbols: int = 4
    max_edges: int = 3


def draw_automaton(random: np.random.RandomState, a: Alphabet) -> tuple[np.ndarray, np.ndarray]:
    """An automaton before it is minimized, and its letters. It begins in state 0.

    The automaton is the state behind each edge or `NO_EDGE`, ``[states, symbols]``. Each state has 1..max_edges edges,
    uniform, to distinct other states. Edges are on letters, a subset of the symbols. An automaton need not use all
    letters.
    """
    states = random.randint(a.min_states, a.max_states + 1)
    letters = random.permutation(a.symbols)[: random.randint(a.min_symbols, a.symbols + 1)]
    next_QV = np.full((states, a.symbols), NO_EDGE)
    for state in range(states):
        edges = random.randint(1, a.max_edges + 1)
        others = random.permutation(states - 1)[:edges]
        next_QV[state, random.permutation(letters)[:edges]] = others + (others >= state)
    return next_QV, letters


def minimize(next_QV: np.ndarray) -> np.ndarray:
    """The least automaton of the same words: unreachable states are left out, and states that are alike become one.

    Every state accepts, so two states are alike if the same words can follow (Moore's refinement). States are numbered
    in the order of first reach, so equal languages give equal arrays.
    """
    class_Q = np.zeros(len(next_QV), int)
    while True:
        follows_QV = np.where(next_QV == NO_EDGE, NO_EDGE, class_Q[next_QV])
        _, finer_Q = np.unique(follows_QV, axis=0, return_inverse=True)
        if finer_Q.max() == class_Q.max():
            break
        class_Q = finer_Q.reshape(-1)
    order, number = [0], {class_Q[0]: 0}
    rows = []
    for state in order:
        row = np.full(next_QV.shape[1], NO_EDGE)
        for symbol in np.flatnonzero(next_QV[state] != NO_EDGE):
            after = next_QV[state, symbol]
            if class_Q[after] not in number:
                number[class_Q[after]] = len(order)
                order.append(after)
            row[symbol] = number[class_Q[after]]
        rows.append(row)
    return np.stack(rows)


def has_form(next_QV: np.ndarray, a: Alphabet) -> bool:
    """Whether a minimized automaton still has enough states, and edges to others, all distinct, from each."""
    loops = (next_QV == np.arange(len(next_QV))[:, None]).any()
    distinct = all(len(np.unique(row[row != NO_EDGE])) == (row != NO_EDGE).sum() for row in next_QV)
    return len(next_QV) >= a.min_states and not loops and distinct


@functools.cache
def distinct_automata(a: Alphabet, count: int, seed: int) -> np.ndarray:
    """`count` automata of different languages, ``[count, max_states, symbols]``, from NumPy's frozen generator.

    An automaton that loses the form when it is minimized is drawn again [ours].
    """
    random, known = np.random.RandomState(seed), set()
    automata: list[np.ndarray] = []
    while len(automata) < count:
        automaton = minimize(draw_automaton(random, a)[0])
        name = automaton.tobytes()
        if name not in known and has_form(automaton, a):
            known.add(name)
            automata.append(automaton)
    padded = np.full((count, a.max_states, a.symbols), NO_EDGE, np.int32)
    for number, automaton in enumerate(automata):
        padded[number, : len(automaton)] = automaton
    return padded
