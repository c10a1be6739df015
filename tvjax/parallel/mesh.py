"""The mesh of devices and the rules by which parameters and activations lie on it.

Every step runs under a mesh, which may be of one device. Its axes share:

    member  the members of the population
    data    the batch
    fsdp    the batch and every parameter: a device holds a part of each and gathers a layer when it needs the layer
    tensor  heads and hidden channels

`jax.jit` with these shardings is what `pjit` has become.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tvjax.errors import reject
from tvjax.settings import setting

AXES = ("member", "data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
"""The axes that share the leading axis of a batch and of its activations."""

# The first pattern that matches a leaf's path decides. Specs are written from the last dimension backwards, so one rule
# covers a parameter, its optimizer moments, and both with a member axis in front.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"blocks/(query|key|value)/kernel", (None, "tensor", "fsdp")),  # [..., D, H, C]
    (r"blocks/(query|key|value)/bias", (None, "tensor")),  # [..., H, C]
    (r"blocks/out/kernel", ("fsdp", None, "tensor")),  # [..., H, C, D]
    (r"blocks/(up|gate)/kernel", ("tensor", "fsdp")),  # [..., D, F]
    (r"blocks/(up|gate)/bias", ("tensor",)),  # [..., F]
    (r"blocks/down/kernel", ("fsdp", "tensor")),  # [..., F, D]
    (r"front/embedding", ("fsdp", "tensor")),  # [..., V, D]
    (r"front/kernel", ("fsdp",)),  # [..., I, D]
    (r"readout/kernel", ("tensor", "fsdp")),  # [..., D, O]
    (r"readout/bias", ("tensor",)),  # [..., O]
    (r"expansion/up/kernel", ("tensor", "fsdp")),  # [..., S, N D]
    (r"expansion/up/bias", ("tensor",)),  # [..., N D]
    (r"(^|/)positions$", ("fsdp",)),  # [..., P, D]
)

# Activations at their addresses, from the first dimension on; those that are not here are [B, T, D].
HEADS = ("heads", "queries", "keys", "values", "attn_logits", "attn_patterns")  # [B, T, H, C] and [B, T, H, S]
HIDDEN = "mlp_hidden"  # [B, T, F]
READOUT = ("final_norm", "logits")  # [B, S, D] and [B, S, O]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices share the members, the batch, the batch with all parameters, and heads and hidden channels."""

    member: int = setting(1, "share the members")
    data: int = setting(1, "share the batch")
    fsdp: int = setting(1, "share the batch and the parameters, of which each device gathers a layer when it needs it")
    tensor: int = setting(1, "share the heads and hidden channels")


def make_mesh(
    *, member: int = 1, data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over the first ``member * data * fsdp * tensor`` of `devices` (default: those of this run).

    Each of several processes must have devices of the mesh: a mesh of one device then means `data` over all devices.
    Raises `UserError` if there are fewer devices, or a process would have none.
    """
    sizes = dict(zip(AXES, (member, data, fsdp, tensor), strict=True))
    several = devices is None and jax.process_count() > 1
    devices = jax.devices() if devices is None else devices
    present = len(devices)
    if several and math.prod(sizes.values()) == 1:
        sizes["data"] = present
    for name, size in sizes.items():
        if size < 1:
            raise reject(f"config.mesh.{name}", size, "1 or more")
    count = math.prod(sizes.values())
    if count > present:
        raise reject("config.mesh", sizes, f"a product of at most {present}, the devices here")
    if several and count < present:
        raise reject("config.mesh", sizes, f"a product of {present}, all devices of the job")
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=types, devices=list(devices)[:count])


def on_cpu() -> bool:
    """Whether the program that is traced now will run on a CPU: by the mesh in force or, without one, by default.

    So a program that is compiled here for another machine's mesh is that machine's program.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device.device_kind if device else jax.default_backend()) == "cpu"


def compiler_options() -> dict[str, Any]:
    """Options of the compiler. On a CPU LLVM's first level takes a third less time, and programs are about as fast."""
    return {"xla_backend_optimization_level": 1} if on_cpu() else {}


def _spec(mesh: Mesh, path: str, shape: tuple[int, ...], members: bool) -> P:
    ndim = len(shape)
    tail: tuple[str | None, ...] = next((spec for pattern, spec in RULES if re.search(pattern, path)), ())
    axes: list[str | None] = [None] * ndim
    for i, axis in enumerate(tail[:ndim]):
        # Key heads and vocabularies may be fewer than devices, or odd: those are whole on every device.
        if axis is not None and shape[ndim - 1 - i] % mesh.shape[axis] == 0:
            axes[ndim - 1 - i] = axis
    if members and ndim:
        axes[0] = "member"
    return P(*axes)


def path_of(keys: Any) -> str:
    """A leaf's path as text: ``params/blocks/query/kernel``."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def shardings(mesh: Mesh, tree: Any, *, members: bool) -> Any:
    """The sharding of every leaf of `tree` (arrays or their shapes) by `RULES`.

    members: whether axis 0 is the population.
    """

    def one(keys: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _spec(mesh, path_of(keys), leaf.shape, members))

    return jax.tree_util.tree_map_with_path(one, tree)


def place(mesh: Mesh, tree: Any) -> Any:
    """`tree` on `mesh`, by `RULES`.

    Shapes stay shapes and get their shardings. On a mesh of devices that are only described, arrays become such shapes.
    Every process must have the whole arrays, and brings the parts of its own devices.
    """
    described = mesh.devices.flat[0] not in jax.devices()

    def one(leaf: Any, sharding: NamedSharding) -> Any:
        if described or isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        if sharding.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True):
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    return jax.tree.map(one, tree, shardings(mesh, tree, members=False))


def batch_share() -> int:
    """The number of devices that share a batch, by the mesh in force (1 without one)."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or not set(BATCH) <= set(mesh.axis_names) else math.prod(mesh.shape[a] for a in BATCH)


def shard_batch(tree: Any) -> Any:
    """Constrain the leading axis of every array to the axes of a batch of the mesh in force (a no-op without one)."""
    return jax.tree.map(lambda x: _constrain(x, P(BATCH, *[None] * (x.ndim - 1))), tree)


def shard_activation(name: str, x: jax.Array) -> jax.Array:
    """Constrain the activation ``[B, T, ...]`` at an address that ends in `name`: its batch, heads and hidden channels.

    The last two lie over `tensor`. A no-op without a mesh and on one device. An axis that does not divide is left out.
    Captured and written values lie as the activation does. The readout lies as the compiler likes.
    """
    if name in READOUT:
        return x
    inner = ("tensor", None) if name in HEADS else ("tensor",) if name == HIDDEN else (None,) * (x.ndim - 2)
    return _constrain(x, P(BATCH, None, *inner))


def _constrain(x: Any, spec: P) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(AXES) <= set(mesh.axis_names) or all(mesh.shape[name] == 1 for name in AXES[1:]):
        return x
    parts = [_dividing(mesh, size, axis) for size, axis in zip(x.shape, spec, strict=True)]
    return jax.lax.with_sharding_constraint(x, P(*parts)) if any(parts) else x


def _dividing(mesh: Any, size: int, axis: Any) -> Any:
    """The longest prefix of the axes whose product divides `size`."""
    names = axis if isinstance(axis, tuple) else (axis,) if axis else ()
    while names and size % math.prod(mesh.shape[name] for name in names):
        names = names[:-1]
    return names or None
