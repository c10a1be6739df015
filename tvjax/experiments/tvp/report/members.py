"""How members and baselines are written, the same in figures, page and terminal."""

from collections.abc import Sequence

from tvjax.experiments.tvp.report.summary import Member, Summary
from tvjax.report.words import UNLEARNED


def setting(member: Member) -> str:
    """What a member was trained on: ``ICL loss only``, or ``ICL + 1 x TVP-loss at layer 2``."""
    if member.tvp_weight == 0:
        return "ICL loss only"
    if member.control:
        return f"ICL + {member.tvp_weight:g} \N{MULTIPLICATION SIGN} extra queries, no vector (control)"
    return f"ICL + {member.tvp_weight:g} \N{MULTIPLICATION SIGN} TVP-loss at layer {member.prescribed_layer}"


def labels(members: Sequence[Member]) -> list[str]:
    """The full meaning of each member; with its seed, or else its name, if the setting alone is not unique."""
    settings = [setting(member) for member in members]
    seeded = [
        text if settings.count(text) == 1 else f"{text}, seed {member.seed}"
        for text, member in zip(settings, members, strict=True)
    ]
    return [
        text if seeded.count(text) == 1 else f"{text} ({member.name})"
        for text, member in zip(seeded, members, strict=True)
    ]


def titles(summary: Summary) -> list[str]:
    """The full meaning of each member, with a note if the member has not learned the task."""
    return [
        text if summary.learned(index) else f"{text} ({UNLEARNED})"
        for index, text in enumerate(labels(summary.members))
    ]


BASELINES = {
    "least_squares": "least squares in x",
    "nearest_neighbours": "3 nearest neighbours",
    "averaging": "averaging (mean of y x)",
    "greedy_tree": "greedy decision tree",
    "greedy_tree_of_signs": "greedy decision tree of the signs",
}


def baseline_label(summary: Summary, name: str) -> str:
    """``3 nearest neighbours``; ``lasso, penalty 0.1 (n = 128)`` for a baseline that was not tried on all prompts."""
    label = BASELINES.get(name, name.replace("_", " "))
    if name.startswith("lasso_"):
        label = f"lasso, penalty {name.removeprefix('lasso_')}"
    tried = summary.base.risk.baselines[name].num_prompts
    return f"{label} (n = {tried})" if tried < summary.num_prompts else label


def arms(members: Sequence[Member]) -> dict[str, list[int]]:
    """The settings in order of first appearance, each with the indices of its members (its seeds)."""
    groups: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        groups.setdefault(setting(member), []).append(index)
    return groups
