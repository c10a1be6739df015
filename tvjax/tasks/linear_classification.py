"""Linear classification in context: y = sign(w.x), as -1 or 1."""

import dataclasses

import jax
import jax.numpy as jnp

from tvjax.tasks.base import Parameters, require
from tvjax.tasks.gaussian import GaussianTask, weighted


@dataclasses.dataclass(frozen=True)
class LinearClassification(GaussianTask):
    """x ~ N(0, I_d), w ~ N(0, I_d), y = sign(w.x) in {-1, 1}, scored by squared error and by the sign's accuracy.

    noise: probability that a label is replaced by one of the two drawn uniformly [ours]. input_width: d. The task is
    one of the code released with Garg et al. (2022), where it is trained on cross-entropy; the squared error, so that
    it is asked for like every other regression, is ours. There is no oracle: the posterior mean is a ratio of volumes
    of cones, without a closed form above two dimensions.
    """

    @property
    def baselines(self) -> tuple[str, ...]:
        return ("nearest_neighbours", "averaging")

    @property
    def has_labels(self) -> bool:
        return True

    def parameters(self, key: jax.Array, batch: int, *, held_out: bool = False) -> Parameters:
        """``{'w': [B, X]}``."""
        return {"w": jax.random.normal(key, (batch, self.input_width))}

    def function(self, parameters: Parameters, x: jax.Array) -> jax.Array:
        return jnp.where(weighted(parameters["w"], x) < 0, -1.0, 1.0)

    def corrupt(self, key: jax.Array, y: jax.Array, noise: float) -> jax.Array:
        """Labels, each replaced with probability `noise` by a sign drawn uniformly (its own included)."""
        if not noise:
            return y
        chance_key, sign_key = jax.random.split(key)
        signs = jax.random.rademacher(sign_key, y.shape, y.dtype)
        return jnp.where(jax.random.bernoulli(chance_key, noise, y.shape), signs, y)

    def scores(self, predictions: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        """Squared error, and whether the sign is right; a prediction of exactly 0 counts half."""
        right = jnp.where(predictions == 0, 0.5, predictions * targets > 0)
        return super().scores(predictions, targets) | {"accuracy": right.mean(-1)}

    def _check_noise(self) -> None:
        require(0 <= self.noise <= 1, "noise", self.noise, "a probability, 0 to 1")
