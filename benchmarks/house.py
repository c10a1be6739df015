"""What a reader of the package has to walk through: python benchmarks/house.py

Lines of each part, how often one idea is written, and which modules `tvjax.load` of a TVP run imports.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "tvjax"
PARTS = ("experiments", "report", "methods", "text")
ONCE = {
    "from_config written out": r"def from_config\(",
    "classes EvaluationConfig": r"class EvaluationConfig\b",
    "summary_table": r"def summary_table\(",
    "functions that make a cell": r"-> Cell:",
    "typed readers of a run": r"def read_(kind|plain|run|metrics)\(",
    "edits built by hand": r"\bEdit\(",
}
LOADED = """
import sys
from tvjax import library, tasks
from tvjax.experiments import loader_of
loader_of({"experiment": "tvp"}), tasks.family("linear")
print(len([name for name in sys.modules if name.split(".")[0] == "tvjax"]))
"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    files = {path: path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    lines = {path: text.count("\n") for path, text in files.items()}
    for part in PARTS:
        print(f"{part:<28}{sum(count for path, count in lines.items() if PACKAGE / part in path.parents)} lines")
    print(f"{'all':<28}{sum(lines.values())} lines")
    for what, pattern in ONCE.items():
        print(f"{what:<28}{sum(len(re.findall(pattern, text)) for text in files.values())}")
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    print(f"{'modules of a TVP load':<28}{done.stdout.strip()}")


if __name__ == "__main__":
    main()
