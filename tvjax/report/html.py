"""The parts of every page. A page needs only the figures beside it: no script, no network."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from tvjax.files import write_whole
from tvjax.report.look import CSS
from tvjax.report.style import DPI

Size = tuple[int, int]


@dataclass(frozen=True)
class Exhibit:
    """One figure of the page.

    stem: the name of its file, without the ending.
    heading: above the figure.
    alt: the alternative text.
    caption: below the figure.
    draw: makes the figure.
    """

    stem: str
    heading: str
    alt: str
    caption: str
    draw: Callable[[], Figure]


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page; empty `parts` are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n<footer>Written by tvjax from the files of this run directory.</footer>\n</main>\n</body>\n</html>\n"
    )


def box(sentences: Sequence[str]) -> str:
    """The sentences that a page shows before any number; "" if there are none."""
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in sentences)
    return f'<div class="headline">{paragraphs}</div>' if paragraphs else ""


def write_figure(exhibit: Exhibit, folder: Path) -> Size:
    """Draw and save one figure; return the width and height at which the page shows it, in CSS pixels."""
    drawn = exhibit.draw()
    content = io.BytesIO()
    drawn.savefig(content, format="png", dpi=DPI)
    write_whole(folder / f"{exhibit.stem}.png", content.getvalue())
    width, height = drawn.get_size_inches()
    return round(96 * width), round(96 * height)


def figure(exhibit: Exhibit, size: Size) -> str:
    """The figure under its heading, with its caption."""
    return (
        f'<h3>{escape(exhibit.heading)}</h3>\n<figure><img src="{exhibit.stem}.png" width="{size[0]}"'
        f' height="{size[1]}" alt="{escape(exhibit.alt)}"><figcaption>{escape(exhibit.caption)}</figcaption></figure>'
    )


def details(title: str, tree: dict[str, object]) -> str:
    """A tree of values that opens on a click."""
    text = json.dumps(tree, indent=2, ensure_ascii=False)
    return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>"
