"""One table: as plain text for the terminal, as HTML for a page, as Markdown, and as CSV."""

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tvjax.report.words import Estimate, number


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    text: its text.
    interval: text behind it, in small letters.
    more: cells below it in the same cell.
    good: whether it is emphasized.
    wrap: whether long text is broken into lines.
    """

    text: str
    interval: str = ""
    more: tuple["Cell", ...] = ()
    good: bool = False
    wrap: bool = False

    def plain(self) -> str:
        """As text; only the last of several parts has its interval."""
        parts = [self, *self.more]
        texts = [part.text for part in parts[:-1]] + [f"{parts[-1].text} {parts[-1].interval}"]
        return " ".join(text.strip() for text in texts if text.strip())

    def html(self) -> str:
        """As HTML, the parts one below another."""
        small = f" <small>{escape(self.interval)}</small>" if self.interval else ""
        return "<br>".join([escape(self.text) + small, *(part.html() for part in self.more)])

    def whole(self, between: str = "; ") -> str:
        """As text, every part whole."""
        return between.join(f"{part.text} {part.interval}".strip() for part in (self, *self.more))


def estimate(value: float, interval: Sequence[float] | None, form: str | Callable[[float], str] = ".2f") -> Cell:
    """A number with the interval behind it, if it has one: ``0.16 [0.15, 0.17]``.

    form: a format, or a function from a number to text.
    """
    write = form if callable(form) else lambda one: f"{one:{form}}"
    return Cell(write(value), f"[{write(interval[0])}, {write(interval[1])}]" if interval is not None else "")


def measured(entry: Estimate, before: str = "") -> Cell:
    """An estimate in three significant digits. before: what stands before the value."""
    cell = estimate(float(entry.value), (float(entry.low), float(entry.high)), number)
    return dataclasses.replace(cell, text=before + cell.text)


def of(entry: Any, name: str, form: str | Callable[[float], str] = ".2f", index: int | None = None) -> Cell:
    """The number of this name in a summary, with its interval, ``entry[NAME_ci]``.

    index: which number of a list of them.
    """
    value, interval = entry[name], entry[f"{name}_ci"]
    return estimate(*((value, interval) if index is None else (value[index], interval[index])), form)


def both(entry: Any, name: str, form: str = ".2f") -> Cell:
    """First tokens above, whole answers below: ``entry[NAME_first]`` and ``entry[NAME]``."""
    first = of(entry, f"{name}_first", form)
    return Cell(first.text, first.interval, (of(entry, name, form),))


@dataclass(frozen=True)
class Head:
    """The head of a column.

    short: its text in the terminal; "": the same.
    """

    text: str
    short: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    names: how many of the first cells name the row.
    reference: whether the other rows are compared with this row.
    """

    cells: tuple[Cell | str, ...]
    names: int = 1
    reference: bool = False

    def padded(self, width: int) -> list[Cell]:
        """All cells of the row in a table of `width` columns."""
        cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in self.cells]
        return cells + [Cell("")] * (width - len(cells))


@dataclass(frozen=True)
class Table:
    """A table.

    caption: says what each number is.
    groups: heads above the heads: a text, and how many columns it spans.
    """

    caption: str
    heads: tuple[Head | str, ...]
    rows: tuple[Row, ...]
    groups: tuple[tuple[str, int], ...] = ()

    def _heads(self) -> list[Head]:
        return [head if isinstance(head, Head) else Head(head) for head in self.heads]

    def text(self) -> str:
        """Aligned columns, without the caption."""
        heads = self._heads()
        lines = [[head.short or head.text for head in heads]]
        lines += [[cell.plain() for cell in row.padded(len(heads))] for row in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
        return "\n".join(
            "  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )

    def html(self) -> str:
        """A table that scrolls if it is too wide."""
        heads = "".join(f'<th scope="col">{escape(head.text)}</th>' for head in self._heads())
        above = "".join(
            f'<th scope="colgroup" colspan="{count}">{escape(text)}</th>' if text else f'<td colspan="{count}"></td>'
            for text, count in self.groups
        )
        first = f"<tr>{above}</tr>\n" if above else ""
        body = "\n".join(self._row(row) for row in self.rows)
        return (
            '<div class="scroll" tabindex="0"><table><caption><span>'
            f"{escape(self.caption)}</span></caption>\n<thead>{first}<tr>{heads}</tr></thead>\n<tbody>\n{body}\n"
            "</tbody></table></div>"
        )

    def _row(self, row: Row) -> str:
        cells = row.padded(len(self.heads))
        parts = [f'<th scope="row">{cell.html()}</th>' for cell in cells[: row.names]]
        for cell in cells[row.names :]:
            kinds = " ".join(kind for kind, there in (("good", cell.good), ("wrap", cell.wrap)) if there)
            parts.append(f'<td class="{kinds}">{cell.html()}</td>' if kinds else f"<td>{cell.html()}</td>")
        return f"<tr{' class=' + chr(34) + 'reference' + chr(34) if row.reference else ''}>{''.join(parts)}</tr>"

    def markdown(self) -> str:
        """Rows of Markdown, without the caption."""
        rows = [[head.text for head in self._heads()], ["---"] * len(self.heads)]
        rows += [[cell.whole(" / ") for cell in row.padded(len(self.heads))] for row in self.rows]
        return "".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |\n" for row in rows)

    def csv(self) -> str:
        """Comma-separated values, under the long heads."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([head.text for head in self._heads()])
        writer.writerows([[cell.whole() for cell in row.padded(0)] for row in self.rows])
        return out.getvalue()
