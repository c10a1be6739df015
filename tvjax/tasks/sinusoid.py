"""Sinusoidal regression in context: y = a sin(b.x + c) + noise."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import reject
from tvjax.tasks import oracles
from tvjax.tasks.base import Parameters, RealTask, require

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Sinusoid(RealTask):
    """x ~ N(0, I_d), y = a sin(b.x + c) + noise; a, |b| and c uniform in their ranges [ours].

    amplitude, frequency (radians per unit of x), phase (radians): ranges of the training tasks. With input_width 1, b
    is the frequency; above that, the frequency times a direction drawn uniformly on the sphere. held_out_*: the ranges
    of the held-out tasks, a task shift: either all three as in training (nothing is held out) or, in at least one,
    apart. noise: standard deviation added to every answer. grid: how many amplitudes, frequencies and phases the oracle
    tries. grid_width: standard deviation of its likelihood beside the noise's, in units of y; it covers the grid's
    spacing.
    """

    input_width: int = 1
    amplitude: Range = (0.5, 2.0)
    frequency: Range = (0.5, 1.5)
    phase: Range = (0.0, 2 * math.pi)
    held_out_amplitude: Range = (0.5, 2.0)
    held_out_frequency: Range = (1.5, 2.5)
    held_out_phase: Range = (0.0, 2 * math.pi)
    noise: float = 0.0
    grid: tuple[int, int, int] = (16, 48, 64)
    grid_width: float = 0.05

    def __post_init__(self) -> None:
        for field in ("amplitude", "frequency", "phase"):
            for name in (field, f"held_out_{field}"):
                object.__setattr__(self, name, tuple(getattr(self, name)))
                _check_range(name, getattr(self, name), -math.inf if field == "phase" else 0.0)
        object.__setattr__(self, "grid", tuple(self.grid))
        require(self.input_width >= 1, "input_width", self.input_width, "1 or more")
        require(0 <= self.noise < math.inf, "noise", self.noise, "a finite standard deviation, 0 or more")
        require(len(self.grid) == 3 and min(self.grid) >= 1, "grid", self.grid, "three sizes, each 1 or more")
        require(0 < self.grid_width < math.inf, "grid_width", self.grid_width, "a finite standard deviation above 0")
        apart = any(a != b and (a[1] <= b[0] or b[1] <= a[0]) for a, b in zip(*self._boxes(), strict=True))
        accepted = "the three held-out ranges equal to those of training, or at least one apart from its own"
        require(apart or not self.has_held_out, "held_out_frequency", self.held_out_frequency, accepted)

    @property
    def has_held_out(self) -> bool:
        train, held_out = self._boxes()
        return train != held_out

    @property
    def has_oracle(self) -> bool:
        return self.input_width == 1

    @property
    def answer_rms(self) -> float:
        """``sqrt(E[a^2] E[1 - exp(-2 b^2) cos 2c] / 2)``, as b.x is normal with standard deviation b."""
        a, b, c = (_midpoints(limits, 1000) for limits in self._boxes()[0])
        return math.sqrt(np.mean(a**2) * (1 - np.mean(np.exp(-2 * b**2)) * np.mean(np.cos(2 * c))) / 2)

    def parameters(self, key: jax.Array, batch: int, *, held_out: bool = False) -> Parameters:
        """``{'amplitude': [B], 'frequency': [B, X], 'phase': [B]}``."""
        a_key, b_key, c_key, direction_key = jax.random.split(key, 4)
        a, b, c = self._boxes()[held_out]
        direction_BX = jnp.ones((batch, 1))
        if self.input_width > 1:
            direction_BX = jax.random.normal(direction_key, (batch, self.input_width))
            direction_BX /= jnp.linalg.norm(direction_BX, axis=-1, keepdims=True)
        return {
            "amplitude": jax.random.uniform(a_key, (batch,), minval=a[0], maxval=a[1]),
            "frequency": jax.random.uniform(b_key, (batch, 1), minval=b[0], maxval=b[1]) * direction_BX,
            "phase": jax.random.uniform(c_key, (batch,), minval=c[0], maxval=c[1]),
        }

    def inputs(self, key: jax.Array, parameters: Parameters, pairs: int) -> jax.Array:
        return jax.random.normal(key, (*parameters["phase"].shape, pairs, self.input_width))

    def answers(self, key: jax.Array, parameters: Parameters, x: jax.Array) -> jax.Array:
        angle_BN = (x * parameters["frequency"][:, None]).sum(-1) + parameters["phase"][:, None]
        return self.corrupt(key, (parameters["amplitude"][:, None] * jnp.sin(angle_BN))[..., None], self.noise)

    def oracle(
        self, x: jax.Array, y: jax.Array, queries: jax.Array, *, noise: float = 0.0, held_out: bool = False
    ) -> jax.Array:
        """Posterior mean ``[B, N, 1]`` over a grid of the split's (a, b, c), with a Gaussian likelihood.

        The standard deviation of the likelihood is that of all label noise together with `grid_width`. So without noise
        the risk falls to the resolution of the grid, not to 0: with the defaults, about 2e-3 of the prior risk after 8
        demonstrations and 1e-3 after 16. Raises `UserError` for input_width > 1: a grid over directions is out of
        reach.
        """
        if not self.has_oracle:
            raise reject("config.task.input_width", self.input_width, "1, where the oracle of sinusoid is wanted")
        variance = self.noise**2 + noise**2 + self.grid_width**2
        boxes = zip(self._boxes()[held_out], self.grid, strict=True)
        amplitudes, frequencies, phases = (jnp.asarray(_midpoints(limits, size), x.dtype) for limits, size in boxes)
        before = functools.partial(oracles.sum_before, axis=0)
        b_Z, c_Z = (grid.reshape(-1) for grid in jnp.meshgrid(frequencies, phases, indexing="ij"))

        def one_prompt(pairs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            x_N1, y_N1, queries_N1 = pairs
            wave_NZ = jnp.sin(x_N1 * b_Z[None] + c_Z[None])
            # -(y - a s)^2 without y^2, which all of the grid shares: so the sums over demonstrations hold for every a.
            cross_NZ, square_NZ = before(y_N1 * wave_NZ), before(jnp.square(wave_NZ))
            amplitude = amplitudes[None, :, None]
            # [N, amplitudes, Z]; Z: the pairs of a frequency and a phase.
            evidence = amplitude * cross_NZ[:, None] - jnp.square(amplitude) / 2 * square_NZ[:, None]
            # Without the barrier XLA folds the entry of no demonstrations, a constant over the grid, for half a minute.
            evidence = jax.lax.optimization_barrier(evidence)
            posterior = jax.nn.softmax(evidence / variance, axis=(-2, -1))
            scale_NZ = (posterior * amplitude).sum(1)
            return (scale_NZ * jnp.sin(queries_N1 * b_Z[None] + c_Z[None])).sum(-1, keepdims=True)

        return oracles.map_prompts(one_prompt, (x, y, queries), x.shape[1] * math.prod(self.grid))

    def _boxes(self) -> tuple[tuple[Range, Range, Range], tuple[Range, Range, Range]]:
        """Ranges of (a, |b|, c): of the training tasks, of those held out."""
        train = (self.amplitude, self.frequency, self.phase)
        return train, (self.held_out_amplitude, self.held_out_frequency, self.held_out_phase)


def _check_range(name: str, limits: Range, least: float) -> None:
    accepted = "(low, high), finite, low <= high" + ("" if least < 0 else ", low >= 0")
    require(len(limits) == 2 and all(map(math.isfinite, limits)), name, limits, accepted)
    require(least <= limits[0] <= limits[1], name, limits, accepted)


def _midpoints(limits: Range, size: int) -> np.ndarray:
    """Centres of `size` equal cells of a range."""
    return limits[0] + (np.arange(size) + 0.5) / size * (limits[1] - limits[0])
