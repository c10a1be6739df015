"""What the compilers of TPUs and of GPUs are asked about every config: its training step and its evaluation."""

from tests.conftest import quiet
from tests.experiments.test_configs import read, sources
from tvjax.experiments import planned

UNTRAINED = ("task_vectors_hf.py:smollm2", "task_vectors_hf.py:all", "formats.py:smollm2")
"""They train nothing, and so have no program to plan; ":small" has that of its model."""
FOUND = list(sources())
SOURCES = [one for one in FOUND if one not in UNTRAINED and not any(other.startswith(one + ":") for other in FOUND)]
"""Without those that are one of their arguments, by default."""
LARGE = ("atv_llama3_8b", "atv_mistral_7b")
"""Over several devices."""


def plan_of(source, folder, fields=None, **plan):
    """The plan of a config, with other `fields`, and with its layers rolled up, which compiles in half the time."""
    config = {**read(source), **(fields or {})}
    base = config.get("base", config)  # a study's runs are of its base
    for name in ("model", "train"):
        if "unroll" in base.get(name, {}):
            base[name]["unroll"] = 1
    return planned.plan({**config, "plan": plan}, folder, quiet)


def assert_sound(found):
    """That a plan fits, holds its state once, calls no host, and sends nothing between members."""
    assert found["fits"], found["advice"]
    state = found["bytes"]["parameters"] + found["bytes"]["optimizer"] + found["bytes"]["best"]
    assert found["step"]["bytes_donated"] >= state, "the state is held twice"
    cut = {name for name, size in found["mesh"].items() if size > 1}
    for program in (found["step"], found["evaluation"]):
        assert program["callbacks"] == (), "calls the host"
        assert sum(program["flops"].values()) > 1e5
        axes = {axis for one in program["collectives"] for axis in one["axes"].split("+")}
        assert axes <= cut - {"member"}, f"sends over {axes}"
