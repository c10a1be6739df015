"""Methods that make a vector of each task, without training a writer, and write it into zero-shot prompts."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import RunError, UserError
from tvjax.methods.base import Kind, Knows, Method, MethodResult, RunContext, pass_flops, side_by_side
from tvjax.nn.answers import Questions, logits
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.model import Model
from tvjax.text.bench import Bench, Right, Spent, best_layer_and_scale
from tvjax.text.measures import Asked, Measured, asked, said
from tvjax.vectors.atv import Positions, inject
from tvjax.vectors.next_token import Reference, Said, judge

Vectors = dict[str, np.ndarray]
"""Of each task a vector for every layer, h^0..h^L: ``[L+1, D]``."""
Layer = int | None
"""The layer that a vector is written at; None is all, from 1 on."""
ALL: Layer = None


class TaskVectors(NamedTuple):
    """Vectors, what else the summary says of them, and the layers of each task that have one ({}: all)."""

    vectors: Vectors
    about: dict[str, Any] = {}  # noqa: RUF012 (a NamedTuple's default, which nobody writes to)
    layers: dict[str, list[int]] = {}  # noqa: RUF012


class Choice(NamedTuple):
    """Where a vector is written, and what it is multiplied with."""

    layer: Layer
    scale: float


def one_scale(own: Any) -> tuple[float, ...]:
    """The only scale of a vector that has the size that is needed."""
    return (1.0,)


def nothing_more(bench: Bench, own: Any) -> tuple[int, float]:
    """The work of a vector that is read with the others."""
    return 0, 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorMethod(Method):
    """A way to make vectors of tasks.

    make: ``make(bench, own)``; `own` are the method's settings.
    keep: the factor of the state that a vector is written at: 0, the state is replaced; 1, the vector is added to it.
    scales: the factors of which the dev split chooses one.
    everywhere: whether the vector is added at all layers, and not at the layer that the dev split prefers.
    positions: if `everywhere`, the tokens it is added at: "last" (the prompt's last) or "all" (with the answer's).
    rescaled: if `everywhere`, whether the states keep their lengths.
    stored: whether a run keeps the vectors in its vectors/.
    making: how many parts `make` has, each a tick of the bench by the method's name, and about how many tokens a part
        takes through all blocks.
    trainable: how many numbers of the vectors of a task are trained.
    """

    kind: Kind = "vectors"
    knows: Knows = "task"
    make: Callable[[Bench, Any], TaskVectors]
    keep: float = 1.0
    scales: Callable[[Any], tuple[float, ...]] = one_scale
    everywhere: bool = False
    positions: Positions = "last"
    rescaled: bool = False
    stored: bool = True
    making: Callable[[Bench, Any], tuple[int, float]] = nothing_more
    trainable: Callable[[DecoderConfig], int] = lambda config: 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.everywhere and self.keep != 1:
            raise UserError(f"method {self.name}: keep: given {self.keep}; accepted: 1, where everywhere is true")
        if self.positions not in get_args(Positions):
            accepted = ", ".join(get_args(Positions))
            raise UserError(f"method {self.name}: positions: given {self.positions!r}; accepted: {accepted}")
        if self.positions != "last" and not self.everywhere:
            raise UserError(
                f"method {self.name}: positions: given {self.positions!r}; accepted: last, unless everywhere"
            )
        if self.rescaled and not self.everywhere:
            raise UserError(f"method {self.name}: rescaled: given True; accepted: False, unless everywhere")

    def described(self) -> dict[str, Any]:
        """What a table and a page need to know of the method, with where its vectors are written."""
        return super().described() | {"everywhere": self.everywhere, "positions": self.positions}

    def vectors(self, bench: Bench, own: Any) -> TaskVectors:
        """The vectors that `make` makes.

        Raises `UserError` for what is no `TaskVectors`, lacks a task or has another shape; `RunError` for one that is
        not finite.
        """
        result, where = self.make(bench, own), f"method {self.name}: make"
        if not isinstance(result, TaskVectors):
            raise UserError(f"{where}: given a {type(result).__name__}; accepted: a methods.vector.TaskVectors")
        shape = self.shape(bench)
        for name in bench.tasks:
            if name not in result.vectors:
                raise UserError(f"{where}: given no vector of {name}; accepted: one of each task")
            vectors_LD = np.asarray(result.vectors[name])
            if vectors_LD.shape != shape:
                accepted = f"{shape}{', h^0..h^L of width D' if self.stored else ''}"
                raise UserError(f"{where}: {name}: given shape {vectors_LD.shape}; accepted: {accepted}")
            if not np.isfinite(vectors_LD).all():
                raise RunError(f"{where}: the vectors of {name} are not finite; nothing is measured with them")
        return result

    def shape(self, bench: Bench) -> tuple[int, ...]:
        """Of the vectors of a task: ``[L+1, D]``."""
        return len(bench.layers), bench.model.config.width

    def layers(self, bench: Bench, result: TaskVectors, name: str) -> list[Layer]:
        """The layers of which the dev split chooses one. At 0 the last tokens of all prompts have the same state."""
        return [ALL] if self.everywhere else [*(result.layers.get(name) or bench.layers[1:])]

    def asked(self, bench: Bench, name: str, split: str, *, compared: bool = False) -> Asked:
        """The questions of a split of a task that a vector is written into: zero-shot prompts."""
        return asked(bench, name, split, compared=compared)

    def swept(
        self,
        bench: Bench,
        name: str,
        split: str,
        vectors_LD: np.ndarray,
        layers: Sequence[Layer],
        scales: Sequence[float],
    ) -> Right:
        """Whether each question of a split is answered right with the vector at each layer, times each scale.

        ``[n, layers, scales]``.
        """
        one = self.asked(bench, name, split)
        return one.graded(self.said(bench, one, vectors_LD, layers, scales))

    def measured(
        self, bench: Bench, name: str, vectors_LD: np.ndarray, layers: Sequence[Layer], scales: Sequence[float]
    ) -> Measured:
        """What is measured of the test split, as `swept` asks it."""
        one = self.asked(bench, name, "test", compared=True)
        return one.measured(self.said(bench, one, vectors_LD, layers, scales))

    def said(
        self, bench: Bench, asked: Asked, vectors_LD: np.ndarray, layers: Sequence[Layer], scales: Sequence[float]
    ) -> Said:
        """What is said with the vector at each layer, times each scale: ``[rows, layers, scales, ...]``."""
        if self.everywhere:
            fixed = (bench.model.bare, jnp.asarray(vectors_LD[1:], jnp.float32), jnp.asarray(scales, jnp.float32))
            static = (self.positions, self.rescaled)
            return at_one_layer(bench.batches(_everywhere, static, fixed, (asked.q, asked.reference)))
        at = [layer for layer in layers if layer is not None]
        vectors_LUD = np.asarray(vectors_LD[at])[:, None] * np.asarray(scales)[None, :, None]
        return said(bench, asked, vectors_LUD, at, np.full(vectors_LUD.shape[:2], self.keep))

    def query_tokens(self, bench: Bench, bare: float) -> float:
        """How many tokens a question takes, of which the bare query has so many."""
        return bare

    def query_flops(self, bench: Bench, tokens: float) -> float:
        """FLOPs of the matrix products that answer a query of so many tokens: a vector that is written costs none."""
        return pass_flops(bench.model, tokens)

    def run(self, context: RunContext, folder: Path) -> MethodResult:
        """Ask with the vector of each task, at the layer and of the scale that are best on its dev split."""
        own = context.own[self.group]
        right: dict[str, list[Measured]] = {name: [] for name in context.tasks}
        scales, made = self.scales(own), []
        context.vectors[self.name] = []
        for bench in context.benches:
            (result, spent), best = bench.cost(functools.partial(self.vectors, bench, own)), {}
            made.append(spent)
            for name in context.tasks:
                layers = self.layers(bench, result, name)
                dev = self.swept(bench, name, "dev", result.vectors[name], layers, scales)
                row, column = best_layer_and_scale(dev)
                best[name] = Choice(layers[row], scales[column])
                layer, scale = best[name]
                test = self.measured(bench, name, result.vectors[name], [layer], [scale])
                right[name].append(Measured(*(a[:, 0, 0] for a in test)))
                context.tick(self.name)
            context.vectors[self.name].append((result.vectors, best, self.keep))
        first: dict[str, Choice] = context.vectors[self.name][0][1]
        about: dict[str, Any] = {"layer": {name: choice.layer for name, choice in first.items()}}
        if len(scales) > 1:
            about["scale"] = {name: choice.scale for name, choice in first.items()}
        bench, name = context.benches[0], next(iter(context.tasks))
        ask, count = self.timed(bench, name, context.vectors[self.name][0][0][name], first[name])
        tokens = self.query_tokens(bench, context.bare_tokens)
        return MethodResult(
            side_by_side(right),
            tokens,
            ask,
            count,
            trainable=len(context.tasks) * self.trainable(bench.model.config),
            about=about,
            query_flops=self.query_flops(bench, tokens),
            made=sum(made, Spent()) / len(made),
        )

    def timed(self, bench: Bench, name: str, vectors_LD: np.ndarray, choice: Choice) -> tuple[Callable[[], Any], int]:
        """What asks the test split of a task with its vector, to be timed, and how many questions that are."""
        one = self.asked(bench, name, "test")
        ask = functools.partial(self.said, bench, one, vectors_LD, [choice.layer], [choice.scale])
        return lambda: ask().tokens_BA, len(one.q.last_B)

    def work(self, context: RunContext) -> tuple[int, float]:
        """A part is a task of a bench."""
        own, bench, tasks = context.own[self.group], context.benches[0], len(context.tasks)
        parts, tokens = self.making(bench, own)
        layers = context.target.config.num_layers
        questions = len(self.scales(own)) * context.evaluation.dev * (1 if self.everywhere else layers / 2)
        cost = parts * tokens / tasks + bench.config.prompts * context.shown_tokens
        return len(context.benches) * tasks, cost + questions


def at_one_layer(said: Said) -> Said:
    """What is said with each of some scales, ``[rows, scales, ...]``, as of one layer: ``[rows, 1, scales, ...]``."""
    found: Said = jax.tree.map(lambda a: a[:, None], said)
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _everywhere(
    positions: Positions,
    rescaled: bool,
    model: Model,
    vectors_LD: jax.Array,
    scale_U: jax.Array,
    asked: tuple[Questions, Reference | None],
) -> Said:
    """What is said of the answers with the vectors times each scale: ``[B, U, ...]``."""
    q, reference = asked
    layers, batch = tuple(range(1, model.config.num_layers + 1)), q.last_B.shape[0]
    keep = judge(model, reference)

    def one(scale: jax.Array) -> Said:
        """Of one scale, ``[B, ...]``."""
        vectors_BLD = jnp.broadcast_to(scale * vectors_LD[None], (batch, *vectors_LD.shape))
        tree = inject(vectors_BLD, layers, positions, model.config, q, rescaled=rescaled)
        return keep(logits(model, q, tree))

    return jax.tree.map(lambda a: a.swapaxes(0, 1), jax.lax.map(one, scale_U))
