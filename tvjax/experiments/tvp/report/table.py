"""The results as plain text for the terminal: at most 80 columns, no colours."""

import textwrap
from collections.abc import Mapping
from typing import Any

from tvjax.experiments.tvp.report.findings import cautions
from tvjax.experiments.tvp.report.members import titles
from tvjax.experiments.tvp.report.probes import probes_of
from tvjax.experiments.tvp.report.shifts import icl_ratio, oracle_ratio, tvp_ratio
from tvjax.experiments.tvp.report.summary import Measure, Summary, parse_summary
from tvjax.report.words import Estimate, number, with_interval

WIDTH, NAME, SHIFT, GROUP = 80, 11, 20, 3


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The tables of `summary`, the parsed ``eval/summary.json``. Raises `UserError` if it is no such summary."""
    parsed = parse_summary(summary)
    base = parsed.base
    parts = [
        f"{parsed.task}, layout {parsed.layout}: {parsed.num_layers} layers, K = {base.num_demonstrations}"
        f" demonstrations, n = {parsed.num_prompts} prompts",
        *(f"{nth}  {name}" for nth, name in enumerate(titles(parsed), start=1)),
        *(line for text in cautions(parsed) for line in textwrap.wrap(text, WIDTH, subsequent_indent="   ")),
        "",
        f"risk: {parsed.risk_unit} [90% bootstrap interval]",
        *_measure(parsed, base.risk, "risk"),
    ]
    if base.accuracy:
        parts += ["", "accuracy: fraction correct [90% bootstrap interval]"]
        parts += _measure(parsed, base.accuracy, "acc.")
    if all(member.probes for member in parsed.members):
        parts += ["", *_probes(parsed)]
    if parsed.shifts:
        parts += ["", "shifts: risk / prior risk of the shift; ICL at K, TVP at l*; below 1 is better"]
        parts += _shifts(parsed)
    return [_clip(line.rstrip(), WIDTH) for line in parts]


def _measure(summary: Summary, measure: Measure, word: str) -> list[str]:
    last = summary.base.num_demonstrations
    lines = [_row("", f"ICL {word} at K", f"TVP {word} at l*", "best layer", "0-shot")]
    for nth, (member, scores) in enumerate(zip(summary.members, measure.scores, strict=True), start=1):
        name = f"{nth} {member.name}"
        if len(name) > NAME:
            lines.append(name)
            name = ""
        prescribed = f"{member.prescribed_layer}: {_tight(scores.tvp[member.prescribed_layer])}"
        best = f"{member.best_layer}: {number(scores.tvp[member.best_layer].value)}"
        if not summary.works(nth - 1, member.best_layer):
            best = "none"
        lines.append(_row(name, _tight(scores.icl[last]), prescribed, best, number(scores.zero_shot.value)))
    lines.append(_row("prior", _tight(measure.prior)))
    if measure.oracle:
        lines.append(_row("oracle", _tight(measure.oracle[last])))
    return lines


def _tight(estimate: Estimate) -> str:
    return with_interval(estimate, ",")


def _row(name: str, icl: str, tvp: str = "", best: str = "", zero_shot: str = "") -> str:
    return f"{name:<{NAME}} {icl:<22} {tvp:<26} {best:<10} {zero_shot:<6}"


def _probes(summary: Summary) -> list[str]:
    """One line a member, at its prescribed layer."""
    word = "accuracy" if summary.base.accuracy else "risk"
    lines = [
        f"probes at l*; A: the vector's task, B: that of the prompt it is put into ({word})",
        f"{'':<{NAME}} {'task read':<11} {'dummy/task':<12} {'swap: A':<9} {'swap: B':<9} {'mean of 8 dummies':<17}",
    ]
    for nth, (member, probes) in enumerate(zip(summary.members, probes_of(summary), strict=True), start=1):
        layer = member.prescribed_layer
        swap = [
            number(probes.swap[f"{kind}_{word}"][layer].value) if probes.swap else "-" for kind in ("vector", "prompt")
        ]
        cells = (number(probes.read["linear"][layer].value), number(probes.entanglement[layer].value), *swap)
        read, dummy, first, second = cells
        mean = f"{number(probes.averaging[word].value[0, layer])} -> {number(probes.averaging[word].value[-1, layer])}"
        name = _clip(f"{nth} {member.name}", NAME)
        lines.append(f"{name:<{NAME}} {read:<11} {dummy:<12} {first:<9} {second:<9} {mean:<17}")
    return lines


def _shifts(summary: Summary) -> list[str]:
    """A few members side by side, then the next few below."""
    lines: list[str] = []
    for start in range(0, len(summary.members), GROUP):
        members = list(enumerate(summary.members))[start : start + GROUP]
        heads = "".join(f"  {f'{index + 1} ICL':<7} {f'{index + 1} TVP':<7}" for index, _ in members)
        lines.append(f"{'':<{SHIFT}} {'oracle':<7}{heads}")
        for shift in (summary.base, *summary.shifts):
            oracle = oracle_ratio(shift)
            cells = "".join(
                f"  {number(icl_ratio(shift, index).value):<7} {number(tvp_ratio(shift, index, member).value):<7}"
                for index, member in members
            )
            lines.append(f"{_clip(shift.name, SHIFT):<{SHIFT}} {number(oracle.value) if oracle else '-':<7}{cells}")
    return lines


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 2] + ".."
