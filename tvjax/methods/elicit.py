"""ELICIT (Wang et al. 2025): a library of vectors, of which the query retrieves one."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from tvjax.methods.base import Method, MethodResult, RunContext, pass_flops, side_by_side
from tvjax.settings import setting
from tvjax.text.measures import Measured, asked, measured, said
from tvjax.vectors.elicit import nearest


@dataclasses.dataclass(frozen=True)
class ElicitSettings:
    """The fields of config.elicit."""

    vectors: Literal["vector", "function_vector"] = setting(
        "function_vector", "the method whose vectors its library holds: vector, function_vector"
    )
    threshold: float = setting(0.0, "least cosine at which it uses one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elicit(Method):
    """The vector of the trained task whose queries are nearest in the target's own states; none, if none is near.

    Its retriever is nearest neighbours in the states of the middle layer. [ours]
    """

    def needs(self, own: ElicitSettings) -> tuple[str, ...]:
        """The method that makes the vectors."""
        return (own.vectors,)

    def run(self, context: RunContext, folder: Path) -> MethodResult:
        """Ask each query with the vector that it retrieves."""
        own: ElicitSettings = context.own[self.group]
        names, middle = context.trained, (context.target.config.num_layers + 1) // 2
        right: dict[str, list[Measured]] = {name: [] for name in context.tasks}
        its_own: list[bool] = []
        for bench, (vectors, best, keep) in zip(context.benches, context.vectors[own.vectors], strict=True):
            known = [bench.states(bench.zero_shot(bench.sample(name, "train")))[:, middle] for name in names]
            owner_U = np.repeat(np.arange(len(names)), [len(one) for one in known])
            layers = [best[name].layer for name in names]
            vectors_L1D = np.stack([best[name].scale * vectors[name][[best[name].layer]] for name in names])
            for name in context.tasks:
                prompts = bench.zero_shot(bench.sample(name, "test"))
                states_BD = bench.states(prompts)[:, middle]
                which_B, _ = nearest(states_BD, np.concatenate(known), owner_U, own.threshold)
                one = asked(bench, name, "test", compared=True)
                answered = one.measured(said(bench, one, vectors_L1D, layers, np.full((len(names), 1), keep)))
                with_it = [with_BL1[np.arange(len(prompts)), which_B, 0] for with_BL1 in answered]
                each = zip(measured(bench, name, prompts), with_it, strict=True)
                right[name].append(Measured(*(np.where(which_B < 0, *pair) for pair in each)))
                context.tick(self.name)
                its_own += [which == names.index(name) for which in which_B] if name in names else []
        about = {"retrieved_its_own_task": float(np.mean(its_own)), "state_layer": middle}
        # A query is read twice, to find its vector and with that, and held against every state of the library.
        flops = 2 * pass_flops(context.target, context.bare_tokens) + 2.0 * len(owner_U) * context.target.config.width
        return MethodResult(side_by_side(right), context.bare_tokens, about=about, query_flops=flops)

    def work(self, context: RunContext) -> tuple[int, float]:
        """A part is a task of a bench."""
        return len(context.benches) * len(context.tasks), context.evaluation.test * len(context.trained)


METHOD = Elicit(
    name="elicit",
    label="ELICIT",
    knows="query",
    kind="vectors",
    source="ELICIT: Wang et al. (2025), here with nearest neighbours in the target's own states as its retriever.",
    settings=ElicitSettings,
)
