"""The memory and time of training on each device, by the compiled program, without device or parameters."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax

from tvjax.parallel import mesh as parallel
from tvjax.parallel.hardware import Chip
from tvjax.parallel.programs import Program, read
from tvjax.train.loop import Trainer

GIB = 2**30
Plan = dict[str, Any]


def held(tree: Any) -> int:
    """Bytes on one device of a tree of arrays, or shapes, with shardings."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if getattr(leaf, "sharding", None) is not None]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def make_plan(trainer: Trainer, chip: Chip) -> Plan:
    """The plan of a trainer whose mesh may be of devices that are only described; nothing is allocated.

    Bytes are of one device, which JAX calls `compiled_for`. The plan has the groups `step`, the training dispatch of
    `log_every` steps (1, to plan), and `evaluation`, one evaluation during training.
    """
    abstract = trainer.abstract
    plan: Plan = {
        "hardware": dataclasses.asdict(chip),
        "devices": trainer.mesh.size,
        "compiled_for": trainer.mesh.devices.flat[0].device_kind,
        "mesh": dict(trainer.mesh.shape),
        "bytes": {
            "parameters": held(abstract.params),
            "frozen_and_data": held(trainer.data),
            "optimizer": held(abstract.opt_state),
            "best": held(abstract.best),
        },
    }
    with jax.set_mesh(trainer.mesh):
        lowered = trainer.lower()
    for name, program in (("step", "dispatch"), ("evaluation", "evaluate")):
        plan[name] = _compiled(lowered[program], trainer, chip)
    peaks = [plan[name]["bytes"]["peak"] for name in ("step", "evaluation")]
    plan["fits"] = all(peak is not None and peak <= chip.memory for peak in peaks)
    plan["advice"] = "" if plan["fits"] else advice(plan, chip)
    return plan


def _compiled(lowered: Any, trainer: Trainer, chip: Chip) -> Plan:
    """Memory, work and time of one program. A TPU's compiler refuses what does not fit, and says how large it is."""
    with jax.set_mesh(trainer.mesh):
        options = parallel.compiler_options()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+)([KMGT]) of", str(error))
        peak = float(used.group(1)) * 1024 ** ("KMGT".index(used.group(2)) + 1) if used else None
        return {"bytes": {"peak": peak}, "refused": str(error).splitlines()[0][:300]}
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    program = read(compiled.as_text(), trainer.mesh)
    return {
        "bytes": {"activations": memory.temp_size_in_bytes, "peak": peak + memory.temp_size_in_bytes},
        "bytes_donated": memory.alias_size_in_bytes,
        "callbacks": program.callbacks,
        **work(program, chip),
    }


def work(program: Program, chip: Chip) -> Plan:
    """The work, traffic and messages of a program, and its least time by a roofline: the slowest of the three."""
    sent = sum(one.sent for one in program.collectives)
    seconds = {
        "compute": sum(flops / chip.flops[dtype] for dtype, flops in program.flops.items()),
        "memory": program.moved / chip.bandwidth,
        "network": sent / chip.link,
    }
    return {
        "flops": program.flops,
        "bytes_moved": program.moved,
        "bytes_sent": sent,
        "collectives": [dataclasses.asdict(one) for one in program.collectives],
        "seconds": seconds,
        "least_seconds": max(seconds.values()),
        "binds": max(seconds, key=lambda name: seconds[name]),
    }


def advice(plan: Plan, chip: Chip) -> str:
    """Which field to change if a run does not fit: the state needs more devices, or activations need less memory."""
    state = sum(plan["bytes"].values())
    if state > chip.memory:
        return (
            f"parameters and optimizer state alone take {state / chip.memory:.1f} times the memory: raise "
            "config.mesh.fsdp or config.mesh.tensor"
        )
    step = plan["step"]["bytes"]["peak"]
    if step is not None and step <= chip.memory:
        return "the evaluation does not fit: lower its prompts or questions in config.evaluation"
    return (
        "activations do not fit beside the state: raise config.train.micro_batches, set remat to 'full' "
        "(config.model.remat, config.target.remat), or raise config.mesh.data"
    )


def by_axis(collectives: list[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[int, float]]:
    """The number of collectives of each kind and axes, and the bytes that they send."""
    totals: dict[tuple[str, str], tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for one in collectives:
        count, sent = totals[one["kind"], one["axes"]]
        totals[one["kind"], one["axes"]] = (count + one["count"], sent + one["sent"])
    return dict(sorted(totals.items(), key=lambda row: -row[1][1]))


def as_text(plan: Plan) -> str:
    """The plan as lines for a terminal."""
    memory = plan["hardware"]["memory"]
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items() if size > 1) or "one device"
    lines = [f"{plan['devices']} x {plan['hardware']['name']}: {mesh}", "", "bytes a device"]
    rows = {**plan["bytes"], **{f"{n} of the step": v for n, v in plan["step"]["bytes"].items()}}
    rows["peak of the evaluation"] = plan["evaluation"]["bytes"]["peak"]
    lines += [f"  {name:28s}{size_of(value):>12s}" for name, value in rows.items()]
    verdict = "it fits" if plan["fits"] else f"it does not fit: {plan['advice']}"
    lines += [f"  {'memory of the device':28s}{size_of(memory):>12s}  {verdict}"]
    for name in ("step", "evaluation"):
        lines += ["", *_program_text(name, plan[name])]
    return "\n".join(lines)


def _program_text(name: str, plan: Plan) -> list[str]:
    if "refused" in plan:
        return [f"{name}: the compiler refuses it: {plan['refused']}"]
    flops = ", ".join(f"{value:.3g} FLOPs in {dtype}" for dtype, value in plan["flops"].items())
    lines = [f"{name}: {flops}, {size_of(plan['bytes_moved'])} moved, {size_of(plan['bytes_sent'])} sent"]
    for (kind, axes), (count, sent) in by_axis(plan["collectives"]).items():
        lines.append(f"  {kind:20s}{axes:16s}{count:8d} times{size_of(sent):>14s} sent")
    times = ", ".join(f"{part} {1e3 * value:.3g} ms" for part, value in plan["seconds"].items())
    return [*lines, f"  roofline: {times}: at least {1e3 * plan['least_seconds']:.3g} ms, {plan['binds']} binds"]


def size_of(count: float | None) -> str:
    """Bytes as people read them."""
    if count is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
