"""Compare runs: python -m tvjax.compare RUN RUN [RUN ..] [--out=DIR]

  RUN          the folder of a measured run, of any experiment
  --out=DIR    where the page is written (default: a new folder, runs/compare-DATE)

Prints the fields in which the runs differ and their headline numbers, with differences paired by seed, and writes the
same as a page with a figure and a CSV file. `tvjax.results` gives all numbers of runs as rows.

Exit codes: 0 done; 2 the input is wrong.
"""

import re
import sys
import time

from tvjax.cli import exit_cleanly
from tvjax.errors import reject
from tvjax.files import user_path
from tvjax.report.comparison import compare
from tvjax.report.tables import Table


def main(argv: list[str]) -> None:
    """Run the command line. Raises `UserError`."""
    if any(re.fullmatch("-h|--?help(=.*)?", word) for word in argv[1:]):
        print((__doc__ or "").strip())
        return
    folders, out = [], ""
    for word in argv[1:]:
        name, is_flag, value = word.partition("=")
        if name == "--out" and value:
            out = value
        elif word.startswith("-"):
            raise reject("command line", word, "folders of runs, --out=DIR" if not is_flag else "--out=DIR")
        else:
            folders.append(user_path(word, "RUN"))
    folder = user_path(out or f"runs/compare-{time.strftime('%Y%m%d-%H%M%S')}", "--out")
    comparison = compare(folders)
    for part in comparison.lines():
        print(part.text() if isinstance(part, Table) else part)
    print(f"page: {comparison.write(folder)}")


if __name__ == "__main__":
    sys.exit(exit_cleanly(main, sys.argv))
