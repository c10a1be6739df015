"""Every test runs on eight CPU devices, and with implicit broadcasting between ranks refused."""

import copy
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from tvjax.parallel.processes import keep_plugins_quiet

keep_plugins_quiet()
# Most of the time goes to compiling: once for all tests and the processes that they start, and as XLA does it fastest
# (the emitters of fused loops, which later versions cannot leave out, double the time). What trains,
# `Trainer.compile`, keeps the level that users have.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="tvjax-tests-"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
FASTEST = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FASTEST += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FASTEST)
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

SMALL: dict[str, Any] = {
    "experiment": "tvp",
    "task": {"name": "linear", "input_width": 2},
    "prompt": {"layout": "xzy", "demonstrations": 4},
    "curriculum": {"dimensions": {}, "pairs": {}},
    "model": {"num_layers": 3, "width": 16, "num_heads": 2, "max_positions": 32, "unroll": 1},
    "tvp": {},
    "population": {
        "name": ("icl", "tvp"),
        "seed": (0,),
        "tvp_weight": (0.0, 1.0),
        "prescribed_layer": (2,),
        "learning_rate": (2e-3,),
    },
    "train": {"batch": 8, "steps": 20, "log_every": 5, "evaluate_every": 10, "checkpoint_every": 5},
    "optimizer": {"warmup_steps": 4, "clip_norm": 1.0, "weight_decay": 1e-4},
    "evaluation": {"training_prompts": 16, "prompts": 32, "shifts": False},
    "mesh": {},
}


def quiet(line: str) -> None:
    """What a run is told to say its lines to."""


def changed(config: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A copy of `config` with fields named by their path: ``changed(c, model__width=32)``."""
    config = copy.deepcopy(config)
    for path, value in fields.items():
        *groups, last = path.split("__")
        node = config
        for group in groups:
            node = node[group]
        node[last] = value
    return config


TINY = changed(
    SMALL,
    model__num_layers=2,
    model__width=8,
    prompt__demonstrations=2,
    population__prescribed_layer=(1,),
)
"""The least that has an inner layer: for tests that train many times over."""


@pytest.fixture(autouse=True, scope="module")
def forgotten() -> Iterator[None]:
    """Compiled programs are dropped with their file: thousands of them take gigabytes, and in the end crash XLA."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture
def small() -> dict[str, Any]:
    """A config that trains in a second, as plain values: no ml_collections is needed for it."""
    return copy.deepcopy(SMALL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process ends up alone with one of them."""
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)
