"""Token offset in context: y = (x + c) mod V."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.tasks.base import Parameters, TokenTask, require
from tvjax.tasks.oracles import sum_before

LEAST_NOISE = 1e-6
"""The least label noise that the oracle assumes: if sure, its loss is 1e-6 nats, or log(V / 1e-6) if wrong."""

_IMPOSSIBLE = -1e9


@dataclasses.dataclass(frozen=True)
class TokenOffset(TokenTask):
    """x uniform over tokens, y = (x + c) mod vocab_size, c one of a few offsets.

    offsets: c of the training tasks; held_out_offsets: c of the held-out tasks, none of them in training.
    held_out_pairs: for each c of `offsets`, how many x are never drawn with it (a fixed table, from pair_seed); they
    are drawn by `held_out_inputs` alone. A c that is not in training is shown with every x. noise: the probability that
    an answer is replaced by a uniform token.
    """

    vocab_size: int = 20
    offsets: tuple[int, ...] = (1, 5, 9, 13, 17)
    held_out_offsets: tuple[int, ...] = (3, 7, 11)
    held_out_pairs: int = 2
    pair_seed: int = 0
    noise: float = 0.0

    def __post_init__(self) -> None:
        require(self.vocab_size >= 2, "vocab_size", self.vocab_size, "2 or more")
        for name in ("offsets", "held_out_offsets"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            fits = len(set(values)) == len(values) and all(
                isinstance(c, int) and 0 <= c < self.vocab_size for c in values
            )
            require(fits, name, values, f"different whole numbers from 0 to vocab_size - 1 = {self.vocab_size - 1}")
        require(len(self.offsets) >= 1, "offsets", self.offsets, "at least one offset")
        apart = not set(self.offsets) & set(self.held_out_offsets)
        require(apart, "held_out_offsets", self.held_out_offsets, f"none of offsets = {self.offsets}")
        accepted = f"0 to vocab_size - 1 = {self.vocab_size - 1}"
        require(0 <= self.held_out_pairs < self.vocab_size, "held_out_pairs", self.held_out_pairs, accepted)
        require(0 <= self.pair_seed < 2**32, "pair_seed", self.pair_seed, "0 to 2^32 - 1")
        require(0 <= self.noise <= 1, "noise", self.noise, "a probability, 0 to 1")

    @property
    def has_held_out(self) -> bool:
        return bool(self.held_out_offsets)

    @property
    def has_held_out_pairs(self) -> bool:
        return self.held_out_pairs > 0

    @property
    def single_input(self) -> bool:
        return True

    def parameters(self, key: jax.Array, batch: int, *, held_out: bool = False) -> Parameters:
        """``{'c': [B]}``, uniform over the split's offsets; if none is held out, those of training in both splits."""
        return {"c": jax.random.choice(key, jnp.array(self._split(held_out)), (batch,))}

    def every_task(self) -> Parameters:
        """``{'c': [n]}``: the offsets of training."""
        return {"c": jnp.array(self.offsets)}

    def inputs(self, key: jax.Array, parameters: Parameters, pairs: int) -> jax.Array:
        """X ``[B, N]``, uniform over the tokens that may be shown with the task's c."""
        order_VV, shown_V = self._pairs()
        c_B = parameters["c"]
        index_BN = jax.random.randint(key, (*c_B.shape, pairs), 0, jnp.array(shown_V)[c_B][:, None])
        return jnp.array(order_VV)[c_B[:, None], index_BN]

    def held_out_inputs(self, key: jax.Array, parameters: Parameters, pairs: int) -> jax.Array:
        """X ``[B, N]``, uniform over the tokens never shown with c; for held_out_pairs >= 1 and c of `offsets`."""
        order_VV, _ = self._pairs()
        c_B = parameters["c"]
        first = self.vocab_size - self.held_out_pairs
        index_BN = jax.random.randint(key, (*c_B.shape, pairs), first, self.vocab_size)
        return jnp.array(order_VV)[c_B[:, None], index_BN]

    def answers(self, key: jax.Array, parameters: Parameters, x: jax.Array) -> jax.Array:
        return self.corrupt(key, (x + parameters["c"][:, None]) % self.vocab_size, self.noise)

    def shown(self) -> np.ndarray:
        """Which x may be shown with which c, ``[V (c), V (x)]`` of bool."""
        order_VV, shown_V = self._pairs()
        return np.argsort(order_VV) < shown_V[:, None]

    def oracle(
        self,
        x: jax.Array,
        y: jax.Array,
        queries: jax.Array,
        *,
        noise: float = 0.0,
        held_out: bool = False,
        held_out_queries: bool = False,
    ) -> jax.Array:
        """Log-probabilities of the answer to query i, ``[B, N, V]``: the exact posterior predictive for a uniform c.

        noise: label noise of the demonstrations beyond the family's own; the predicted answer has only the family's
        own.
        held_out_queries: whether the queries were drawn by `held_out_inputs`.

        The split's c and the table of held-out pairs are known, so an x (the query too) rules out each c that it is
        never shown with. Both noises are taken to be at least `LEAST_NOISE`, so every log-probability is finite.
        """
        own = max(self.noise, LEAST_NOISE)
        wrong = (1 - (1 - own) * (1 - noise)) / self.vocab_size
        seen_VV = self.shown()
        query_VV = ~seen_VV if held_out_queries else seen_VV
        prior_V = jnp.full(self.vocab_size, _IMPOSSIBLE).at[jnp.array(self._split(held_out))].set(0.0)

        # Entry c of the last axis: what a pair says about c. One c alone explains a pair: (y - x) mod V.
        fits_BNV = jax.nn.one_hot((y - x) % self.vocab_size, self.vocab_size, dtype=bool)
        right = 1 - wrong * (self.vocab_size - 1)
        evidence_BNV = jnp.where(fits_BNV, jnp.log(right), jnp.log(wrong)) + _log_support(seen_VV, x)
        posterior_BNV = jax.nn.softmax(
            prior_V[None, None] + sum_before(evidence_BNV, axis=1) + _log_support(query_VV, queries), axis=-1
        )
        offset_BNV = (jnp.arange(self.vocab_size)[None, None] - queries[..., None]) % self.vocab_size
        return jnp.log(own / self.vocab_size + (1 - own) * jnp.take_along_axis(posterior_BNV, offset_BNV, axis=-1))

    def _split(self, held_out: bool) -> tuple[int, ...]:
        return self.held_out_offsets if held_out and self.held_out_offsets else self.offsets

    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """For each c an order of the tokens ``[V, V]``, and how many of the first may be shown with it ``[V]``.

        From NumPy's frozen generator: constants of the program, the same with every version and on every machine.
        """
        random = np.random.RandomState(self.pair_seed)
        order_VV = np.stack([random.permutation(self.vocab_size) for _ in range(self.vocab_size)])
        shown_V = np.full(self.vocab_size, self.vocab_size)
        shown_V[list(self.offsets)] -= self.held_out_pairs
        return order_VV, shown_V


def _log_support(allowed_VV: np.ndarray, x_BN: jax.Array) -> jax.Array:
    """Whether each x may be shown with a c, ``[B, N, V (c)]``, as a log-likelihood up to a constant."""
    return jnp.where(jnp.array(allowed_VV.T)[x_BN], 0.0, _IMPOSSIBLE)
