"""What the numbers say, in sentences that turn with them: for the headline and beside the figures.

A vector is called *usable* when prompting with it, zero-shot, has at most half of the prior's risk, *weak* when it only
beats the prior; the upper end of the 90% interval must do so. These thresholds are ours.
"""

from collections.abc import Sequence

import numpy as np

from tvjax.evals.study import USABLE
from tvjax.report.shifts import icl_ratio, tvp_ratio
from tvjax.report.summary import Estimate, Summary
from tvjax.report.words import arms, number


def verdict(ratio: Estimate) -> str:
    """``usable``, ``weak`` or ``no`` vector, by its TVP risk relative to the prior's (not finite: ``no``)."""
    if ratio.high <= USABLE:
        return "usable"
    return "weak" if ratio.high < 1 else "no"


def headline(summary: Summary) -> list[str]:
    """The run in a few sentences: did a vector emerge by itself, what did TVP-loss reach, and at what cost."""
    groups = arms(summary.members)
    plain = [index for index, member in enumerate(summary.members) if member.tvp_weight == 0]
    trained = {name: indices for name, indices in groups.items() if indices != plain}
    sentences = []
    if summary.layout != "xzy":
        sentences.append(
            f"In layout {summary.layout} the vector takes the place of the query itself, so TVP cannot work, however"
            " the model is trained (see the notes)."
        )
    sentences.append(_emergence(summary, plain) if plain else "No member was trained with the ICL loss alone.")
    ranked = sorted(trained.items(), key=lambda item: _median_ratio(summary, item[1]))
    if not ranked:
        return [*sentences, "No member was trained with TVP-loss."]
    if len(ranked) > 2:
        made = [name for name, indices in ranked if all(kind == "usable" for kind in _kinds(summary, indices))]
        sentences.append(
            f"Of {len(ranked)} settings with TVP-loss, {len(made)} made a usable vector at their layer in every seed;"
            " the two best follow."
        )
    for name, indices in ranked[:2]:
        sentences.append(_reached(summary, name, indices))
        if plain:
            sentences.append(_cost(summary, plain, indices))
    return sentences


def by_setting(summary: Summary, values: Sequence[float | np.ndarray]) -> str:
    """One value a member, said by setting: ``ICL loss only: 0.016 to 0.024; ...`` (from the least seed to the most)."""
    return "; ".join(
        f"{name}: {_range([float(values[index]) for index in indices])}"
        for name, indices in arms(summary.members).items()
    )


def robustness(summary: Summary) -> str:
    """In how many shifts each member stays better than the prior, as one sentence."""
    parts = []
    for name, indices in arms(summary.members).items():
        counts = [
            (
                sum(bool(icl_ratio(shift, index).high < 1) for shift in summary.shifts),
                sum(bool(tvp_ratio(shift, index, summary.members[index]).high < 1) for shift in summary.shifts),
            )
            for index in indices
        ]
        icl, tvp = (_range([count[column] for count in counts]) for column in (0, 1))
        parts.append(f"{name}: ICL in {icl}, TVP in {tvp}")
    return f"Of {len(summary.shifts)} shifts, better than the prior (whole interval): {'; '.join(parts)}."


def _emergence(summary: Summary, plain: Sequence[int]) -> str:
    ratios = [_ratio(summary, index, summary.members[index].best_layer) for index in plain]
    kinds = [verdict(ratio) for ratio in ratios]
    if len(plain) > 1:
        return (
            f"With the ICL loss alone, a usable task vector emerged in {kinds.count('usable')} of {len(plain)} seeds"
            f" and a weak one in {kinds.count('weak')}: at each one's best layer, TVP risk is"
            f" {_range([float(ratio.value) for ratio in ratios])}\N{MULTIPLICATION SIGN} the prior's."
        )
    found = {
        "usable": "a usable task vector emerged",
        "weak": "only a weak task vector emerged",
        "no": "no usable task vector emerged",
    }[kinds[0]]
    layer = summary.members[plain[0]].best_layer
    return f"With the ICL loss alone, {found}: at its best layer ({layer}), {_tvp(summary, plain[0], layer)}."


def _reached(summary: Summary, name: str, indices: Sequence[int]) -> str:
    kinds = _kinds(summary, indices)
    layer = summary.members[indices[0]].prescribed_layer
    if len(indices) > 1:
        values = [float(_ratio(summary, index, layer).value) for index in indices]
        return (
            f"{name} made a usable vector there in {kinds.count('usable')} of {len(indices)} seeds: TVP risk"
            f" {_range(values)}\N{MULTIPLICATION SIGN} the prior's."
        )
    made = {
        "usable": "made a usable vector there",
        "weak": "made only a weak vector there",
        "no": "made no vector there",
    }
    return f"{name} {made[kinds[0]]}: {_tvp(summary, indices[0], layer)}."


def _tvp(summary: Summary, index: int, layer: int) -> str:
    """``TVP risk is 0.128, 0.125 x the prior's (90% interval 0.119 to 0.132), with accuracy 0.87``."""
    ratio = _ratio(summary, index, layer)
    text = (
        f"TVP risk is {number(summary.base.risk.scores[index].tvp[layer].value)}, which is {number(ratio.value)}"
        f"\N{MULTIPLICATION SIGN} the prior's (90% interval {number(ratio.low)} to {number(ratio.high)})"
    )
    if summary.base.accuracy:
        text += f", with accuracy {number(summary.base.accuracy.scores[index].tvp[layer].value)}"
    return text


def _cost(summary: Summary, plain: Sequence[int], indices: Sequence[int]) -> str:
    """ICL risk at K with TVP-loss against without it. Clear only where intervals (several seeds: ranges) part."""
    base, with_it = _icl(summary, plain), _icl(summary, indices)
    last = f"ICL risk at K = {summary.base.num_demonstrations}"
    values = f"from {number(base.value)} to {number(with_it.value)}"
    if with_it.low > base.high:
        return f"It cost ICL: {last} rose {values} ({number(with_it.value / base.value)}\N{MULTIPLICATION SIGN})."
    if with_it.high < base.low:
        return f"It helped ICL: {last} fell {values} ({number(with_it.value / base.value)}\N{MULTIPLICATION SIGN})."
    spread = "90% intervals" if len(plain) == len(indices) == 1 else "ranges over seeds"
    return f"It made no clear difference to ICL: {last} went {values}, and the {spread} overlap."


def _icl(summary: Summary, indices: Sequence[int]) -> Estimate:
    """ICL risk at K: of one member with its interval, of several their median with their range."""
    entries = [summary.base.risk.scores[index].icl[summary.base.num_demonstrations] for index in indices]
    if len(entries) == 1:
        return entries[0]
    values = np.array([entry.value for entry in entries])
    return Estimate(np.median(values), values.min(), values.max())


def _ratio(summary: Summary, index: int, layer: int) -> Estimate:
    return summary.base.risk.scores[index].tvp[layer].over(float(summary.base.risk.prior.value))


def _kinds(summary: Summary, indices: Sequence[int]) -> list[str]:
    return [verdict(_ratio(summary, index, summary.members[index].prescribed_layer)) for index in indices]


def _median_ratio(summary: Summary, indices: Sequence[int]) -> float:
    ratios = [float(_ratio(summary, index, summary.members[index].prescribed_layer).value) for index in indices]
    return float(np.median(ratios)) if np.isfinite(ratios).all() else np.inf


def _range(values: Sequence[float]) -> str:
    """``3``, or ``2 to 4`` where they differ."""
    low, high = (str(value) if isinstance(value, int) else number(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
