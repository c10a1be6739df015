"""Hugging Face folders as models: `families` says what each architecture is, `weights` reads and writes folders."""

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from tvjax.errors import UserError, warn
from tvjax.files import read_json
from tvjax.nn.model import Model
from tvjax.nn.pretrained.folder import CONFIG, TEMPLATES, along
from tvjax.nn.pretrained.tokenizer import Tokenizer
from tvjax.nn.pretrained.weights import load_folder, save_folder

__all__ = ["Pretrained", "Tokenizer", "load_model", "save_model"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """Where a model comes from: its folder, its config.json, its tokenizer if there is one, and what ends a text.

    files: what `export` writes beside the model, by name: the tokenizer's files, as they were when it was loaded.
    """

    folder: Path
    values: dict[str, Any]
    tokenizer: Tokenizer | None
    files: dict[str, bytes] = dataclasses.field(default_factory=dict, repr=False)
    end_ids: tuple[int, ...] = ()


def end_ids(folder: Path, values: dict[str, Any], size: int) -> tuple[int, ...]:
    """The ids below `size` that end a text: what generation_config.json says, or where there is none config.json.

    As in `transformers`: nothing said is none, whatever the other file or the family's default. `values`: config.json.
    Raises `UserError` where they are no ids, or the file does not read.
    """
    file = folder / "generation_config.json"
    if file.is_file():
        values = read_json(file, "accepted: a JSON object, or no such file")
    else:
        file = folder / CONFIG
    given = values.get("eos_token_id")
    ids = [] if given is None else given if isinstance(given, list) else [given]
    if not all(type(i) is int for i in ids):
        raise UserError(f"{file}: eos_token_id: given {given!r}; accepted: an id, a list of ids, or null")
    return tuple(i for i in dict.fromkeys(ids) if 0 <= i < size)


def load_model(folder: Path, *, dtype: str | None = None, mesh: Mesh | None = None, **how: Any) -> Model:
    """The model of a Hugging Face folder; `dtype`, `mesh` and `how` are those of `load_folder`."""
    config, params, values = load_folder(folder, dtype=dtype, mesh=mesh, **how)
    files = along(folder)
    tokenizer = Tokenizer(folder) if "tokenizer.json" in files else None
    ends = end_ids(folder, values, config.vocab_size)
    return Model(params, config, Pretrained(folder, values, tokenizer, files, ends))


def save_model(model: Model, folder: Path) -> None:
    """Write the model as a Hugging Face folder, with the tokenizer of the one that it came from (`save_folder`).

    One that came from no folder has no tokenizer that is known: an earlier model's goes, one without a model stays.
    """
    if isinstance(model.source, Pretrained):
        if (model.source.folder / TEMPLATES).is_dir():
            warn(f"export: {model.source.folder / TEMPLATES} does not go along")
        save_folder(folder, model.config, model.params, model.source.values, model.source.files)
    else:
        save_folder(folder, model.config, model.params, files={} if (folder / CONFIG).is_file() else None)
