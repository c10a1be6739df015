"""The bare query."""

from tvjax.methods.base import Prompted
from tvjax.text.bench import Bench


def prompts(bench: Bench, name: str) -> list[str]:
    """The inputs of the test split of a task, each alone."""
    return bench.zero_shot(bench.sample(name, "test"))


METHOD = Prompted(name="zero_shot", label="zero-shot", knows="query", prompts=prompts, shown=False)
