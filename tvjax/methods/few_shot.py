"""Demonstrations drawn from the train split, in front of the query."""

from tvjax.methods.base import Prompted
from tvjax.text.bench import Bench


def prompts(bench: Bench, name: str) -> list[str]:
    """The inputs of the test split of a task, each behind demonstrations of its own."""
    return bench.few_shot(name, bench.sample(name, "test"))


METHOD = Prompted(name="few_shot", label="{k}-shot", knows="demonstrations", prompts=prompts, each_seed=True)
