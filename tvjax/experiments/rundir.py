"""The run directory: its config, its environment, and how its training begins or goes on."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from tvjax.errors import UserError, reject
from tvjax.experiments import code
from tvjax.experiments.base import Experiment
from tvjax.experiments.progress import spelled
from tvjax.files import flatten, read_json, write_json, write_whole
from tvjax.parallel import processes
from tvjax.train.loop import Trainer
from tvjax.train.state import TrainState

Run = Callable[..., Any]
A_RUN = "accepted: the workdir of a run"
PLAN = "plan.json"
"""The file that `--mode=plan` writes, also into a folder without a run."""
FREE = ("mesh",)
"""Groups of the config that may change when a run goes on, since they do not change the results."""

LATER = {
    "matmul_precision": "highest",
    "start": "",
    "l2": 0.0,
    "keep_best": "",
    "schedule": "constant",
    "additivity": False,
}
"""Fields that the config.json of an older run lacks, and the values that such a run had."""


def prepare(folder: Path, config: Mapping[str, Any], *, new: bool) -> None:
    """Make `folder` the run directory of `config`, or check that it is.

    new: whether `folder` may be without a run.

    Raises `UserError` if the folder cannot be written, belongs to another config, or (unless `new`) holds no run.
    """
    processes.on_first(lambda: _prepare(folder, config, new))


def _prepare(folder: Path, config: Mapping[str, Any], new: bool) -> None:
    if not new:
        check_same(folder, config)
    make_folder(folder)
    if (folder / "config.json").exists():
        check_same(folder, config)
    elif any(path.name != PLAN and not path.name.startswith(".config.json.") for path in folder.iterdir()):
        raise reject(
            "--workdir",
            str(folder),
            "an empty folder, or one of a run with this config (there is no config.json in it)",
        )
    write_json(folder / "config.json", config)
    _keep_environment(folder / "environment.json")


def make_folder(folder: Path) -> None:
    """Make the folder of a run, unless it exists. Raises `UserError` if it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise reject("--workdir", str(folder), f"a folder that can be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise reject("--workdir", str(folder), "a folder that can be written")


def _keep_environment(path: Path) -> None:
    """Write the environment of this process. Other environments of earlier processes stay, as `earlier`.

    The difference of the code from its commit is a file beside it, one for each difference.
    """
    accepted = "accepted: none, or one that a run wrote"
    now, before = environment(), read_json(path, accepted) if path.exists() else {}
    earlier = before.pop("earlier", [])
    if not isinstance(earlier, list):
        raise UserError(f"{path}: earlier: given {earlier!r}; {accepted}")
    if before and before != now:
        earlier.append(before)
    difference = code.state()[1]
    if difference and not (path.parent / now["git_diff"]).exists():
        write_whole(path.parent / now["git_diff"], difference)
    try:
        write_json(path, {**now, "earlier": earlier} if earlier else now)
    except ValueError:  # a NaN that stood there
        raise UserError(f"{path}: has what JSON has not; {accepted}") from None


def check_same(
    folder: Path,
    config: Mapping[str, Any],
    field: str = "config",
    names: str = "--workdir",
    free: Collection[str] = FREE,
) -> None:
    """Raise `UserError` if the run in `folder` has another config than `config`, except in the groups `free`.

    field: the path of `config` in the user's config, for the error.
    names: the flag or field with which the user names the folder, for the error.
    """
    there, here = flatten(read_json(folder / "config.json", A_RUN)), flatten(config)
    for name in sorted(there.keys() | here.keys()):
        if name.split(".")[1] in free:
            continue
        absent = LATER.get(name.rpartition(".")[2])
        if there.get(name, absent) != here.get(name, absent):
            accepted = f"{there.get(name, absent)!r}, as in {folder}/config.json, or another {names}"
            raise reject(name.replace("config", field, 1), here.get(name, absent), accepted)


def run_once(
    run: Run, config: Mapping[str, Any], folder: Path, say: Callable[[str], None], *, what: str, field: str, names: str
) -> None:
    """Train in `folder` what another run needs, unless it is trained already.

    what: its name, for the terminal.
    field, names: as in `check_same`.

    Raises `UserError` if the run in `folder` has another config.
    """
    if (folder / "eval" / "summary.json").is_file():
        check_same(folder, config, field, names)
    else:
        say(f"training {what} in {folder}: this is done once")
        run(config, folder, "train", say)


def run_parts(
    experiment: Experiment,
    configs: Mapping[str, Mapping[str, Any]],
    folder: Path,
    mode: str,
    say: Callable[[str], None],
) -> dict[str, Path]:
    """Run all of `configs`, each in a folder of its name in `folder`; return these folders.

    What `folder` holds already is not trained again, but with mode "eval" measured again. Between two runs a line says
    how long the rest takes, by the time that those before took for a member's step.
    """
    paths = {name: folder / name for name in configs}
    costs = {name: _member_steps(config) for name, config in configs.items()}
    seconds, done = 0.0, 0
    for number, (name, config) in enumerate(configs.items(), start=1):
        if seconds:
            left = sum(list(costs.values())[number - 1 :])
            say(f"{number - 1} of {len(configs)} done, about {spelled(seconds * left / done)} left")
        began, new = time.monotonic(), not (paths[name] / "eval" / "summary.json").is_file()
        members = len(config.get("population", {}).get("name", ()))
        what = (
            f"population {number} of {len(configs)} ({members} members)"
            if members
            else f"run {number} of {len(configs)}"
        )
        if mode == "train":
            run_once(experiment.run, config, paths[name], say, what=what, field=f"population {name}", names="--workdir")
        else:
            say(f"measuring {what} in {paths[name]}")
            experiment.run(config, paths[name], mode, say)
        if new or mode != "train":  # what was there already says nothing of the time that another takes
            seconds, done = seconds + time.monotonic() - began, done + costs[name]
    return paths


def _member_steps(config: Mapping[str, Any]) -> int:
    """What a run costs beside others of its kind: its members times their steps."""
    return max(1, len(config.get("population", {}).get("name", ()))) * config.get("train", {}).get("steps", 1)


def trained_state(trainer: Trainer, folder: Path, mode: str, say: Callable[[str], None]) -> TrainState:
    """The state at the end of training, or with mode "eval" the newest kept state. Raises `UserError` if there is none.

    Each of several processes gets all parameters on its host, and evaluates them alone.
    """
    run = run_of(folder)
    state = trainer.run(folder, say, run) if mode == "train" else trainer.restore(folder, say, run)[1]
    if state is None:
        raise UserError(f"{folder}: no checkpoint to evaluate; accepted: the workdir of a run (--mode=train)")
    if processes.count() == 1:
        return state
    return dataclasses.replace(state, opt_state=None, **processes.fetch({"params": state.params, "best": state.best}))


def say_twins(groups: Sequence[Sequence[str]], say: Callable[[str], None]) -> None:
    """Warn of members that ended as the same model: their measurements are no comparison."""
    for names in groups:
        say(f"warning: members {', '.join(names)} are one model: their parameters are the same, bit for bit")


def run_of(folder: Path) -> str:
    """The run of the checkpoints in `folder`: a hash of the nearest config.json, without fields that may change."""
    path = next(
        (parent / "config.json" for parent in (folder, *folder.parents) if (parent / "config.json").is_file()), None
    )
    if path is None:
        return ""
    fixed = {
        name: value
        for name, value in flatten(read_json(path, A_RUN)).items()
        if name.split(".")[1] not in FREE and value != LATER.get(name.rpartition(".")[2], ...)
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Versions, devices and the code (`code.state`), so that numbers can be traced."""
    packages = ("tvjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    devices = jax.devices()
    commit, difference = code.state()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "devices": {"kind": devices[0].device_kind, "count": len(devices), "processes": jax.process_count()},
        "git_commit": commit,
        **({"git_diff": code.name_of(difference)} if difference else {}),
    }
