"""What an emergence study answers: numbers over seeds from its populations' scores, and which claims they support.

Risks are relative to the prior's, and those of two arms are compared seed by seed on the same prompts. A mean over
seeds is geometric, its interval Student's t on the logarithms; a claim is supported only if such an interval lies,
whole, on its side, so that one seed supports nothing. A claim that some condition shows asks all of them, so that each
has an interval wide enough for all to hold together (Bonferroni). What nothing was run for, or what no model under
test has learned, is not tested: that is neither support nor its absence. The thresholds are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tvjax.evals.learned import USABLE
from tvjax.evals.statistics import LEVEL, over_seeds

LEAST = 1e-12
"""What a ratio is never taken to be below: a risk of 0 has no logarithm."""
Tree = dict[str, Any]


def ratio(values: Sequence[float], *, level: float = LEVEL) -> Tree:
    """One number a seed as ``{"mean", "ci", "values"}``; `ci` is None for one seed."""
    mean, interval = over_seeds([max(value, LEAST) for value in values], level=level)
    return {"mean": mean, "ci": interval, "values": [float(value) for value in values]}


def surely_below(entry: Mapping[str, Any], limit: float) -> bool:
    """Whether the whole interval lies below `limit`."""
    return entry["ci"] is not None and entry["ci"][1] < limit


def surely_above(entry: Mapping[str, Any], limit: float) -> bool:
    """Whether the whole interval lies above `limit`."""
    return entry["ci"] is not None and entry["ci"][0] > limit


def over(risk: float, other: float) -> float:
    """A risk over another on the same prompts; 1 if both are 0."""
    return max(risk, LEAST) / max(other, LEAST)


def answers(summary: Mapping[str, Any]) -> Tree:
    """All that the study's page says, from the populations of its summary."""
    arms = _arms(summary)
    plain = {key: members for (key, arm), members in arms.items() if arm == "icl"}
    results = {
        "emergence": [_emergence(members) for members in plain.values()],
        "trained": [
            _trained(same, plain[key])
            for (key, arm), members in arms.items()
            if arm != "icl" and key in plain
            for same in _by_setting(members)
        ],
        "cost": _cost(summary),
        "twins": {p["name"]: p["identical_members"] for p in summary["populations"] if p.get("identical_members")},
    }
    return {**results, "claims": claims(results)}


def _arms(summary: Mapping[str, Any]) -> dict[tuple[str, str], list[Tree]]:
    """The members of each condition and arm, with what their population knows of them."""
    arms: dict[tuple[str, str], list[Tree]] = {}
    for population in summary["populations"]:
        key = repr(sorted(population["differs_in"].items()))
        for number, member in enumerate(population["members"]):
            shifts = {
                name: {**shift["members"][number], "prior_risk": shift["prior_risk"]}
                for name, shift in population["shifts"].items()
            }
            known = {name: population[name] for name in ("differs_in", "arm", "prior_risk", "query_replaced")}
            arms.setdefault((key, population["arm"]), []).append({**member, **known, "shifts": shifts})
    return arms


def _by_setting(members: Sequence[Tree]) -> list[list[Tree]]:
    """Members that differ in their seed alone."""
    settings: dict[tuple[float, int], list[Tree]] = {}
    for member in members:
        settings.setdefault((member["tvp_weight"], member["prescribed_layer"]), []).append(member)
    return list(settings.values())


def _inner(member: Mapping[str, Any]) -> list[float]:
    """TVP risk at the layers at which a vector can be, 1..L-1, relative to the prior's."""
    return [risk / member["prior_risk"] for risk in member["tvp_risk_by_layer"][1:-1]]


def first_step(history: Mapping[str, Any], risks: Sequence[float | None], prior: float) -> int | None:
    """The first evaluation during training at which the risk is at most `USABLE` of the prior's."""
    steps = zip(history["step"], risks, strict=True)
    return next((step for step, risk in steps if risk is not None and risk <= USABLE * prior), None)


def _least(risks: Sequence[float | None]) -> float | None:
    """The least of those that are finite; None if none is."""
    return min((risk for risk in risks if risk is not None), default=None)


def _emergence(members: Sequence[Tree]) -> Tree:
    """What the ICL loss alone leads to under one condition."""
    best = [min(_inner(member)) for member in members]
    layers = range(len(members[0]["tvp_risk_by_layer"]))
    histories = [member["history"] for member in members]
    return {
        **{name: members[0][name] for name in ("differs_in", "query_replaced")},
        "icl": ratio([member["icl_risk"] / member["prior_risk"] for member in members]),
        "tvp_best": ratio(best),
        "best_layers": [1 + int(np.argmin(_inner(member))) for member in members],
        "tvp_by_layer": [ratio([m["tvp_risk_by_layer"][layer] / m["prior_risk"] for m in members]) for layer in layers],
        "usable": sum(value <= USABLE for value in best),
        "learned_from": [
            first_step(h, h["icl_risk"], m["prior_risk"]) for h, m in zip(histories, members, strict=True)
        ],
        "usable_from": [
            first_step(h, [_least(risks[1:-1]) for risks in h["tvp_risk_by_layer"]], m["prior_risk"])
            for h, m in zip(histories, members, strict=True)
        ],
    }


def _trained(members: Sequence[Tree], plain: Sequence[Tree]) -> Tree:
    """What a second loss changes: TVP-loss of one weight at one layer, or its control."""
    first = members[0]
    by_seed = {member["seed"]: member for member in plain}
    pairs = [(member, by_seed[member["seed"]]) for member in members]
    shares = [[member["icl_risk"] / member["prior_risk"] for member in arm] for arm in zip(*pairs, strict=True)]
    shifts = {
        name: [over(m["shifts"][name]["icl_risk"], p["shifts"][name]["icl_risk"]) for m, p in pairs]
        for name in first["shifts"]
    }
    entry = {name: first[name] for name in ("differs_in", "arm", "tvp_weight", "prescribed_layer")}
    entry |= {
        "num_layers": len(first["tvp_risk_by_layer"]) - 1,
        "tvp": ratio([member["tvp_risk"] / member["prior_risk"] for member in members]),
        "icl": ratio(shares[0]),
        "neither_learned": not any(value <= USABLE for arm in shares for value in arm),
        "at_best_layer": sum(1 + int(np.argmin(_inner(m))) == m["prescribed_layer"] for m in members),
        "icl_over_plain": ratio([over(m["icl_risk"], p["icl_risk"]) for m, p in pairs]),
        "usable_from": [
            first_step(
                m["history"], [r[m["prescribed_layer"]] for r in m["history"]["tvp_risk_by_layer"]], m["prior_risk"]
            )
            for m in members
        ],
        "shifts_over_plain": {name: ratio(values) for name, values in shifts.items()},
    }
    entry["failed_shifts"] = [name for name in shifts if not any(_beats_prior(arm, name) for arm in (members, plain))]
    if shifts:
        entry["all_shifts_over_plain"] = _mean_of(list(shifts.values()))
    working = [values for name, values in shifts.items() if name not in entry["failed_shifts"]]
    entry["working_shifts_over_plain"] = _mean_of(working) if working else None
    return entry


def _mean_of(shifts: Sequence[Sequence[float]]) -> Tree:
    """The geometric mean over shifts, seed by seed."""
    return ratio(np.exp(np.log(np.maximum(np.array(shifts), LEAST)).mean(0)).tolist())


def _beats_prior(members: Sequence[Tree], shift: str) -> bool:
    """Whether ICL risk under a shift is below the prior's: the whole interval over seeds, or that of the only one."""
    entry = ratio([m["shifts"][shift]["icl_risk"] / m["shifts"][shift]["prior_risk"] for m in members])
    return entry["ci"][1] < 1 if entry["ci"] else entry["mean"] < 1


def _cost(summary: Mapping[str, Any]) -> list[Tree]:
    """Seconds of a step of one member, for each condition and arm that is timed, and how many share a program."""
    times: dict[tuple[str, str], list[Tree]] = {}
    for population in summary["populations"]:
        times.setdefault((repr(sorted(population["differs_in"].items())), population["arm"]), []).append(population)
    rows = []
    for (key, arm), same in times.items():
        seconds = float(np.mean([population["seconds_per_step"] for population in same]))
        plain = times.get((key, "icl"), [])
        alone = float(np.mean([population["seconds_per_step"] for population in plain])) if plain else 0.0
        times_icl = seconds / alone if alone else None
        about = {"differs_in": same[0]["differs_in"], "arm": arm, "members": max(len(p["members"]) for p in same)}
        rows.append({**about, "seconds_per_step": seconds, "over_icl": times_icl})
    return rows


def claims(results: Mapping[str, Any]) -> Tree:
    """Which claims the numbers support, ``{name: {"supported": bool, "tested": bool, "why": str, ...}}``.

    why: the reason for which a claim is not tested; it is followed by what decides the claim.
    """
    conditions = [row for row in results["emergence"] if not row["query_replaced"]]
    learned = _learned(conditions)
    emerged = _somewhere(conditions, surely_below)
    without = _somewhere(learned, surely_above)
    base = [row for row in results["trained"] if row["arm"] == "tvp" and not row["differs_in"]]
    strong = [row for row in base if surely_below(row["tvp"], USABLE)]
    alone = _first(
        (not conditions, "no condition has a place for a vector"),
        (not learned, "under no condition was ICL learned in every seed"),
        (_one_seed(conditions, "tvp_best"), ONE_SEED),
    )
    reason = _first(
        (not base, "no model was trained with TVP-loss at the base"),
        (all(row["neither_learned"] for row in base), "neither with TVP-loss nor without it was ICL learned"),
        (_one_seed(base, "tvp"), ONE_SEED),
    )
    return {
        "emerges_alone": _claim(bool(emerged), alone, where=[row["differs_in"] for row in emerged]),
        "not_everywhere": _claim(bool(without), alone, where=[row["differs_in"] for row in without]),
        "made_where_prescribed": _claim(
            bool(base) and len(strong) == len(base),
            reason,
            layers=sorted({row["prescribed_layer"] for row in strong}),
            of=sorted({row["prescribed_layer"] for row in base}),
        ),
        "no_search": _no_search(strong, reason),
        **_on_shifts(results, strong, reason),
    }


ONE_SEED = "one seed: there is no interval over seeds"


def _claim(supported: bool, untested: str, **decides: Any) -> Tree:
    return {
        "supported": supported,
        "tested": supported or not untested,
        "why": "" if supported else untested,
        **decides,
    }


def _first(*reasons: tuple[bool, str]) -> str:
    """The first reason that holds; "" if none does."""
    return next((why for holds, why in reasons if holds), "")


def _one_seed(rows: Sequence[Tree], name: str) -> bool:
    """Whether no row has an interval."""
    return all(row[name]["ci"] is None for row in rows)


def _no_search(strong: Sequence[Tree], reason: str) -> Tree:
    """Whether the best layer of every member with a usable vector is the prescribed one."""
    members, of = sum(row["at_best_layer"] for row in strong), sum(len(row["tvp"]["values"]) for row in strong)
    one_layer = bool(strong) and strong[0]["num_layers"] <= 2
    untested = reason or _first(
        (not strong, "TVP-loss made no vector that is surely usable"), (one_layer, "there is one inner layer to find")
    )
    return _claim(not untested and members == of, untested, members=members, of=of)


def _on_shifts(results: Mapping[str, Any], strong: Sequence[Tree], reason: str) -> Tree:
    """Whether the deepest usable vector goes with better ICL on shifted prompts, and better than the control's."""
    deep = [row for row in strong if 2 * row["prescribed_layer"] >= row["num_layers"]]
    deepest = max(deep, key=lambda row: row["prescribed_layer"], default=None)
    shifted = deepest["all_shifts_over_plain"] if deepest and deepest["shifts_over_plain"] else None
    working = deepest["working_shifts_over_plain"] if deepest else None
    each = [e for n, e in deepest["shifts_over_plain"].items() if n not in deepest["failed_shifts"]] if deepest else []
    beyond = _beyond_control(results, deepest) if deepest and shifted else None
    untested = reason or _first(
        (deepest is None, "TVP-loss made no vector in the deeper half that is surely usable"),
        (shifted is None, "no shifts were measured"),
        (working is None, "under every shift both are no better than the prior"),
    )
    no_control = _first((beyond is None, "no control of this weight was trained and measured under shifts"))
    return {
        "deeper_helps_shifts": _claim(
            not untested and all(entry and surely_below(entry, 1) for entry in (shifted, working)),
            untested,
            layer=deepest["prescribed_layer"] if deepest else None,
            ratio=shifted,
            better=sum(surely_below(entry, 1) for entry in each),
            worse=sum(surely_above(entry, 1) for entry in each),
            failed=len(deepest["failed_shifts"]) if deepest else 0,
            of=len(deepest["shifts_over_plain"]) if deepest else 0,
        ),
        "more_than_its_compute": _claim(
            not untested and beyond is not None and surely_below(beyond, 1), untested or no_control, ratio=beyond
        ),
    }


def _somewhere(rows: Sequence[Tree], surely: Callable[[Mapping[str, Any], float], bool]) -> list[Tree]:
    """The conditions whose best vector is surely on one side of `USABLE`, by intervals that all hold together."""
    level = 1 - (1 - LEVEL) / max(len(rows), 1)
    return [row for row in rows if surely(ratio(row["tvp_best"]["values"], level=level), USABLE)]


def _beyond_control(results: Mapping[str, Any], row: Tree) -> Tree | None:
    """ICL risk under shifts of TVP-loss at the base over that of its control, of the same weight; None without one."""
    for other in results["trained"]:
        if other["arm"] == "control" and not other["differs_in"] and other["tvp_weight"] == row["tvp_weight"]:
            values = (entry["all_shifts_over_plain"]["values"] for entry in (row, other))
            return ratio([over(a, b) for a, b in zip(*values, strict=True)])
    return None


def _learned(rows: Sequence[Tree]) -> list[Tree]:
    """The conditions under which the model learned in context, in every seed."""
    return [row for row in rows if max(row["icl"]["values"]) <= USABLE]
