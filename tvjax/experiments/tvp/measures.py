"""What is measured of the members of a TVP run, and which vectors it leaves behind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from tvjax.evals import additivity, baselines, operands, probes
from tvjax.evals.measure import Measure
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.files import write_json
from tvjax.nn.model import Model
from tvjax.tasks import NO_SHIFT
from tvjax.vectors import origin, store

KEPT_VECTORS = 512
"""Task vectors that a run leaves behind for each member and layer: enough for a figure, small enough to share."""


def measure(settings: TVPSettings, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`eval/summary.json` of trained members, and what was seen in distribution (theta and the tasks behind it)."""
    s = settings
    measured = Measure(
        Model(params, s.decoder),
        s.task,
        s.layout,
        s.prompt.demonstrations,
        edit=s.tvp.edit,
        prompts=s.evaluation.prompts,
        seed=s.evaluation.seed,
    )
    entry, seen = measured(NO_SHIFT)
    summary = {
        "task": s.task_name,
        "layout": s.prompt.layout,
        "num_layers": s.decoder.num_layers,
        "num_prompts": s.evaluation.prompts,
        "edit": s.tvp.edit,
        "risk_unit": s.task.risk_unit,
        **_named(entry, s),
        "baselines": baselines.summary(s.task, seen["x"], seen["shown"]),
        "shifts": {shift.name: _named(measured(shift)[0], s) for shift in s.shifts},
        "notes": _notes(s),
    }
    if s.evaluation.probes:
        for member, probed in zip(summary["members"], _probed(s, params, summary["members"], seen), strict=True):
            member["probes"] = probed
    if s.evaluation.additivity:
        entries, oracle = additivity.measure(
            Model(params, s.decoder),
            s.task,
            s.layout,
            s.prompt.demonstrations,
            edit=s.tvp.edit,
            prompts=s.evaluation.probe_prompts,
            seed=s.evaluation.seed,
        )
        for member, entry in zip(summary["members"], entries, strict=True):
            member["probes"]["additivity"] = entry
        summary["oracle_additivity"] = oracle
    return summary, seen


def _probed(
    s: TVPSettings, params: Any, members: list[dict[str, Any]], seen: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The probes of every member."""
    found = probes.measure(
        Model(params, s.decoder),
        s.task,
        s.layout,
        s.prompt.demonstrations,
        {name: [member[f"{name}_layer"] for member in members] for name in ("prescribed", "best")},
        seen,
        edit=s.tvp.edit,
        prompts=s.evaluation.probe_prompts,
        seed=s.evaluation.seed,
    )
    asked = (Model(params, s.decoder), s.task, s.layout, s.prompt.demonstrations)
    pools = operands.measure(*asked, edit=s.tvp.edit, seed=s.evaluation.seed)
    return [one | ({"operands": more} if more else {}) for one, more in zip(found, pools, strict=True)]


def _named(entry: dict[str, Any], s: TVPSettings) -> dict[str, Any]:
    """`entry` with each member's name and settings, and the layer at which its task vector works best."""
    spread = s.population.spread()
    members = []
    for m, scores in enumerate(entry["members"]):
        about = {name: spread[name][m] for name in ("name", "seed", "tvp_weight", "prescribed_layer")}
        about["answered_from"] = s.tvp.answered_from
        inner = scores["tvp_risk_by_layer"][1:-1]
        members.append({**about, "best_layer": 1 + inner.index(min(inner)), **scores})
    return {**entry, "members": members}


def _notes(s: TVPSettings) -> list[str]:
    edit = "replaces the state" if s.tvp.edit == "replace" else "is added to the state"
    notes = [
        f"TVP: theta is read at the last query, after {s.prompt.demonstrations} demonstrations, "
        f"and {edit} in the zero-shot prompt."
    ]
    if s.prompt.layout == "xy" and s.tvp.edit == "replace":
        notes.append(
            "Layout xy reads the answer at x itself: replacing that state deletes the query, so TVP fails at every "
            "layer by construction. The fair control is the additive edit: --config.tvp.edit=add."
        )
    return notes


def write(settings: TVPSettings, params: Any, folder: Path) -> dict[str, Any]:
    """Measure trained members and write eval/summary.json and vectors/*.safetensors, each whole."""
    summary, seen = measure(settings, params)
    names = settings.population.name
    marks = {name: origin.fingerprint(jax.tree.map(lambda p, m=m: p[m], params)) for m, name in enumerate(names)}
    summary["identical_members"] = origin.twins(marks)
    spread = settings.population.spread()
    parameters = {f"task.{name}": value[:KEPT_VECTORS] for name, value in seen["parameters"].items()}
    for m, name in enumerate(names):
        theta_LPD = seen["theta"][m, :KEPT_VECTORS].swapaxes(0, 1)
        shown, layout = settings.prompt.demonstrations, settings.prompt.layout
        store.save_vectors(
            folder / "vectors" / f"{name}.safetensors",
            {"theta": theta_LPD, **parameters},
            model=marks[name],
            address="embed, blocks/resid",
            layers=range(settings.decoder.num_layers + 1),
            about={
                "prescribed_layer": spread["prescribed_layer"][m],
                "made_by": f"extraction after {shown} demonstrations of task {settings.task_name}, layout {layout}",
            },
        )
    write_json(folder / "eval" / "summary.json", summary)
    return summary
