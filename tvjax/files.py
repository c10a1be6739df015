"""Files are whole or absent: written under a temporary name, then renamed. Also one way to read a path and JSON.

Of several processes the first alone writes.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvjax.errors import UserError, near, reject
from tvjax.parallel import processes


def user_path(path: str | os.PathLike[str], field: str = "path") -> Path:
    """The path that a user names: ``~`` is the home folder, ``~NAME`` the home folder of another user.

    Raises `UserError`, which names `field`, for a home that is not there and for an impossible path.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str) or not text or "\0" in text:
        raise reject(field, path, "a path")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise reject(field, text, "a path; what begins with ~ is a home folder, and here is none (./~ is a name)")
    return Path(expanded)


def user_cache() -> Path:
    """The folder of files kept between processes: ``tvjax`` in the cache folder (``XDG_CACHE_HOME``, or ~/.cache)."""
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "tvjax"


def nearest_beside(path: Path) -> str:
    """``; did you mean 'PATH'?`` if the folder of `path` has something of a like name; else ""."""
    try:
        names = [name for name in os.listdir(path.parent) if not name.startswith(".")]
    except (OSError, ValueError):
        return ""
    return near(path.name, names, "" if path.parent == Path() else f"{path.parent}/")


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`. Raises `UserError` for another folder's, and for a link that leads out.

    A link may only lead to the blobs of the hub's cache.
    """
    file = folder / name
    allowed = [folder.resolve(), (folder / ".." / ".." / "blobs").resolve()]
    if Path(name).name != name or name in ("", ".", "..") or file.resolve().parent not in allowed:
        what = "has a link out of it," if Path(name).name == name and file.is_symlink() else "names the file"
        raise UserError(f"{folder}: {what} {name!r}; accepted: files in this folder")
    return file


def write_whole(path: Path, content: bytes | str) -> None:
    """Write `content` to `path`: a reader, or a crash, sees the old file or the new one, never a part."""
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


def write_named(path: str | os.PathLike[str], content: bytes | str) -> None:
    """`write_whole` to a path that a user names. Raises `UserError` if no file can be there."""
    try:
        write_whole(user_path(path), content)
    except (IsADirectoryError, NotADirectoryError, FileExistsError, PermissionError) as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); accepted: the path of a file") from None


def read_text(path: Path, advice: str) -> str:
    """The text of a file. Raises `UserError`, with `advice` behind it, if there is no text to read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {advice}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: does not read as text ({type(error).__name__}); {advice}") from None


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """The object in a JSON file. Raises `UserError`, with `advice` behind it, if there is no whole object."""
    text = read_text(path, advice)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not whole JSON (line {error.lineno}: {error.msg}); {advice}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, too deep a nesting
        raise UserError(f"{path}: JSON that cannot be read ({type(error).__name__}); {advice}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; {advice}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. Raises ValueError for a number that JSON does not have."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def flatten(config: Mapping[str, Any], path: str = "config") -> dict[str, Any]:
    """``{'config.model.width': 64, ...}``; tuples are lists, as in JSON."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.{name}")
        else:
            flat[f"{path}.{name}"] = _lists(value)
    return flat


def _lists(value: Any) -> Any:
    """Tuples, and those in them, as lists."""
    return [_lists(one) for one in value] if isinstance(value, tuple | list) else value
