"""The contents of `eval/summary.json` of a TVP run, as checked values.

Every number of an evaluation is an `Estimate`: the value and its 90% bootstrap interval over prompts. Numbers are
grouped by *condition* (the prompts of training, or one shift) and by *measure* (risk; for token tasks accuracy too).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvjax.errors import UserError
from tvjax.evals.learned import ROUNDING, standing
from tvjax.report.words import Estimate


@dataclass(frozen=True)
class Scores:
    """One member under one condition.

    icl: by number of demonstrations, [K+1].
    tvp: by layer, [L+1].
    """

    icl: Estimate
    tvp: Estimate
    zero_shot: Estimate


@dataclass(frozen=True)
class Baseline:
    """An estimator that sees the demonstrations alone.

    icl: by number of demonstrations, [K+1]; not-a-number for a number that was not tried.
    num_prompts: how many prompts it was tried on, the first prompts of the evaluation.
    """

    icl: Estimate
    num_prompts: int


@dataclass(frozen=True)
class Measure:
    """Risk, or accuracy, under one condition.

    oracle: by number of demonstrations, [K+1]; None: the task has no oracle.
    scores: one a member.
    baselines: by name; only the condition of training has baselines.
    """

    prior: Estimate
    oracle: Estimate | None
    scores: tuple[Scores, ...]
    baselines: Mapping[str, Baseline]


@dataclass(frozen=True)
class Condition:
    """The prompts of an evaluation: as in training, or under one shift."""

    name: str
    summary: str
    num_demonstrations: int
    risk: Measure
    accuracy: Measure | None


Estimates = Mapping[str, Estimate]


@dataclass(frozen=True)
class Probes:
    """The probes of one member's task vectors. * is risk or accuracy; a probe that a family does not have is empty.

    read: by reader (linear, neighbours), the share of the variance of all task parameters that it reads, [L+1].
    entanglement: variance over dummy queries over variance over tasks, [L+1].
    counts: numbers of dummy queries.
    averaging: *, [counts, L+1].
    swap: vector_* and prompt_*, [L+1], and unedited_*.
    shares: shares of the first vector in a mix.
    superposition: first_*, second_*, mixture_risk, each by `shares`.
    rank: by layer (prescribed, best): captured [R], participation, true_participation and power.
    operands: by the number of different tokens in the prompts of a vector, margins and accuracies, [L+1].
    additivity: by the combination of the vectors of single demonstrations, what it has of the whole vector, [L+1].
    """

    num_prompts: int
    read: Estimates
    entanglement: Estimate
    counts: tuple[int, ...]
    averaging: Estimates
    swap: Estimates
    shares: tuple[float, ...]
    superposition: Estimates
    rank: Mapping[str, Estimates]
    operands: Mapping[int, Estimates]
    additivity: Mapping[str, Estimates]


@dataclass(frozen=True)
class Member:
    """One of the models trained side by side. Layers: 0 is the embedding, l the residual stream after block l.

    control: whether its extra queries were answered from demonstrations, not from a vector.
    probes: None: there are none.
    """

    name: str
    seed: int
    tvp_weight: float
    prescribed_layer: int
    best_layer: int
    control: bool = False
    probes: Probes | None = None

    @property
    def prescribes(self) -> bool:
        """Whether TVP-loss trained a vector at its prescribed layer."""
        return bool(self.tvp_weight) and not self.control


@dataclass(frozen=True)
class Summary:
    """The whole evaluation. `base` is the condition of training; `base` and `shifts` list members in one order.

    edit: how a vector is written, "replace" or "add".
    identical: names of members that are one model.
    """

    task: str
    layout: str
    num_layers: int
    num_prompts: int
    risk_unit: str
    members: tuple[Member, ...]
    base: Condition
    shifts: tuple[Condition, ...]
    notes: tuple[str, ...]
    edit: str = "replace"
    identical: tuple[tuple[str, ...], ...] = ()

    def icl_share(self, index: int) -> Estimate:
        """Member `index`'s ICL risk at all demonstrations over the prior's."""
        return self.base.risk.scores[index].icl[self.base.num_demonstrations].over(float(self.base.risk.prior.value))

    def tvp_share(self, index: int, layer: int) -> Estimate:
        """Member `index`'s TVP risk at `layer` over the prior's."""
        return self.base.risk.scores[index].tvp[layer].over(float(self.base.risk.prior.value))

    def learned(self, index: int) -> bool:
        """Whether member `index` has learned the task at all: ICL risk clearly below the prior's (`evals.learned`)."""
        return standing(float(self.icl_share(index).high)) != "nothing"

    def works(self, index: int, layer: int) -> bool:
        """Whether a vector at `layer` tells anything of the task: TVP risk is clearly below the prior's."""
        return standing(float(self.tvp_share(index, layer).high)) != "nothing"

    @property
    def query_replaced(self) -> bool:
        """Whether a vector takes the place of the query itself, so that TVP fails by construction."""
        return self.layout != "xzy" and self.edit == "replace"


def parse_summary(tree: Mapping[str, Any], where: str = "eval/summary.json") -> Summary:
    """Check `tree`, the content of ``eval/summary.json``. Raises UserError that names `where` and the field."""
    try:
        return _summary(tree)
    except _Broken as broken:
        raise UserError(f"{where}: {broken}; run --mode=eval again to write it anew") from None


TWINS = ("identical_members", list)


class _Broken(Exception):
    """A field that is missing or of the wrong kind; the message names it."""


def _summary(tree: Mapping[str, Any]) -> Summary:
    if not isinstance(tree, Mapping):
        raise _Broken("not a JSON object")
    layers = _get(tree, "num_layers", int)
    members = tuple(_member(entry, layers) for entry in _get(tree, "members", list))
    if not members:
        raise _Broken("members: empty")
    if len({member.name for member in members}) < len(members):
        raise _Broken("members: two have the same name")
    shifts = _get(tree, "shifts", dict)
    return Summary(
        task=_get(tree, "task", str),
        layout=_get(tree, "layout", str),
        num_layers=layers,
        num_prompts=_get(tree, "num_prompts", int),
        risk_unit=_get(tree, "risk_unit", str),
        members=members,
        base=_condition(tree, "", "as in training", layers, members),
        shifts=tuple(_condition(entry, f"shifts.{name}.", name, layers, members) for name, entry in shifts.items()),
        notes=tuple(str(note) for note in tree.get("notes", [])),
        edit=str(tree.get("edit", "replace")),
        identical=tuple(tuple(map(str, names)) for names in _get({"identical_members": []} | dict(tree), *TWINS)),
    )


def _member(tree: Mapping[str, Any], layers: int) -> Member:
    if not isinstance(tree, Mapping):
        raise _Broken("members: not a list of objects")
    member = Member(
        name=_get(tree, "name", str),
        seed=_get(tree, "seed", int),
        tvp_weight=float(_get(tree, "tvp_weight", (int, float))),
        prescribed_layer=_get(tree, "prescribed_layer", int),
        best_layer=_get(tree, "best_layer", int),
        control=tree.get("answered_from") == "demonstrations",
        probes=_probes(tree, layers),
    )
    for field in ("prescribed_layer", "best_layer"):
        if not 0 <= getattr(member, field) <= layers:
            raise _Broken(f"members.{member.name}.{field}: {getattr(member, field)} is not a layer 0..{layers}")
    return member


def _probes(member: Mapping[str, Any], layers: int) -> Probes | None:
    """The probes of a member; None: an old run, or a run without probes."""
    if member.get("probes") is None:
        return None
    try:
        tree = _get(member, "probes", dict)
        averaging, decodability = _get(tree, "averaging", dict), _get(tree, "decodability", dict)
        swap, mixes, rank, operands, sums = (
            _get({name: {}} | tree, name, dict) for name in ("swap", "superposition", "rank", "operands", "additivity")
        )
        counts, shares = (
            tuple(_get({name: []} | part, name, list)) for part, name in ((averaging, "counts"), (mixes, "shares"))
        )
        return Probes(
            num_prompts=_get(tree, "num_prompts", int),
            read={reader: _estimate(_whole(parts), "explained", layers + 1) for reader, parts in decodability.items()},
            entanglement=_estimate(_get(tree, "entanglement", dict), "ratio", layers + 1),
            counts=counts,
            averaging=_estimates(averaging, len(counts), layers + 1),
            swap=_estimates({n: v for n, v in swap.items() if not n.startswith("unedited")}, layers + 1)
            | _estimates({n: v for n, v in swap.items() if n.startswith("unedited")}),
            shares=shares,
            superposition=_estimates(mixes, len(shares)),
            rank={layer: _rank(_get(rank, layer, dict)) for layer in rank},
            operands={_count(pool): _estimates(_get(operands, pool, dict), layers + 1) for pool in operands},
            additivity={name: _estimates(_get(sums, name, dict), layers + 1) for name in sums},
        )
    except _Broken as broken:
        raise _Broken(f"members.{member['name']}.probes: {broken}") from None


def _whole(parts: Any) -> Mapping[str, Any]:
    """The share that is read of all parameters together, or of the only one."""
    if not isinstance(parts, Mapping) or not parts:
        raise _Broken("decodability: not by parameter")
    return _get({"all": next(iter(parts.values()))} | dict(parts), "all", dict)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise _Broken(f"operands: {text!r} is no number of tokens")
    return int(text)


def _rank(tree: Mapping[str, Any]) -> Estimates:
    directions = len(_get(tree, "captured", list))
    one = {name: _estimate(tree, name) for name in ("participation", "true_participation", "power")}
    return {"captured": _estimate(tree, "captured", directions), **one}


def _estimates(tree: Mapping[str, Any], *shape: int) -> dict[str, Estimate]:
    """Every field of `tree` that has a ``_ci`` sibling."""
    return {name: _estimate(tree, name, *shape) for name in tree if f"{name}_ci" in tree}


def _condition(tree: Mapping[str, Any], prefix: str, name: str, layers: int, members: tuple[Member, ...]) -> Condition:
    if not isinstance(tree, Mapping):
        raise _Broken(f"{prefix}: not an object")
    try:
        demonstrations = _get(tree, "num_demonstrations", int)
        entries = {entry.get("name"): entry for entry in _get(tree, "members", list)}
        if set(entries) != {member.name for member in members}:
            raise _Broken("members: not those of the training condition")
        ordered = [entries[member.name] for member in members]
        measures = [
            _measure(tree, ordered, word, demonstrations, layers) if f"prior_{word}" in tree else None
            for word in ("risk", "accuracy")
        ]
    except _Broken as broken:
        raise _Broken(f"{prefix}{broken}") from None
    if measures[0] is None:
        raise _Broken(f"{prefix}prior_risk: missing")
    return Condition(name, str(tree.get("summary", name)), demonstrations, measures[0], measures[1])


def _measure(
    tree: Mapping[str, Any], members: list[Mapping[str, Any]], word: str, demonstrations: int, layers: int
) -> Measure:
    oracle = None if tree.get(f"oracle_{word}") is None else _estimate(tree, f"oracle_{word}", demonstrations + 1)
    scores = []
    for member in members:
        try:
            scores.append(
                Scores(
                    icl=_estimate(member, f"icl_{word}", demonstrations + 1),
                    tvp=_estimate(member, f"tvp_{word}_by_layer", layers + 1),
                    zero_shot=_estimate(member, f"zero_shot_{word}"),
                )
            )
        except _Broken as broken:
            raise _Broken(f"members.{member['name']}.{broken}") from None
    prior, baselines = _estimate(tree, f"prior_{word}"), _baselines(tree, word, demonstrations)
    if word == "accuracy":
        return Measure(prior, oracle, tuple(scores), baselines)
    least = ROUNDING * float(prior.value)
    return Measure(
        prior,
        oracle and oracle.rounded(least),
        tuple(Scores(s.icl.rounded(least), s.tvp.rounded(least), s.zero_shot.rounded(least)) for s in scores),
        {name: Baseline(b.icl.rounded(least), b.num_prompts) for name, b in baselines.items()},
    )


def _baselines(tree: Mapping[str, Any], word: str, demonstrations: int) -> dict[str, Baseline]:
    """The baselines of a condition; shifts and old runs have none."""
    baselines = {}
    for name, entry in _get({"baselines": {}} | dict(tree), "baselines", dict).items():
        try:
            baselines[name] = Baseline(_estimate(entry, word, demonstrations + 1), _get(entry, "num_prompts", int))
        except (_Broken, TypeError) as broken:
            raise _Broken(f"baselines.{name}.{broken}") from None
    return baselines


def _estimate(tree: Mapping[str, Any], field: str, *shape: int) -> Estimate:
    """Read `field` and its ``_ci`` sibling; null stands for not-a-number. No `shape` means one number."""
    value, interval = _array(tree, field, shape), _array(tree, f"{field}_ci", (*shape, 2))
    return Estimate(value, interval[..., 0], interval[..., 1])


def _array(tree: Mapping[str, Any], field: str, shape: tuple[int, ...]) -> np.ndarray:
    if field not in tree:
        raise _Broken(f"{field}: missing")
    try:
        array = np.array(tree[field], dtype=np.float64)
    except (TypeError, ValueError):
        raise _Broken(f"{field}: not numbers of shape {shape}") from None
    if array.shape != shape:
        raise _Broken(f"{field}: shape {array.shape}, expected {shape}")
    return array


def _get(tree: Mapping[str, Any], field: str, kind: type | tuple[type, ...]) -> Any:
    if field not in tree:
        raise _Broken(f"{field}: missing")
    if not isinstance(tree[field], kind) or isinstance(tree[field], bool):
        raise _Broken(f"{field}: {tree[field]!r} is not of the right type")
    return tree[field]
