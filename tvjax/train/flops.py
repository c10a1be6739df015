"""How many floating point operations a traced program asks for.

The count is by the jaxpr, since the compiler's own account counts the body of a loop once. A dispatch is a loop over
steps around a loop over layers.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tvjax.parallel.hardware import rate

CALLS = ("jit", "pjit")
"""Equations whose outputs are those of the jaxpr in them, one by one."""


def flops(jaxpr: Any, loops: float = 1) -> Counter[str]:
    """Floating point operations of all matrix products in `jaxpr`, over all devices, by `hardware.rate`.

    A product of ``[M, K]`` and ``[K, N]`` is ``2 M K N``; everything else is left out, as is usual. So is a product of
    which nothing is made, as the compiler leaves it out. Operations that remat repeats are counted again. A condition
    counts as its costliest branch.

    loops: how many iterations a `while` loop counts as, since a program does not say how many it takes.
    """
    inside = getattr(jaxpr, "jaxpr", jaxpr)
    return _flops(inside, [True] * len(inside.outvars), loops)


def _flops(jaxpr: Any, wanted: Sequence[bool], loops: float) -> Counter[str]:
    """The same, of what its `wanted` outputs are made of."""
    total: Counter[str] = Counter()
    live = {id(out) for out, want in zip(jaxpr.outvars, wanted, strict=True) if want}
    for eqn in reversed(jaxpr.eqns):
        used = [id(out) in live for out in eqn.outvars]
        if not any(used) and not eqn.effects:
            continue
        live |= set(map(id, eqn.invars))
        if eqn.primitive.name == "dot_general":
            left = eqn.invars[0].aval
            (contracted, _), _ = eqn.params["dimension_numbers"]
            sums = math.prod(left.shape[axis] for axis in contracted)
            total[rate(left.dtype.name, _precision(eqn.params["precision"]))] += (
                2 * sums * math.prod(eqn.outvars[0].aval.shape)
            )
            continue
        inner = []
        for inside in (inside for value in eqn.params.values() for inside in _jaxprs(value)):
            same = eqn.primitive.name in CALLS and len(inside.outvars) == len(used)
            inner.append(_flops(inside, used if same else [True] * len(inside.outvars), loops))
        if eqn.primitive.name == "cond":
            inner = [max(inner, key=Counter.total)]
        times = {"scan": eqn.params.get("length"), "while": loops}.get(eqn.primitive.name, 1)
        for counts in inner:
            total.update({dtype: times * count for dtype, count in counts.items()})
    return total


def total(jaxpr: Any, loops: float = 1) -> float:
    """All that `flops` counts, whatever its dtype."""
    return float(flops(jaxpr, loops).total())


def _precision(value: Any) -> str:
    """The precision of both operands, as a config names it; "" for any other."""
    return value[0].name.lower() if isinstance(value, tuple) else ""


def _jaxprs(value: Any) -> list[Any]:
    """The jaxprs in a parameter of an equation, alone or in a list."""
    if isinstance(value, tuple | list):
        return [jaxpr for one in value for jaxpr in _jaxprs(one)]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    return [value] if hasattr(value, "eqns") else []
