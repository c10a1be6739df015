"""Rotary positions (Su et al. 2021): queries and keys turn with their position, so that their product knows distance.

Channel c turns with channel c + C/2. Checkpoints whose neighbours turn together (GPT-J) are permuted when they are
read: the product of a query and a key does not change when both are permuted.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How frequencies are slowed for prompts longer than those of training, of `original` positions.

    linear: all by `factor` (Chen et al. 2023).
    llama3: those whose wavelength exceeds ``original / low`` by `factor`, none above ``original / high``, and a blend
        between (Llama 3.1).
    yarn: channels that turn less than `low` times in ``original`` positions by `factor`, none that turn more than
        `high` times, and a blend by the channel's number between (Peng et al. 2023, equations 17 to 23); with
        `whole_channels` the blend begins and ends at whole numbers.
    longrope: each by its own of `divisors` (Ding et al. 2024). These are the ones of short prompts: longer than
        `original`, other divisors would turn all keys otherwise, also those that a cache holds.
    dynamic: none up to `original`; beyond, the base would depend on the length of the prompt, so no cache would hold.

    amplitude: what the turned channels are multiplied by.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope", "dynamic"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 0
    divisors: tuple[float, ...] = ()
    whole_channels: bool = True
    amplitude: float = 1.0

    @property
    def limit(self) -> int:
        """The positions beyond which other frequencies would hold for all; 0: none."""
        return self.original if self.kind in ("longrope", "dynamic") else 0


@dataclasses.dataclass(frozen=True)
class Rotary:
    """The rotary positions of a layer: base of the frequencies, and their scaling."""

    base: float
    scaling: Scaling | None = None


def frequencies(width: int, base: float, scaling: Scaling | None = None) -> np.ndarray:
    """Radians a position, ``[width / 2]`` in float32, for the first `width` channels of a head."""
    frequency = 1.0 / (np.float32(base) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width)))
    if scaling is None or scaling.kind == "dynamic":
        return frequency
    if scaling.kind == "longrope":
        return frequency / np.array(scaling.divisors, np.float32)
    slow = frequency / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return slow
    if scaling.kind == "yarn":
        kept = 1 - _ramp(width, base, scaling)
    else:
        wavelength = 2 * math.pi / frequency
        blend = (scaling.original / wavelength - scaling.low) / (scaling.high - scaling.low)
        kept = np.clip(blend, 0.0, 1.0).astype(np.float32)
    return (1 - kept) * slow + kept * frequency


def _ramp(width: int, base: float, scaling: Scaling) -> np.ndarray:
    """How far each channel is slowed, from 0 to 1, ``[width / 2]``."""

    def channel(turns: float) -> float:
        """The one that turns so many times in the prompts of training."""
        return width * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = channel(scaling.high), channel(scaling.low)
    if scaling.whole_channels:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last += 0.001 if first == last else 0
    ramp = (np.arange(width // 2, dtype=np.float32) - np.float32(first)) / np.float32(last - first)
    return np.clip(ramp, np.float32(0), np.float32(1))


def turns(width: int, layers: Sequence[Rotary | None]) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies ``[L, width / 2]`` and amplitudes ``[L]`` of layers; one without rotary positions does not turn."""
    still = np.zeros(width // 2, np.float32)
    frequency_LR = [still if r is None else frequencies(width, r.base, r.scaling) for r in layers]
    amplitude_L = [r.scaling.amplitude if r and r.scaling else 1.0 for r in layers]
    return np.stack(frequency_LR), np.array(amplitude_L, np.float32)


def rotate(
    x_BTHC: jax.Array,
    positions_BT: jax.Array,
    frequency: np.ndarray | jax.Array,
    amplitude: float | jax.Array = 1.0,
) -> jax.Array:
    """Turn channel pairs (c, c + W/2) of the first W = 2 * len(frequency) channels by position * frequency[c].

    amplitude: what these channels are multiplied by.
    """
    half = len(frequency)
    angle = positions_BT[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if not isinstance(amplitude, float) or amplitude != 1.0:
        cos, sin = cos * amplitude, sin * amplitude
    cos, sin = cos.astype(x_BTHC.dtype), sin.astype(x_BTHC.dtype)
    first, second, rest = x_BTHC[..., :half], x_BTHC[..., half : 2 * half], x_BTHC[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
