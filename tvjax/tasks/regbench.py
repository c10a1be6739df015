"""RegBench: words of a random automaton that is the task, as in Akyurek et al. 2024.

The automata and the documents are as that paper describes them. Ours [ours]: one word is one pair, y is the last
symbol, x is padded on the left to one length by a blank, and z stands between the two. An automaton that loses the
described form when it is minimized is drawn again [ours].
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tvjax.tasks.automata import NO_EDGE, Alphabet, distinct_automata
from tvjax.tasks.base import Parameters, StringTask, require
from tvjax.tasks.oracles import EXACT, sum_before

SURE = 1e-6
"""The least probability that the oracle gives a symbol: its risk is finite if it is wrong."""


@dataclasses.dataclass(frozen=True)
class RegBench(StringTask):
    """The next symbol of a word, uniform over the edges that leave the state which the word has reached.

    automata and held_out_automata: how many are in each split, no two alike. word: the most symbols of a word in a
    prompt, 1..word, uniform; a document's have up to 49. symbols, min_states, max_states, min_symbols, max_edges: of
    the automata. An answer is ``[.., 1 + vocab_size]``: the symbol, then which tokens would have been legal.
    """

    automata: int = 1000
    held_out_automata: int = 200
    word: int = 8
    symbols: int = 18
    min_states: int = 4
    max_states: int = 12
    min_symbols: int = 4
    max_edges: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.automata >= 1, "automata", self.automata, "1 or more")
        require(self.held_out_automata >= 0, "held_out_automata", self.held_out_automata, "0 or more")
        require(self.word >= 1, "word", self.word, "1 or more")
        require(2 <= self.min_symbols <= self.symbols, "min_symbols", self.min_symbols, "2 up to symbols")
        require(2 <= self.min_states <= self.max_states, "min_states", self.min_states, "2 up to max_states")
        require(self.max_edges >= 1, "max_edges", self.max_edges, "1 or more")
        fits = self.max_edges < self.min_states and self.max_edges <= self.min_symbols
        require(fits, "max_edges", self.max_edges, "less than min_states, at most min_symbols")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2^32 - 1")

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """The symbols, the bar between words, and the blank."""
        return self.symbols + 2

    @property
    def bar(self) -> int:
        """The token before a word."""
        return self.symbols

    @property
    def empty(self) -> int:
        """The blank."""
        return self.symbols + 1

    @property
    def answer_width(self) -> int:  # type: ignore[override]
        return 1 + self.vocab_size

    @property
    def x_tokens(self) -> int:
        """The bar, and all symbols of the longest word but the last."""
        return self.word

    @property
    def has_held_out(self) -> bool:
        return self.held_out_automata > 0

    @property
    def baselines(self) -> tuple[str, ...]:
        return ("trigram",)

    @property
    def next_ZQV(self) -> np.ndarray:
        """The state behind each edge, `NO_EDGE` if there is none: Z automata (those of training first), Q states."""
        alphabet = Alphabet(self.symbols, self.min_states, self.max_states, self.min_symbols, self.max_edges)
        return distinct_automata(alphabet, self.automata + self.held_out_automata, self.seed)

    def parameters(self, key: jax.Array, batch: int, *, held_out: bool = False) -> Parameters:
        """``{'automaton': [B]}``, uniform over the split."""
        first, last = self._split(held_out)
        return {"automaton": jax.random.randint(key, (batch,), first, last)}

    def inputs(self, key: jax.Array, parameters: Parameters, pairs: int) -> jax.Array:
        """X ``[B, N, word]``: blanks, the bar, and all symbols of a word but its last."""
        length_key, walk_key = jax.random.split(key)
        automaton_BN = jnp.repeat(parameters["automaton"][:, None], pairs, 1)
        symbols = self.walk(walk_key, automaton_BN, self.word - 1)
        length_BN1 = jax.random.randint(length_key, (*automaton_BN.shape, 1), 1, self.word + 1)
        padded = jnp.concatenate([jnp.full_like(symbols, self.empty, shape=length_BN1.shape), symbols], axis=-1)
        index = jnp.arange(self.word)[None, None] - (self.word - length_BN1)
        moved = jnp.take_along_axis(padded, jnp.maximum(index, 0), axis=-1)
        return jnp.where(index > 0, moved, jnp.where(index == 0, self.bar, self.empty))

    def walk(self, key: jax.Array, automaton: jax.Array, steps: int) -> jax.Array:
        """Symbols ``[..., steps]`` of a word of each automaton ``[...]``, from its first state on."""
        next_ZQV = jnp.array(self.next_ZQV)

        def step(state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            edges = next_ZQV[automaton, state]
            symbol = jax.random.categorical(key, jnp.where(edges == NO_EDGE, -jnp.inf, 0.0))
            return jnp.take_along_axis(edges, symbol[..., None], axis=-1)[..., 0], symbol

        _, symbols = jax.lax.scan(step, jnp.zeros_like(automaton), jax.random.split(key, steps))
        return jnp.moveaxis(symbols, 0, -1).reshape(*automaton.shape, steps)

    def legal(self, automaton: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log-probability ``[...]`` of words x ``[..., word]`` so far, and the legal next symbols, bools ``[..., V]``.

        An impossible word has -inf. `automaton` broadcasts against ``[...]``.
        """
        next_ZQV = jnp.array(self.next_ZQV)
        shape = jnp.broadcast_shapes(automaton.shape, x.shape[:-1])
        automaton = jnp.broadcast_to(automaton, shape)

        def read(carry: tuple[jax.Array, jax.Array], token: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            state, log_likelihood = carry
            edges = next_ZQV[automaton, state]
            after = jnp.take_along_axis(edges, jnp.minimum(token, self.symbols - 1)[..., None], axis=-1)[..., 0]
            possible, is_symbol = after != NO_EDGE, token < self.symbols
            gain = jnp.where(possible, -jnp.log((edges != NO_EDGE).sum(-1)), -jnp.inf)
            moved = jnp.where(is_symbol & possible, after, state)
            return (moved, log_likelihood + jnp.where(is_symbol, gain, 0.0)), None

        start = (jnp.zeros(shape, automaton.dtype), jnp.zeros(shape))
        tokens = jnp.moveaxis(jnp.broadcast_to(x, (*shape, x.shape[-1])), -1, 0)
        (state, log_likelihood), _ = jax.lax.scan(read, start, tokens)
        return log_likelihood, next_ZQV[automaton, state] != NO_EDGE

    def answers(self, key: jax.Array, parameters: Parameters, x: jax.Array) -> jax.Array:
        """Y ``[B, N, 1 + vocab_size]``: a legal symbol, uniform, and which tokens are legal (0 or 1)."""
        _, legal_BNV = self.legal(parameters["automaton"][:, None], x)
        symbol = jax.random.categorical(key, jnp.where(legal_BNV, 0.0, -jnp.inf))
        wide = jnp.pad(legal_BNV, ((0, 0), (0, 0), (0, self.vocab_size - self.symbols)))
        return jnp.concatenate([symbol[..., None], wide], axis=-1).astype(jnp.int32)

    def documents(self, key: jax.Array, automaton_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Documents as the paper trains on: tokens ``[B, 949]``, blanks behind the last word, and words ``[B]``.

        A document has 10..19 words of 1..49 symbols each, all uniform, with a bar between words.
        """
        count_key, length_key, walk_key = jax.random.split(key, 3)
        batch = len(automaton_B)
        words_B = jax.random.randint(count_key, (batch,), 10, 20)
        length_BN = jax.random.randint(length_key, (batch, 19), 1, 50)
        symbols_BNW = self.walk(walk_key, jnp.repeat(automaton_B[:, None], 19, 1), 49)
        ends_BN = jnp.cumsum(length_BN + 1, axis=1)
        position_T = jnp.arange(19 * 50 - 1)
        word_BT = jax.vmap(lambda ends: jnp.searchsorted(ends, position_T, side="right"))(ends_BN)
        inside = jnp.minimum(word_BT, 18)
        begins_BN = ends_BN - length_BN - 1
        offset_BT = position_T[None] - jnp.take_along_axis(begins_BN, inside, axis=1)
        length_BT = jnp.take_along_axis(length_BN, inside, axis=1)
        token_BT = symbols_BNW[jnp.arange(batch)[:, None], inside, jnp.clip(offset_BT, 0, 48)]
        token_BT = jnp.where(offset_BT == length_BT, self.bar, token_BT)
        last = jnp.take_along_axis(ends_BN, words_B[:, None] - 1, axis=1) - 1
        return jnp.where(position_T[None] < last, token_BT, self.empty), words_B

    def oracle(
        self, x: jax.Array, y: jax.Array, queries: jax.Array, *, noise: float = 0.0, held_out: bool = False
    ) -> jax.Array:
        """Log-probabilities ``[B, N, vocab_size]``: exact Bayes over the automata of the split.

        With enough words it is the task's automaton itself. No token gets less than `SURE`.
        """
        which_Z = jnp.arange(*self._split(held_out))[:, None]

        def one(prompt: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            x_NW, y_NY, queries_NW = (a[None] for a in prompt)
            log_x_ZN, legal_ZNV = self.legal(which_Z, x_NW)
            right_ZN = jnp.take_along_axis(legal_ZNV, jnp.broadcast_to(y_NY[..., :1], (*log_x_ZN.shape, 1)), -1)[..., 0]
            log_y_ZN = jnp.where(right_ZN, -jnp.log(legal_ZNV.sum(-1)), -jnp.inf)
            log_query_ZN, next_ZNV = self.legal(which_Z, queries_NW)
            # -inf once is -inf for good: a large number instead keeps the difference of two sums finite.
            evidence_ZN = jnp.maximum(log_x_ZN + log_y_ZN, -1e4)
            posterior_ZN = jax.nn.softmax(sum_before(evidence_ZN, axis=1) + jnp.maximum(log_query_ZN, -1e4), axis=0)
            share_ZNV = next_ZNV / next_ZNV.sum(-1, keepdims=True)
            return jnp.einsum("zn,znv->nv", posterior_ZN, share_ZNV, precision=EXACT)

        chance_BNV = jax.lax.map(one, (x, y, queries))
        chance = jnp.pad(chance_BNV, ((0, 0), (0, 0), (0, self.vocab_size - self.symbols)))
        return jnp.log((chance + SURE) / (chance + SURE).sum(-1, keepdims=True))

    def scores(self, predictions: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        """``{'risk', 'accuracy', 'total_variation': [B, N]}``: accuracy is whether the likeliest token is legal.

        total_variation: between the prediction and the automaton's own distribution of the next symbol, 0 to 1.
        """
        risk = optax.softmax_cross_entropy_with_integer_labels(predictions, targets[..., 0])
        legal = targets[..., 1:].astype(jnp.float32)
        right = jnp.take_along_axis(legal, predictions.argmax(-1, keepdims=True), axis=-1)[..., 0]
        apart = jnp.abs(jax.nn.softmax(predictions) - legal / jnp.maximum(legal.sum(-1, keepdims=True), 1)).sum(-1)
        return {"risk": risk, "accuracy": right, "total_variation": apart / 2}

    def _split(self, held_out: bool) -> tuple[int, int]:
        if held_out and self.held_out_automata:
            return self.automata, self.automata + self.held_out_automata
        return 0, self.automata
