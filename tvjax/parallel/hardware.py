"""The peak figures of chips, with their sources: plans and utilizations are measured against them."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping
from typing import Literal

GB = 1e9
GIB = 2**30
TERA = 1e12


@dataclasses.dataclass(frozen=True)
class Processor:
    """What XLA's compiler asks of a GPU that is not here, by a file of OpenXLA.

    file: in xla/backends/gpu/target_config/specs/.
    name: the `device_kind`.
    capability: the major number of CUDA's compute capability.
    cores: multiprocessors.
    units: units of float32 in each.
    shared: bytes of shared memory in each.
    cache: bytes of the second-level cache.
    clock: GHz.
    memory: bytes, as the driver counts them.
    bandwidth: bytes/s of the memory.
    """

    file: str
    name: str
    capability: int
    cores: int
    units: int
    shared: int
    cache: int
    clock: float
    memory: int
    bandwidth: int


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device, by its vendor's figures.

    flops: FLOP/s of dense matrix products by `rate`. "float32" is at JAX's default precision (one bfloat16 pass on a
    TPU, TF32 on an NVIDIA GPU); the other precisions of float32 have rows of their own.
    memory: bytes that a program may have.
    bandwidth: bytes/s of the memory.
    link: bytes/s that one chip can send to others of its slice or node.
    source: where the figures are from.
    kinds: the names of the chip in `device_kind`.
    slices: the prefix of a slice's name, for the TPU compiler.
    axes: how many axes a slice has.
    chips: the most chips of a slice.
    processor: of a GPU, for its compiler.
    """

    name: str
    platform: Literal["tpu", "gpu", "cpu"]
    flops: Mapping[str, float]
    memory: float
    bandwidth: float
    link: float
    source: str
    kinds: tuple[str, ...] = ()
    slices: str = ""
    axes: int = 0
    chips: int = 0
    processor: Processor | None = None


def rate(dtype: str, precision: str) -> str:
    """The row of `Chip.flops` for products of `dtype` at a precision ("" is the default)."""
    return f"{dtype}_{precision}" if dtype == "float32" and precision in ("high", "highest") else dtype


_AMPERE = (8, 108, 64, 164 * 2**10, 40 * 2**20, 1.41)
_HOPPER = (9, 132, 128, 228 * 2**10, 50 * 2**20, 1.98)
_BLACKWELL = (10, 148, 128, 228 * 2**10, 253 * 2**19, 1.965)
_PROCESSORS = {
    "a100-40g": Processor("a100_sxm_40", "NVIDIA A100-SXM4-40GB", *_AMPERE, 42_331_013_120, 1_555_200_000_000),
    "a100-80g": Processor("a100_sxm_80", "NVIDIA A100-SXM4-80GB", *_AMPERE, 85_100_068_864, 2_039_040_000_000),
    "h100": Processor("h100_sxm", "NVIDIA H100 80GB HBM3", *_HOPPER, 84_942_979_072, 3_352_320_000_000),
    "h200": Processor("h200", "NVIDIA H200", *_HOPPER, 151_397_597_184, 4_800_000_000_000),
    "b200": Processor("b200", "NVIDIA B200", *_BLACKWELL, 191_514_411_008, 7_672_320_000_000),
}


def _tpu(
    name: str, tera: float, memory: float, bandwidth: float, link: float, linked: str = "", **more: object
) -> Chip:
    flops = dict.fromkeys(("bfloat16", "float16", "float32"), tera * TERA)
    flops |= {"float32_high": tera * TERA / 3, "float32_highest": tera * TERA / 6}  # passes of bfloat16
    source = f"Google Cloud documentation, 'TPU {name.removeprefix('tpu-')}', key specifications"
    source += "; memory: capacity in the TPU compiler's messages" + linked
    numbers = (memory * GIB, bandwidth * GB, link * GB)
    return Chip(name, "tpu", flops, *numbers, source, slices=name.removeprefix("tpu-"), **more)  # type: ignore[arg-type]


def _gpu(
    name: str, bf16: float, tf32: float, fp32: float, memory: float, bandwidth: float, link: float, source: str
) -> Chip:
    flops = {"bfloat16": bf16 * TERA, "float16": bf16 * TERA, "float32": tf32 * TERA}
    flops |= {"float32_high": tf32 * TERA, "float32_highest": fp32 * TERA}
    kind = "NVIDIA " + name.split("-")[0].upper()
    numbers = (memory * GB, bandwidth * GB, link * GB)
    return Chip(name, "gpu", flops, *numbers, source, kinds=(kind,), processor=_PROCESSORS[name])


# Links: the vendors' figures count both directions (GB/s), or bits of one (Gbit/s); these are bytes of one.
# Memory: a TPU's in GiB, less what the system keeps (the compiler refuses a program by it); a GPU's in the data sheet's
# GB, below what the driver shows (81559 MiB on an H100, 143771 MiB on an H200), which is `Processor.memory`.
_ISCA = "; link: six of 50 GB/s, as others quote Jouppi et al., ISCA 2023, table 4 (the documentation has none)"
_SEEN = "as others quote it: the sheet itself was not at hand"
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _tpu("tpu-v4", 275, 30.75, 1200, 300, _ISCA, kinds=("TPU v4",), axes=3, chips=4096),
        _tpu("tpu-v5e", 197, 15.75, 819, 200, kinds=("TPU v5 lite", "TPU v5e"), axes=2, chips=256),
        _tpu("tpu-v5p", 459, 95.74, 2765, 600, kinds=("TPU v5", "TPU v5p"), axes=3, chips=6144),
        _tpu("tpu-v6e", 918, 31.25, 1638, 400, kinds=("TPU v6 lite", "TPU v6e"), axes=2, chips=256),
        _gpu("a100-40g", 312, 156, 19.5, 40, 1555, 300, f"NVIDIA A100 data sheet, SXM, without sparsity, {_SEEN}"),
        _gpu("a100-80g", 312, 156, 19.5, 80, 2039, 300, f"NVIDIA A100 data sheet, SXM, without sparsity, {_SEEN}"),
        _gpu("h100", 989.4, 494.7, 66.9, 80, 3350, 450, f"NVIDIA H100 data sheet, SXM, halved: no sparsity, {_SEEN}"),
        _gpu("h200", 989.4, 494.7, 66.9, 141, 4800, 450, f"NVIDIA H200 data sheet, SXM, halved: no sparsity, {_SEEN}"),
        _gpu("b200", 2250, 1125, 75, 180, 7700, 900, f"NVIDIA HGX B200 data sheet, / 8 and halved, {_SEEN}"),
        Chip(
            "cpu",
            "cpu",
            dict.fromkeys(("float32", "float32_high", "float32_highest", "bfloat16"), 80e9),
            8 * GB,
            20 * GB,
            10 * GB,
            "nominal, of no machine: one core, two AVX2 products of 8 floats a cycle at 2.5 GHz",
        ),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The row of a device, by its `device_kind`; None if the table has none, as for a CPU, whose row is nominal."""
    chips = [chip for chip in CHIPS.values() if any(_is(device_kind, kind) for kind in chip.kinds)]
    if "40GB" in device_kind:  # otherwise the larger one: the smaller says so
        return chips[0] if chips else None
    return chips[-1] if chips else None


def _is(device_kind: str, kind: str) -> bool:
    """Whether a device is of a kind. NVIDIA adds the form and the memory to the name of the family."""
    return device_kind == kind or (kind.startswith("NVIDIA") and re.match(kind + r"\b", device_kind) is not None)


def slice_shape(chip: Chip, devices: int) -> tuple[int, ...] | None:
    """The most cubic shape of a slice of `devices` chips, powers of two along its axes; None.

    No slice has that size.
    """
    if devices < 1 or devices & (devices - 1) or devices > chip.chips:
        return None
    logs = range(int(math.log2(devices)) + 1)
    shapes = [s for s in itertools.product(logs, repeat=chip.axes) if sum(s) == int(math.log2(devices))]
    if not shapes:
        return None
    best = min((tuple(sorted(s)) for s in shapes), key=lambda s: s[-1] - s[0])
    return tuple(2**n for n in best)
