"""What a task family is: pure samplers on the device, a split of tasks, and an oracle.

A family is a frozen dataclass whose fields are its settings. To add one, subclass `RealTask` or `TokenTask` in a file
of its own, or `GaussianTask` in `gaussian.py` if x is Gaussian. Write `parameters`, `inputs` and `answers`, and also
`oracle` if the best prediction can be computed. Name the family in `tasks.BUILT_IN`.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tvjax.errors import reject
from tvjax.tasks import prompt as prompts
from tvjax.tasks.prompt import Layout, Prompt

Parameters = dict[str, jax.Array]


def require(holds: bool, field: str, value: object, accepted: str) -> None:
    """Raise `UserError` for an impossible value of a family's field, named as ``config.task.FIELD``, unless `holds`."""
    if not holds:
        raise reject(f"config.task.{field}", value, accepted)


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """A family of tasks. Arrays lead with B prompts; x is ``[B, N, X]`` (real) or ``[B, N]`` (tokens)."""

    @abc.abstractmethod
    def parameters(self, key: jax.Array, batch: int, *, held_out: bool = False) -> Parameters:
        """Draw `batch` tasks, ``{name: [B, ...]}``, from the training tasks or from those held out."""

    @abc.abstractmethod
    def inputs(self, key: jax.Array, parameters: Parameters, pairs: int) -> jax.Array:
        """Draw x for `pairs` pairs of each task."""

    @abc.abstractmethod
    def answers(self, key: jax.Array, parameters: Parameters, x: jax.Array) -> jax.Array:
        """f(x) as observed, with the family's own label noise."""

    def oracle(
        self, x: jax.Array, y: jax.Array, queries: jax.Array, *, noise: float = 0.0, held_out: bool = False
    ) -> jax.Array:
        """The best prediction for query i from the demonstrations before it, ``[B, N, num_outputs]``.

        noise: label noise of the demonstrations, added to the family's own.
        held_out: whether the tasks are the held-out ones.

        Of tokens the predictions are log-probabilities. The oracle knows the family, its split and the label noise, not
        the task. Raises `UserError` for a family whose best prediction has no closed form; `has_oracle` is then False.
        """
        raise reject("config.task.name", type(self).__name__, "a family that has an oracle")

    @abc.abstractmethod
    def encode(self, layout: Layout, x: jax.Array, y: jax.Array) -> jax.Array:
        """The decoder's inputs for pairs (x, y)."""

    @abc.abstractmethod
    def blank(self, x: jax.Array) -> jax.Array:
        """Answers of the right shape that say nothing: the zero-shot prompt ends before its answer."""

    @abc.abstractmethod
    def scores(self, predictions: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        """``{'risk': [B, N], ...}``: the loss of each prediction, and for tokens and signs its accuracy."""

    @abc.abstractmethod
    def decoder_inputs(self) -> dict[str, Any]:
        """The fields of `DecoderConfig` that the family settles."""

    @abc.abstractmethod
    def corrupt(self, key: jax.Array, y: jax.Array, noise: float) -> jax.Array:
        """Answers `y` with label noise: `noise` is a standard deviation, or for labels a probability."""

    @property
    @abc.abstractmethod
    def risk_unit(self) -> str:
        """The unit of a risk, for reports."""

    @property
    def x_tokens(self) -> int:
        """How many positions an x takes."""
        return 1

    @property
    def has_oracle(self) -> bool:
        """Whether `oracle` can answer for these settings. The default: whether the family has an oracle."""
        return type(self).oracle is not Task.oracle

    @property
    def centred(self) -> bool:
        """Whether f(x) has mean 0 over the tasks, at every x: then 0 is the prior's answer, and no oracle is needed."""
        return False

    @property
    def baselines(self) -> tuple[str, ...]:
        """The estimators that models of this family are usually compared with: names in `evals.baselines`."""
        return ()

    @property
    def has_held_out(self) -> bool:
        """Whether the held-out tasks come from another distribution than the training tasks."""
        return False

    @property
    def has_held_out_pairs(self) -> bool:
        """Whether some x are never shown with a task: `held_out_inputs` draws these, and `oracle` is told of them."""
        return False

    @property
    def has_labels(self) -> bool:
        """Whether answers are labels, which noise replaces and which have no scale."""
        return False

    @property
    def single_input(self) -> bool:
        """Whether an answer depends on its own x and on nothing that the prompt shows beside it."""
        return False

    def every_task(self) -> Parameters | None:
        """The training tasks of a family of tokens that has few, ``{name: [n, ...]}``; None: they cannot be listed."""
        return None

    def pair_limit(self) -> int | None:
        """How many pairs a prompt can have; None: there is no limit."""
        return None

    def prompt(self, layout: Layout, parameters: Parameters, x: jax.Array, y: jax.Array) -> Prompt:
        """The prompt of these pairs."""
        return Prompt(inputs=self.encode(layout, x, y), x=x, targets=y, parameters=parameters, layout=layout)

    def draw_pairs(
        self, key: jax.Array, parameters: Parameters, pairs: int, active_X: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`pairs` pairs (x, f(x)) of each task.

        active_X: which input dimensions are not blanked, 0 or 1 each; may be traced.
        """
        input_key, answer_key = jax.random.split(key)
        x = self.inputs(input_key, parameters, pairs)
        if active_X is not None:
            x = x * active_X[None, None]
        return x, self.answers(answer_key, parameters, x)

    def sample(
        self,
        key: jax.Array,
        batch: int,
        demonstrations: int,
        layout: Layout,
        *,
        held_out: bool = False,
        active_X: jax.Array | None = None,
    ) -> Prompt:
        """Prompts of `demonstrations` demonstrations and a last query: ``demonstrations + 1`` pairs."""
        task_key, pair_key = jax.random.split(key)
        parameters = self.parameters(task_key, batch, held_out=held_out)
        return self.prompt(layout, parameters, *self.draw_pairs(pair_key, parameters, demonstrations + 1, active_X))

    def zero_shot(self, layout: Layout, x: jax.Array) -> jax.Array:
        """Decoder inputs of the zero-shot prompt [x', z] (or [x']), for x' ``[B, X]`` or ``[B]``."""
        return self.encode(layout, x[:, None], self.blank(x[:, None]))


class RealTask(Task):
    """Regression: real inputs of `input_width`, `num_outputs` real answers, squared error per output."""

    input_width: int
    num_outputs: int = 1

    @property
    def answer_rms(self) -> float:
        """Root mean square of a noiseless answer over the training tasks: the unit of the label-noise shift."""
        return 1.0

    @property
    def single_input(self) -> bool:
        return True

    def corrupt(self, key: jax.Array, y: jax.Array, noise: float) -> jax.Array:
        """Answers with Gaussian noise of standard deviation `noise`."""
        return y + noise * jax.random.normal(key, y.shape, y.dtype) if noise else y

    def encode(self, layout: Layout, x: jax.Array, y: jax.Array) -> jax.Array:
        return prompts.encode_real(layout, x, y)

    @property
    def risk_unit(self) -> str:
        return "mean squared error per output"

    def blank(self, x: jax.Array) -> jax.Array:
        return jnp.zeros((*x.shape[:2], self.num_outputs))

    def scores(self, predictions: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        return {"risk": jnp.square(predictions - targets).mean(-1)}

    def decoder_inputs(self) -> dict[str, Any]:
        return {"inputs": "real", "num_outputs": self.num_outputs}


class TokenTask(Task):
    """Classification over `vocab_size` tokens: cross-entropy in nats, and accuracy. z is token number `vocab_size`."""

    vocab_size: int

    @property
    def has_labels(self) -> bool:
        return True

    def corrupt(self, key: jax.Array, y: jax.Array, noise: float) -> jax.Array:
        """Answers, each replaced with probability `noise` by a token drawn uniformly (itself included)."""
        if not noise:
            return y
        chance_key, token_key = jax.random.split(key)
        tokens = jax.random.randint(token_key, y.shape, 0, self.vocab_size, y.dtype)
        return jnp.where(jax.random.bernoulli(chance_key, noise, y.shape), tokens, y)

    def encode(self, layout: Layout, x: jax.Array, y: jax.Array) -> jax.Array:
        return prompts.encode_tokens(layout, x, y, self.vocab_size)

    @property
    def risk_unit(self) -> str:
        return "cross-entropy (nats)"

    def blank(self, x: jax.Array) -> jax.Array:
        return jnp.zeros_like(x)

    def scores(self, predictions: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        risk = optax.softmax_cross_entropy_with_integer_labels(predictions, targets)
        return {"risk": risk, "accuracy": (predictions.argmax(-1) == targets).astype(jnp.float32)}

    def decoder_inputs(self) -> dict[str, Any]:
        shape = {"vocab_size": self.vocab_size + 1, "num_outputs": self.vocab_size}
        return {"inputs": "tokens", "unbiased": ("readout",), **shape}


class StringTask(TokenTask):
    """An x of several tokens, ``[B, N, W]``. An answer is ``[B, N, Y]``: the token that is observed comes first.

    The family's `scores` compare with the entries behind the token; a decoder is never shown them.
    """

    answer_width: int

    @property
    @abc.abstractmethod
    def x_tokens(self) -> int:
        """W, the tokens of an x."""

    def encode(self, layout: Layout, x: jax.Array, y: jax.Array) -> jax.Array:
        return super().encode(layout, x, y[..., 0])

    def blank(self, x: jax.Array) -> jax.Array:
        return jnp.zeros((*x.shape[:2], self.answer_width), jnp.int32)
