"""The page and the table of a run, by the experiment that wrote it. Nothing here imports jax."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvjax.errors import UserError
from tvjax.experiments.base import BUILT_IN, registered
from tvjax.report import plain
from tvjax.report.page import Page
from tvjax.report.reader import read_run


def page_of(name: str) -> Page:
    """How runs of an experiment are shown: by its own page, or else by the numbers of their summaries.

    Raises `UserError` for an experiment that no module has registered.
    """
    if name in BUILT_IN:
        page: Page = importlib.import_module(f"{__package__}.{name}.report").PAGE
        return page
    own = registered(name)
    if own is None:
        raise UserError(f"experiment {name}: not known here; accepted: --plugins=MODULE, the module that registers it")
    return own.page or plain.PAGE


def write_report(run_dir: str | Path) -> Path:
    """Write ``report/*.png`` and, last, ``report/index.html`` into `run_dir`; return the page's path.

    Every file is whole or absent. Raises `UserError` if the run directory lacks a file or one is broken.
    """
    run = read_run(run_dir)
    return page_of(run.experiment).write(run)


def summary_table(summary: Mapping[str, Any]) -> str:
    """The tables of `summary`, the parsed ``eval/summary.json``. Raises `UserError` if it is no such summary."""
    return page_of(str(summary.get("experiment", "tvp"))).text(summary)
