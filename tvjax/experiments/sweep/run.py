"""A sweep: the runs of all combinations of some fields' values, each resumed like any other, and their numbers.

The runs stand in populations/ of the workdir. Members of one shape train as one population (`settings`). The summary
has every number over seeds: the mean (of risks the geometric one), the 90% interval by Student's t, and each value.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from tvjax.errors import reject
from tvjax.evals.statistics import of_metric
from tvjax.evals.study import over
from tvjax.experiments import rundir
from tvjax.experiments.base import Config, Experiment, PlanConfig, named
from tvjax.experiments.sweep.settings import Part, SweepSettings
from tvjax.files import write_json
from tvjax.report import results
from tvjax.report.comparison import headline
from tvjax.report.reader import read_run
from tvjax.train.loop import Trainer

POPULATIONS = "populations"
BASE = "base."
"""In front of a swept field that the members of a population share, among what a number is of."""
LEFT = ("run", "experiment", "member", "seed", *results.LAST)
"""What is no part of what a number over seeds is of."""
RELATIVE = "relative_icl_risk"
"""ICL risk over that of the same training without TVP-loss, seed by seed: what the TVP-loss costs."""
FOLLOWED = ("icl_risk", "tvp_risk_by_layer")
"""What is measured during training of every member, and kept over seeds: after all demonstrations, and at l*."""


def run(config: Mapping[str, Any], folder: Path, mode: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run every part that `folder` does not hold yet, and write and return the sweep's summary.

    With mode "eval" the parts are only measured again. Raises `UserError` for a config or a folder that does not fit,
    `RunError` if a run cannot go on.
    """
    s = SweepSettings.from_config(config)
    rundir.prepare(folder, config, new=mode == "train")
    for line in described(s.parts):
        say(line)
    configs = {part.name: part.config for part in s.parts}
    paths = rundir.run_parts(named(s.swept), configs, folder / POPULATIONS, mode, say)
    tables = [(part, rows_of(paths[part.name])) for part in s.parts]
    summary = {
        "experiment": "sweep",
        "swept": s.swept,
        "axes": {field: list(values) for field, values in s.axes.items()},
        "populations": [{"name": part.name, "values": part.values, "num_members": part.members} for part in s.parts],
        "numbers": over_seeds(with_relative(tables)),
        results.DURING: during_training([(part, paths[part.name]) for part in s.parts]),
    }
    write_json(folder / "eval" / "summary.json", summary)
    return summary


def described(parts: Sequence[Part]) -> list[str]:
    """How the sweep is cut into runs: a line in all, and one a run."""
    members = sum(part.members for part in parts)
    lines = [f"sweep: {members} members in {len(parts)} populations"]
    for part in parts:
        steps = part.config.get("train", {}).get("steps")
        cost = f", {steps} steps: {part.members * steps} member-steps" if steps else ""
        lines.append(f"  {part.name}: {part.members} members{cost}")
    return lines


def rows_of(folder: Path) -> list[results.Row]:
    """The numbers of a run that a sweep keeps: all of prompts as in training, and the headline ones under shifts."""
    table = results.rows(read_run(folder))
    plain = [row for row in table if "shift" not in row]
    shifts = {row["shift"]: None for row in table if "shift" in row}
    under = [
        {**row, "shift": shift}
        for shift in shifts
        for row in headline(
            [{k: v for k, v in row.items() if k != "shift"} for row in table if row.get("shift") == shift]
        )
    ]
    return plain + under


def with_relative(parts: Sequence[tuple[Part, Sequence[results.Row]]]) -> list[tuple[Part, list[results.Row]]]:
    """The numbers, and for each headline ICL risk of a member with TVP-loss the one of metric `RELATIVE`."""
    curves = [
        (number, row, _without_loss(part, row))
        for number, (part, table) in enumerate(parts)
        for row in table
        if row["metric"] == "icl_risk" and "tvp_weight" in row
    ]
    last: dict[tuple[Any, ...], int] = {}
    for _, row, key in curves:
        last[key] = max(last.get(key, 0), row["index"])
    risks = [(number, row, key) for number, row, key in curves if row["index"] == last[key]]
    plain = {key: row["value"] for _, row, key in risks if not row["tvp_weight"]}
    more: list[list[results.Row]] = [[] for _ in parts]
    for number, row, key in risks:
        if row["tvp_weight"] and key in plain:
            of = {name: value for name, value in row.items() if name != "index"}
            ratio = {"metric": RELATIVE, "value": over(row["value"], plain[key]), "low": None, "high": None}
            more[number].append({**of, **ratio})
    return [(part, [*table, *more[number]]) for number, (part, table) in enumerate(parts)]


def _without_loss(part: Part, row: results.Row) -> tuple[Any, ...]:
    """What a member shares with the one that was trained without TVP-loss and else alike, and measured alike."""
    shared = {field: value for field, value in part.values.items() if field not in results.OF_LOSS}
    return tuple(map(repr, shared.items())), row.get(results.RATE), row.get("seed"), row.get("shift")


def during_training(parts: Sequence[tuple[Part, Path]]) -> list[dict[str, Any]]:
    """What `FOLLOWED` was at each evaluation, over seeds as in `over_seeds`: ``step``, ``value``, ``value_ci``.

    Runs that train their members apart have no log of all of them, and are not followed.
    """
    curves: dict[tuple[Any, ...], tuple[dict[str, Any], list[Any], list[Any]]] = {}
    for part, folder in parts:
        population = part.config.get("population")
        if population is None or not (folder / "metrics.jsonl").is_file():
            continue
        logs = read_run(folder).metrics(population["name"])
        rates = len(set(population[results.RATE])) > 1
        for m, log in enumerate(logs):
            layer = population["prescribed_layer"][m]
            member = {name: population[name][m] for name in ("tvp_weight", "prescribed_layer")}
            member |= {results.RATE: population[results.RATE][m]} if rates else {}
            for metric in FOLLOWED:
                steps, values = log.get(f"eval_{metric}")
                if steps.size:
                    of = {**_of_part(part), **member, "metric": metric}
                    place = layer if metric.endswith("_by_layer") else -1
                    key = tuple(map(repr, of.items()))
                    curves.setdefault(key, (of, steps.tolist(), []))[2].append(values[:, place])
    entries = []
    for of, at, by_seed in curves.values():
        means = [of_metric(of["metric"], column) for column in zip(*by_seed, strict=True)]
        entries.append({**of, "step": at, "value": [m for m, _ in means], "value_ci": [ends for _, ends in means]})
    return entries


def _of_part(part: Part, left: Collection[str] = ()) -> dict[str, Any]:
    """What all numbers of a part are of. left: fields that do not count."""
    return {f"{BASE}{field}": _scalar(value) for field, value in part.values.items() if field not in left}


def over_seeds(parts: Sequence[tuple[Part, Sequence[results.Row]]]) -> list[dict[str, Any]]:
    """Each number over seeds: what it is of, the mean, the interval and the value of each seed.

    Mean and interval are those of `statistics.of_metric`; a single seed has the interval of its run, if any.
    """
    numbers: dict[tuple[Any, ...], tuple[dict[str, Any], list[results.Row]]] = {}
    for part, table in parts:
        for row in table:
            if isinstance(row["value"], int):  # a count, or which layer is best: no mean
                continue
            of = {name: value for name, value in row.items() if name not in LEFT}
            unread = () if "tvp_weight" in row else results.OF_LOSS  # the prior's number is of no loss
            of = {**_of_part(part, unread), **of}
            numbers.setdefault(tuple(map(repr, of.items())), (of, []))[1].append(row)
    entries = []
    for of, table in numbers.values():
        if "seed" not in table[0] and len({(row["value"], row["low"]) for row in table}) == 1:
            table = table[:1]  # of no seed, the same prompts in each part
        value, ends = of_metric(of["metric"], [row["value"] for row in table])
        if ends is None and table[0]["low"] is not None:
            ends = [table[0]["low"], table[0]["high"]]
        by_seed = {str(row["seed"]): row["value"] for row in table if "seed" in row}
        entries.append({**of, "value": value, "value_ci": ends, "by_seed": by_seed})
    return entries


def _scalar(value: Any) -> Any:
    """A value as one entry of a column: tuples are text."""
    return str(value) if isinstance(value, tuple | list) else value


def planned(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """What a plan compiles: of the sweep's largest population."""
    s = SweepSettings.from_config(config)
    trainer = named(s.swept).trainer
    if trainer is None:
        raise reject("config.base.experiment", s.swept, "an experiment that says what it trains")
    return trainer(max(s.parts, key=lambda part: part.members).config, c, mesh)


EXPERIMENT = Experiment(name="sweep", run=run, settings=SweepSettings.from_config, trainer=planned)
