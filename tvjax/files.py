"""Files are whole or absent: written beside their place, then moved into it; and one way to read JSON.

Of several processes the first alone writes.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tvjax.errors import UserError
from tvjax.parallel import processes


def write_whole(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a reader, or a crash, sees the old file or the new one, never a part."""
    if not processes.first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_text(path: Path, advice: str) -> str:
    """The text of a file. Raises `UserError`, with `advice` behind it, where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {advice}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: does not read as text ({type(error).__name__}); {advice}") from None


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The object in a JSON file. Raises `UserError`, with `advice` behind it, where there is none."""
    try:
        value = json.loads(read_text(path, advice))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not whole JSON (line {error.lineno}: {error.msg}); {advice}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; {advice}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. Raises ValueError for a number that JSON cannot say."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
