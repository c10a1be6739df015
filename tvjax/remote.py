"""A run directory on object storage, as gs://BUCKET/RUN: a folder here stands for it.

A store of objects has no file to append to. So everything except the checkpoints, all of it small, lies in a folder of
this machine. The folder is filled from the store when a run starts, and copied to the store with every checkpoint and
at the end. The checkpoints go to the store itself, from every process.
"""

import tempfile
from pathlib import Path
from typing import Any

from etils import epath

from tvjax.errors import reject
from tvjax.files import user_path
from tvjax.parallel import processes

CHECKPOINTS = "checkpoints"


def here(workdir: str) -> Path:
    """The folder in which a run works: `workdir` itself, or a folder here that stands for it, filled from the store."""
    if "://" not in workdir:
        return user_path(workdir, "--workdir")
    path_of(workdir)
    folder = Path(tempfile.mkdtemp(prefix=f"tvjax-{processes.index()}-")) / "run"  # of this process alone
    folder.mkdir()
    _address(folder).write_text(workdir)
    _copy(there(folder), folder)
    return folder


def path_of(workdir: str) -> Any:
    """The path of `workdir`, here or in a store. Raises `UserError` for a store that nothing here reads."""
    if "://" not in workdir:
        return user_path(workdir, "--workdir")
    try:
        path = _at(workdir)
        path.exists()
    except (KeyError, ImportError) as error:
        raise reject("--workdir", workdir, f"a folder, or gs://BUCKET/RUN where gcsfs is installed ({error})") from None
    return path


def there(folder: Path) -> Any:
    """The `epath.Path` that holds the checkpoints of the run in `folder`.

    The folder, or the same folder in the store.
    """
    folder = folder.absolute()
    root = _root(folder)
    return _at(_address(root).read_text()) / folder.relative_to(root).as_posix() if root else _at(str(folder))


def _root(folder: Path) -> Path | None:
    """The folder that stands for a remote one: `folder` or a parent; None: there is none."""
    folder = folder.absolute()
    return next((parent for parent in (folder, *folder.parents[:-1]) if _address(parent).is_file()), None)


def _at(address: str) -> Any:
    return epath.Path(address)


def push(folder: Path) -> None:
    """Copy the files of the first process to the store. Does nothing without a store.

    All of the run around `folder` is copied, since training in an inner folder needs the outer files to go on.
    """
    root = _root(folder)
    if root is not None and processes.first():
        _copy(root, there(root))


def _address(folder: Path) -> Path:
    """The file beside a folder with the remote address that the folder stands for."""
    return folder.with_name(f"{folder.name}.remote")


def _copy(source: Any, target: Any) -> None:
    """Copy the files under `source` that `target` lacks or has with other contents, except the checkpoints."""
    if not source.exists():
        return
    for path in source.iterdir():
        if path.is_dir():
            if path.name != CHECKPOINTS:
                _copy(path, target / path.name)
            continue
        content, copy = path.read_bytes(), target / path.name
        if not copy.exists() or copy.read_bytes() != content:
            target.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content)
