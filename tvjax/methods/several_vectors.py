"""Several vectors in a few-shot prompt (Dong et al. 2026): the state vector at the arrow of every demonstration too."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.methods import state_vector
from tvjax.methods.base import RunContext
from tvjax.methods.vector import Layer, VectorMethod
from tvjax.nn.answers import Questions, logits
from tvjax.nn.model import Model
from tvjax.text.bench import Bench
from tvjax.text.measures import Asked, asked
from tvjax.vectors.edits import affine, at_layer
from tvjax.vectors.next_token import Reference, Said, judge


def arrows(bench: Bench, prompts: Sequence[str], ends: Sequence[Sequence[int]]) -> list[list[int]]:
    """Which tokens of each prompt hold the last characters of its arrows.

    ends: how many characters of a prompt stand before the end of each arrow (`Template.between`).
    """
    spans = [[span for _, span in tokens] for tokens in bench.tokenizer.encode_with_spans(prompts)]
    return [[sum(begin < end for begin, _ in row) - 1 for end in own] for row, own in zip(spans, ends, strict=True)]


@jax.jit
def _written(
    model: Model, vectors_UD: jax.Array, layers_U: jax.Array, asked: tuple[Questions, Reference | None, jax.Array]
) -> Said:
    """What is said with each vector in the place of the state at all marked tokens, at its layer: ``[B, U, ...]``."""
    q, reference, here_BT = asked
    said, count = judge(model, reference), model.config.num_layers

    def one(row: tuple[jax.Array, jax.Array]) -> Said:
        """Of one vector."""
        vector_D, layer = row
        tree = affine(vector_D[None, None, None], at_layer=at_layer(layer, count), at_position=here_BT)
        return said(logits(model, q, tree))

    return jax.tree.map(lambda a: a.swapaxes(0, 1), jax.lax.map(one, (vectors_UD, layers_U)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeveralVectors(VectorMethod):
    """The method: k-shot prompts, at each arrow of which the same vector stands in the place of the state.

    The demonstrations of the prompts stay, so that the vectors add to what can be read of them. Of the paper we could
    read the abstract: that the vectors are one, and that the last arrow has it too, is ours.
    """

    def asked(self, bench: Bench, name: str, split: str, *, compared: bool = False) -> Asked:
        """K-shot prompts of a split of a task, with the tokens of their arrows."""
        shown = list(bench.shots(name, bench.sample(name, split)))
        prompts = [bench.template.prompt(*one) for one in shown]
        ends = [
            [len(bench.template.prompt(pairs[:count], pairs[count][0])) for count in range(len(pairs))] + [len(prompt)]
            for (pairs, _), prompt in zip(shown, prompts, strict=True)
        ]
        one = asked(bench, name, split, compared=compared, prompts=prompts)
        rows, length = one.q.tokens.ids_BT.shape
        owner_B = np.searchsorted(one.begin, np.arange(rows), side="right") - 1
        here_BT = np.zeros((rows, length), bool)
        marks = arrows(bench, prompts, ends)
        for row, owner in enumerate(owner_B):
            here_BT[row, marks[owner]] = True
        return one._replace(here_BT=here_BT)

    def said(
        self, bench: Bench, asked: Asked, vectors_LD: np.ndarray, layers: Sequence[Layer], scales: Sequence[float]
    ) -> Said:
        """What is said with the vector of each layer, times each scale: ``[rows, layers, scales, ...]``."""
        at = [layer for layer in layers if layer is not None]
        vectors_LUD = np.asarray(vectors_LD[at])[:, None] * np.asarray(scales)[None, :, None]
        layers_U = jnp.repeat(jnp.asarray(at), len(scales))
        fixed = (bench.model.bare, jnp.asarray(vectors_LUD.reshape(len(layers_U), -1), jnp.float32), layers_U)
        found: Said = bench.batches(_written, (), fixed, (asked.q, asked.reference, jnp.asarray(asked.here_BT)))
        return jax.tree.map(lambda a: a.reshape(len(a), len(at), len(scales), *a.shape[2:]), found)

    def query_tokens(self, bench: Bench, bare: float) -> float:
        """Those of a k-shot prompt."""
        prompts = [bench.few_shot(name, bench.sample(name, "test")) for name in bench.tasks]
        return float(np.mean([len(ids) for ids in bench.tokenizer.encode(list(itertools.chain(*prompts)))]))

    def work(self, context: RunContext) -> tuple[int, float]:
        """A part is a task of a bench: whole prompts are asked at every layer."""
        parts, tokens = super().work(context)
        return parts, tokens + context.evaluation.dev * context.target.config.num_layers * context.shown_tokens


METHOD = SeveralVectors(
    name="several_vectors",
    label="a vector at each arrow",
    knows="demonstrations",
    source="Several vectors in a few-shot prompt, one at the arrow of each demonstration: Dong, Jiang, Zhu and Ning"
    " (2026, arXiv 2506.09048).",
    make=state_vector.make,
    keep=0.0,
)
