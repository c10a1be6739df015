"""Demonstrations of the train split that look like the query (Robertson and Zaragoza 2009)."""

import functools

from tvjax.methods.base import Prompted
from tvjax.tasks.retrieval import Retriever
from tvjax.text.bench import Bench


def prompts(bench: Bench, name: str) -> list[str]:
    """The inputs of the test split of a task, each behind those of the train split that are nearest by BM25.

    Each demonstration has one of its right answers.
    """
    encode = functools.partial(bench.tokenizer.encode, special=False)
    train = bench.paired(name, bench.tasks[name].questions("train"))
    known = Retriever(train, encode([" " + x for x, _ in train]))
    test = bench.sample(name, "test")
    k, ids = bench.config.demonstrations, encode([" " + x for x, _ in test])
    shown = [known.shots(x, one, k) for (x, _), one in zip(test, ids, strict=True)]
    return [bench.template.prompt(pairs, x) for pairs, (x, _) in zip(shown, test, strict=True)]


METHOD = Prompted(
    name="bm25_shot",
    label="{k}-shot, retrieved by BM25",
    knows="demonstrations",
    source="BM25: Robertson and Zaragoza (2009).",
    prompts=prompts,
)
