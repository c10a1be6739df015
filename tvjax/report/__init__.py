"""Figures, the page and the terminal table, made from the files of a run directory alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvjax.report import page, pages, table
from tvjax.report.pages import Page, register
from tvjax.report.reader import read_kind, read_run

__all__ = ["Page", "read_run", "register", "summary_table", "write_report"]


def write_report(run_dir: str | Path) -> Path:
    """Write ``report/*.png`` and, last, ``report/index.html`` into `run_dir`; return the page's path.

    Every file is whole or absent. Raises UserError where the run directory lacks a file or one is broken.
    """
    return (page if read_kind(run_dir) == "tvp" else pages).write_report(run_dir)


def summary_table(summary: Mapping[str, Any]) -> str:
    """The tables of ``eval/summary.json``, given as the parsed JSON. Raises UserError if it is not such a summary."""
    return (table if summary.get("experiment", "tvp") == "tvp" else pages).summary_table(summary)
