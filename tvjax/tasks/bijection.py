"""A map and its inverse in one task: y = (M'b, M a) of x = (a, b), where one half of x is zero."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.tasks import oracles
from tvjax.tasks.base import Parameters, RealTask, require
from tvjax.tasks.gaussian import weighted


@dataclasses.dataclass(frozen=True)
class Bijection(RealTask):
    """M orthogonal k x k, uniform; x is (a, 0) or (0, b), either with probability 1/2, a and b ~ N(0, 2 I_k). [ours]

    input_width: d = 2 k; y has as many entries, and in the mean unit variance.
    noise: standard deviation added to every answer.

    This is y = W x with all d singular values of W equal, so that one direction of W has 1/d of the variance of y: a
    vector that carries m directions leaves at least 1 - m/d of the prior risk. Of a single vector one direction is
    predicted, as of a single demonstration (Dong et al. 2026, arXiv 2506.09048, on tasks that ask a map and its inverse
    of a language model).
    """

    input_width: int = 4
    noise: float = 0.0

    def __post_init__(self) -> None:
        fits = self.input_width >= 2 and self.input_width % 2 == 0
        require(fits, "input_width", self.input_width, "an even number, 2 or more")
        require(0 <= self.noise < math.inf, "noise", self.noise, "a finite standard deviation, 0 or more")

    @property
    def num_outputs(self) -> int:  # type: ignore[override]
        """The entries of y."""
        return self.input_width

    @property
    def centred(self) -> bool:
        return True

    @property
    def baselines(self) -> tuple[str, ...]:
        """Least squares does not know that one half of W is the inverse of the other."""
        return ("least_squares", "nearest_neighbours", "averaging")

    def parameters(self, key: jax.Array, batch: int, *, held_out: bool = False) -> Parameters:
        """``{'w': [B, X, X]}``: W, with M' above the diagonal and M below it."""
        half = self.input_width // 2
        q, r = jnp.linalg.qr(jax.random.normal(key, (batch, half, half)))
        m = q * jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))[:, None]  # without the signs M would not be uniform
        zero = jnp.zeros_like(m)
        return {"w": jnp.block([[zero, m.swapaxes(1, 2)], [m, zero]])}

    def inputs(self, key: jax.Array, parameters: Parameters, pairs: int) -> jax.Array:
        value_key, side_key = jax.random.split(key)
        batch, half = len(parameters["w"]), self.input_width // 2
        values = math.sqrt(2) * jax.random.normal(value_key, (batch, pairs, 1, half))
        first = jax.random.bernoulli(side_key, shape=(batch, pairs, 1, 1))
        return jnp.concatenate([values * first, values * ~first], axis=2).reshape(batch, pairs, -1)

    def answers(self, key: jax.Array, parameters: Parameters, x: jax.Array) -> jax.Array:
        return self.corrupt(key, weighted(parameters["w"], x), self.noise)

    def oracle(
        self, x: jax.Array, y: jax.Array, queries: jax.Array, *, noise: float = 0.0, held_out: bool = False
    ) -> jax.Array:
        """Posterior mean ``[B, N, Y]`` without noise: M is known where it was shown, by x or by y, and 0 elsewhere.

        Either half of a pair shows M one way. Its risk after i demonstrations is ``max(0, 1 - i/k)`` of the prior's.
        With label noise it is the same estimator, least squares, and no longer the posterior mean.
        """
        (a, b), (back, forth), asked = (jnp.split(values, 2, axis=-1) for values in (x, y, queries))
        source, target = _in_turn(a, back), _in_turn(forth, b)
        estimates = (
            oracles.least_squares(target, source, _in_turn(asked[1], asked[1])),
            oracles.least_squares(source, target, _in_turn(asked[0], asked[0])),
        )
        return jnp.concatenate([estimate[:, ::2] for estimate in estimates], axis=-1)


def _in_turn(first: Any, second: Any) -> jax.Array:
    """The pairs of both by turns: ``[B, 2N, k]``."""
    return jnp.stack([first, second], axis=2).reshape(len(first), -1, first.shape[-1])
