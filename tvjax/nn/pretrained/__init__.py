"""Hugging Face folders as models: `families` says what each architecture is, `weights` reads and writes folders."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from tvjax.nn.model import Model
from tvjax.nn.pretrained.tokenizer import Tokenizer
from tvjax.nn.pretrained.weights import load_folder, save_folder

__all__ = ["Pretrained", "Tokenizer", "load_model", "save_model"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """Where a pretrained model comes from: its folder, its config.json, and its tokenizer if there is one."""

    folder: Path
    values: dict[str, Any]
    tokenizer: Tokenizer | None


def load_model(folder: Path, *, dtype: str | None = None, mesh: Mesh | None = None, **how: Any) -> Model:
    """The model of a Hugging Face folder; `dtype`, `mesh` and `how` are those of `load_folder`."""
    config, params, values = load_folder(folder, dtype=dtype, mesh=mesh, **how)
    tokenizer = Tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
    return Model(params, config, Pretrained(folder, values, tokenizer))


def save_model(model: Model, folder: Path) -> None:
    """Write the model as a Hugging Face folder, with the tokenizer of the one that it came from."""
    source = model.source if isinstance(model.source, Pretrained) else None
    values = None if source is None else {**source.values, "torch_dtype": model.config.param_dtype}
    save_folder(folder, model.config, model.params, values)
    if source is not None and source.tokenizer is not None:
        shutil.copyfile(source.folder / "tokenizer.json", folder / "tokenizer.json")
