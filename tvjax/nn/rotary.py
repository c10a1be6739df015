"""Rotary positions (Su et al. 2021): queries and keys turn with their position, so that their product knows distance.

Channel c turns with channel c + C/2. Checkpoints whose neighbours turn together (GPT-J) are permuted when they are
read: the product of a query and a key does not change when both are permuted.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How frequencies are slowed for prompts longer than those of training.

    linear: all by `factor` (Chen et al. 2023).
    llama3: those whose wavelength exceeds ``original / low`` by `factor`, none above ``original / high``, and a blend
        between (Llama 3.1).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 0


def frequencies(width: int, base: float, scaling: Scaling | None = None) -> np.ndarray:
    """Radians a position, ``[width / 2]`` in float32, for the first `width` channels of a head."""
    frequency = 1.0 / (np.float32(base) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width)))
    if scaling is None:
        return frequency
    slow = frequency / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return slow
    wavelength = 2 * math.pi / frequency
    blend = (scaling.original / wavelength - scaling.low) / (scaling.high - scaling.low)
    kept = np.clip(blend, 0.0, 1.0).astype(np.float32)
    return (1 - kept) * slow + kept * frequency


def rotate(x_BTHC: jax.Array, positions_BT: jax.Array, frequency: np.ndarray) -> jax.Array:
    """Turn channel pairs (c, c + W/2) of the first W = 2 * len(frequency) channels by position * frequency[c]."""
    half = len(frequency)
    angle = positions_BT[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    cos, sin = jnp.cos(angle).astype(x_BTHC.dtype), jnp.sin(angle).astype(x_BTHC.dtype)
    first, second, rest = x_BTHC[..., :half], x_BTHC[..., half : 2 * half], x_BTHC[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
