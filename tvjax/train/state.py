"""What a run is while it trains, and the pure step that moves it on.

A run trains a population of M members: `params` and `opt_state` lead with a member axis, and the step of one member
is `vmap`ped over it. A member's numbers do not depend on its company.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

INIT, BATCH = range(2)
Hyper = dict[str, jax.Array]


class Experiment(Protocol):
    """What the loop trains: it knows nothing else of it."""

    def init(self, key: jax.Array) -> Any:
        """Fresh parameters of one member."""

    def data(self) -> Any:
        """Arrays that stay on the device (an empty tree where batches are sampled)."""

    def loss(
        self, params: Any, data: Any, key: jax.Array, step: jax.Array, hyper: Hyper
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The scalar loss of one member, and what to log of it."""

    def evaluate(self, params: Any, data: Any, key: jax.Array) -> dict[str, jax.Array]:
        """What to log of one member now and then; arrays become lists."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a warm-up and a decay; the peak learning rate is a member's own."""

    warmup_steps: int = 0
    decay: Literal["cosine", "constant"] = "cosine"
    final_fraction: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    b1: float = 0.9
    b2: float = 0.999


@struct.dataclass
class TrainState:
    """A population between two steps; `step` counts the steps taken."""

    step: jax.Array
    params: Any
    opt_state: Any


def schedule(c: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate as a fraction of its peak."""
    if c.decay == "constant":
        return optax.warmup_constant_schedule(0.0, 1.0, max(c.warmup_steps, 1))
    return optax.warmup_cosine_decay_schedule(
        0.0, 1.0, max(c.warmup_steps, 1), max(steps, c.warmup_steps + 2), c.final_fraction
    )


def optimizer(c: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW's direction for a learning rate of one, gradients clipped to a global norm of `clip_norm` (0: never)."""
    return optax.chain(
        optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=c.b1, b2=c.b2),
        optax.add_decayed_weights(c.weight_decay, mask=_matrices) if c.weight_decay else optax.identity(),
    )


def _matrices(params: Any) -> Any:
    """Weight decay is for kernels: norms and biases go without."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: keys[-1].key == "kernel", params)


def member_key(hyper: Hyper, stream: int) -> jax.Array:
    """A member's own randomness: a function of its seed alone, so members of one seed see the same data."""
    return jax.random.fold_in(jax.random.key(hyper["seed"]), stream)


def init_state(experiment: Experiment, tx: optax.GradientTransformation, hyper: Hyper) -> TrainState:
    """The population before its first step."""

    def one(hyper: Hyper) -> tuple[Any, Any]:
        params = experiment.init(member_key(hyper, INIT))
        return params, tx.init(params)

    params, opt_state = jax.vmap(one)(hyper)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def make_step(
    experiment: Experiment, tx: optax.GradientTransformation, rate: optax.Schedule
) -> Callable[[TrainState, Any, Hyper], tuple[TrainState, dict[str, jax.Array]]]:
    """The pure step of a population: ``(state, data, hyper) -> (state, metrics [M])``."""

    def member(
        params: Any, opt_state: Any, hyper: Hyper, step: jax.Array, data: Any
    ) -> tuple[Any, Any, dict[str, jax.Array]]:
        key = jax.random.fold_in(member_key(hyper, BATCH), step)
        (loss, metrics), grads = jax.value_and_grad(experiment.loss, has_aux=True)(params, data, key, step, hyper)
        direction, opt_state = tx.update(grads, opt_state, params)
        size = -rate(step + 1) * hyper["learning_rate"]
        params = jax.tree.map(lambda p, d: p + (size * d).astype(p.dtype), params, direction)
        return params, opt_state, {"loss": loss, "grad_norm": optax.global_norm(grads), **metrics}

    def step(state: TrainState, data: Any, hyper: Hyper) -> tuple[TrainState, dict[str, jax.Array]]:
        over_members = jax.vmap(member, in_axes=(0, 0, 0, None, None), spmd_axis_name="member")
        params, opt_state, metrics = over_members(state.params, state.opt_state, hyper, state.step, data)
        return TrainState(state.step + 1, params, opt_state), metrics

    return step
