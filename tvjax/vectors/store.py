"""Vectors on disk: safetensors with what one must know to use them again."""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy

from tvjax.errors import UserError
from tvjax.files import write_whole

LAYER_NUMBERING = "0 = embedding, l = residual stream after block l"


def fingerprint(params: object) -> str:
    """A short hash of a parameter tree: which model made these vectors."""
    import hashlib

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()[:16]


def save_vectors(path: str | Path, vectors: Mapping[str, np.ndarray], *, about: Mapping[str, object]) -> None:
    """Write arrays ``{name: array}`` with the metadata `about`: model fingerprint, address, position rule, how made."""
    arrays = {name: np.ascontiguousarray(value) for name, value in vectors.items()}
    text = {"layer_numbering": LAYER_NUMBERING} | {
        k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()
    }
    write_whole(Path(path), safetensors.numpy.save(arrays, metadata=text))


def load_vectors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a file. Raises `UserError` where it is missing or not whole safetensors."""
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; accepted: a safetensors file of vectors") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None
