"""Linear regression in context: y = w.x + noise, or y = W x + noise with several outputs."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from tvjax.tasks import oracles
from tvjax.tasks.base import Parameters, require
from tvjax.tasks.gaussian import LASSO, GaussianTask, weighted

_POOL_PRNG = "threefry2x32"
"""A pool is the same whichever generator the run draws with."""


@dataclasses.dataclass(frozen=True)
class Linear(GaussianTask):
    """x ~ N(0, I_d), w ~ N(0, I_d) / sqrt(d), y = w.x + noise (Garg et al. 2022, w scaled to unit output variance).

    input_width: d. noise: standard deviation added to every answer. nonzero: how many weights are not 0, drawn
    uniformly and rescaled so that outputs keep unit variance; 0 is dense. pool: how many training tasks there are,
    drawn once from that prior with `pool_seed` (Raventos et al. 2023); 0 draws a new one for every prompt. outputs: Y;
    with more than one y = W x + noise, each row of W drawn like w, and a risk is the mean over outputs [ours].

    Held-out tasks are fresh draws from the continuous prior. With an infinite pool that is the training distribution
    too: every task is unseen anyway, and there is nothing to hold out.
    """

    nonzero: int = 0
    pool: int = 0
    pool_seed: int = 0
    outputs: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        accepted = f"0 (dense) to input_width = {self.input_width}"
        require(0 <= self.nonzero <= self.input_width, "nonzero", self.nonzero, accepted)
        require(self.pool >= 0, "pool", self.pool, "0 (infinite) or the number of training tasks")
        require(0 <= self.pool_seed < 2**32, "pool_seed", self.pool_seed, "0 to 2^32 - 1")
        accepted = "1, where the tasks come from a finite pool" if self.pool else "1 or more"
        require(self.outputs == 1 or (self.outputs > 1 and not self.pool), "outputs", self.outputs, accepted)

    @property
    def num_outputs(self) -> int:  # type: ignore[override]
        """The entries of y."""
        return self.outputs

    @property
    def has_held_out(self) -> bool:
        return self.pool > 0

    @property
    def baselines(self) -> tuple[str, ...]:
        """Those of Garg et al.; least squares only if the oracle is another estimator."""
        other_oracle = ("least_squares",) if self.noise or self.pool else ()
        return (*other_oracle, "nearest_neighbours", "averaging", *(LASSO if self.nonzero else ()))

    def pool_weights(self) -> jax.Array:
        """The finite pool's tasks, ``[pool, X]``: the same on every call. A larger pool begins with the same tasks."""
        return self._pool_weights(jnp.arange(self.pool))

    def parameters(self, key: jax.Array, batch: int, *, held_out: bool = False) -> Parameters:
        """``{'w': [B, X]}``, or ``[B, Y, X]`` with several outputs."""
        if self.outputs > 1:
            return {"w": jax.vmap(jax.vmap(self._weights))(jax.random.split(key, (batch, self.outputs)))}
        if not self.pool or held_out:
            return {"w": jax.vmap(self._weights)(jax.random.split(key, batch))}
        return {"w": self._pool_weights(jax.random.randint(key, (batch,), 0, self.pool))}

    def function(self, parameters: Parameters, x: jax.Array) -> jax.Array:
        return weighted(parameters["w"], x)

    def oracle(
        self, x: jax.Array, y: jax.Array, queries: jax.Array, *, noise: float = 0.0, held_out: bool = False
    ) -> jax.Array:
        """Posterior mean ``[B, N, Y]``: over the pool (discrete MMSE) if the tasks come from one, else over the prior.

        Over the continuous prior it is ridge with ``lam = noise^2 d``, or minimum-norm least squares without noise. If
        ``nonzero`` is set, both ignore the sparsity: they are the best linear estimators, not the Bayes predictor, and
        a model may beat them.
        """
        total = math.hypot(self.noise, noise)
        if self.pool and not held_out:
            return oracles.discrete_mmse(x, y, queries, self.pool_weights(), total)
        if total:
            return oracles.ridge(x, y, queries, total**2 * self.input_width)
        return oracles.least_squares(x, y, queries)

    def _weights(self, key: jax.Array) -> jax.Array:
        """One draw of w ``[X]`` from the prior."""
        weights_key, order_key = jax.random.split(key)
        w_X = jax.random.normal(weights_key, (self.input_width,))
        if not self.nonzero:
            return w_X / self.input_width**0.5
        order_X = jax.random.permutation(order_key, self.input_width)
        return jnp.where(order_X < self.nonzero, w_X, 0) / self.nonzero**0.5

    def _pool_weights(self, numbers: jax.Array) -> jax.Array:
        """W of these tasks of the pool. Each task has a key of its own, so a batch costs the same from any pool."""
        key = jax.random.key(self.pool_seed, impl=_POOL_PRNG)
        return jax.vmap(lambda number: self._weights(jax.random.fold_in(key, number)))(numbers)
