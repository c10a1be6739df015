"""Many prompts through one program, in batches that fit the user's memory."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tvjax.errors import reject
from tvjax.parallel.mesh import compiler_options

GIB = 2**30


class Batches:
    """Runs jitted programs over the leading axis of arrays, in micro-batches that fit a memory budget.

    memory: GiB that a pass may take beside its arguments, by the compiler's own account.
    most: the most entries of a batch.
    count: how many operations a jaxpr asks for, its `while` loops taken as often as is said; they are summed in
        `operations`, without those of entries that fill up a batch. `compiling` are the seconds of compilation.

    A batch is a power of two, or `most`, or what fits, so arrays of many lengths share a few programs.
    """

    def __init__(self, memory: float, most: int, count: Callable[[Any, float], float] = lambda jaxpr, loops: 0) -> None:
        self.memory, self.most = memory, most
        self.operations = self.compiling = 0.0
        self._count = count
        self._programs: dict[Any, tuple[int, Callable[..., Any]]] = {}
        self._jaxprs: dict[Any, Any] = {}

    def __call__(
        self, program: Any, static: tuple[Any, ...], fixed: tuple[Any, ...], arrays: Any, loops: float = 1
    ) -> Any:
        """``program(*static, *fixed, batch)`` over all of `arrays`, joined again along the leading axis.

        program: a function of `jax.jit`.
        static: its static arguments.
        fixed: arguments that all batches share.
        arrays: a tree of arrays with one leading axis.
        loops: how often a `while` loop of the program runs on average, to count its operations.

        Raises `UserError` if not even one entry fits.
        """
        count = jax.tree.leaves(arrays)[0].shape[0]
        most = min(self.most, 1 << (count - 1).bit_length())
        key = (program, static, _form(fixed), _form(arrays, 1), most)
        if key not in self._programs:
            began = time.perf_counter()
            size, run, self._jaxprs[key] = self._fit(program, static, fixed, arrays, most)
            self._programs[key] = size, run
            self.compiling += time.perf_counter() - began
        size, run = self._programs[key]
        self.operations += self._count(self._jaxprs[key], loops) * count / size
        parts = []
        for start in range(0, count, size):
            index = jnp.minimum(jnp.arange(start, start + size), count - 1)  # the last batch is filled up
            part = run(*fixed, jax.tree.map(lambda a, index=index: a[index], arrays))
            parts.append(jax.tree.map(lambda a, n=count - start: a[:n], part))
        return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)

    def _fit(
        self, program: Any, static: Any, fixed: Any, arrays: Any, most: int
    ) -> tuple[int, Callable[..., Any], Any]:
        """The size of a batch that fits, its program, and the jaxpr of that.

        `most`, or less in proportion to the memory that a batch takes.
        """
        size = most
        while True:
            batch = jax.tree.map(lambda a, n=size: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype), arrays)
            traced = program.trace(*static, *fixed, batch)
            compiled = traced.lower().compile(compiler_options())
            memory = compiled.memory_analysis()
            used = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / GIB
            if used <= self.memory:
                return size, compiled, traced.jaxpr
            if size == 1:
                raise reject("memory", self.memory, f"{used:.3g} or more: GiB that one entry takes")
            size = max(1, min(size - 1, int(size * self.memory / used)))


def _form(tree: Any, begin: int = 0) -> tuple[Any, ...]:
    """What a program is made for: the structure of its arguments, and their shapes from axis `begin` on."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, *(jnp.shape(leaf)[begin:] for leaf in leaves)
