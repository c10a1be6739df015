"""The code of a run: its commit and, if the code differs from the commit, the difference."""

import difflib
import functools
import hashlib
import os
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
LONGEST = 2**20
"""Bytes of a difference that are kept."""
UNKNOWN = "unknown"


@functools.cache
def state(package: Path = PACKAGE) -> tuple[str, str]:
    """The commit of `package`, with ``-dirty`` if the code differs from it, and the difference.

    The code is what git tracks in the folder of `package`, and each file NAME.py of the package that git does not know
    yet. A binary file is in the difference by its name alone. The code is read once in a process, which has imported it
    by then. ("unknown", "") if no repository tracks the package: it was installed, or there is no git.
    """
    try:
        if not _git(package, "ls-files", "--error-unmatch", "__init__.py"):
            return UNKNOWN, ""
        commit = _git(package, "rev-parse", "HEAD").strip()
        names = _git(package, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py").split("\0")
        how = ("--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/", "--relative")
        changes = _git(package.parent, "diff", "HEAD", *how, "--", ".")
        changes += "".join(_new(package, name) for name in sorted(filter(None, names)))
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN, ""
    return (f"{commit}-dirty", _cut(changes)) if changes else (commit, "")


def name_of(difference: str) -> str:
    """The name of the file in a run directory that keeps a difference; each difference has its own."""
    return f"code-{hashlib.sha256(difference.encode()).hexdigest()[:12]}.diff"


def _git(folder: Path, *words: str) -> str:
    """The output of git in the repository around `folder`, whatever the environment names and whoever owns it."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "safe.directory=*", "-c", "core.quotepath=off", *words]
    done = subprocess.run(
        command, cwd=folder, env=variables | {"GIT_OPTIONAL_LOCKS": "0"}, capture_output=True, check=True, timeout=10
    )
    return done.stdout.decode(errors="replace")


def _new(package: Path, name: str) -> str:
    """A file that git does not know, as a difference from no file; a link, or a file that is no text, by name alone."""
    path, target = package / name, f"b/{package.name}/{name}"
    if path.resolve() != package.resolve() / name:
        return f"{target}: new, a link\n"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return f"{target}: new, and no text that reads\n"
    lines = text.splitlines()
    changes = list(difflib.unified_diff([], lines, "/dev/null", target, lineterm=""))
    return "\n".join(changes or [f"{target}: new, and empty"]) + "\n"


def _cut(text: str) -> str:
    """`text`, or its first whole lines within `LONGEST` and a line that says how much is left out."""
    whole = text.encode()
    if len(whole) <= LONGEST:
        return text
    kept = whole[:LONGEST].rpartition(b"\n")[0]
    return f"{kept.decode(errors='replace')}\n... cut here: {len(whole) - len(kept)} bytes more\n"
