"""What the numbers say, in sentences that turn with them: for the headline and beside the figures.

A vector is called *usable* when prompting with it, zero-shot, has at most half of the prior's risk, *weak* when it only
beats the prior; the upper end of the 90% interval must do so. Of what has not learned the task that is said first, and
no more (`evals.learned`). These thresholds are ours.
"""

from collections.abc import Sequence

import numpy as np

from tvjax.evals.learned import standing
from tvjax.experiments.tvp.report.members import arms
from tvjax.experiments.tvp.report.shifts import icl_ratio, tvp_ratio
from tvjax.experiments.tvp.report.summary import Summary
from tvjax.report.words import UNLEARNED, Estimate, number


def verdict(ratio: Estimate) -> str:
    """``usable``, ``weak`` or ``no`` vector, by its TVP risk relative to the prior's (not finite: ``no``)."""
    return {"good": "usable", "weak": "weak", "nothing": "no"}[standing(float(ratio.high))]


def headline(summary: Summary) -> list[str]:
    """The run in a few sentences: what failed, did a vector emerge by itself, what did TVP-loss reach, at what cost."""
    groups = arms(summary.members)
    plain = [index for index, member in enumerate(summary.members) if member.tvp_weight == 0]
    trained = {name: indices for name, indices in groups.items() if indices != plain}
    first = cautions(summary)
    if not any(_readable(summary, index) for index in range(len(summary.members))):
        return [
            *first,
            "There is nothing to read of task vectors here, and nothing to compare.",
        ]
    ranked = sorted(trained.items(), key=lambda item: _median_ratio(summary, item[1]))
    if len(ranked) > 2:
        short = [name for name, indices in ranked if {*_kinds(summary, indices)} != {"usable"}]
        listed = f": {'; '.join(short)}" if short else ""
        first.append(
            f"Of {len(ranked)} settings with TVP-loss, {len(short)} did not make a usable vector at their layer in"
            f" every seed{listed}; the two best follow."
        )
    failed: list[str] = []
    reached: list[str] = []
    for name, indices in ranked[:2]:
        sentences = [] if summary.query_replaced else [_reached(summary, name, indices)]
        if plain:
            sentences.append(_cost(summary, plain, indices))
        (reached if "usable" in _kinds(summary, indices) else failed).extend(sentences)
    alone = [_emergence(summary, plain) if plain else "No member was trained with the ICL loss alone."]
    if summary.query_replaced and plain:
        alone = []
    if not ranked:
        return [*first, *alone, "No member was trained with TVP-loss."]
    return [*first, *failed, *alone, *reached]


def cautions(summary: Summary) -> list[str]:
    """The sentences before any number: members that are one model, tasks that were not learned, what cannot work."""
    sentences = [
        f"{' and '.join(names)} ended as one model, bit for bit: do not compare them." for names in summary.identical
    ]
    sentences += [
        text for name, indices in arms(summary.members).items() if (text := _unlearned(summary, name, indices))
    ]
    if summary.query_replaced:
        sentences.append(
            f"In layout {summary.layout} the vector takes the place of the query itself, so TVP cannot work, however"
            " the model is trained (see the notes)."
        )
    return sentences


def _unlearned(summary: Summary, name: str, indices: Sequence[int]) -> str:
    """That a setting has learned nothing of the task, or little, or not in every seed; "" if it has."""
    shares = [summary.icl_share(index) for index in indices]
    stands = [standing(float(share.high)) for share in shares]
    if set(stands) == {"good"}:
        return ""
    last, times = f"ICL risk at K = {summary.base.num_demonstrations}", "\N{MULTIPLICATION SIGN} the prior's"
    if len(indices) > 1:
        values = f"{last} is {_range([float(share.value) for share in shares])}{times}"
        little = f", and little of it in {stands.count('weak')}" if "weak" in stands else ""
        return f"{name} learned the task in {stands.count('good')} of {len(indices)} seeds{little}: {values}."
    what = "has learned little of the task" if stands == ["weak"] else "has not learned the task"
    share = shares[0]
    interval = f"90% interval {number(share.low)} to {number(share.high)}"
    return f"{name} {what}: {last} is {number(share.value)}{times} ({interval})."


def _readable(summary: Summary, index: int) -> bool:
    """Whether a member has learned the task, or holds a vector that works: otherwise the report says nothing of it."""
    member = summary.members[index]
    return summary.learned(index) or any(summary.works(index, n) for n in (member.best_layer, member.prescribed_layer))


def by_setting(summary: Summary, values: Sequence[float | np.ndarray]) -> str:
    """One value a member, grouped by setting.

    ``ICL loss only: 0.016 to 0.024; ...`` (from the least seed to the most).
    """
    parts = []
    for name, indices in arms(summary.members).items():
        learned = sum(map(summary.learned, indices))
        some = f"task learned in {learned} of {len(indices)} seeds" if learned else UNLEARNED
        about = "" if learned == len(indices) else f" ({some})"
        parts.append(f"{name}{about}: {_range([float(values[index]) for index in indices])}")
    return "; ".join(parts)


def robustness(summary: Summary) -> str:
    """In how many shifts each member stays better than the prior, as one sentence."""
    parts = []
    for name, every in arms(summary.members).items():
        indices = [index for index in every if summary.learned(index)]
        if not indices:
            parts.append(f"{name}: nothing to read, {UNLEARNED}")
            continue
        counts = [
            (
                sum(bool(icl_ratio(shift, index).high < 1) for shift in summary.shifts),
                sum(bool(tvp_ratio(shift, index, summary.members[index]).high < 1) for shift in summary.shifts),
            )
            for index in indices
        ]
        icl, tvp = (_range([count[column] for count in counts]) for column in (0, 1))
        vector = any(summary.works(index, summary.members[index].prescribed_layer) for index in indices)
        parts.append(f"{name}: ICL in {icl}, {f'TVP in {tvp}' if vector else 'no vector'}")
    return f"Of {len(summary.shifts)} shifts, better than the prior (whole interval): {'; '.join(parts)}."


def _emergence(summary: Summary, plain: Sequence[int]) -> str:
    read = [index for index in plain if _readable(summary, index)]
    if not read:
        return f"Whether a vector emerges with the ICL loss alone cannot be said: {UNLEARNED}."
    ratios = [summary.tvp_share(index, summary.members[index].best_layer) for index in read]
    kinds = [verdict(ratio) for ratio in ratios]
    if len(plain) > 1:
        learned = "" if len(read) == len(plain) else " that learned the task"
        return (
            f"With the ICL loss alone, a usable task vector emerged in {kinds.count('usable')} of {len(read)} seeds"
            f"{learned} and a weak one in {kinds.count('weak')}: the lowest TVP risk of each one's inner layers is"
            f" {_range([float(ratio.value) for ratio in ratios])}\N{MULTIPLICATION SIGN} the prior's."
        )
    verdicts = {
        "usable": "a usable task vector emerged",
        "weak": "only a weak task vector emerged",
        "no": "no usable task vector emerged",
    }[kinds[0]]
    layer = summary.members[plain[0]].best_layer
    where = "of all inner layers the lowest" if kinds == ["no"] else f"at its best layer ({layer}),"
    return f"With the ICL loss alone, {verdicts}: {where} {_tvp(summary, plain[0], layer)}."


def _reached(summary: Summary, name: str, indices: Sequence[int]) -> str:
    layer = summary.members[indices[0]].prescribed_layer
    read = [index for index in indices if summary.learned(index) or summary.works(index, layer)]
    if not read:
        return f"Whether {name} makes a vector there cannot be said: {UNLEARNED}."
    kinds = _kinds(summary, read)
    if len(indices) > 1:
        values = [float(summary.tvp_share(index, layer).value) for index in read]
        learned = "" if len(read) == len(indices) else " that learned the task"
        return (
            f"{name} made a usable vector there in {kinds.count('usable')} of {len(read)} seeds{learned}: TVP risk"
            f" {_range(values)}\N{MULTIPLICATION SIGN} the prior's."
        )
    verdicts = {
        "usable": "made a usable vector there",
        "weak": "made only a weak vector there",
        "no": "made no vector there",
    }
    return f"{name} {verdicts[kinds[0]]}: {_tvp(summary, indices[0], layer)}."


def _tvp(summary: Summary, index: int, layer: int) -> str:
    """``TVP risk is 0.128, 0.125 x the prior's (90% interval 0.119 to 0.132), with accuracy 0.87``."""
    ratio = summary.tvp_share(index, layer)
    text = (
        f"TVP risk is {number(summary.base.risk.scores[index].tvp[layer].value)}, which is {number(ratio.value)}"
        f"\N{MULTIPLICATION SIGN} the prior's (90% interval {number(ratio.low)} to {number(ratio.high)})"
    )
    if summary.base.accuracy:
        text += f", with accuracy {number(summary.base.accuracy.scores[index].tvp[layer].value)}"
    return text


def _cost(summary: Summary, plain: Sequence[int], indices: Sequence[int]) -> str:
    """ICL risk at K with TVP-loss against without it. Clear only if intervals (several seeds: ranges) part."""
    learned = [sum(map(summary.learned, arm)) for arm in (indices, plain)]
    if any({summary.members[index].name for index in (*plain, *indices)} <= {*names} for names in summary.identical):
        return "They are one model, and so there is no cost to tell."
    if learned == [0, 0]:
        return "ICL is not compared: neither has learned the task."
    if learned != [len(indices), len(plain)]:
        counts = [f"{count} of {len(arm)} seeds" for count, arm in zip(learned, (indices, plain), strict=True)]
        if len(indices) == len(plain) == 1:
            return f"ICL is not compared: {'without' if learned[0] else 'with'} TVP-loss the task was not learned."
        return f"ICL is not compared: the task was learned in {counts[0]} with it and in {counts[1]} without it."
    base, with_it = _icl(summary, plain), _icl(summary, indices)
    last = f"ICL risk at K = {summary.base.num_demonstrations}"
    values = f"from {number(base.value)} to {number(with_it.value)}"
    times = f" ({number(with_it.value / base.value)}\N{MULTIPLICATION SIGN})" if base.value else ""
    if with_it.low > base.high:
        return f"It cost ICL: {last} rose {values}{times}."
    if with_it.high < base.low:
        return f"It helped ICL: {last} fell {values}{times}."
    spread = "90% intervals" if len(plain) == len(indices) == 1 else "ranges over seeds"
    return f"It made no clear difference to ICL: {last} went {values}, and the {spread} overlap."


def _icl(summary: Summary, indices: Sequence[int]) -> Estimate:
    """ICL risk at K: of one member with its interval, of several their median with their range."""
    entries = [summary.base.risk.scores[index].icl[summary.base.num_demonstrations] for index in indices]
    if len(entries) == 1:
        return entries[0]
    values = np.array([entry.value for entry in entries])
    return Estimate(np.median(values), values.min(), values.max())


def _kinds(summary: Summary, indices: Sequence[int]) -> list[str]:
    return [verdict(summary.tvp_share(index, summary.members[index].prescribed_layer)) for index in indices]


def _median_ratio(summary: Summary, indices: Sequence[int]) -> float:
    ratios = [float(summary.tvp_share(i, summary.members[i].prescribed_layer).value) for i in indices]
    return float(np.median(ratios)) if np.isfinite(ratios).all() else np.inf


def _range(values: Sequence[float]) -> str:
    """``3``, or ``2 to 4`` if they differ."""
    low, high = (str(value) if isinstance(value, int) else number(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
