"""Plans: the training of a config from shapes alone, without weights, data or accelerator.

A plan compiles one training step and one evaluation during training. The lengths of text are those of `PlanConfig`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from jax.sharding import Mesh

from tvjax.errors import reject
from tvjax.experiments import rundir
from tvjax.experiments.base import Config, PlanConfig, experiment_of
from tvjax.files import write_json
from tvjax.parallel.hardware import Chip
from tvjax.parallel.mesh import MeshConfig, make_mesh
from tvjax.parallel.topology import HOST, chip_named, devices_of, has_gpu_compiler
from tvjax.settings import build
from tvjax.train.loop import Trainer
from tvjax.train.plan import Plan, as_text, make_plan


def plan(config: Config, folder: Path, say: Callable[[str], None] = print) -> Plan:
    """Plan the training of `config`, by its group `plan`; write plan.json in `folder` and print it.

    Raises `UserError` for unknown hardware, a mesh of another number of devices, and as the config's experiment does.
    """
    c = build(PlanConfig, config.get("plan", {}), "config.plan")
    config = {name: value for name, value in config.items() if name != "plan"}
    chip = chip_named(c.hardware)
    base = config.get("base", config)  # a study has no mesh of its own: its populations are runs on their base's
    name = "config.mesh" if base is config else "config.base.mesh"
    sizes = mesh_sizes(build(MeshConfig, base.get("mesh", {}), name), c.devices, name)
    mesh = make_mesh(**sizes, devices=devices_of(chip, math.prod(sizes.values())))
    trainer = trainer_of(config, c, mesh)
    rundir.make_folder(folder)  # after what refuses a config, so that no empty folder stays; before what takes minutes
    compiled = make_plan(trainer, chip)
    full = {"what": experiment_of(config).name, **compiled, "notes": [*limits(chip, sizes), *notes(base, sizes)]}
    write_json(folder / rundir.PLAN, full)
    say(as_text(full))
    say("\n".join([*full["notes"], f"plan: {folder / rundir.PLAN}"]))
    return full


def mesh_sizes(mesh: MeshConfig, devices: int, name: str) -> dict[str, int]:
    """The mesh to plan for. A mesh of one device counts as not chosen: `fsdp` then takes all devices.

    name: of the mesh, to refuse another number of devices.
    """
    sizes = dataclasses.asdict(mesh)
    count = math.prod(sizes.values())
    if devices and count == 1:
        return {**sizes, "fsdp": devices}
    if devices not in (0, count):
        raise reject("config.plan.devices", devices, f"{count}, the product of {name} = {sizes}")
    return sizes


def limits(chip: Chip, sizes: Mapping[str, int]) -> list[str]:
    """Notes on where a plan for GPUs is not what GPUs would do."""
    if chip.platform != "gpu":
        return []
    lines = []
    if not has_gpu_compiler():
        lines += [
            "compiled for virtual CPU devices, as no GPU compiler is installed: pip install 'tvjax[gpu-compiler]'; "
            "activations were 15 and 24% higher so than by it, in two configs"
        ]
    if math.prod(sizes.values()) > HOST:
        lines += [f"the roofline counts the network between hosts of {HOST} GPUs as fast as NVLink, which it is not"]
    return lines


def notes(config: Config, sizes: Mapping[str, int]) -> list[str]:
    """Notes on what is allowed but hardly meant: devices that do the same work."""
    train, share = config.get("train", {}), sizes["data"] * sizes["fsdp"]
    rows = train.get("batch", share) // train.get("micro_batches", 1)
    if rows % share == 0:
        return []
    return [f"a (micro-)batch of {rows} does not divide over data x fsdp = {share} devices: raise config.train.batch"]


def trainer_of(config: Config, c: PlanConfig, mesh: Mesh) -> Trainer:
    """The programs of one training step of `config`, on `mesh`. Raises `UserError` as the run would."""
    experiment = experiment_of(config)
    if experiment.trainer is None:
        raise reject("config.experiment", experiment.name, "an experiment that says what it trains")
    return experiment.trainer(config, c, mesh)
