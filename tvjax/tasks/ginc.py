"""GINC: the next token of strings that one of several hidden Markov models has written (Xie et al. 2021).

The models, `Concepts`, are as the paper describes them. Ours [ours]: a string of k tokens is one pair, x begins with
the delimiter, y is the last token, and z stands between the two.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tvjax.tasks.base import Parameters, StringTask, require
from tvjax.tasks.oracles import EXACT, sum_before

DELIMITER = 0
"""The word of slot 0."""
TINY = 1e-30
State = tuple[jax.Array, jax.Array]


class Concepts(NamedTuple):
    """Hidden Markov models whose state is a value and a slot: Q values, J slots, Z models.

    words_QJ: the word that each state says.
    value_QQ: transitions of the values, shared by all models.
    slot_ZJJ: transitions of the slots.
    start_ZQJ: where a document begins.
    """

    words_QJ: np.ndarray
    value_QQ: np.ndarray
    slot_ZJJ: np.ndarray
    start_ZQJ: np.ndarray


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


@dataclasses.dataclass(frozen=True)
class GINC(StringTask):
    """Strings of `length` tokens, k in the paper, of which the last is y; all of a prompt are of one concept.

    Every string of a prompt begins in the same slot, never the delimiter's, uniform; its value there is drawn as at
    the start of a document. concepts and held_out_concepts: how many models there are in each split. seed: of the
    models. An answer is ``[.., 2]``: the token that the model wrote, and the one it was most likely to write, which is
    what accuracy asks for.
    """

    vocab_size: int = 50
    length: int = 5
    concepts: int = 5
    held_out_concepts: int = 5
    slots: int = 10
    values: int = 10
    seed: int = 0

    answer_width = 2

    def __post_init__(self) -> None:
        require(self.vocab_size >= 2, "vocab_size", self.vocab_size, "2 or more")
        require(self.length >= 2, "length", self.length, "2 or more: a token and its successor")
        require(self.concepts >= 1, "concepts", self.concepts, "1 or more")
        require(self.held_out_concepts >= 0, "held_out_concepts", self.held_out_concepts, "0 or more")
        require(self.slots >= 2, "slots", self.slots, "2 or more: the delimiter's is one")
        require(self.values >= 1, "values", self.values, "1 or more")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2^32 - 1")

    @property
    def x_tokens(self) -> int:
        return self.length

    @property
    def has_held_out(self) -> bool:
        return self.held_out_concepts > 0

    @property
    def models(self) -> Concepts:
        """The models, those of training first: the same with every version and on every machine."""
        return _models(self)

    def parameters(self, key: jax.Array, batch: int, *, held_out: bool = False) -> Parameters:
        """``{'concept': [B], 'slot': [B]}``: the model, and the slot in which every string begins."""
        concept_key, slot_key = jax.random.split(key)
        concepts = jnp.array(self._split(held_out))
        return {
            "concept": jax.random.choice(concept_key, concepts, (batch,)),
            "slot": jax.random.randint(slot_key, (batch,), 1, self.slots),
        }

    def inputs(self, key: jax.Array, parameters: Parameters, pairs: int) -> jax.Array:
        """X ``[B, N, k]``: the delimiter, then all tokens of a string but the last."""
        value_key, walk_key = jax.random.split(key)
        concept_BN, slot_BN = (jnp.repeat(parameters[name][:, None], pairs, 1) for name in ("concept", "slot"))
        start_ZJQ = jnp.log(jnp.array(self.models.start_ZQJ)).swapaxes(1, 2)
        value_BN = jax.random.categorical(value_key, start_ZJQ[concept_BN, slot_BN])
        states = self.walk(walk_key, concept_BN, value_BN, slot_BN, self.length - 1)
        words = jnp.array(self.models.words_QJ)[states]
        return jnp.concatenate([jnp.full_like(words[..., :1], DELIMITER), words], axis=-1)

    def walk(self, key: jax.Array, concept: jax.Array, value: jax.Array, slot: jax.Array, steps: int) -> State:
        """The values and the slots, each ``[..., steps]``, of models that begin in these, ``[...]``."""
        m = self.models
        log_value, log_slot = (jnp.log(jnp.array(a) + TINY) for a in (m.value_QQ, m.slot_ZJJ))

        def step(state: State, key: jax.Array) -> tuple[State, State]:
            value_key, slot_key = jax.random.split(key)
            value = jax.random.categorical(value_key, log_value[state[0]])
            slot = jax.random.categorical(slot_key, log_slot[concept, state[1]])
            return (value, slot), state

        _, (values, slots) = jax.lax.scan(step, (value, slot), jax.random.split(key, steps))
        return jnp.moveaxis(values, 0, -1), jnp.moveaxis(slots, 0, -1)

    def documents(self, key: jax.Array, concept_B: jax.Array, tokens: int) -> jax.Array:
        """Documents ``[B, tokens]`` as the paper trains on: one walk of a model each, 10,240 tokens there."""
        start_key, walk_key = jax.random.split(key)
        log_start = jnp.log(jnp.array(self.models.start_ZQJ)).reshape(len(self.models.start_ZQJ), -1)
        state_B = jax.random.categorical(start_key, log_start[concept_B])
        states = self.walk(walk_key, concept_B, state_B // self.slots, state_B % self.slots, tokens)
        return jnp.array(self.models.words_QJ)[states]

    def answers(self, key: jax.Array, parameters: Parameters, x: jax.Array) -> jax.Array:
        """Y ``[B, N, 2]``: a token drawn from the model's distribution after x, and the likeliest token."""
        concept, slot = (parameters[name][:, None] for name in ("concept", "slot"))
        _, next_BNV = self.read(concept, slot, x)
        drawn = jax.random.categorical(key, jnp.log(next_BNV + TINY))
        return jnp.stack([drawn, next_BNV.argmax(-1)], axis=-1).astype(jnp.int32)

    def read(self, concept: jax.Array, slot: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Log-probability ``[...]`` of the strings x ``[..., k]``, and the probability of each next word ``[..., V]``.

        By the forward algorithm, for the models `concept` that begin in `slot`; both broadcast against ``[...]``.
        """
        m = self.models
        value_QQ = jnp.array(m.value_QQ)
        says_VQJ = jnp.array(m.words_QJ == np.arange(self.vocab_size)[:, None, None])
        slot_JJ = jnp.array(m.slot_ZJJ)[concept]
        start = jnp.array(m.start_ZQJ)[concept] * jax.nn.one_hot(slot, self.slots)[..., None, :]
        start = start / start.sum((-2, -1), keepdims=True)

        def on(state: jax.Array) -> jax.Array:
            return jnp.einsum("...qj,qr,...jk->...rk", state, value_QQ, slot_JJ, precision=EXACT)

        def see(carry: tuple[jax.Array, jax.Array], word: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            state, log_likelihood = carry
            seen = state * says_VQJ[word]
            total = jnp.maximum(seen.sum((-2, -1)), TINY)
            return (on(seen / total[..., None, None]), log_likelihood + jnp.log(total)), None

        shape = jnp.broadcast_shapes(start.shape[:-2], x.shape[:-1])
        start = jnp.broadcast_to(start, (*shape, *start.shape[-2:]))
        words = jnp.moveaxis(jnp.broadcast_to(x[..., 1:], (*shape, x.shape[-1] - 1)), -1, 0)
        (state, log_likelihood), _ = jax.lax.scan(see, (start, jnp.zeros(shape)), words)
        return log_likelihood, jnp.einsum("...qj,vqj->...v", state, says_VQJ.astype(state.dtype), precision=EXACT)

    def oracle(
        self, x: jax.Array, y: jax.Array, queries: jax.Array, *, noise: float = 0.0, held_out: bool = False
    ) -> jax.Array:
        """Log-probabilities ``[B, N, V]`` of the exact Bayes mixture over the split's models and the slots.

        Labels with added noise are impossible to this oracle; no shift of this family has them.
        """
        concepts, slots = np.array(self._split(held_out)), np.arange(1, self.slots)
        which = jnp.array([(c, s) for c in concepts for s in slots])

        def under(one: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            """Log-probabilities of the demonstrations' strings, the queries' strings and the queries' next words."""
            log_x, next_x = self.read(one[0], one[1], x)
            log_y = jnp.log(jnp.take_along_axis(next_x, y[..., :1], axis=-1)[..., 0] + TINY)
            log_query, next_query = self.read(one[0], one[1], queries)
            return log_x + log_y, log_query, jnp.log(next_query + TINY)

        evidence_ZBN, query_ZBN, next_ZBNV = jax.lax.map(under, which)
        posterior_ZBN = jax.nn.log_softmax(sum_before(evidence_ZBN, axis=2) + query_ZBN, axis=0)
        return jax.nn.logsumexp(posterior_ZBN[..., None] + next_ZBNV, axis=0)

    def scores(self, predictions: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        """``{'risk': [B, N], 'accuracy': [B, N]}``: of the token written, and for the likeliest one."""
        risk = optax.softmax_cross_entropy_with_integer_labels(predictions, targets[..., 0])
        return {"risk": risk, "accuracy": (predictions.argmax(-1) == targets[..., 1]).astype(jnp.float32)}

    def _split(self, held_out: bool) -> list[int]:
        if held_out and self.held_out_concepts:
            return list(range(self.concepts, self.concepts + self.held_out_concepts))
        return list(range(self.concepts))


@functools.cache
def _models(task: GINC) -> Concepts:
    """From NumPy's frozen generator.

    Transitions are mixtures of 10 random permutations, weighted by a softmax of uniforms at temperature 0.1. A value
    stays as it is with probability 0.9 instead. A document starts by a softmax of uniforms at temperature 10.
    """
    random = np.random.RandomState(task.seed)

    def mixture(size: int) -> np.ndarray:
        permutations = np.stack([np.eye(size)[random.permutation(size)] for _ in range(10)])
        return np.tensordot(_softmax(random.uniform(size=10) / 0.1), permutations, 1)

    words_QJ = random.randint(1, task.vocab_size, (task.values, task.slots))
    words_QJ[:, 0] = DELIMITER
    value_QQ = 0.1 * mixture(task.values) + 0.9 * np.eye(task.values)
    count = task.concepts + task.held_out_concepts
    slot_ZJJ = np.stack([mixture(task.slots) for _ in range(count)])
    shape = (task.values, task.slots)
    start_ZQJ = np.stack([_softmax(random.uniform(size=shape) / 10) for _ in range(count)])
    return Concepts(words_QJ, value_QQ, slot_ZJJ, start_ZQJ)
