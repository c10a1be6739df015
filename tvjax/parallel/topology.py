"""Devices that are not here, to compile for: a slice of TPUs, described to its own compiler, or virtual CPU devices."""

import importlib.util
import os
from typing import Any

import jax

from tvjax.errors import reject
from tvjax.parallel.hardware import CHIPS, Chip, slice_shape


def chip_named(name: str) -> Chip:
    """The row of `CHIPS`. Raises `UserError` for hardware that is not in `CHIPS` or cannot be compiled for here."""
    if name not in CHIPS:
        raise reject("config.plan.hardware", name, ", ".join(CHIPS))
    if CHIPS[name].platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise reject("config.plan.hardware", name, "a TPU where libtpu is installed: pip install 'tvjax[tpu]'")
    return CHIPS[name]


def devices_of(chip: Chip, count: int) -> list[Any]:
    """`count` devices to compile for; programs for a GPU are compiled for virtual CPU devices.

    Call it before anything else touches a device: the number of virtual devices is settled then. Raises `UserError` for
    a number of chips that no slice has.
    """
    jax.config.update("jax_platforms", "cpu")
    if chip.platform == "tpu":
        return _slice(chip, count)
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
