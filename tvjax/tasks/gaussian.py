"""What families of functions of Gaussian inputs share, among them all those of Garg et al. (2022).

Garg et al. draw w and x from unit normals. Here w is scaled so that an answer has unit variance [ours: theirs has d,
except trees], so a risk of 1 is chance in every family.
"""

import abc
import dataclasses
import math

import jax

from tvjax.tasks.base import Parameters, RealTask, require

LASSO = ("lasso_0.1", "lasso_0.01", "lasso_0.001")
"""The baselines of sparse weights: one for each strength of the penalty."""


@dataclasses.dataclass(frozen=True)
class GaussianTask(RealTask):
    """x ~ N(0, I_d), y = f(x) + noise, with f drawn from a family of functions whose mean is 0 at every x.

    input_width: d.
    noise: standard deviation added to every answer.

    A family adds fields of its own and writes `parameters` and `function`.
    """

    input_width: int = 4
    noise: float = 0.0

    def __post_init__(self) -> None:
        require(self.input_width >= 1, "input_width", self.input_width, "1 or more")
        self._check_noise()

    @abc.abstractmethod
    def function(self, parameters: Parameters, x: jax.Array) -> jax.Array:
        """f(x) ``[B, N, Y]`` of each task, without noise, at x ``[B, N, X]``."""

    @property
    def centred(self) -> bool:
        return True

    def inputs(self, key: jax.Array, parameters: Parameters, pairs: int) -> jax.Array:
        return jax.random.normal(key, (len(next(iter(parameters.values()))), pairs, self.input_width))

    def answers(self, key: jax.Array, parameters: Parameters, x: jax.Array) -> jax.Array:
        return self.corrupt(key, self.function(parameters, x), self.noise)

    def _check_noise(self) -> None:
        require(0 <= self.noise < math.inf, "noise", self.noise, "a finite standard deviation, 0 or more")


def weighted(w: jax.Array, x_BNX: jax.Array) -> jax.Array:
    """w.x ``[B, N, 1]`` of w ``[B, X]``, or W x ``[B, N, Y]`` of W ``[B, Y, X]``."""
    w_BYX = w if w.ndim == 3 else w[:, None]
    # A sum, not a matrix product: accelerators round those, and a noiseless oracle would see it.
    return (x_BNX[:, :, None] * w_BYX[:, None]).sum(-1)
