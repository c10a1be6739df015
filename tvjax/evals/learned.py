"""Whether something works at all: the one rule that pages, tables and claims go by before they compare. [ours]

A risk over the prior's risk goes by the upper end of its interval. The risk is *good* if that end is at most `USABLE`,
*weak* if that end is only below 1, and otherwise there is *nothing* to read. Of ICL risk after all demonstrations the
rule says whether the task is learned, of TVP risk whether a vector is usable. Of accuracies, which have no prior, the
whole interval is above the accuracy of what knows less (of k-shot and of vectors: zero-shot). Whatever has nothing to
read is said first, and two such are never compared: a ratio or a difference of two failures is no news.
"""

from collections.abc import Sequence

import numpy as np

from tvjax.evals.statistics import bootstrap

USABLE = 0.5
"""A vector is usable where TVP risk is at most this share of the prior's, and ICL is learned where ICL risk is."""
ROUNDING = 1e-10
"""A risk below this share of the prior's is the rounding of an exact answer in float32, and is shown as 0: squares of
its relative errors are 1e-14, those of sums of some dozens 1e-12, and what is trained has never come near."""


def standing(high: float) -> str:
    """``good``, ``weak`` or ``nothing``, by the upper end of a risk's interval over the prior's; nan is nothing."""
    if high <= USABLE:
        return "good"
    return "weak" if high < 1 else "nothing"


def above(interval: Sequence[float], reference: float) -> bool:
    """Whether the whole interval of an accuracy lies above the accuracy of what knows less."""
    return interval[0] > reference


def clearly_above(right_P: np.ndarray, less_P: np.ndarray) -> bool:
    """Whether more answers are right than those of what knows less: the whole interval of their difference is above 0.

    right_P, less_P: which answers to the same questions are right. By this a layer is named on the dev split: among
    many layers some are a little above by chance, and one right answer where there was none is no vector that works.
    """
    return float(bootstrap(right_P - less_P)[1][0]) > 0
