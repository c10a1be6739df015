"""Vectors on disk: safetensors with what one must know to use them again.

Each field is one metadata key, which any reader of safetensors shows. Text stands as it is, anything else as JSON, and
so does text that would read as JSON: what comes back is what was given.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from tvjax.errors import UserError, reject
from tvjax.files import user_path, write_named
from tvjax.nn import selection
from tvjax.nn.model import ADDRESSES, Model
from tvjax.parallel import processes
from tvjax.vectors.origin import ModelArray, Origin, fingerprint, known, origin_of

LAYER_NUMBERING = "0 = embedding, l = residual stream after block l"
FIELDS = ("model", "address", "layers", "positions", "template", "layer_numbering")
BITS = {"float": (16, 32, 64), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64)}
DTYPES = {"BOOL": "bool", "BF16": "bfloat16"} | {
    f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind, widths in BITS.items() for bits in widths
}


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """What a file holds: arrays by name, and what they are of.

    ``vectors[name]`` is an array that `tvjax.replace`, `add`, `mix` and `sweep` take; so is the whole, of one array.

    model: the fingerprint of the model ("" if the file does not say).
    address: where the vectors stand.
    layers, positions: as `tvjax.replace` takes them.
    template: of the prompts.
    about: what else the file says.
    """

    arrays: Mapping[str, ModelArray]
    model: str
    address: str
    layers: tuple[int, ...]
    positions: Any
    template: Any
    about: Mapping[str, Any]
    layer_numbering: str = LAYER_NUMBERING

    def __getitem__(self, name: Any) -> Any:
        if type(name) is int and name in (0, 1):  # of the pair that `load_vectors` is for who unpacks it
            return tuple(self)[name]
        if not isinstance(name, str) or name not in self.arrays:
            raise reject("vectors", name, ", ".join(self.arrays))
        return self.arrays[name]

    def __iter__(self) -> Iterator[Any]:
        """Arrays and metadata, for ``arrays, about = load_vectors(path)``."""
        return iter((dict(self.arrays), {**self.about, **{name: getattr(self, name) for name in FIELDS}}))

    def _only(self) -> ModelArray:
        if len(self.arrays) != 1:
            raise reject("vectors", "a file of several arrays", "one: " + ", ".join(f"[{n!r}]" for n in self.arrays))
        return next(iter(self.arrays.values()))

    @property
    def origin(self) -> Origin | None:
        return self._only().origin

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._only(), dtype, copy=copy)


def save_vectors(
    path: str | Path,
    vectors: Mapping[str, Any] | Vectors,
    *,
    model: Model | Any = None,
    address: str | None = None,
    layers: int | Sequence[int] | None = None,
    positions: Any = None,
    template: Any = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write arrays ``{name: array}`` with what one must know to use them again; each comes back as it was.

    For what `load_vectors` returned, each argument is by default what the file says. The same arrays and metadata are
    the same bytes.

    model: whose vectors they are (a `Model`, its parameters, or its fingerprint).
    address: where the vectors stand ("blocks/resid" by default).
    layers: which, 0..L.
    positions: as `tvjax.replace` takes them ("last" by default).
    template: of text prompts.
    about: how the vectors were made, as JSON can say it.

    Raises `UserError` for what cannot be kept.
    """
    before = vectors if isinstance(vectors, Vectors) else None
    named = {"address": address, "positions": positions, "template": template, "about": about}
    kept: dict[str, Any] = {"address": "blocks/resid", "positions": "last", "template": "", "about": {}}
    if before is not None:
        kept = {name: getattr(before, name) for name in kept}
        layers = before.layers if layers is None else layers
    kept |= {name: _plain(name, value) for name, value in named.items() if value is not None}
    if positions is not None:
        selection.positions(kept["positions"])
    for name, kind in (("address", str), ("about", dict)):
        if not isinstance(kept[name], kind):
            raise reject(name, kept[name], {str: "text", dict: "a mapping, {name: value}"}[kind])
    if not set(kept["address"].split(", ")) <= set(ADDRESSES):
        raise reject("address", kept["address"], ", ".join(ADDRESSES))
    items = before.arrays if before is not None else vectors
    if not isinstance(items, Mapping):
        raise reject("vectors", type(items).__name__, "arrays by name, {name: array}, or what load_vectors returned")
    kept |= {"model": _model(items, model), "layers": _layers(layers, model), "layer_numbering": LAYER_NUMBERING}
    arrays = {_name(name): _array(name, value) for name, value in items.items()}
    about = kept.pop("about")
    for name in (*FIELDS, "position"):
        if name in about:
            raise reject(f"about.{name}", about[name], f"other names than {', '.join(FIELDS)}, which have their own")
    metadata = {name: _text(value) for name, value in {**about, **kept}.items()}
    write_named(path, _in_order(safetensors.numpy.save(arrays, metadata=metadata)))


def _model(items: Mapping[str, Any], model: Any) -> str:
    """The fingerprint to keep: of `model`, or where none is given the one that all arrays know."""
    carried = {origin.model for origin in map(origin_of, items.values()) if origin is not None}
    if model is None:
        if len(carried) != 1:
            raise reject(
                "model", model, "the model that the vectors are of: save_vectors(..., model=model, layers=...)"
            )
        return carried.pop()
    tree = model.params if isinstance(model, Model) else model
    named = tree if isinstance(tree, str) else fingerprint(tree)
    if carried - {named}:
        raise reject("model", named, f"{', '.join(sorted(carried))}, whose vectors these are; or np.asarray of them")
    return named


def _layers(layers: Any, model: Any) -> list[int]:
    top = model.config.num_layers if isinstance(model, Model) else None
    if isinstance(layers, list | tuple) and not layers:
        return []
    accepted = f"a layer or a list of layers, 0..{'L' if top is None else top}"
    try:
        chosen = selection.choice("layers", layers)
        if top is not None:
            return list(selection.layers_of(chosen, 0, top))
    except UserError:
        raise reject("layers", layers, accepted) from None
    if isinstance(chosen, selection.Span) or any(isinstance(layer, bool) or layer < 0 for layer in chosen):
        raise reject("layers", layers, accepted)
    return list(chosen)


def _name(name: Any) -> str:
    if not isinstance(name, str) or name == "__metadata__" or name.encode(errors="replace").decode() != name:
        raise reject("vectors", name, "names of arrays that are text, other than '__metadata__'")
    return name


def _array(name: str, value: Any) -> np.ndarray:
    """What safetensors writes: dense, in the machine's byte order."""
    try:
        array = None if isinstance(value, np.ma.MaskedArray) else np.asarray(processes.fetch(value))
    except (TypeError, ValueError):
        array = None
    if array is None or array.dtype.name not in DTYPES.values():
        kind = type(value).__name__ if array is None else f"{type(value).__name__} of {array.dtype}"
        raise reject(f"vectors[{name!r}]", kind, f"an array of {', '.join(DTYPES.values())}")
    return np.array(array, array.dtype.newbyteorder("="), order="C", copy=None)


def _plain(field: str, value: Any) -> Any:
    """`value` as JSON gives it back. Raises `UserError` for what it would give back as something else."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = np.asarray(value).tolist()
    if isinstance(value, Mapping):
        wrong = [name for name in value if not isinstance(name, str)]
        if wrong:
            raise reject(field, wrong[0], "names that are text")
        return {name: _plain(f"{field}.{name}", entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(field, entry) for entry in value]
    if value is not None and type(value) not in (str, bool, int, float):
        raise reject(field, value, "text, numbers, None, and lists or mappings of them")
    return value


def load_vectors(path: str | Path) -> Vectors:
    """The arrays of a file, which know their model, and its metadata.

    Raises `UserError` if the file is missing, is not whole safetensors, or holds what numpy has no dtype for.
    """
    path = user_path(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder; accepted: a safetensors file of vectors")
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata, arrays = dict(file.metadata() or {}), {}
            for name in file.keys():  # noqa: SIM118
                kind = file.get_slice(name).get_dtype()
                if kind not in DTYPES:
                    raise UserError(f"{path}: {name}: given {kind}; accepted: {', '.join(DTYPES)}")
                arrays[name] = file.get_tensor(name)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; accepted: a safetensors file of vectors") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: does not read ({error}); accepted: a safetensors file of vectors") from None
    values = _fields(metadata)
    origin = Origin(values["model"], str(path)) if values["model"] else None
    return Vectors({name: known(array, origin) for name, array in arrays.items()}, **values)


def _text(value: Any) -> str:
    """`value` as metadata can hold it, from which `_value` makes it again."""
    return value if isinstance(value, str) and _value(value) is value else json.dumps(value, sort_keys=True)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _in_order(content: bytes) -> bytes:
    """The same file with the keys of its header in order: the library has those of metadata in one of each process."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[start:]


def _fields(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `Vectors`. Files of before have "position"; those of others may have none of them."""
    about = {name: _value(text) for name, text in metadata.items()}
    about["positions"] = about.pop("positions", about.pop("position", ""))
    fields = {name: about.pop(name, "") for name in FIELDS if name != "layers"}
    for name in ("model", "address", "layer_numbering"):  # a file of before may have digits here, unquoted
        if not isinstance(fields[name], str):
            fields[name] = metadata[name]
    layers = about.get("layers")
    if not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
        return {**fields, "layers": (), "about": about}
    return {**fields, "layers": tuple(about.pop("layers")), "about": about}
