"""Names of arrays end in their axes, and each letter of them is in the key of CONTRIBUTING.md."""

import ast
import re
from pathlib import Path

import tvjax

ROOT = Path(__file__).resolve().parents[1]
SUFFIX = re.compile(r"_*[a-z]\w*_([A-Z][A-Z0-9]*)")


def key():
    """The letters of CONTRIBUTING.md's table, each with what it means."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Dimension letters")[1].split("\n## ")[0]
    cells = [cell.strip() for row in re.findall(r"^\|(.*)\|$", section, re.MULTILINE) for cell in row.split("|")]
    return {letter: meaning for letter, meaning in zip(cells[::2], cells[1::2], strict=True) if len(letter) == 1}


def suffixes():
    """Each name of the package that ends in axes, behind its file, and those axes."""
    for path in sorted((ROOT / "tvjax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for field in ("id", "arg", "attr", "name", "asname"):
                name = getattr(node, field, None)
                match = SUFFIX.fullmatch(name) if isinstance(name, str) else None
                if match:
                    yield f"{path.relative_to(ROOT)}: {name}", match[1]


def test_every_letter_of_a_suffix_is_in_the_key():
    letters = {*key(), *"0123456789"}
    assert {"LBD", "BTGC", "B1X"} <= {axes for _, axes in suffixes()}
    assert not {name: strange for name, axes in suffixes() if (strange := set(axes) - letters)}


def test_every_letter_of_the_key_is_in_a_suffix():
    assert not set(key()) - set("".join(axes for _, axes in suffixes()))


def test_the_package_says_the_same_key():
    assert dict(re.findall(r"^    ([A-Z])  (.+)$", tvjax.__doc__, re.MULTILINE)) == key()
