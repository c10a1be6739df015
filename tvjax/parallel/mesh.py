"""The mesh of devices and the rules by which parameters lie on it.

Every step runs under a mesh, of one device if there is one. Axes: `member` (of the population), `data` (the batch),
`tensor` (heads and hidden channels). `jax.jit` with these shardings is what `pjit` has become.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tvjax.errors import reject

AXES = ("member", "data", "tensor")

# The first pattern that is found in a leaf's path decides; specs are written from the last dimension backwards, so
# one rule covers a parameter, its optimizer moments, and both with a member axis in front.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"blocks/(query|key|value)/kernel", (None, "tensor")),  # [..., D, H, C]
    (r"blocks/(query|key|value)/bias", (None, "tensor")),  # [..., H, C]
    (r"blocks/out/kernel", (None, None, "tensor")),  # [..., H, C, D]
    (r"blocks/(up|gate)/(kernel|bias)", ("tensor",)),  # [..., D, F]
    (r"blocks/down/kernel", (None, "tensor")),  # [..., F, D]
    (r"front/embedding", (None, "tensor")),  # [..., V, D]
    (r"readout/(kernel|bias)", ("tensor",)),  # [..., D, O]
)


def make_mesh(*, member: int = 1, data: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over the first ``member * data * tensor`` devices. Raises `UserError` where there are fewer.

    Of several processes each must have its part: there a mesh of one device stands for `data` over all of them.
    """
    if jax.process_count() > 1 and member * data * tensor == 1:
        data = jax.device_count()
    sizes = (member, data, tensor)
    for name, size in zip(AXES, sizes, strict=True):
        if size < 1:
            raise reject(f"config.mesh.{name}", size, "1 or more")
    count, found = int(np.prod(sizes)), jax.device_count()
    if count > found:
        raise reject(
            "config.mesh", dict(zip(AXES, sizes, strict=True)), f"a product of at most {found}, the devices here"
        )
    if jax.process_count() > 1 and count < found:
        raise reject(
            "config.mesh", dict(zip(AXES, sizes, strict=True)), f"a product of {found}, all devices of the job"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:count])


def on_cpu() -> bool:
    """Whether what is traced now will run on a CPU: on that of the mesh in force, or where there is none, by default.

    So a program that is compiled here for another machine's mesh is that machine's program.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (device.device_kind if device else jax.default_backend()) == "cpu"


def compiler_options() -> dict[str, Any]:
    """How a program is compiled: on a CPU at LLVM's first level, a third less time and about as fast as at its last."""
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
    """The sharding of every leaf of `tree` (arrays or their shapes) by `RULES`; `members`: axis 0 is the population."""

    def one(keys: Any, leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, _spec(mesh, path_of(keys), leaf.shape, members))

    return jax.tree_util.tree_map_with_path(one, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def shard_batch(tree: Any) -> Any:
    """Constrain the leading axis of every array to the `data` axis of the mesh in force (a no-op without one)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("data", 1) == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P("data", *[None] * (x.ndim - 1))), tree)
