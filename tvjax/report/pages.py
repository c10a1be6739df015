"""The page and the table of every run but TVP's: which module has them, and what all such pages share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tvjax.errors import UserError
from tvjax.files import write_whole
from tvjax.report import adaptive, atv_tvp, emergence, formats, language, plain, task_vectors, text_model
from tvjax.report.gallery import Exhibit
from tvjax.report.html import details, document, figure, write_figure
from tvjax.report.reader import read_plain

Contents = tuple[list[Exhibit], str, list[str]]
"""The figures of a page, its heading, and its other parts, HTML."""


@dataclass(frozen=True)
class Page:
    """How runs of an experiment are shown: a plain table for the terminal, and what is on the page of a run."""

    summary_table: Callable[[Mapping[str, Any]], str]
    contents: Callable[[dict[str, Any], Path], Contents]


PAGES: dict[str, Page] = {}
"""By the experiment's name."""


def register(experiment: str, page: Page) -> None:
    """Say how runs of an experiment are shown; without, `plain` shows them. Raises `UserError` where that is known."""
    if PAGES.get(experiment, page) != page:
        raise UserError(f"page of {experiment}: given another; accepted: one")
    PAGES[experiment] = page


for name, module in {
    "text_model": text_model,
    "task_vectors": task_vectors,
    "formats": formats,
    "atv": adaptive,
    "atv_tvp": atv_tvp,
    "emergence": emergence,
    "tvp_language": language,
}.items():
    register(name, Page(module.summary_table, module.contents))
PLAIN = Page(plain.summary_table, plain.contents)


def write_report(run_dir: str | Path) -> Path:
    """Write the figures and the page of a run; return the page's path."""
    path, config, environment, summary = read_plain(run_dir)
    try:
        exhibits, heading, parts = PAGES.get(summary["experiment"], PLAIN).contents(summary, path)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}/eval/summary.json: {error}: missing or broken; run --mode=eval again") from None
    folder = path / "report"
    figures = [figure(exhibit, write_figure(exhibit, folder)) for exhibit in exhibits]
    name = path.resolve().name
    body = [
        f"<h1>{escape(f'{heading} in {name}')}</h1>",
        *parts,
        "<h2>Figures</h2>",
        *figures,
        "<h2>How it was made</h2>",
        details("Configuration", config),
        details("Environment", environment),
    ]
    page = folder / "index.html"
    write_whole(page, document(f"{name}: {heading}", body))
    return page


def summary_table(summary: Mapping[str, Any]) -> str:
    """The results as plain text for the terminal."""
    return PAGES.get(summary["experiment"], PLAIN).summary_table(summary)
