"""How numbers are written, in figures, page and terminal alike."""

import math
from dataclasses import dataclass

import numpy as np

UNLEARNED = "task not learned"
SINK = (
    "Queries are in their prompts' first tokens, which are attention sinks: little can be read of them there, so that"
    " no vector can answer. config.template.start puts a token before them."
)
"""The first sentence of a page if the template puts no token before the first query."""


@dataclass(frozen=True)
class Estimate:
    """A value, or a row of values, with the ends of its 90% bootstrap interval. All three have one shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __getitem__(self, index: int) -> "Estimate":
        return Estimate(self.value[index], self.low[index], self.high[index])

    def over(self, unit: float) -> "Estimate":
        """The estimate in another unit: all divided by `unit` (for example the prior's risk)."""
        return Estimate(self.value / unit, self.low / unit, self.high / unit)

    def rounded(self, least: float) -> "Estimate":
        """The estimate with 0 for values, and ends of intervals, below `least`."""
        return Estimate(*(np.where(np.abs(part) < least, 0.0, part) for part in (self.value, self.low, self.high)))


def number(value: float | np.ndarray) -> str:
    """Three significant digits (two if written with a power): 0.0160, 1.08, 12.3, 1.6e-5, n/a."""
    value = float(value)
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.2e}"))))
    if not -2 <= exponent < 5:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:.{max(0, 2 - exponent)}f}"


def with_interval(estimate: Estimate, comma: str = ", ") -> str:
    """``0.0160 [0.0150, 0.0171]``."""
    return f"{number(estimate.value)} [{number(estimate.low)}{comma}{number(estimate.high)}]"
