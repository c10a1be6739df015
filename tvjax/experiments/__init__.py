"""What can be run: each experiment is a function ``(config, folder, mode) -> summary``."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tvjax.errors import reject
from tvjax.experiments import atv, atv_tvp, emergence, formats, task_vectors, text_model, tvp, tvp_language

EXPERIMENTS: dict[str, Callable[[Mapping[str, Any], Path, str], Any]] = {
    "tvp": tvp.run,
    "text_model": text_model.run,
    "task_vectors": task_vectors.run,
    "formats": formats.run,
    "atv": atv.run,
    "atv_tvp": atv_tvp.run,
    "emergence": emergence.run,
    "tvp_language": tvp_language.run,
}


def experiment_of(config: Mapping[str, Any]) -> str:
    """The name of the experiment that `config` asks for. Raises `UserError` for one that is not there."""
    name = config.get("experiment")
    if not isinstance(name, str) or name not in EXPERIMENTS:
        raise reject("config.experiment", name, ", ".join(EXPERIMENTS))
    return name
