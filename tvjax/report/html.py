"""The parts of every page. A page needs only the figures beside it: no script, no network."""

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure

from tvjax.files import write_whole
from tvjax.report.look import CSS
from tvjax.report.style import DPI

Size = tuple[int, int]
FORMATS: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
"""The formats of a figure's files, each with what is left out of its metadata: the page shows the last."""


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
    for form, undated in FORMATS.items():
        content = io.BytesIO()
        drawn.savefig(content, format=form, dpi=DPI, metadata=undated)
        write_whole(folder / f"{exhibit.stem}.{form}", content.getvalue())
    width, height = drawn.get_size_inches()
    return round(96 * width), round(96 * height)


def figure(exhibit: Exhibit, size: Size) -> str:
    """The figure under its heading, with its caption."""
    stem = exhibit.stem
    links = " ".join(f'<a href="{stem}.{form}">{form.upper()}</a>' for form in FORMATS)
    return (
        f'<h3>{escape(exhibit.heading)}</h3>\n<figure><a href="{stem}.png" title="the figure alone, larger">'
        f'<img src="{stem}.png" width="{size[0]}" height="{size[1]}" alt="{escape(exhibit.alt)}"></a>'
        f"<figcaption>{escape(exhibit.caption)} <small>{links}</small></figcaption></figure>"
    )


def with_contents(parts: Sequence[str]) -> list[str]:
    """The parts of a page, each heading of them with an anchor; behind the first part links to the headings."""
    anchors: dict[str, str] = {}

    def named(match: re.Match[str]) -> str:
        level, text = match.groups()
        slug = re.sub(r"[^a-z0-9]+", "-", unescape(text).lower()).strip("-") or "part"
        while slug in anchors:
            slug += "-more"
        anchors[slug] = f'<li class="h{level}"><a href="#{slug}">{text}</a></li>'
        return f'<h{level} id="{slug}">{text}</h{level}>'

    first, *rest = [re.sub(r"<h([23])>(.*?)</h\1>", named, part) for part in parts]
    nav = f'<nav aria-label="Contents"><ul>{"".join(anchors.values())}</ul></nav>' if anchors else ""
    return [first, nav, *rest]


def files(links: Sequence[tuple[str, str]]) -> str:
    """Links to files of the run: a path from the page, and what the file is."""
    items = "".join(
        f'<li><a href="{escape(quote(path))}">{escape(path)}</a>: {escape(text)}</li>' for path, text in links
    )
    return f"<h2>Files</h2>\n<ul>{items}</ul>" if items else ""


def details(title: str, tree: dict[str, object]) -> str:
    """A tree of values that opens on a click."""
    text = json.dumps(tree, indent=2, ensure_ascii=False)
    return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>"
