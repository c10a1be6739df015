"""Which run a folder holds: that of its config, but for what may change when a run goes on."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tvjax.errors import reject
from tvjax.files import flatten, read_json

A_RUN = "accepted: the workdir of a run"
FREE = ("mesh",)
"""Groups of the config that may change when a run goes on, since they do not change the results."""

LATER = {
    "matmul_precision": "highest",
    "start": "",
    "l2": 0.0,
    "keep_best": "",
    "schedule": "constant",
    "input": "input",
    "output": "output",
    "options": [],
    "additivity": False,
}
"""Fields that the config.json of an older run lacks, and the values that such a run had."""


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
