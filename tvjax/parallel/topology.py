"""Devices that are not here, to compile for: TPUs and GPUs described to their own compilers, or virtual CPU devices."""

import importlib.util
import os
from typing import Any

import jax

from tvjax.errors import reject
from tvjax.parallel.hardware import CHIPS, Chip, Processor, slice_shape

HOST = 8
"""GPUs of a host, all joined by NVLink."""


def chip_named(name: str) -> Chip:
    """The row of `CHIPS`. Raises `UserError` for hardware that is not in `CHIPS` or cannot be compiled for here."""
    if name not in CHIPS:
        raise reject("config.plan.hardware", name, ", ".join(CHIPS))
    if CHIPS[name].platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise reject("config.plan.hardware", name, "a TPU where libtpu is installed: pip install 'tvjax[tpu]'")
    return CHIPS[name]


def has_gpu_compiler() -> bool:
    """Whether jax's plugin for GPUs, which holds their compiler, is installed."""
    return importlib.util.find_spec("jax_cuda13_plugin") is not None


def devices_of(chip: Chip, count: int) -> list[Any]:
    """`count` devices to compile for: where the GPU compiler is not installed, virtual CPU devices in place of GPUs.

    Call it before anything else touches a device: the number of virtual devices is settled then, and the compiler of
    GPUs looks for CUDA's libraries if it does not know that only a CPU is asked for. Raises `UserError` for a number of
    chips that no slice has.
    """
    jax.config.update("jax_platforms", "cpu")
    if chip.platform == "tpu":
        return _slice(chip, count)
    if chip.processor is not None and has_gpu_compiler():
        return _hosts(chip.processor, count)
    try:
        jax.config.update("jax_num_cpu_devices", max(count, jax.config.values["jax_num_cpu_devices"]))
    except RuntimeError:  # they are there already
        if jax.device_count() < count:
            raise reject("config.plan.devices", count, f"at most the {jax.device_count()} devices here") from None
    return jax.devices()[:count]


def _slice(chip: Chip, count: int) -> list[Any]:
    """`count` TPU chips of the smallest slice that has as many; a host has four."""
    from jax.experimental import topologies

    shape = slice_shape(chip, max(count, 4))
    if shape is None:
        raise reject("config.plan.devices", count, f"a power of two, at most {chip.chips}: the slices of {chip.name}")
    # Ascending, as slices are named; a host's own four chips are 2 x 2 x 1.
    shape = tuple(sorted(shape, reverse=chip.axes == 3 and max(shape) == 2))
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    options = {"chip_config_name": "megacore"} if chip.name == "tpu-v4" else {}  # one device a chip
    name = f"{chip.slices}:{'x'.join(map(str, shape))}"
    described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    return list(described.devices)[:count]


def _hosts(processor: Processor, count: int) -> list[Any]:
    """`count` GPUs of as few hosts as have them."""
    from jax.experimental import topologies

    shape = f"1x{-(-count // HOST)}x{min(count, HOST)}"  # groups of hosts that share NVLink, their hosts, their GPUs
    options = {"target_config": _target(processor), "topology": shape}
    described = topologies.get_topology_desc(platform="cuda", topology_name="", **options)
    return list(described.devices)[:count]


def _target(p: Processor) -> str:
    """A GPU as text of XLA's GpuTargetConfigProto. What is not of the processor is alike from the A100 to the B200."""
    accelerated = "ACCELERATED_FEATURES" if p.capability >= 9 else "NONE"
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          shared_memory_per_block: 49152 shared_memory_per_block_optin: {p.shared - 1024}
          shared_memory_per_core: {p.shared} core_count: {p.cores} fpus_per_core: {p.units}
          memory_bandwidth: {p.bandwidth} l2_cache_size: {p.cache} clock_rate_ghz: {p.clock}
          device_memory_size: {p.memory}
          cuda_compute_capability {{ major: {p.capability} feature_extension: {accelerated} }}
        }}
        platform_name: "CUDA" device_description_str: "{p.name}"
        dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
    """
