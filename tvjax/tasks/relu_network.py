"""Two-layer ReLU networks in context: y = sum_f a_f max(0, w_f.x) + noise."""

import dataclasses

import jax
import jax.numpy as jnp

from tvjax.tasks.base import Parameters, require
from tvjax.tasks.gaussian import GaussianTask
from tvjax.tasks.oracles import EXACT


@dataclasses.dataclass(frozen=True)
class ReLUNetwork(GaussianTask):
    """x ~ N(0, I_d), w_f ~ N(0, I_d), a_f ~ N(0, 2 / (F d)), y = sum_f a_f max(0, w_f.x) + noise.

    hidden_width: F, 100 in Garg et al. (2022). They draw a_f from N(0, 2 / F), which gives answers the variance d; the
    1 / d, for unit variance, is ours. For the other fields see `GaussianTask`. There is no oracle: the posterior over
    both layers has no closed form.
    """

    hidden_width: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.hidden_width >= 1, "hidden_width", self.hidden_width, "1 or more")

    @property
    def baselines(self) -> tuple[str, ...]:
        """Those of Garg et al. except a network of the same shape, trained on the demonstrations."""
        return ("least_squares", "nearest_neighbours", "averaging")

    def parameters(self, key: jax.Array, batch: int, *, held_out: bool = False) -> Parameters:
        """``{'inner': [B, X, F], 'outer': [B, F]}``: w and a."""
        inner_key, outer_key = jax.random.split(key)
        scale = (2 / (self.hidden_width * self.input_width)) ** 0.5
        return {
            "inner": jax.random.normal(inner_key, (batch, self.input_width, self.hidden_width)),
            "outer": scale * jax.random.normal(outer_key, (batch, self.hidden_width)),
        }

    def function(self, parameters: Parameters, x: jax.Array) -> jax.Array:
        hidden_BNF = jax.nn.relu(jnp.einsum("bnx,bxf->bnf", x, parameters["inner"], precision=EXACT))
        return jnp.einsum("bnf,bf->bn", hidden_BNF, parameters["outer"], precision=EXACT)[..., None]
