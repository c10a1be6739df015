"""Function vectors (Todd et al. 2024): what the heads that carry a task write at the last token of a prompt.

The mean output of every head over prompts that demonstrate a task is put, one head at a time, into prompts whose
demonstrations have their outputs shuffled; the heads that raise the probability of the right answer most, over all
tasks, are those that carry tasks (`above.head_effects`). Their mean outputs, through the output projection, sum to the
task's vector.
"""

from typing import Any

import numpy as np


def strongest(effects_LH: np.ndarray, count: int) -> list[tuple[int, int]]:
    """The `count` heads of the greatest effect, as (block, head), both from 0; no head whose effect is not above 0."""
    order = np.argsort(-effects_LH, axis=None, kind="stable")[: min(count, int((effects_LH > 0).sum()))]
    return [tuple(int(i) for i in np.unravel_index(index, effects_LH.shape)) for index in order]  # type: ignore[misc]


def function_vector(params: Any, mean_LHC: np.ndarray, heads: list[tuple[int, int]]) -> np.ndarray:
    """The sum of the means of `heads` through the output projection, ``[D]``; without its bias or a norm behind it."""
    kernel_LHCD = params["blocks"]["out"]["kernel"]
    total_D = np.zeros(kernel_LHCD.shape[-1], np.float32)
    for layer, head in heads:
        total_D += mean_LHC[layer, head] @ np.asarray(kernel_LHCD[layer, head], np.float32)
    return total_D
