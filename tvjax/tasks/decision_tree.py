"""Decision trees in context: y is the value of the leaf to which the signs of x lead, plus noise."""

import dataclasses

import jax
import jax.numpy as jnp

from tvjax.tasks.base import Parameters, require
from tvjax.tasks.gaussian import GaussianTask

_DEEPEST = 12
"""Leaves double with every level: 4,096 values a prompt are as many as anyone can mean."""


@dataclasses.dataclass(frozen=True)
class DecisionTree(GaussianTask):
    """x ~ N(0, I_d); full binary trees whose nodes each ask for the sign of one input, y = leaf + noise.

    depth: how many nodes are passed on the way to a leaf, 4 in Garg et al. (2022). A node's input is drawn uniformly,
    and a path can ask for one twice; where it is above 0 the path goes right. Leaves ~ N(0, 1), as theirs. For the
    other fields see `GaussianTask`. There is no oracle: the posterior is a sum over all trees.
    """

    depth: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.depth <= _DEEPEST, "depth", self.depth, f"1 to {_DEEPEST}")

    @property
    def baselines(self) -> tuple[str, ...]:
        """Those of Garg et al. except boosted trees; a greedy tree of the signs alone is [ours]."""
        return ("least_squares", "nearest_neighbours", "averaging", "greedy_tree", "greedy_tree_of_signs")

    def parameters(self, key: jax.Array, batch: int, *, held_out: bool = False) -> Parameters:
        """``{'coordinate': [B, 2^depth - 1], 'leaf': [B, 2^depth]}``: node n has the children 2n + 1 and 2n + 2."""
        node_key, leaf_key = jax.random.split(key)
        return {
            "coordinate": jax.random.randint(node_key, (batch, 2**self.depth - 1), 0, self.input_width),
            "leaf": jax.random.normal(leaf_key, (batch, 2**self.depth)),
        }

    def function(self, parameters: Parameters, x: jax.Array) -> jax.Array:
        node_BN = jnp.zeros(x.shape[:2], int)
        for _ in range(self.depth):
            coordinate_BN = jnp.take_along_axis(parameters["coordinate"], node_BN, axis=1)
            right_BN = jnp.take_along_axis(x, coordinate_BN[..., None], axis=2)[..., 0] > 0
            node_BN = 2 * node_BN + 1 + right_BN
        return jnp.take_along_axis(parameters["leaf"], node_BN - (2**self.depth - 1), axis=1)[..., None]
