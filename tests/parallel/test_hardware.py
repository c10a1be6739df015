"""The table of chips: every row whole, found by what JAX calls the device, with slices that exist."""

import math

import pytest

from tvjax.parallel.hardware import CHIPS, chip_of, slice_shape


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_every_row_is_whole(chip):
    assert {"float32", "bfloat16"} <= set(chip.flops) and chip.source
    assert min(*chip.flops.values(), chip.memory, chip.bandwidth, chip.link) > 1e9
    assert max(chip.flops.values()) > chip.bandwidth > chip.link, "units are mixed up"


@pytest.mark.parametrize(
    ("kind", "name"),
    {
        "TPU v4": "tpu-v4",
        "TPU v5 lite": "tpu-v5e",
        "TPU v5": "tpu-v5p",
        "TPU v5p": "tpu-v5p",
        "TPU v6 lite": "tpu-v6e",
        "NVIDIA A100-SXM4-40GB": "a100-40g",
        "NVIDIA A100-SXM4-80GB": "a100-80g",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H200": "h200",
        "NVIDIA B200": "b200",
    }.items(),
)
def test_a_device_has_its_row(kind, name):
    assert chip_of(kind) is CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "TPU v99", "NVIDIA GeForce RTX 4090", ""])
def test_what_is_not_in_the_table_has_none(kind):
    assert chip_of(kind) is None


@pytest.mark.parametrize("chip", [c for c in CHIPS.values() if c.platform == "gpu"], ids=lambda c: c.name)
def test_what_the_compiler_is_told_of_a_gpu_is_that_gpu(chip):
    told = chip.processor
    assert chip_of(told.name) is chip
    assert chip.memory <= told.memory < 1.08 * chip.memory and told.bandwidth == pytest.approx(
        chip.bandwidth, rel=0.005
    )
    units = 2 * told.cores * told.units * told.clock * 1e9  # a product and a sum a cycle
    assert units == pytest.approx(chip.flops["float32_highest"], rel=0.01)


@pytest.mark.parametrize("chip", [c for c in CHIPS.values() if c.platform == "tpu"], ids=lambda c: c.name)
def test_slices_have_as_many_chips_as_asked(chip):
    for devices in (1, 4, 8, 16, 64, 256):
        shape = slice_shape(chip, devices)
        assert math.prod(shape) == devices and len(shape) == chip.axes and max(shape) <= 4 * min(shape)
    assert slice_shape(chip, 3) is slice_shape(chip, 8192) is slice_shape(chip, 0) is None
