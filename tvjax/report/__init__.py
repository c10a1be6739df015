"""Figures, the page and the terminal table, made from the files of a run directory alone."""

from tvjax.report.page import write_report
from tvjax.report.reader import read_run
from tvjax.report.table import summary_table

__all__ = ["read_run", "summary_table", "write_report"]
