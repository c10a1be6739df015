"""The page and the table of a TVP run."""

from tvjax.experiments.tvp.report.page import contents
from tvjax.experiments.tvp.report.table import lines
from tvjax.report.page import Page

PAGE = Page(lines, contents)
