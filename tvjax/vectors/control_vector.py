"""Control vectors of llama.cpp (Zou et al. 2023): a GGUF file of directions, each added to every token behind a block.

llama.cpp counts blocks from 0 and adds direction N behind block N: that is h^(N+1). Its loader refuses a file with a
direction 0, so h^1 cannot be written there, nor can h^0, which stands before the first block.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tvjax.errors import UserError, reject, warn
from tvjax.files import user_path, write_named
from tvjax.nn import selection
from tvjax.nn.model import Model
from tvjax.nn.pretrained.gguf_file import Metadata, opened
from tvjax.vectors import origin
from tvjax.vectors.edits import Write, add
from tvjax.vectors.origin import Origin, known
from tvjax.vectors.store import Vectors

ARCHITECTURE = "controlvector"
HINT, COUNT, MODEL = f"{ARCHITECTURE}.model_hint", f"{ARCHITECTURE}.layer_count", "tvjax.model"
FIRST = 2
"""The lowest layer that llama.cpp writes to."""
KINDS = ("F32", "F16")


def export_control_vector(
    path: str | Path,
    vectors: Any,
    layers: Any,
    *,
    positions: Any = "all",
    scale: Any = 1.0,
    model: Model | None = None,
) -> None:
    """Write a control vector of llama.cpp, which adds ``scale * vectors`` to the states of every token.

    As ``tvjax.add(vectors, layers=layers, positions="all", scale=scale)`` does here. Direction l - 1 of the file is
    that of layer l, in float32.

    vectors: ``[D]`` for all of the layers, or ``[layers, D]``; arrays of 16 bits are refused, as they are by llama.cpp.
    layers: of 2..L, as `tvjax.add` takes them; a slice or a mask needs `model`.
    positions: "all", the only ones that the format has.
    scale: a number, or one a layer.
    model: whose vectors they are; the file then says so, and width and layers are checked against it.

    Raises `UserError`, before anything is written, for what llama.cpp's format cannot hold: another layer or position,
    and vectors or scales of several prompts.
    """
    _check_model(model)
    if (dtype := selection.finite("vectors", vectors).dtype).itemsize == 2:
        raise reject("vectors", f"an array of {dtype}", "float32: llama.cpp refuses other directions")
    write = add(vectors, layers=layers, positions=positions, scale=scale)
    if write.positions != "all":
        raise reject("positions", positions, "'all': a control vector acts on every token")
    if model is not None:
        origin.check(model, write)
    numbers = _layers(write, layers, model)
    rows = _rows(write, len(numbers), None if model is None else model.config.width)
    source = write.origin.model if write.origin else "" if model is None else origin.fingerprint(model.params)
    hint = getattr(getattr(model, "source", None), "values", {}).get("model_type", "")
    write_named(path, _content(dict(zip(numbers, rows, strict=True)), hint, source))


def _check_model(model: Any) -> None:
    if model is not None and not isinstance(model, Model):
        raise reject("model", model, "what tvjax.load gives, or None")


def _layers(write: Write, layers: Any, model: Model | None) -> tuple[int, ...]:
    """The numbers of the layers, each of 2..L."""
    top = "L" if model is None else model.config.num_layers
    accepted = f"{FIRST}..{top}: llama.cpp writes behind its second block at the earliest"
    chosen = write.layers
    if model is not None:
        chosen = selection.layers_of(chosen, 0, model.config.num_layers)
    elif isinstance(chosen, selection.Span) or isinstance(chosen[0], bool):
        raise reject("layers", layers, "an int or ints, or a slice or a mask with model=")
    for number in chosen:
        if number < FIRST:
            raise reject("layers", number, accepted)
    return chosen


def _rows(write: Write, count: int, width: int | None) -> np.ndarray:
    """What is added at each of `count` layers, ``[count, D]``."""
    vectors, scale = selection.host(write.vectors), selection.host(write.scale)
    if vectors is None or scale is None:
        raise reject("vectors", "a traced array", "a concrete one, since it is written to a file")
    rows = vectors if write.per_layer else vectors[None]
    if rows.ndim == 3 and rows.shape[1] == 1:
        rows = rows[:, 0]
    if rows.ndim == 3:
        raise reject("vectors", f"those of {rows.shape[1]} prompts", "[D] or [layers, D]: a file has no prompts")
    if len(rows) not in (1, count):
        raise reject("vectors", f"shape {list(vectors.shape)}", f"a leading axis of {count}, one entry a layer")
    if width not in (None, rows.shape[1]):
        raise reject("vectors", f"shape {list(vectors.shape)}", f"D = {width} at the end, the model's width")
    by_layer = write.listed and scale.shape in ((count,), (count, 1))
    if scale.size != 1 and not by_layer:
        raise reject("scale", f"shape {list(scale.shape)}", "a number, or one a layer: a file has no prompts")
    with np.errstate(over="ignore"):  # what is too large is named below
        rows = np.broadcast_to(scale.reshape(-1, 1).astype(np.float32) * rows, (count, rows.shape[1]))
    return selection.finite("scale * vectors", rows)


def _content(rows: dict[int, np.ndarray], hint: str, source: str) -> bytes:
    """The file of the directions by layer, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vector.gguf"
        writer = gguf.GGUFWriter(file, ARCHITECTURE)
        writer.add_string(HINT, hint)
        writer.add_uint32(COUNT, len(rows))
        if source:
            writer.add_string(MODEL, source)
        for layer, row in sorted(rows.items()):
            writer.add_tensor(f"direction.{layer - 1}", np.ascontiguousarray(row))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file.read_bytes()


def load_control_vector(path: str | Path, model: Model | None = None) -> Vectors:
    """The directions of a control vector of llama.cpp, repeng or ours: one array ``[layers, D]`` in float32.

    Direction N is that of layer N + 1, and the positions are "all": ``tvjax.add(loaded, layers=loaded.layers,
    positions=loaded.positions)`` does here what the file does there. Float16 directions, and direction 0, which repeng
    has, are read as they are, with a warning that llama.cpp refuses them.

    model: if there is one, width and layers are checked against it.

    Raises `UserError` for a file that is not whole or no control vector, for directions of several widths, and for any
    that `model` has no place for.
    """
    _check_model(model)
    path = user_path(path)
    file = opened(path)
    metadata = Metadata(path, file.fields)
    if (kind := metadata.get("general.architecture", str)) != ARCHITECTURE:
        raise metadata.reject("general.architecture", ARCHITECTURE, kind)
    rows = dict(sorted(_direction(path, tensor) for tensor in file.tensors))
    if not rows:
        raise UserError(f"{path}: holds no direction; accepted: a control vector with tensors direction.N")
    widths = {len(row): layer for layer, row in rows.items()}
    if len(widths) > 1:
        said = " and ".join(f"{width} numbers (direction.{layer - 1})" for width, layer in widths.items())
        raise UserError(f"{path}: directions: given {said}; accepted: all of one width")
    if model is not None:
        _check_fits(path, rows, model)
    refused = [f"direction.{layer - 1}" for layer in rows if layer < FIRST]
    refused += [tensor.name for tensor in file.tensors if tensor.tensor_type.name != "F32"]
    if refused:
        warn(f"{path}: {', '.join(refused)}: read, but llama.cpp refuses the file (direction 0, or not float32)")
    source = metadata.get(MODEL, str, "")
    array = known(np.stack(list(rows.values())), Origin(source, str(path)) if source else None)
    about = {"made_by": "a control vector of llama.cpp", "model_hint": metadata.get(HINT, str, "")}
    return Vectors({"directions": array}, source, "blocks/resid", tuple(rows), "all", "", about)


def _direction(path: Path, tensor: gguf.ReaderTensor) -> tuple[int, np.ndarray]:
    """The layer and the numbers of one tensor."""
    match = re.fullmatch(r"direction\.(0|[1-9][0-9]{0,4})", tensor.name)
    if match is None:
        raise UserError(f"{path}: tensor {tensor.name!r}: given another name; accepted: direction.N")
    if tensor.tensor_type.name not in KINDS or len(tensor.shape) != 1:
        said = f"{tensor.tensor_type.name} of shape {[int(size) for size in tensor.shape[::-1]]}"
        raise UserError(f"{path}: {tensor.name}: given {said}; accepted: {' or '.join(KINDS)} of shape [D]")
    row = np.array(tensor.data, np.float32)
    selection.finite(f"{path}: {tensor.name}", row)
    return int(match[1]) + 1, row


def _check_fits(path: Path, rows: dict[int, np.ndarray], model: Model) -> None:
    """Raise `UserError` for directions of another width than the model's, or behind a block that it does not have."""
    c = model.config
    for layer, row in rows.items():
        if len(row) != c.width:
            raise UserError(
                f"{path}: direction.{layer - 1}: given {len(row)} numbers; accepted: {c.width}, the model's width"
            )
        if layer > c.num_layers:
            raise UserError(
                f"{path}: direction.{layer - 1}: given h^{layer}; accepted: direction.0..{c.num_layers - 1}, since the "
                f"model has {c.num_layers} blocks (llama.cpp passes over others)"
            )
