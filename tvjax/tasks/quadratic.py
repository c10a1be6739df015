"""Quadratic regression in context: y = sum_j w_j x_j^2 + noise."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from tvjax.tasks import oracles
from tvjax.tasks.base import Parameters
from tvjax.tasks.gaussian import GaussianTask, weighted


@dataclasses.dataclass(frozen=True)
class Quadratic(GaussianTask):
    """x ~ N(0, I_d), w ~ N(0, I_d) / sqrt(3 d), y = sum_j w_j x_j^2 + noise: no products of different inputs.

    The form is that of the code released with Garg et al. (2022), which divides by sqrt(3) alone; the sqrt(d), for
    unit variance, is ours. For the fields see `GaussianTask`.
    """

    @property
    def baselines(self) -> tuple[str, ...]:
        """Least squares in x itself, not in x^2 (that is the oracle): what a linear model makes of it. [ours]"""
        return ("least_squares", "nearest_neighbours", "averaging")

    def parameters(self, key: jax.Array, batch: int, *, held_out: bool = False) -> Parameters:
        """``{'w': [B, X]}``."""
        return {"w": jax.random.normal(key, (batch, self.input_width)) / (3 * self.input_width) ** 0.5}

    def function(self, parameters: Parameters, x: jax.Array) -> jax.Array:
        return weighted(parameters["w"], jnp.square(x))

    def oracle(
        self, x: jax.Array, y: jax.Array, queries: jax.Array, *, noise: float = 0.0, held_out: bool = False
    ) -> jax.Array:
        """Posterior mean ``[B, N, 1]``: y is linear in x^2, so it is the oracle of linear regression there.

        Ridge with ``lam = 3 d noise^2``, or minimum-norm least squares without noise.
        """
        total = math.hypot(self.noise, noise)
        if total:
            return oracles.ridge(jnp.square(x), y, jnp.square(queries), 3 * self.input_width * total**2)
        return oracles.least_squares(jnp.square(x), y, jnp.square(queries))
