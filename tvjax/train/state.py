"""What a training run is asked to do, its state, and the pure step that moves the state on.

A run trains a population of M members: `params` and `opt_state` lead with a member axis, and the step of one member
is `vmap`ped over that axis. A member's numbers do not depend on the other members.

Trained parameters and Adam's moments are float32, whatever the compute dtype: in bfloat16 a step of 1e-3 from 1.0
rounds back to 1.0, and in float16 Adam's epsilon is 0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from tvjax.errors import reject
from tvjax.settings import Checked, setting

INIT, BATCH, ORDER = range(3)
Hyper = dict[str, jax.Array]


class Experiment(Protocol):
    """What the loop trains, and all that the loop knows of an experiment."""

    @property
    def batch(self) -> int:
        """How many examples a step of one member sees."""

    def init(self, key: jax.Array, data: Any) -> Any:
        """Fresh parameters of one member; they are trained in float32."""

    def data(self) -> Any:
        """Arrays that stay on the device; an empty tree if batches are sampled."""

    def loss(
        self, params: Any, data: Any, key: jax.Array, step: jax.Array, hyper: Hyper
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The scalar loss of one member, and the metrics to log."""

    def evaluate(self, params: Any, data: Any, key: jax.Array, hyper: Hyper) -> dict[str, jax.Array]:
        """The metrics of one member at an evaluation; arrays become lists in the log."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig(Checked):
    """The batch of a step."""

    batch: int = setting(about="prompts, or examples, a step", least=1)
    micro_batches: int = setting(1, "parts of a batch, one after another: less memory", least=1)

    def check(self, path: str) -> None:
        """Raise `UserError` for a number of micro-batches that does not divide the batch."""
        super().check(path)
        if self.batch % self.micro_batches:
            raise reject(f"{path}.micro_batches", self.micro_batches, f"a divisor of batch = {self.batch}")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """How long to train and what to leave behind; intervals are multiples of `log_every`."""

    steps: int = setting(about="of the optimizer", least=1)
    log_every: int = setting(about="steps in one dispatch to the device, and in one line of metrics", least=1)
    evaluate_every: int = setting(about="steps between two evaluations")
    checkpoint_every: int = setting(about="steps between two checkpoints")
    keep_checkpoints: int = setting(2, "the newest that are kept", least=1)
    tensorboard: bool = setting(True, "also write TensorBoard events")
    keep_best: str = setting("", "a metric of the evaluation, whose best parameters are used; '': the last")

    SCORES: ClassVar[tuple[str, ...]] = ()
    """Metrics of the evaluation by which the best parameters can be kept."""

    def check(self, path: str) -> None:
        """Raise `UserError` for an interval that is no multiple of `log_every`, and for an unknown metric."""
        for name in ("steps", "evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            if value < 1 or value % self.log_every:
                raise reject(f"{path}.{name}", value, f"a positive multiple of log_every = {self.log_every}")
        if self.keep_best not in ("", *self.SCORES):
            raise reject(f"{path}.keep_best", self.keep_best, ", ".join(map(repr, ("", *self.SCORES))))


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a warm-up and a decay; the peak learning rate is a member's own."""

    warmup_steps: int = setting(0, "steps in which the learning rate rises from 0", least=0)
    decay: Literal["cosine", "constant"] = setting("cosine", "of the learning rate after that: cosine, constant")
    final_fraction: float = setting(0.0, "of the peak learning rate, at the end of the decay", least=0, most=1)
    weight_decay: float = setting(0.0, "AdamW's, of kernels", least=0)
    l2: float = setting(0.0, "Adam's: so much of every parameter is added to its gradient, before the moments", least=0)
    clip_norm: float = setting(0.0, "largest global norm of a gradient; 0: no clipping", least=0)
    b1: float = setting(0.9, "of the first moment", least=0, below=1)
    b2: float = setting(0.999, "of the second moment", least=0, below=1)


@struct.dataclass
class Best:
    """The best evaluation of each member so far.

    params: the parameters at that evaluation.
    score: ``[M]``, higher is better.
    step: ``[M]``, the step of that evaluation.
    """

    params: Any
    score: jax.Array
    step: jax.Array


@struct.dataclass
class TrainState:
    """A population between two steps.

    step: the number of steps taken.
    best: the best evaluations; None unless they are kept.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    best: Best | None = None

    @property
    def chosen(self) -> Any:
        """The parameters to use: a member's best if they are kept and the member was evaluated, or else its last."""
        if self.best is None:
            return self.params
        known_M = self.best.score > -jnp.inf

        def choose(best: jax.Array, last: jax.Array) -> jax.Array:
            return jnp.where(known_M.reshape(-1, *[1] * (best.ndim - 1)), best, last)

        return jax.tree.map(choose, self.best.params, self.params)


def keep_best(state: TrainState, score_M: jax.Array) -> TrainState:
    """`state`, with the best of each member replaced if its score is higher."""
    best = state.best
    assert best is not None
    better_M = score_M > best.score

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        """The new entries of the members that are better."""
        return jnp.where(better_M.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    params = jax.tree.map(choose, state.params, best.params)
    kept = Best(params, choose(score_M, best.score), choose(state.step[None], best.step))
    return dataclasses.replace(state, best=kept)


def schedule(c: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate as a fraction of its peak."""
    if c.decay == "constant":
        return optax.warmup_constant_schedule(0.0, 1.0, max(c.warmup_steps, 1))
    return optax.warmup_cosine_decay_schedule(
        0.0, 1.0, max(c.warmup_steps, 1), max(steps, c.warmup_steps + 2), c.final_fraction
    )


def optimizer(c: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW's direction at a learning rate of 1, with gradients clipped to a global norm of `clip_norm` (0: never)."""
    gradient = optax.clip_by_global_norm(c.clip_norm) if c.clip_norm else optax.identity()
    if c.l2:
        gradient = optax.chain(gradient, optax.add_decayed_weights(c.l2))
    return optax.chain(
        gradient,
        optax.scale_by_adam(b1=c.b1, b2=c.b2),
        optax.add_decayed_weights(c.weight_decay, mask=_matrices) if c.weight_decay else optax.identity(),
    )


def _matrices(params: Any) -> Any:
    """Weight decay is for kernels: norms and biases go without."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: getattr([None, *keys][-1], "key", "") == "kernel", params)


def unreached(state: TrainState) -> list[str]:
    """The paths of the parameters that no gradient has reached in training, of any member.

    Adam's moments of these are still 0, whatever weight decay made of them; with `l2` that is seen only of what is 0.
    After one step nothing is said, nor if the moments are not there: a factor beside one that begins at 0, as LoRA's,
    has its first gradient in the second.
    """
    states = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState))
    adam = [one for one in states if isinstance(one, optax.ScaleByAdamState)]
    if not adam or int(state.step) < 2:
        return []
    reached = jax.tree.map(lambda m, v: bool(m.any() | v.any()), adam[0].mu, adam[0].nu)
    rows = jax.tree_util.tree_leaves_with_path(reached)
    return [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, one in rows if not one]


def member_key(hyper: Hyper, stream: int) -> jax.Array:
    """A member's own key, a function of its seed alone: members of one seed see the same data."""
    return jax.random.fold_in(jax.random.key(hyper["seed"]), stream)


def in_float32(tree: Any) -> Any:
    """`tree` with float32 for floating-point numbers of fewer bits."""

    def wide(leaf: Any) -> Any:
        narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
        return leaf.astype(jnp.float32) if narrow else leaf

    return jax.tree.map(wide, tree)


def init_state(
    experiment: Experiment, tx: optax.GradientTransformation, hyper: Hyper, data: Any, *, best: bool = False
) -> TrainState:
    """The population before its first step, in float32.

    best: whether there is room for the best parameters.
    """

    def one(hyper: Hyper) -> tuple[Any, Any]:
        params = in_float32(experiment.init(member_key(hyper, INIT), data))
        return params, tx.init(params)

    params, opt_state = jax.vmap(one)(hyper)
    count = hyper["seed"].shape[0]
    kept = (
        Best(jax.tree.map(jnp.zeros_like, params), jnp.full(count, -jnp.inf), jnp.zeros(count, jnp.int32))
        if best
        else None
    )
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, kept)


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
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step
