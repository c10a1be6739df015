"""Hugging Face folders and GGUF files as models: `families` says what each architecture is, `weights` reads and writes.

`gguf_file` says what a GGUF file holds in a folder's terms.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvjax.errors import UserError, warn
from tvjax.files import read_json
from tvjax.memory import give_back
from tvjax.nn.model import Model
from tvjax.nn.pretrained.families import read_config
from tvjax.nn.pretrained.folder import CONFIG, TEMPLATES, along
from tvjax.nn.pretrained.tokenizer import Tokenizer
from tvjax.nn.pretrained.weights import load_folder, load_tensors, save_folder
from tvjax.nn.sources import is_gguf

__all__ = ["Pretrained", "Tokenizer", "is_gguf", "load_model", "save_model"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """Where a model comes from: its folder or file, its config.json, its tokenizer if there is one, what ends a text.

    files: what `export` writes beside the model, by name: the tokenizer's files, as they were when it was loaded.
    """

    path: Path
    values: dict[str, Any]
    tokenizer: Tokenizer | None
    files: dict[str, bytes] = dataclasses.field(default_factory=dict, repr=False)
    end_ids: tuple[int, ...] = ()


def end_ids(folder: Path, values: Mapping[str, Any], size: int) -> tuple[int, ...]:
    """The ids below `size` that end a text: what generation_config.json says, or where there is none config.json.

    As in `transformers`: nothing said is none, whatever the other file or the family's default. `values`: config.json.
    Raises `UserError` where they are no ids, or the file does not read.
    """
    file = folder / "generation_config.json"
    if file.is_file():
        return _ids(read_json(file, "accepted: a JSON object, or no such file"), file, size)
    return _ids(values, folder / CONFIG, size)


def _ids(values: Mapping[str, Any], source: Path, size: int) -> tuple[int, ...]:
    value = values.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(i) is int for i in ids):
        raise UserError(f"{source}: eos_token_id: given {value!r}; accepted: an id, a list of ids, or null")
    return tuple(i for i in dict.fromkeys(ids) if 0 <= i < size)


def load_model(path: Path, **how: Any) -> Model:
    """The model of a Hugging Face folder or of a GGUF file; `how` is that of `load_tensors`."""
    model = _of_gguf(path, **how) if is_gguf(path) else _of_folder(path, **how)
    give_back()  # what parsing took is some 5% of a small model's parameters
    return model


def _of_folder(folder: Path, **how: Any) -> Model:
    config, params, values = load_folder(folder, **how)
    files = along(folder)
    tokenizer = Tokenizer(folder) if "tokenizer.json" in files else None
    ends = end_ids(folder, values, config.vocab_size)
    return Model(params, config, Pretrained(folder, values, tokenizer, files, ends))


def _of_gguf(path: Path, **how: Any) -> Model:
    from tvjax.nn.pretrained.gguf_file import GGUF  # for it alone: the package takes a while to import
    from tvjax.nn.pretrained.gguf_tokenizer import tokenizer_files

    file = GGUF(path)
    config = read_config(file.values, str(path))
    files = tokenizer_files(file.metadata, config.vocab_size)
    tokenizer = Tokenizer(path, files["tokenizer.json"]) if files else None
    ends = _ids(json.loads(files.get("generation_config.json", "{}")), path, config.vocab_size)
    config, params = load_tensors(file, config, file.values, **how)
    return Model(params, config, Pretrained(path, file.values, tokenizer, files, ends))


def save_model(model: Model, folder: Path) -> None:
    """Write the model as a Hugging Face folder, with the tokenizer of the one that it came from (`save_folder`).

    One that came from no folder has no tokenizer that is known: an earlier model's goes, one without a model stays.
    """
    if isinstance(model.source, Pretrained):
        if (model.source.path / TEMPLATES).is_dir():
            warn(f"export: {model.source.path / TEMPLATES} does not go along")
        save_folder(folder, model.config, model.params, model.source.values, model.source.files)
    else:
        save_folder(folder, model.config, model.params, files={} if (folder / CONFIG).is_file() else None)
