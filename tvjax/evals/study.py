"""What an emergence study answers: numbers over seeds from its populations' scores, and which claims they support.

Risks are relative to the prior's, and those of two arms are compared seed by seed on the same prompts. A mean over
seeds is geometric, its interval Student's t on the logarithms; a claim is supported only where such an interval lies,
whole, on its side, so that one seed supports nothing. The thresholds are ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tvjax.evals.statistics import over_seeds

USABLE = 0.5
"""A vector is usable where TVP risk is at most this share of the prior's, and ICL is learned where ICL risk is."""
LEAST = 1e-12
"""What a ratio is never taken to be below: a risk of 0 has no logarithm."""
Tree = dict[str, Any]


def ratio(values: Sequence[float]) -> Tree:
    """One number a seed as ``{"mean", "ci", "values"}``; `ci` is None for one seed."""
    mean, interval = over_seeds([max(value, LEAST) for value in values])
    return {"mean": mean, "ci": interval, "values": [float(value) for value in values]}


def surely_below(entry: Mapping[str, Any], limit: float) -> bool:
    """Whether the whole interval lies below `limit`."""
    return entry["ci"] is not None and entry["ci"][1] < limit


def surely_above(entry: Mapping[str, Any], limit: float) -> bool:
    """Whether the whole interval lies above `limit`."""
    return entry["ci"] is not None and entry["ci"][0] > limit


def answers(summary: Mapping[str, Any]) -> Tree:
    """All that the study's page says, from the populations of its summary."""
    arms = _arms(summary)
    plain = {key: members for (key, arm), members in arms.items() if arm == "icl"}
    found = {
        "emergence": [_emergence(members) for members in plain.values()],
        "trained": [
            _trained(same, plain[key])
            for (key, arm), members in arms.items()
            if arm != "icl"
            for same in _by_setting(members)
        ],
        "cost": _cost(summary),
    }
    return {**found, "claims": claims(found)}


def _arms(summary: Mapping[str, Any]) -> dict[tuple[str, str], list[Tree]]:
    """The members of each condition and arm, with what their population knows of them."""
    arms: dict[tuple[str, str], list[Tree]] = {}
    for population in summary["populations"]:
        key = repr(sorted(population["differs_in"].items()))
        for place, member in enumerate(population["members"]):
            shifts = {
                name: {**shift["members"][place], "prior_risk": shift["prior_risk"]}
                for name, shift in population["shifts"].items()
            }
            known = {name: population[name] for name in ("differs_in", "arm", "prior_risk")}
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


def first_step(history: Mapping[str, Any], risks: Sequence[float], prior: float) -> int | None:
    """The first evaluation during training at which the risk is at most `USABLE` of the prior's."""
    return next((step for step, risk in zip(history["step"], risks, strict=True) if risk <= USABLE * prior), None)


def _emergence(members: Sequence[Tree]) -> Tree:
    """What the ICL loss alone leads to under one condition."""
    best = [min(_inner(member)) for member in members]
    layers = range(len(members[0]["tvp_risk_by_layer"]))
    histories = [member["history"] for member in members]
    return {
        "differs_in": members[0]["differs_in"],
        "icl": ratio([member["icl_risk"] / member["prior_risk"] for member in members]),
        "tvp_best": ratio(best),
        "best_layers": [1 + int(np.argmin(_inner(member))) for member in members],
        "tvp_by_layer": [ratio([m["tvp_risk_by_layer"][layer] / m["prior_risk"] for m in members]) for layer in layers],
        "usable": sum(value <= USABLE for value in best),
        "learned_from": [
            first_step(h, h["icl_risk"], m["prior_risk"]) for h, m in zip(histories, members, strict=True)
        ],
        "usable_from": [
            first_step(h, [min(risks[1:-1]) for risks in h["tvp_risk_by_layer"]], m["prior_risk"])
            for h, m in zip(histories, members, strict=True)
        ],
    }


def _trained(members: Sequence[Tree], plain: Sequence[Tree]) -> Tree:
    """What a second loss changes: TVP-loss of one weight at one layer, or its control."""
    first = members[0]
    by_seed = {member["seed"]: member for member in plain}
    pairs = [(member, by_seed[member["seed"]]) for member in members]
    shifts = {
        name: [m["shifts"][name]["icl_risk"] / p["shifts"][name]["icl_risk"] for m, p in pairs]
        for name in first["shifts"]
    }
    entry = {name: first[name] for name in ("differs_in", "arm", "tvp_weight", "prescribed_layer")}
    entry |= {
        "tvp": ratio([member["tvp_risk"] / member["prior_risk"] for member in members]),
        "at_best_layer": sum(1 + int(np.argmin(_inner(m))) == m["prescribed_layer"] for m in members),
        "icl_over_plain": ratio([m["icl_risk"] / p["icl_risk"] for m, p in pairs]),
        "usable_from": [
            first_step(
                m["history"], [r[m["prescribed_layer"]] for r in m["history"]["tvp_risk_by_layer"]], m["prior_risk"]
            )
            for m in members
        ],
        "shifts_over_plain": {name: ratio(values) for name, values in shifts.items()},
    }
    if shifts:  # the geometric mean over shifts, seed by seed
        logs = np.log(np.maximum(np.array(list(shifts.values())), LEAST))
        entry["all_shifts_over_plain"] = ratio(np.exp(logs.mean(0)).tolist())
    return entry


def _cost(summary: Mapping[str, Any]) -> list[Tree]:
    """Seconds of a step of one member, for each condition and arm that is timed."""
    times: dict[tuple[str, str], list[Tree]] = {}
    for population in summary["populations"]:
        times.setdefault((repr(sorted(population["differs_in"].items())), population["arm"]), []).append(population)
    rows = []
    for (key, arm), same in times.items():
        seconds = float(np.mean([population["seconds_per_step"] for population in same]))
        alone = float(np.mean([population["seconds_per_step"] for population in times[key, "icl"]]))
        over = seconds / alone if alone else None
        rows.append({"differs_in": same[0]["differs_in"], "arm": arm, "seconds_per_step": seconds, "over_icl": over})
    return rows


def claims(found: Mapping[str, Any]) -> Tree:
    """Which claims the numbers support: ``{name: {"supported": bool, ...}}``, with what decides each."""
    trained = [row for row in found["trained"] if row["arm"] == "tvp"]
    control = [row for row in found["trained"] if row["arm"] == "control" and not row["differs_in"]]
    base = [row for row in trained if not row["differs_in"]]
    strong = [row for row in base if surely_below(row["tvp"], USABLE)]
    emerged = [row for row in found["emergence"] if surely_below(row["tvp_best"], USABLE)]
    deepest = max(strong, key=lambda row: row["prescribed_layer"], default=None)
    shifted = deepest["all_shifts_over_plain"] if deepest and deepest["shifts_over_plain"] else None
    more = [row["all_shifts_over_plain"] for row in control if row["shifts_over_plain"]]
    beyond = (
        ratio([a / b for a, b in zip(shifted["values"], more[0]["values"], strict=True)]) if shifted and more else None
    )
    return {
        "emerges_alone": {"supported": bool(emerged), "where": [row["differs_in"] for row in emerged]},
        "not_everywhere": {
            "supported": any(surely_above(row["tvp_best"], USABLE) for row in _learned(found["emergence"])),
            "where": [row["differs_in"] for row in _learned(found["emergence"]) if row not in emerged],
        },
        "made_where_prescribed": {
            "supported": bool(base) and len(strong) == len(base),
            "layers": sorted({row["prescribed_layer"] for row in strong}),
            "of": sorted({row["prescribed_layer"] for row in base}),
        },
        "no_search": {
            "supported": bool(strong) and all(row["at_best_layer"] == len(row["tvp"]["values"]) for row in strong),
            "members": sum(row["at_best_layer"] for row in strong),
            "of": sum(len(row["tvp"]["values"]) for row in strong),
        },
        "deeper_helps_shifts": {
            "supported": shifted is not None and surely_below(shifted, 1),
            "layer": deepest["prescribed_layer"] if deepest else None,
            "ratio": shifted,
        },
        "more_than_its_compute": {"supported": beyond is not None and surely_below(beyond, 1), "ratio": beyond},
    }


def _learned(rows: Sequence[Tree]) -> list[Tree]:
    """The conditions under which the model learned in context, in every seed."""
    return [row for row in rows if max(row["icl"]["values"]) <= USABLE]
