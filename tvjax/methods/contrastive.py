"""Contrastive activation addition (Rimsky et al. 2024): states after right answers less those after wrong ones."""

from typing import Any

from tvjax.errors import reject
from tvjax.methods.vector import TaskVectors, VectorMethod
from tvjax.text.bench import Bench

SCALES = (1.0, 2.0, 4.0, 8.0)


def make(bench: Bench, own: Any) -> TaskVectors:
    """The mean difference of states at the ends of bare queries with a right and with a wrong answer behind them.

    The wrong answer is that of another query of the task, or if none of theirs is wrong, one of the train split. A
    query to which all of these are right is left out. [ours: theirs are questions with lettered choices, and a vector
    at every token after the question]

    Raises `UserError` for a task of which all queries are left out.
    """
    contrasts = {name: _contrasts(bench, name) for name in bench.tasks}
    vectors = {}
    for name, texts in contrasts.items():
        right, wrong = (bench.states([pair[side] for pair in texts]) for side in (0, 1))
        vectors[name] = (right - wrong).mean(0)
    return TaskVectors(vectors)


def _contrasts(bench: Bench, name: str) -> list[tuple[str, str]]:
    """The queries of a task, each with a right and with a wrong answer behind it."""
    pairs, texts = bench.queries(name, bench.config.prompts), []
    for i, ((x, y), accepted) in enumerate(zip(pairs, bench.accepted(name, pairs), strict=True)):
        others = [*pairs[i + 1 :], *pairs[:i], *bench.tasks[name].split("train")]
        wrong = next((other for _, other in others if other not in accepted), None)
        if wrong is not None:
            bare = bench.template.prompt([], x)
            texts.append((bare + bench.template.answer(y), bare + bench.template.answer(wrong)))
    if not texts:
        value = f"{name}, where no answer is wrong to any query"
        raise reject("config.data.tasks", value, "for contrastive, tasks of different answers to different inputs")
    return texts


METHOD = VectorMethod(
    name="contrastive",
    label="contrastive vector",
    source="Contrastive activation addition, states after right answers less those after wrong ones, added at one"
    " layer: Rimsky et al. (2024).",
    make=make,
    scales=lambda own: SCALES,
)
