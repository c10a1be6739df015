"""One table says the same as text, as HTML and as CSV."""

import csv
import io

from tvjax.report.tables import Cell, Head, Row, Table, both, estimate, of

ENTRY = {"a": 0.5, "a_ci": [0.25, 0.75], "a_first": 1.0, "a_first_ci": [0.9, 1.0]}
TABLE = Table(
    "Of <b> & more",
    (Head("the name", "name"), "first"),
    (Row(("x <i>", both(ENTRY, "a"))), Row((Cell("y"), Cell("-", good=True)), reference=True), Row(("z",))),
    groups=(("", 1), ("above", 1)),
)


def test_the_text_has_short_heads_and_columns_that_line_up() -> None:
    assert TABLE.text().splitlines() == ["name   first", "x <i>  1.00 0.50 [0.25, 0.75]", "y      -", "z"]


def test_the_page_escapes_what_is_in_it() -> None:
    page = TABLE.html()
    assert "Of &lt;b&gt; &amp; more" in page and '<th scope="row">x &lt;i&gt;</th>' in page
    assert "<td>1.00 <small>[0.90, 1.00]</small><br>0.50 <small>[0.25, 0.75]</small></td>" in page
    assert '<tr class="reference"><th scope="row">y</th><td class="good">-</td></tr>' in page
    assert '<th scope="row">z</th><td></td>' in page, "a row that is short is filled up"
    assert '<tr><td colspan="1"></td><th scope="colgroup" colspan="1">above</th></tr>' in page


def test_csv_has_the_long_heads_and_every_part() -> None:
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows == [["the name", "first"], ["x <i>", "1.00 [0.90, 1.00]; 0.50 [0.25, 0.75]"], ["y", "-"], ["z"]]


def test_an_estimate_is_written_as_it_is_asked_to() -> None:
    assert estimate(0.25, (0.125, 0.5), "+.2f").plain() == "+0.25 [+0.12, +0.50]"
    assert of(ENTRY, "a", lambda one: f"{one:.0%}").plain() == "50% [25%, 75%]"
