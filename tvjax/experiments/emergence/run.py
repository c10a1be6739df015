"""The emergence study: where and when task vectors form, and what the TVP-loss changes, over a grid of conditions.

Every population is a TVP run of its own under `populations/`, resumed like any other and never trained twice; the study
gathers their summaries and answers its questions from them (`evals.study`).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from tvjax.evals import study
from tvjax.experiments import rundir
from tvjax.experiments.base import Config, Experiment, PlanConfig
from tvjax.experiments.emergence.settings import EmergenceSettings, Population, differences, populations_run
from tvjax.experiments.identity import A_RUN
from tvjax.files import read_json, write_json
from tvjax.train.loop import Trainer

POPULATIONS = "populations"


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train and measure every population that `folder` does not hold yet, and write and return the study's summary.

    With mode "eval" they are only measured again. Raises `UserError` for a config or a folder that does not fit,
    `RunError` if a run cannot go on.
    """
    s = EmergenceSettings.from_config(config)
    rundir.prepare(folder, config, new=mode == "train")
    configs = {population.name: population.config for population in s.populations}
    paths = rundir.run_parts(populations_run(), configs, folder / POPULATIONS, mode, say)
    entries = [_entry(s, population, paths[population.name]) for population in s.populations]
    first = read_json(paths[s.populations[0].name] / "eval" / "summary.json", A_RUN)
    summary = {
        "experiment": "emergence",
        **{name: first[name] for name in ("task", "num_prompts", "risk_unit")},
        "base": s.base,
        "seeds": list(s.study.seeds),
        "populations": entries,
    }
    summary["answers"] = study.answers(summary)
    write_json(folder / "eval" / "summary.json", summary)
    return summary


def _entry(s: EmergenceSettings, population: Population, folder: Path) -> dict[str, Any]:
    """What the study keeps of a population: its summary without curves, and what its log says of training."""
    summary = read_json(folder / "eval" / "summary.json", A_RUN)
    history, seconds = _history(folder / "metrics.jsonl")
    members = [
        {**_scores(member), **{name: member[name] for name in ("name", "seed", "tvp_weight", "prescribed_layer")}}
        | {"tvp_risk_by_layer": member["tvp_risk_by_layer"], "history": history[member["name"]]}
        for member in summary["members"]
    ]
    return {
        "name": population.name,
        "condition": population.condition,
        "differs_in": differences(s.base, population.condition),
        "arm": population.arm,
        "query_replaced": population.query_replaced,
        "steps": population.config["train"]["steps"],
        "seconds_per_step": seconds / len(members),
        "prior_risk": summary["prior_risk"],
        "oracle_risk": summary["oracle_risk"][-1] if "oracle_risk" in summary else None,
        "members": members,
        "identical_members": summary.get("identical_members", []),
        "shifts": {
            name: {
                "summary": shift["summary"],
                "prior_risk": shift["prior_risk"],
                "members": [{"name": member["name"], **_scores(member)} for member in shift["members"]],
            }
            for name, shift in summary["shifts"].items()
        },
    }


def _scores(member: Mapping[str, Any]) -> dict[str, float]:
    """ICL risk after all demonstrations and TVP risk at the prescribed layer."""
    return {"icl_risk": member["icl_risk"][-1], "tvp_risk": member["tvp_risk_by_layer"][member["prescribed_layer"]]}


def _history(path: Path) -> tuple[dict[str, dict[str, list[Any]]], float]:
    """By member, ICL risk and TVP risk by layer at each evaluation of training; and the seconds of a step.

    The lower quartile over lines of the log: what else ran, or was evaluated, between two of them does not count.
    """
    history: dict[str, dict[str, list[Any]]] = {}
    clock = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        clock[row["step"]] = row["seconds"]
        if "eval_icl_risk" in row:
            member = history.setdefault(row["member"], {"step": [], "icl_risk": [], "tvp_risk_by_layer": []})
            member["step"].append(row["step"])
            member["icl_risk"].append(row["eval_icl_risk"][-1])
            member["tvp_risk_by_layer"].append(row["eval_tvp_risk_by_layer"])
    steps, seconds = (np.array(column, float) for column in zip(*sorted(clock.items()), strict=True))
    spent = np.diff(seconds) / np.diff(steps)
    return history, float(np.quantile(spent[spent > 0], 0.25)) if (spent > 0).any() else 0.0


def planned(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """What a plan compiles: of the study's largest population."""
    populations = EmergenceSettings.from_config(config).populations
    largest = max(populations, key=lambda p: len(p.config["population"]["name"]) * p.condition["num_layers"])
    trainer = populations_run().trainer
    assert trainer is not None
    return trainer(largest.config, c, mesh)


EXPERIMENT = Experiment(name="emergence", run=run, settings=EmergenceSettings.from_config, trainer=planned)
