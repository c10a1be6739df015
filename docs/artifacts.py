"""The results that the pages print, and where they come from: docs/results/NAME.json

  python docs/artifacts.py keep NAME RUN --command='COMMAND' --hardware='HARDWARE'    keep the summary of a run
                                                                (--without PART ..: but for parts of it)
  python docs/artifacts.py write                                       write the tables of all pages from what is kept
  python docs/artifacts.py repeat NAME                                 run the command that made a result

In a page, ``<!-- terminal NAME -->`` stands before a block of code, which is what the run prints,
``<!-- table NAME I -->`` before the I-th table of that print, as Markdown, and ``<!-- claims -->`` before the table of
claims.py. Other numbers of a page are in comments, ``<!-- numbers of NAME``, a line each, ``PRINTED: PATH``. A path
leads through the summary by names, by the `name` of an entry of a list (of a difference OF-MINUS), or by its place
there; two paths may have `/`, `-` or `+` between them. ``<!-- settings`` lists the numbers that are no results.
"""

import argparse
import datetime
import json
import operator
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvjax.errors import UserError
from tvjax.experiments.pages import page_of, summary_table
from tvjax.files import read_json, write_whole
from tvjax.report.reader import read_run
from tvjax.report.tables import Table

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results"
DIGITS = 5
"""Significant digits that are kept of a number."""
TERMINAL = re.compile(r"(<!-- terminal (\S+) -->\n)```\n.*?^```\n", re.DOTALL | re.MULTILINE)
TABLE = re.compile(r"(<!-- table (\S+) (\d+) -->\n\n)(?:\|.*\n)*")
CLAIMS = re.compile(r"(<!-- claims -->\n\n)(?:\|.*\n)*")
NUMBERS = re.compile(r"<!-- numbers of (\S+)\n(.*?)-->", re.DOTALL)
SETTINGS = re.compile(r"<!-- settings\n(.*?)-->", re.DOTALL)
DECIMAL = re.compile(r"(?<![\w.-])(?!\d{4}\.\d{5})[+-]?\d+(?:\.\d+(?:e-?\d+)?|e-?\d+)(?!\.?\d|\w)")
"""A number in prose that looks like a result, with a decimal point or a power, and is no number of arXiv."""
OPERATORS = {"/": operator.truediv, "-": operator.sub, "+": operator.add}


def kept(name: str) -> dict[str, Any]:
    """What is kept of a result. Raises `UserError` if there is none of this name."""
    path = RESULTS / f"{name}.json"
    return read_json(path, f"accepted: one of {', '.join(sorted(file.stem for file in RESULTS.glob('*.json')))}")


def keep(name: str, run_dir: str, command: str, hardware: str, without: Sequence[str] = ()) -> Path:
    """Keep the summary of a run, rounded, with what made it; return the path of the file.

    without: parts of the summary that are left out, for their size.
    """
    run = read_run(run_dir)
    made = {
        "command": command,
        "commit": run.environment.get("git_commit", "not said"),
        "date": datetime.date.today().isoformat(),
        "hardware": hardware,
        "python": run.environment.get("python", "not said"),
        "packages": run.environment.get("packages", {}),
        "summary": {part: rounded(value) for part, value in run.summary.items() if part not in without},
    }
    text = json.dumps(made, indent=1, ensure_ascii=False)
    text = re.sub(r"\[[^][{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"), text)
    write_whole(RESULTS / f"{name}.json", f"{text}\n")
    return RESULTS / f"{name}.json"


def rounded(value: Any) -> Any:
    """The tree with its floats rounded to `DIGITS` significant digits, and of each ``path`` its last part alone."""
    if isinstance(value, Mapping):
        return {name: Path(inner).name if name == "path" else rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.{DIGITS - 1}e}") if isinstance(value, float) else value


def find(tree: Any, path: str) -> Any:
    """What `path` leads to; names may have dots in them. Raises `KeyError` if it leads nowhere."""
    if not path:
        return tree
    entries = tree.items() if isinstance(tree, Mapping) else _entries(tree) if isinstance(tree, list) else ()
    for name, inner in entries:
        if path == name or path.startswith(f"{name}."):
            try:
                return find(inner, path[len(name) + 1 :])
            except KeyError:
                continue
    raise KeyError(path)


def _entries(values: list[Any]) -> Iterator[tuple[str, Any]]:
    for place, value in enumerate(values):
        yield str(place), value
        if isinstance(value, Mapping) and "name" in value:
            yield str(value["name"]), value
        if isinstance(value, Mapping) and {"of", "minus"} <= value.keys():
            yield f"{value['of']}-{value['minus']}", value


def value_of(summary: Any, path: str) -> Any:
    """The value of a path, or of two with an operator between them."""
    first, *rest = path.split(" ")
    value = find(summary, first)
    for sign, other in zip(rest[::2], rest[1::2], strict=True):
        value = OPERATORS[sign](value, find(summary, other))
    return value


def listed(page: str) -> Iterator[tuple[str, str, str]]:
    """The numbers that a page lists: the name of the result, what is printed, and the path."""
    for name, block in NUMBERS.findall(page):
        for line in block.strip().splitlines():
            printed, _, path = line.partition(": ")
            yield name, printed.strip(), path.strip()


def printed_as(printed: str, value: Any) -> str:
    """`value` in the form of `printed`: as many decimals, a sign if there is one, a row of numbers as a row."""
    words = printed.split(", ")
    values = value if isinstance(value, list) else [value]
    return ", ".join(_form(word, one) for word, one in zip(words, values, strict=True))


def _form(word: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    mantissa, power, _ = word.partition("e")
    decimals = len(mantissa.partition(".")[2])
    sign = "+" if word[0] == "+" else ""
    if not power:
        return f"{value:{sign}.{decimals}f}"
    digits, exponent = f"{value:{sign}.{decimals}e}".split("e")
    return f"{digits}e{int(exponent)}"


def prose(page: str) -> str:
    """A page without its comments, code, addresses of links, and what is generated."""
    page = CLAIMS.sub("", TABLE.sub("", TERMINAL.sub("", page)))
    page = re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)
    page = re.sub(r"^(```|~~~).*?^\1$", "", page, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\]\([^)]*\)|`[^`\n]+`", "", page)


def unlisted(page: str) -> list[str]:
    """The numbers in the prose of a page that are neither among its results nor among its settings."""
    known = {word for _, printed, _ in listed(page) for word in printed.split(", ")}
    known |= {word for block in SETTINGS.findall(page) for word in block.split()}
    return [word for word in DECIMAL.findall(prose(page)) if word not in known]


def written(page: str) -> str:
    """The page with its tables and blocks made from what is kept."""

    def terminal(match: re.Match[str]) -> str:
        summary = kept(match[2])["summary"]
        return f"{match[1]}```\n{summary_table(summary)}```\n"

    def table(match: re.Match[str]) -> str:
        summary = kept(match[2])["summary"]
        tables = [p for p in page_of(str(summary.get("experiment", "tvp"))).lines(summary) if isinstance(p, Table)]
        return f"{match[1]}{tables[int(match[3])].markdown()}"

    def claims(match: re.Match[str]) -> str:
        there = {path.stem for path in RESULTS.glob("*.json")}
        made = runpy.run_path(str(DOCS / "claims.py"))["table"](lambda name: kept(name) if name in there else None)
        return f"{match[1]}{made}"

    return CLAIMS.sub(claims, TABLE.sub(table, TERMINAL.sub(terminal, page)))


def pages() -> list[Path]:
    """README and the pages beside this file."""
    return [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="do", required=True)
    keeping = commands.add_parser("keep")
    for word in ("name", "run"):
        keeping.add_argument(word)
    for word in ("--command", "--hardware"):
        keeping.add_argument(word, required=True)
    keeping.add_argument("--without", nargs="*", default=[])
    commands.add_parser("write")
    commands.add_parser("repeat").add_argument("name")
    given = parser.parse_args(argv)
    try:
        if given.do == "keep":
            print(keep(given.name, given.run, given.command, given.hardware, given.without))
        elif given.do == "repeat":
            command = kept(given.name)["command"]
            print(command, flush=True)
            return subprocess.run(shlex.split(command), cwd=DOCS.parent, check=False).returncode
        else:
            for page in pages():
                text = page.read_text()
                made = written(text)
                if made != text:
                    write_whole(page, made)
                    print(page)
    except UserError as error:
        print(f"artifacts: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
