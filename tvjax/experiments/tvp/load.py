"""A member of a TVP run as a model: what its config says, and its parameters from the newest checkpoint."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from tvjax import remote
from tvjax.errors import UserError, reject
from tvjax.experiments.identity import run_of
from tvjax.experiments.tvp.settings import TVPSettings
from tvjax.nn.model import Model
from tvjax.parallel import mesh as parallel
from tvjax.train.checkpoint import Checkpoints


def load(folder: Path, config: Mapping[str, Any], member: str | None = None) -> Model:
    """One member of the run in `folder`. Raises `UserError` for a member that is not there or without a checkpoint."""
    settings = dataclasses.replace(TVPSettings.from_config(config, trained=True), mesh=parallel.MeshConfig())
    names = settings.population.name
    name = names[-1] if member is None else member
    if name not in names:
        raise reject("member", name, ", ".join(names))
    mesh = parallel.make_mesh(**dataclasses.asdict(settings.mesh))
    keys_M = jax.random.split(jax.random.key(0), len(names))
    shapes = {"params": jax.eval_shape(jax.vmap(settings.init), keys_M)}
    shardings = parallel.shardings(mesh, shapes, members=True)
    place = remote.there(folder) / remote.CHECKPOINTS
    checkpoints = Checkpoints(place, settings.train.keep_checkpoints, run_of(folder))
    with jax.set_mesh(mesh):
        arrays = checkpoints.part(jax.tree.map(lambda leaf, s: leaf.update(sharding=s), shapes, shardings))
    for line in checkpoints.skipped:
        print(f"{line}; the one before it is used")
    if arrays is None:
        raise UserError(f"{folder}: no checkpoint in it; accepted: the workdir of a run that has saved one")
    return Model(jax.tree.map(lambda p: p[names.index(name)], arrays["params"]), settings.decoder, settings)
