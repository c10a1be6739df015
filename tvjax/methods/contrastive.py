"""Contrastive activation addition (Rimsky et al. 2024): states after right answers less those after wrong ones."""

from typing import Any

from tvjax.methods.vector import TaskVectors, VectorMethod
from tvjax.text.bench import Bench

SCALES = (1.0, 2.0, 4.0, 8.0)


def make(bench: Bench, own: Any) -> TaskVectors:
    """The mean difference of states at the ends of bare queries with a right and with a wrong answer behind them.

    The wrong answer is that of another query of the task; a query all of whose neighbours share its answer is left out.
    [ours: theirs are questions with lettered choices, and a vector at every token after the question]
    """
    vectors = {}
    for name in bench.tasks:
        pairs = bench.queries(name, bench.config.prompts)
        accepted = bench.accepted(name, pairs)
        texts: list[tuple[str, str]] = []
        for i, (x, y) in enumerate(pairs):
            others = [wrong for _, wrong in pairs[i + 1 :] + pairs[:i] if wrong not in accepted[i]]
            if others:
                bare = bench.template.prompt([], x)
                texts.append((bare + bench.template.answer(y), bare + bench.template.answer(others[0])))
        if texts:
            right, wrong = (bench.states([pair[side] for pair in texts]) for side in (0, 1))
            vectors[name] = (right - wrong).mean(0)
        else:
            vectors[name] = 0.0 * bench.shown(name)["states"]
    return TaskVectors(vectors)


METHOD = VectorMethod(
    name="contrastive",
    label="contrastive vector",
    source="Contrastive activation addition, states after right answers less those after wrong ones, added at one"
    " layer: Rimsky et al. (2024).",
    make=make,
    scales=lambda own: SCALES,
)
