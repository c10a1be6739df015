"""The work of a compiled program on one device, read from its text: products, bytes, and network traffic.

XLA's own account counts the body of a loop once. Here the body counts as often as it runs; for `lax.scan` the condition
of the loop says how often.
"""

import dataclasses
import functools
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh

from tvjax.parallel.hardware import rate

BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all")
CUBLAS = re.compile(r'custom_call_target="__cublas\$(?:gemm|lt\$matmul)')
"""Products that XLA leaves to NVIDIA's library, behind which may stand a suffix for narrow types."""
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "bfloat16"}
Shape = tuple[str, tuple[int, ...]]
COUNTS = [(kind, ()) for kind in ("s32", "u32", "s64", "u64")]
"""The types of loop counters: s32 in `lax.scan`, u32 in loops in which XLA gathers an operand while it multiplies."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    shapes: of the result; several for a tuple.
    operands: their names.
    rest: the text behind the operands.
    root: whether it is the result of the computation.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool

    def called(self, *names: str) -> list[str]:
        """The computations behind the attributes `names`."""
        lists = re.findall(rf"(?:{'|'.join(names)})=\{{?((?:%[\w.\-]+(?:, )?)+)", self.rest)
        return [name for one in lists for name in re.findall(r"%([\w.\-]+)", one)]


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective, summed over its runs in one run of the program.

    axes: axes of the mesh over which its groups reach, joined by "+".
    count: how often it runs.
    sent: bytes that a device sends, in a ring of g: (g - 1) / g of a gather or scatter, twice that of an all-reduce.
    result: bytes of its result, each time.
    name: the operation of the program that it comes from.
    """

    kind: str
    axes: str
    count: int
    sent: float
    result: int
    name: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program on one device.

    flops: FLOPs of matrix products by `rate`.
    moved: bytes read and written in memory.
    collectives: what goes over the network.
    callbacks: instructions that call the host.
    aliased: the arguments, by number, whose memory a result takes over.
    """

    flops: dict[str, float]
    moved: float
    collectives: tuple[Collective, ...]
    callbacks: tuple[str, ...]
    aliased: frozenset[int]


def bytes_of(shapes: tuple[Shape, ...]) -> int:
    """Bytes of arrays of these shapes."""
    return sum(math.prod(dims) * _bits(kind) // 8 for kind, dims in shapes)


def _bits(kind: str) -> int:
    digits = re.search(r"\d+", kind)
    return BITS[kind] if kind in BITS else int(digits.group()) if digits else 0


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a program by name, and the name of its entry."""
    computations: dict[str, list[Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = header.group(2)
            entry = current if header.group(1) else entry
            computations[current] = []
        elif current and (match := LINE.match(line)):
            computations[current].append(_instruction(bool(match.group(1)), match.group(2), match.group(3)))
    return computations, entry


def _instruction(root: bool, name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shapes = tuple((kind, tuple(map(int, dims.split(","))) if dims else ()) for kind, dims in SHAPE.findall(text[:end]))
    start = text.index("(", end)
    stop = _closing(text, start)
    operands = tuple(re.findall(r"%([\w.\-]+)", text[start:stop]))
    opcode = text[end:start].strip()
    rest = text[start:] if opcode in ("constant", "parameter") else text[stop + 1 :]
    return Instruction(name, opcode, shapes, operands, rest, root)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return start + match.start()
    return len(text)


def read(text: str, mesh: Mesh) -> Program:
    """The program with the text `text` (`compiled.as_text()`), on one device of `mesh`."""
    computations, entry = parse(text)
    flops: dict[str, float] = defaultdict(float)
    moved, callbacks = 0.0, set()
    times_of: dict[tuple[Any, ...], list[int]] = {}
    for computation, times, inside in _runs(computations, entry):
        shapes = {one.name: one.shapes for one in computations[computation]}
        for one in computations[computation]:
            if one.opcode in ("dot", "convolution") or _by_cublas(one):
                kind = DTYPES.get(shapes[one.operands[0]][0][0], "float32")
                flops[rate(kind, _precision(one))] += times * _products(one, shapes)
            if not inside:
                moved += times * _moved(one, shapes, computations)
            kind = one.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                scattered = "all-reduce-scatter" in computation
                row = _collective(one, "reduce-scatter" if scattered else kind, shapes, mesh)
                times_of.setdefault(row, []).append(times)
            if _calls_back(one):
                callbacks.add(one.name)
    collectives = tuple(
        Collective(kind, axes, sum(times), sent * sum(times), result, name)
        for (kind, axes, sent, result, name), times in times_of.items()
        if axes
    )
    aliased = re.search(r"input_output_alias=\{(.*?)\}, entry", text)
    numbers = re.findall(r": \((\d+),", aliased.group(1)) if aliased else []
    return Program(dict(flops), moved, collectives, tuple(sorted(callbacks)), frozenset(map(int, numbers)))


def _calls_back(one: Instruction) -> bool:
    """Whether an instruction calls the host in the middle of the program."""
    if one.opcode in ("infeed", "outfeed") or "is_host_transfer=true" in one.rest:
        return True
    return one.opcode == "custom-call" and re.search(r'custom_call_target="[^"]*callback', one.rest) is not None


def _runs(
    computations: dict[str, list[Instruction]], name: str, times: int = 1, inside: bool = False
) -> Iterator[tuple[str, int, bool]]:
    """Each computation, how often it runs, and whether it is the inside of a fusion, whose values stay in registers."""
    yield name, times, inside
    for one in computations[name]:
        if one.opcode == "while":
            for body in one.called("body"):
                yield from _runs(computations, body, times * _trips(one, computations), inside)
        elif one.opcode == "fusion":
            for body in one.called("calls"):
                yield from _runs(computations, body, times, True)
        elif one.opcode in ("call", "async-start", "custom-call"):
            for body in one.called("to_apply", "calls", "called_computations"):
                yield from _runs(computations, body, times, inside)
        elif one.opcode == "conditional":
            for body in one.called("branch_computations", "true_computation", "false_computation"):
                yield from _runs(computations, body, times, inside)


def _trips(loop: Instruction, computations: dict[str, list[Instruction]]) -> int:
    """How often a loop runs: as the compiler knows, or by the constant in the loop's condition; else once."""
    known = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.rest)
    if known:
        return int(known.group(1))
    bounds = []
    for name in loop.called("condition"):
        for computation, *_ in _runs(computations, name):
            for one in computations[computation]:
                if one.opcode == "constant" and one.shapes[0] in COUNTS:
                    bounds.append(int(re.sub(r"\D", "", one.rest.split(")")[0]) or 1))
    return -(-max(bounds, default=1) // _stride(loop, computations))


def _stride(loop: Instruction, computations: dict[str, list[Instruction]]) -> int:
    """The growth of the loop's counter in one run of its body: XLA unrolls loops of its own."""
    indices = {
        int(index)
        for name in loop.called("condition")
        for one in computations[name]
        if one.opcode == "get-tuple-element" and one.shapes[0] in COUNTS
        for index in re.findall(r"index=(\d+)", one.rest)
    }
    grown = [_grown(computations, body, (index,), {}) for body in loop.called("body") for index in indices]
    return max((by for by in grown if by > 0), default=1)


def _grown(
    computations: dict[str, list[Instruction]], name: str, path: tuple[int, ...], operands: dict[int, Any]
) -> int:
    """The integer at `path` of what a computation returns if all counters are 0.

    operands: the operands of a fusion, by number.
    """
    rows = {one.name: one for one in computations[name]}

    def value(one: Instruction, path: tuple[int, ...]) -> int:
        """The value of one instruction; counters are sums of constants."""
        if one.opcode == "tuple" and path:
            return value(rows[one.operands[path[0]]], path[1:])
        if one.opcode == "get-tuple-element":
            index = re.search(r"index=(\d+)", one.rest)
            return value(rows[one.operands[0]], (int(index.group(1)), *path)) if index else 0
        if one.opcode == "constant":
            return int(re.sub(r"[^\d-]", "", one.rest.split(")")[0]) or 0) if one.shapes[0] in COUNTS else 0
        if one.opcode == "parameter":
            number = re.match(r"\((\d+)\)", one.rest)
            return operands[int(number.group(1))](path) if number and int(number.group(1)) in operands else 0
        if one.opcode == "add":
            return sum(value(rows[operand], ()) for operand in one.operands)
        if one.opcode in ("copy", "bitcast"):
            return value(rows[one.operands[0]], path)
        if one.opcode == "fusion":
            inside = {i: functools.partial(value, rows[operand]) for i, operand in enumerate(one.operands)}
            return _grown(computations, one.called("calls")[0], path, inside)
        return 0

    return value(next(one for one in computations[name] if one.root), path)


def _by_cublas(one: Instruction) -> bool:
    """Whether an instruction is a product that NVIDIA's cuBLAS does."""
    return one.opcode == "custom-call" and CUBLAS.search(one.rest) is not None


def _cublas(one: Instruction) -> dict[str, Any]:
    """What a call of cuBLAS says of its product."""
    start = one.rest.index("backend_config=") + len("backend_config=")
    config: dict[str, Any] = json.JSONDecoder().raw_decode(one.rest, start)[0]["gemm_backend_config"]
    return config


def _precision(one: Instruction) -> str:
    """The precision of a product: "" is the default."""
    if _by_cublas(one):
        name = _cublas(one)["precision_config"]["operand_precision"][0].lower()
        return "" if name == "default" else name
    precision = re.search(r"operand_precision=\{(\w+)", one.rest)
    return precision.group(1) if precision else ""


def _contracted(one: Instruction) -> list[int]:
    """The axes of the left operand over which a `dot`, or cuBLAS, sums."""
    if _by_cublas(one):
        return [int(axis) for axis in _cublas(one)["dot_dimension_numbers"]["lhs_contracting_dimensions"]]
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)
    return [int(axis) for axis in contracted.group(1).split(",") if axis] if contracted else []


def _products(one: Instruction, shapes: dict[str, tuple[Shape, ...]]) -> float:
    """FLOPs of a product, or of a `convolution`, its form on a TPU: two for each product of numbers that is summed."""
    out = one.shapes[0][1]
    left, right = (shapes[name][0][1] for name in one.operands[:2])
    if one.opcode != "convolution":
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in _contracted(one))
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    assert labels is not None, one
    lhs, rhs, result = labels.groups()
    flops = 2.0 * right[rhs.index("i")]
    flops *= math.prod(out[result.index(axis)] for axis in "bf")
    for axis in (a for a in result if a.isdigit()):
        sizes = (left[lhs.index(axis)], right[rhs.index(axis)], out[result.index(axis)])
        flops *= _pairs(*sizes, *_window(one.rest, int(axis)))
    return flops


def _window(rest: str, axis: int) -> tuple[int, int, int, int]:
    """Stride, padding before, and dilations of both sides along a dimension."""
    window = re.search(r"window=\{([^}]*)\}", rest)
    fields = dict(field.split("=") for field in window.group(1).split()) if window else {}
    value = lambda name, default: fields[name].split("x")[axis] if name in fields else default  # noqa: E731
    before = int(value("pad", "0_0").split("_")[0])
    return int(value("stride", "1")), before, int(value("lhs_dilate", "1")), int(value("rhs_dilate", "1"))


def _pairs(size: int, kernel: int, out: int, stride: int, before: int, dilate: int, kernel_dilate: int) -> int:
    """The pairs of an output and an entry of the kernel that meet a real input. A batch may have a window too."""
    if out * kernel > 10**7:
        return out * min(kernel, size)
    at = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * kernel_dilate - before
    return int(((at % dilate == 0) & (at >= 0) & (at <= (size - 1) * dilate)).sum())


def _moved(one: Instruction, shapes: dict[str, Any], computations: dict[str, list[Instruction]]) -> float:
    """Bytes that an instruction reads and writes in memory; of a slice or an update, the part alone."""
    if one.opcode in FREE or one.opcode.endswith("-done"):
        return 0.0
    if one.opcode == "fusion":
        body = [row for name in one.called("calls") for row in computations[name]]
        return sum(_read_of(body, i, bytes_of(shapes[name])) for i, name in enumerate(one.operands)) + _written(
            body, bytes_of(one.shapes)
        )
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * bytes_of(one.shapes)
    if one.opcode in ("dynamic-update-slice", "scatter"):
        return 2.0 * bytes_of(shapes[one.operands[-1 if one.opcode == "scatter" else 1]])
    made = one.shapes[:-1] if _by_cublas(one) and len(one.shapes) > 1 else one.shapes  # the last is room to work in
    return float(bytes_of(made) + sum(bytes_of(shapes.get(name, ())) for name in one.operands))


def _read_of(body: list[Instruction], number: int, whole: int) -> float:
    """Bytes that a fusion reads of an operand: the slices alone if it only slices it or updates it in place."""
    parameter = next((p for p in body if p.opcode == "parameter" and p.rest.startswith(f"({number})")), None)
    if parameter is None:
        return whole
    uses = [one for one in body if parameter.name in one.operands]
    parts = 0.0
    for use in uses:
        if use.opcode in ("dynamic-slice", "slice", "gather") and use.operands[0] == parameter.name:
            parts += bytes_of(use.shapes)
        elif use.opcode != "dynamic-update-slice" or use.operands[0] != parameter.name:
            return whole
    return min(parts, whole) if uses else 0.0


def _written(body: list[Instruction], whole: int) -> float:
    """Bytes that a fusion writes; of an update in place, the new part alone."""
    shapes = {one.name: one.shapes for one in body}
    updates = [one for one in body if one.opcode == "dynamic-update-slice"]
    kept = sum(bytes_of(one.shapes) - bytes_of(shapes[one.operands[1]]) for one in updates)
    return max(whole - kept, 0)


def _collective(one: Instruction, kind: str, shapes: dict[str, Any], mesh: Mesh) -> tuple[Any, ...]:
    """Kind, axes, bytes sent each time, bytes of the result, and the operation of the program."""
    operands = sum(bytes_of(shapes[name]) for name in one.operands)
    result = bytes_of(one.shapes) - (operands if one.opcode.endswith("-start") and kind != "all-reduce" else 0)
    groups = _groups(one.rest, mesh.size)
    share = 0.0 if groups is None else 1 - 1 / groups.shape[1]
    sent = {
        "all-gather": result * share,
        "all-reduce": 2 * operands * share,
        "reduce-scatter": operands * share,
        "collective-permute": float(operands),
    }.get(kind, operands * share)
    source = re.search(r'op_name="([^"]*)"', one.rest)
    return kind, _axes(groups, mesh), sent, result, source.group(1) if source else one.name


def _axes(groups: np.ndarray | None, mesh: Mesh) -> str:
    """The axes of the mesh along which the devices of a group differ; "": each device is alone."""
    if groups is None:
        return "unknown"
    coordinates = np.stack(np.unravel_index(groups, mesh.devices.shape))  # [axes, groups, members]
    differ = (coordinates != coordinates[:, :, :1]).any((1, 2))
    return "+".join(name for name, one in zip(mesh.axis_names, differ, strict=True) if one)


@functools.lru_cache(maxsize=4096)
def _groups_of(text: str, devices: int) -> np.ndarray | None:
    """The groups ``[groups, members]`` of devices of the mesh, in any notation of XLA."""
    if match := re.search(r"source_target_pairs=\{(\{.*?\})\}", text):
        return np.array([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", match.group(1))])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}", text):
        axes = re.findall(r"'(\w+)'=(\d+)", match.group(1))
        ids = _iota(match.group(2) or "", devices).reshape([int(size) for _, size in axes])
        return _along(ids, [name for name, _ in axes], match.group(3))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _iota(match.group(3), devices).reshape(int(match.group(1)), int(match.group(2)))
    if match := re.search(r"replica_groups=\{(\{.*?\})\}", text):
        return np.array([[int(n) for n in one.split(",")] for one in re.findall(r"\{([\d,]+)\}", match.group(1))])
    return np.arange(devices)[None] if "replica_groups={}" in text else None


def _groups(rest: str, devices: int) -> np.ndarray | None:
    match = re.search(r"(source_target_pairs=\{.*?\}\}|replica_groups=.*?)(?=, [a-z_]+=(?!\()|$)", rest)
    whole = re.search(r"replica_groups=mesh\[[^\]]*\](, device_ids=\(.*?\))? \{[^}]*\}", rest)
    text = whole.group() if whole else match.group(1) if match else ""
    return _groups_of(text, devices)


def _iota(text: str, devices: int) -> np.ndarray:
    """0, 1, .. reshaped and transposed as ``[4,2]T(1,0)`` says, flat again."""
    dims = re.search(r"\[([\d,]+)\]", text)
    order = re.search(r"T\(([\d,]+)\)", text)
    ids = np.arange(devices).reshape([int(n) for n in dims.group(1).split(",")] if dims else [devices])
    return (ids.transpose([int(n) for n in order.group(1).split(",")]) if order else ids).reshape(-1)


def _along(ids: np.ndarray, names: list[str], chosen: str) -> np.ndarray:
    """The groups along the chosen axes, ``'a', 'b':(2)4``: of a cut axis, the part of size 4 behind 2."""
    parts = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", chosen)
    shape: list[int] = []
    grouped: list[int] = []
    for axis, size in zip(names, ids.shape, strict=True):
        cuts = sorted((int(before), int(part)) for name, before, part in parts if name == axis and part)
        whole = any(name == axis and not part for name, _, part in parts)
        done = 1
        for before, part in cuts:
            shape.append(before // done)
            grouped.append(len(shape))
            shape.append(part)
            done = before * part
        if whole:
            grouped.append(len(shape))
        shape.append(size // done)
    rest = [i for i in range(len(shape)) if i not in grouped]
    members = math.prod(shape[i] for i in grouped)
    return ids.reshape(shape).transpose(rest + grouped).reshape(-1, members)
