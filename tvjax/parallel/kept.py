"""Compiled programs stay on disk, so the next process reads them (JAX's persistent cache).

JAX keeps programs that took a second or more to compile, under a name made of the program, its options and the
versions.
"""

import hashlib
import os
import platform
import re
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from tvjax.errors import UserError
from tvjax.files import user_cache

LIMIT = 2**30
"""Bytes that may stay: beyond them the oldest programs go."""


def keep_programs() -> None:
    """Have JAX keep compiled programs in ``~/.cache/tvjax`` (or ``$XDG_CACHE_HOME/tvjax``).

    Nothing changes if the user has chosen a folder (``JAX_COMPILATION_CACHE_DIR``) or wants none
    (``JAX_ENABLE_COMPILATION_CACHE=false``), or if the folder cannot be written.
    """
    chosen = jax.config.values
    if chosen["jax_compilation_cache_dir"] is not None or not chosen["jax_enable_compilation_cache"]:
        return
    try:
        # A program holds instructions of the processor that it was compiled on, and a home may be of many machines.
        folder = user_cache() / f"programs-{_processor()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _shrink(folder, LIMIT)
    except (OSError, UserError):
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()  # what was compiled before has settled that there is none


def _processor() -> str:
    """A hash of the processor's model and features."""
    features = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        features += "".join(sorted(set(re.findall(r"^(?:model name|flags|Features)\s*:.*", cpuinfo.read_text(), re.M))))
    return hashlib.sha256(features.encode()).hexdigest()[:8]


def _shrink(folder: Path, limit: int) -> None:
    """Remove the oldest files of `folder` beyond `limit` bytes."""
    files = sorted(((file.stat(), file) for file in folder.iterdir() if file.is_file()), key=lambda f: -f[0].st_mtime)
    held = 0
    for stat, file in files:
        held += stat.st_size
        if held > limit:
            file.unlink(missing_ok=True)
