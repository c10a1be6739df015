"""The page and the terminal's table of any experiment: their parts, and how they are written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tvjax.errors import UserError
from tvjax.files import write_whole
from tvjax.report.html import Exhibit, details, document, figure, files, with_contents, write_figure
from tvjax.report.reader import Run
from tvjax.report.tables import Table

FILES = {
    "eval/summary.json": "every final number, with its interval",
    "eval/*.jsonl": "answers, one a line",
    "metrics.jsonl": "metrics during training, one line a step and member",
    "*/metrics.jsonl": "metrics during the training of a part",
    "vectors/*.safetensors": "the vectors",
    "populations/*/report/index.html": "the page of one population, with its single seeds",
    "config.json": "every field",
    "environment.json": "versions, devices, commit",
}
"""The files of a run that its page links to, and what they are."""
MOST_FILES = 12
"""The most files of one kind that are listed; of more, their folder follows."""


@dataclass(frozen=True)
class Contents:
    """The contents of the page of a run: its heading, HTML above and below the figures, and the figures."""

    heading: str
    above: Sequence[str]
    exhibits: Sequence[Exhibit]
    below: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """How runs of an experiment are shown.

    lines: from a summary to the lines and tables for the terminal.
    contents: from a run to the contents of its page.
    """

    lines: Callable[[Mapping[str, Any]], Sequence[str | Table]]
    contents: Callable[[Run], Contents]

    def text(self, summary: Mapping[str, Any]) -> str:
        """The results as plain text for the terminal."""
        whole = "\n".join(part if isinstance(part, str) else part.text() for part in self.lines(summary))
        return "\n".join(line.rstrip() for line in whole.split("\n")) + "\n"

    def write(self, run: Run) -> Path:
        """Write the figures and, last, ``report/index.html`` of a run; return the page's path.

        Every file is whole or absent. Raises `UserError` if the run lacks a file or one is broken.
        """
        try:
            contents = self.contents(run)
        except (KeyError, TypeError, IndexError) as error:
            if not self.contents.__module__.startswith("tvjax."):  # the error is of somebody else's page
                raise
            path = f"{run.path}/eval/summary.json"
            raise UserError(f"{path}: {error}: missing or broken; run --mode=eval again") from None
        folder, name = run.path / "report", run.path.resolve().name
        figures = [figure(exhibit, write_figure(exhibit, folder)) for exhibit in contents.exhibits]
        body = [
            f"<h1>{escape(f'{contents.heading} in {name}')}</h1>",
            *contents.above,
            "<h2>Figures</h2>" if figures else "",
            *figures,
            *contents.below,
            files(_files(run.path)),
            "<h2>How it was made</h2>",
            details("Configuration", run.config),
            details("Environment", run.environment),
        ]
        page = folder / "index.html"
        write_whole(page, document(f"{name}: {contents.heading}", with_contents(body)))
        return page


def _files(folder: Path) -> list[tuple[str, str]]:
    """The files of a run that a reader may want, as paths from its page."""
    found = []
    for pattern, text in FILES.items():
        paths = sorted(folder.glob(pattern))
        found += [(f"../{path.relative_to(folder).as_posix()}", text) for path in paths[:MOST_FILES]]
        if len(paths) > MOST_FILES:
            found.append((f"../{paths[0].relative_to(folder).parent.as_posix()}", f"{len(paths)} files: {text}"))
    return found
