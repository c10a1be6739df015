"""Which files of a Hugging Face folder make its model: those that are read, and those that an export leaves there.

The rules are those of transformers: model.safetensors goes before an index, and of an index all files that it names are
read whole. Safetensors only: a pickle runs what it likes. A link may only lead to the blobs of the hub's cache.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from tvjax.errors import UserError, warn
from tvjax.files import inside, read_json, write_whole
from tvjax.parallel import processes

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
FOLDER = "accepted: a Hugging Face folder: config.json, safetensors, tokenizer.json"
ALONG = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
"""The files of a tokenizer and of generation, in any of their forms: they go where the model goes."""

TEMPLATES = "additional_chat_templates"
"""A folder of templates beside the one that is used unnamed; it does not go along."""

# What transformers reads before model.safetensors, or adds to it where peft is installed.
FIRST = ("adapter_config.json", "shard-?????-model-?????-of-?????.safetensors")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What some reader takes for the model of a folder, or for a part of it, whatever else is there.
OTHERS = (
    *FIRST,
    TEMPLATES,
    "adapter_model.*",
    "consolidated*",
    "flax_model*",
    "model.*.safetensors",
    "model.*-of-*.safetensors",
    "pytorch_model*",
    "tf_model*",
    "*.gguf",
)
STAGE = ".tvjax-export"
_IMAGES = ("vision_tower.", "multi_modal_projector.")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_ROWS = 1024


def along(folder: Path) -> dict[str, bytes]:
    """The files of tokenizer and generation that `folder` has, by name."""
    files = {}
    for name in ALONG:
        if (folder / name).is_file():
            try:
                files[name] = inside(folder, name).read_bytes()
            except OSError as error:
                raise UserError(f"{folder / name}: does not read ({error.strerror}); accepted: a file") from None
    return files


class Folder:
    """The tensors of a folder, by name: where each lies, its shape and dtype. Nothing is read until it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file, named in self._listed().items():
            with self._open(file) as tensors:
                held = set(tensors.keys())
                for name in named:
                    if name not in held:
                        raise UserError(f"{file}: has no tensor {name}, which {path / INDEX} says it holds")
                for name in sorted(held):
                    if name in self._files:
                        raise UserError(
                            f"{path}: holds the tensor {name} twice, in {self._files[name].name} and in {file.name}; "
                            f"accepted: each once in the files that {INDEX} names"
                        )
                    entry = tensors.get_slice(name)
                    self._files[name] = file
                    self.shapes[name] = tuple(entry.get_shape())
                    self.dtypes[name] = entry.get_dtype()

    def _listed(self) -> dict[Path, list[str]]:
        """The files that are read, with the tensors that the index says each holds."""
        for other in _matching(self.path, FIRST):
            raise UserError(
                f"{self.path}: holds {other}, with which transformers makes another model than of {SINGLE} alone; "
                "accepted: a folder without it (an adapter can be merged into the model)"
            )
        if (self.path / SINGLE).is_file():
            if (self.path / INDEX).is_file():
                warn(f"{self.path}: {SINGLE} is read, as transformers does, {INDEX} is not")
            return {inside(self.path, SINGLE): []}
        if (self.path / INDEX).is_file():
            return self._indexed()
        for pickle in _matching(self.path, PICKLES):
            raise UserError(
                f"{self.path}: holds {pickle}, a pickle, which can run any program when it is read; accepted: "
                f"{SINGLE} or {INDEX} (transformers writes them with save_pretrained)"
            )
        raise UserError(f"{self.path}: holds neither {SINGLE} nor {INDEX}; {FOLDER}")

    def _indexed(self) -> dict[Path, list[str]]:
        listed = read_json(inside(self.path, INDEX), FOLDER).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
            raise UserError(f"{self.path / INDEX}: weight_map is no map from tensors to files")
        files: dict[Path, list[str]] = {}
        for name, file in listed.items():
            files.setdefault(inside(self.path, file), []).append(name)
        for path in files:
            if not path.is_file():
                raise UserError(f"{path}: no such file, although {INDEX} names it")
        return files

    def _open(self, file: Path) -> Any:
        try:
            return safetensors.safe_open(str(file), framework="numpy")
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a whole safetensors file ({error}); fetch it again") from None

    def read(self, name: str) -> np.ndarray:
        """One tensor. Its file is opened for it alone, so that what was read does not stay mapped."""
        with self._open(self._files[name]) as tensors:
            return tensors.get_tensor(name)

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors of one shape hold the same numbers. Some rows of each are read at a time."""
        with self._open(self._files[first]) as files, self._open(self._files[second]) as others:
            one, other = files.get_slice(first), others.get_slice(second)
            count = self.shapes[first][0]
            pieces = [slice(i, min(i + _ROWS, count)) for i in range(0, count, _ROWS)]
            return all(np.array_equal(one[p].astype(np.float32), other[p].astype(np.float32)) for p in pieces)


class TextPart:
    """The tensors of the text model in the folder of one that reads images too, by their names in a folder of its own.

    Both orders of transformers are known: ``language_model.model.`` and ``model.language_model.``. What reads images is
    left out, with a warning. Raises `UserError` for a tensor under both.
    """

    def __init__(self, folder: Folder) -> None:
        self.path, self._folder = folder.path, folder
        self._names: dict[str, str] = {}
        images = [name for name in folder.shapes if name.removeprefix("model.").startswith(_IMAGES)]
        for name in folder.shapes.keys() - set(images):
            own = name.removeprefix("language_model.")
            own = (
                f"model.{own.removeprefix('model.language_model.')}" if own.startswith("model.language_model.") else own
            )
            if own in self._names:
                raise UserError(f"{self.path}: holds the tensor {own} twice, as {self._names[own]} and as {name}")
            self._names[own] = name
        self.shapes = {own: folder.shapes[name] for own, name in self._names.items()}
        self.dtypes = {own: folder.dtypes[name] for own, name in self._names.items()}
        if images:
            warn(f"{self.path}: {len(images)} tensors of what reads images are not read, the text model alone is")

    def read(self, name: str) -> np.ndarray:
        """One tensor, as `Folder` reads it."""
        return self._folder.read(self._names[name])

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors of one shape hold the same numbers."""
        return self._folder.same(self._names[first], self._names[second])


def write_model(folder: Path, weights: bytes, config: str, files: Mapping[str, bytes] | None) -> None:
    """Make `folder` hold this model and no other; what is no file of a model stays.

    weights, config: the contents of model.safetensors and config.json; files: those of `ALONG`, by name (None: those
    that are there stay). Raises `UserError`, before anything changes, for a folder that cannot be written or that holds
    a model in another form.
    """
    contents = {SINGLE: weights, **(files or {}), CONFIG: config.encode()}
    write_files(folder, contents, lambda: _earlier(folder, contents, [] if files is None else ALONG))


def write_files(folder: Path, contents: Mapping[str, bytes], earlier: Callable[[], list[str]]) -> None:
    """Write `contents`, by name, into `folder`, in place of the files that `earlier` names once the folder is there.

    All is written beside its place first. Then the last file of `contents`, without which no reader takes the folder,
    goes, and comes last: whoever reads after a crash has the old files, the new ones or none. Raises `UserError`,
    before anything changes, for a folder that cannot be written, and what `earlier` raises.
    """
    if not processes.first():
        return
    stage = folder / STAGE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        gone = earlier()
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
        for name, content in contents.items():
            write_whole(stage / name, content)
        (folder / list(contents)[-1]).unlink(missing_ok=True)
        for name in gone:
            (folder / name).unlink()
        for name in contents:
            os.replace(stage / name, folder / name)
    except OSError as error:
        if error.errno in _DISK:
            raise
        raise UserError(f"{folder}: cannot be written ({error.strerror}); accepted: a folder that can") from None
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(stage)


def _earlier(folder: Path, contents: Iterable[str], tokenizers: Iterable[str]) -> list[str]:
    """The files of an earlier model that go without a new one in their place."""
    for other in _matching(folder, OTHERS):
        raise UserError(
            f"{folder}: holds {other}, of another model; accepted: a folder without, or with {SINGLE} alone"
        )
    values: dict[str, Any] = {"model_type": ""}
    with contextlib.suppress(UserError):
        values = read_json(folder / CONFIG, FOLDER)
    if "model_type" not in values:
        raise UserError(f"{folder / CONFIG}: is that of no model, as of a run; accepted: another folder")
    named: list[str] = []
    with contextlib.suppress(UserError):
        listed = read_json(inside(folder, INDEX), FOLDER).get("weight_map")
        named = [v for v in listed.values() if isinstance(v, str)] if isinstance(listed, dict) else []
    shards = [p.name for p in folder.iterdir() if _SHARD.fullmatch(p.name)]
    shards += [name for name in named if name.endswith(".safetensors") and "/" not in name]
    for name in (*contents, INDEX, *shards, *tokenizers):
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            raise UserError(f"{folder / name}: is a folder; accepted: a file, or none")
    names = dict.fromkeys((INDEX, *shards, *tokenizers))
    return [name for name in names if name not in contents and os.path.lexists(folder / name)]


def _matching(folder: Path, patterns: Iterable[str]) -> list[str]:
    return sorted(path.name for pattern in patterns for path in folder.glob(pattern))
