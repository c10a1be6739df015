"""The two ways a run ends badly, each with an exit code and one line that a user can act on; and warnings."""

import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterable

LONGEST = 400
"""Characters of a given value that an error repeats."""
PACKAGE = os.path.dirname(__file__) + os.sep


class UserError(Exception):
    """The user's input is wrong (exit code 2).

    The message names field or file, the given value and what is accepted.
    """

    exit_code = 2


class RunError(Exception):
    """The run cannot go on (exit code 3). The message says what was kept and what to do."""

    exit_code = 3


def reject(field: str, value: object, accepted: str) -> UserError:
    """The error for a bad value of `field`, in one line with the value and what is accepted.

    If `accepted` lists names, the error also names the one nearest to `value`. If `accepted` begins with "no such
    field", the error names the one nearest to the last part of `field`.
    """
    word = re.split(r"[. ]", field)[-1] if accepted.startswith("no such field") else value
    text = " ".join(repr(value).split()) if "\n" in repr(value) else repr(value)
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return UserError(f"{field}: given {shown}; accepted: {accepted}{near(word, _names(accepted))}")


def one_of(names: Iterable[str]) -> str:
    """What is accepted where a name is one of `names`, or one that a module of the user's own registers."""
    return f"a name of your own with --plugins=MODULE, or one of {', '.join(names)}"


def within(field: str, error: UserError) -> UserError:
    """The error of an inner config, named by the field of the outer one that holds it or makes it."""
    return UserError(f"{field}: {str(error).removeprefix('config.')}")


def warn(line: str) -> None:
    """Warn of `line`, at the line of code outside of this package that called into the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(" ".join(line.split()), stacklevel=level)


def near(word: object, names: Iterable[str], before: str = "") -> str:
    """``; did you mean 'NAME'?`` for the one of `names` that is most like `word`, or "" if none is like it.

    before: text in front of the name, such as the folder of a file.
    """
    lower = {name.lower(): name for name in names}
    if not isinstance(word, str) or word in lower.values():
        return ""
    matches = difflib.get_close_matches(word.lower()[:LONGEST], lower, n=1)
    return f"; did you mean {before + lower[matches[0]]!r}?" if matches else ""


def _names(accepted: str) -> list[str]:
    """The names that a text lists, such as ``one of a, b``, ``the fields are a, b`` and ``'a', 'b', or indices``."""
    listed = re.split(r"\bone of | are |: ", accepted)[-1]
    parts = [part.strip("'\"") for part in re.split(r",? or |, |\|", listed)]
    names = [part for part in parts if re.fullmatch(r"[^\W\d][\w./:-]*", part) and part != "more"]
    return names if len(names) > 1 else []
