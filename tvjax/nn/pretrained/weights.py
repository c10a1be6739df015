"""Read a Hugging Face folder tensor by tensor into place, and write one. Safetensors only: a pickle runs what it likes.

Reading holds one tensor of a file at a time beside the parameters: each is cast, laid out as we need it and written
into its layer's entry of the stacked array, which lies sharded as the mesh says from the first.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from tvjax.errors import UserError, reject
from tvjax.files import read_json, write_json, write_whole
from tvjax.nn.decoder import Decoder, DecoderConfig
from tvjax.nn.pretrained.families import FAMILIES, Family, describe, read_config
from tvjax.nn.pretrained.forms import Form
from tvjax.parallel.mesh import path_of, shardings

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FOLDER = "accepted: a Hugging Face folder: config.json, safetensors, tokenizer.json"
# Buffers that some versions wrote and no version reads.
BUFFERS = ("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias", "rotary_emb.inv_freq")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def abstract_params(config: DecoderConfig) -> Any:
    """Shapes and dtypes of a decoder's parameters: nothing is made."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(lambda t: Decoder(config).init(jax.random.key(0), t)["params"], tokens)


class Folder:
    """The tensors of a folder, by name: where each lies, its shape and dtype. Nothing is read until it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file, names in self._listed().items():
            with self._open(file) as tensors:
                held = set(tensors.keys())
                for name in held if names is None else names:
                    if name not in held:
                        raise UserError(f"{file}: has no tensor {name}, which {path / INDEX} says it holds")
                    entry = tensors.get_slice(name)
                    self._files[name] = file
                    self.shapes[name] = tuple(entry.get_shape())
                    self.dtypes[name] = entry.get_dtype()

    def _listed(self) -> dict[Path, list[str] | None]:
        """The files, with the tensors that the index says each holds (None: whatever it holds)."""
        if (self.path / INDEX).is_file():
            listed = read_json(self.path / INDEX, FOLDER).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
                raise UserError(f"{self.path / INDEX}: weight_map is no map from tensors to files")
            files: dict[Path, list[str] | None] = {}
            for name, file in listed.items():
                names = files.setdefault(self._inside(file), [])
                assert names is not None
                names.append(name)
            return files
        if (self.path / SINGLE).is_file():
            return {self._inside(SINGLE): None}
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in self.path.glob(pattern))
        if pickles:
            raise UserError(
                f"{self.path}: holds {pickles[0]}, a pickle, which can run any program when it is read; accepted: "
                f"{SINGLE} or {INDEX} (transformers writes them with save_pretrained)"
            )
        raise UserError(f"{self.path}: holds neither {SINGLE} nor {INDEX}; {FOLDER}")

    def _inside(self, name: str) -> Path:
        """The file `name` of this folder. A link may only lead to the blobs of the hub's cache."""
        file = self.path / name
        allowed = [self.path.resolve(), (self.path / ".." / ".." / "blobs").resolve()]
        if Path(name).name != name or name in ("", ".", "..") or file.resolve().parent not in allowed:
            raise UserError(f"{self.path}: names the file {name!r}; accepted: files in this folder")
        if not file.is_file():
            raise UserError(f"{file}: no such file, although {INDEX} names it")
        return file

    def _open(self, file: Path) -> Any:
        try:
            return safetensors.safe_open(str(file), framework="numpy")
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a whole safetensors file ({error}); fetch it again") from None

    def read(self, name: str) -> np.ndarray:
        """One tensor. Its file is opened for it alone, so that what was read does not stay mapped."""
        with self._open(self._files[name]) as tensors:
            return tensors.get_tensor(name)


def _plan(
    family: Family, config: DecoderConfig, leaves: Mapping[str, jax.ShapeDtypeStruct]
) -> Iterable[tuple[str, Form, tuple[str, ...], int | None, list[tuple[int, ...]]]]:
    """Each tensor of a folder: its name, its form, its parameters, its layer, and their shapes in one layer."""
    for name, form, paths in family.rows:
        if not all(path in leaves for path in paths):
            continue
        stacked = paths[0].startswith("blocks/")
        shapes = [leaves[path].shape[1:] if stacked else leaves[path].shape for path in paths]
        for layer in range(config.num_layers) if stacked else [None]:
            yield name.format(layer), form, paths, layer, shapes


def _flat(tree: Any) -> dict[str, Any]:
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, value: jax.Array) -> jax.Array:
    return stack.at[layer].set(value)


def load_folder(
    path: str | Path, *, dtype: str | None = None, mesh: Mesh | None = None, **how: Any
) -> tuple[DecoderConfig, Any, dict[str, Any]]:
    """The config, the parameters (sharded over `mesh` by the rules) and config.json of a Hugging Face folder.

    dtype: of parameters and activations; by default that of the file's tensors. `how` sets unroll and remat. Raises
    `UserError` for a folder that is not whole, or a model that is not implemented.
    """
    folder_path = Path(path)
    values = read_json(folder_path / "config.json", FOLDER)
    config = read_config(values, str(folder_path / "config.json"))
    folder = Folder(folder_path)
    family = FAMILIES[values["model_type"]]
    found = {DTYPES.get(kind) for kind in folder.dtypes.values()} - {None}
    dtype = dtype or ("float32" if "float32" in found or not found else sorted(map(str, found))[0])
    if dtype not in DTYPES.values():
        raise reject("dtype", dtype, ", ".join(DTYPES.values()))
    config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype, **how)
    if not 0 <= config.unroll <= config.num_layers:
        raise reject("unroll", config.unroll, f"0 (all layers) to {config.num_layers}")
    abstract = abstract_params(config)
    leaves = _flat(abstract)
    plan = list(_plan(family, config, leaves))
    names = _match(folder, family, plan, config)
    places = {} if mesh is None else _flat(shardings(mesh, abstract, members=False))
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    made: dict[str, jax.Array] = {}
    for name, form, paths, layer, shapes in plan:
        parts = form.split(folder.read(names[name]), shapes, config)
        for target, part in zip(paths, parts, strict=True):
            part = np.ascontiguousarray(part.astype(kind, copy=False))
            if layer is None:
                made[target] = jax.device_put(part, places.get(target))
                continue
            if target not in made:
                made[target] = jnp.zeros(leaves[target].shape, kind, device=places.get(target))
            made[target] = _set_layer(made[target], jnp.asarray(layer), part)
    params = jax.tree_util.tree_map_with_path(lambda keys, _: made[path_of(keys)], abstract)
    return config, params, values


def _match(folder: Folder, family: Family, plan: list[Any], config: DecoderConfig) -> dict[str, str]:
    """For each planned tensor its name in the folder. Raises `UserError` for a missing, misshaped or surplus one."""
    bare = not any(name.startswith(family.prefix) for name in folder.shapes)
    names = {name: name.removeprefix(family.prefix) if bare else name for name, *_ in plan}
    for name, form, _, _, shapes in plan:
        given, wanted = names[name], form.shape(shapes, config)
        if given not in folder.shapes:
            raise UserError(f"{folder.path}: has no tensor {given}, which this model needs")
        if folder.shapes[given] != tuple(wanted):
            raise UserError(
                f"{folder.path}: tensor {given}: given shape {list(folder.shapes[given])}; accepted: {list(wanted)}, "
                "which config.json asks for"
            )
        if folder.dtypes[given] not in DTYPES:
            raise UserError(
                f"{folder.path}: tensor {given}: given {folder.dtypes[given]}; accepted: {', '.join(DTYPES)}"
            )
    tied = {"lm_head.weight", "embed_out.weight"} if config.tied_readout else set()
    for name in folder.shapes:
        if name not in names.values() and name not in tied and not name.endswith(BUFFERS):
            raise UserError(f"{folder.path}: holds a tensor {name} that this model has no place for")
    return names


def save_folder(path: str | Path, config: DecoderConfig, params: Any, values: Mapping[str, Any] | None = None) -> None:
    """Write a folder that `transformers` loads, in one file; `values` is its config.json (default: `describe`).

    Raises `UserError` for a decoder that no family describes.
    """
    values = dict(values or describe(config))
    leaves = {name: np.asarray(jax.device_get(leaf)) for name, leaf in _flat(params).items()}
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    kind = leaves["front/embedding"].dtype
    for name, leaf in _flat(abstract_params(read_config(values, "config.json", warn=False))).items():
        shapes.setdefault(name, leaf)
        if name == "readout/kernel" and name in leaves and leaves[name].shape != leaf.shape:
            leaves[name] = np.pad(leaves[name], ((0, 0), (0, leaf.shape[1] - leaves[name].shape[1])))
            shapes[name] = leaf
    tensors = {}
    for name, form, paths, layer, _ in _plan(FAMILIES[values["model_type"]], config, shapes):
        parts = [leaves.get(p, np.zeros(shapes[p].shape, kind)) for p in paths]
        parts = parts if layer is None else [part[layer] for part in parts]
        tensors[name] = np.ascontiguousarray(form.join(parts, config))
    folder = Path(path)
    write_whole(folder / SINGLE, safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    write_json(folder / "config.json", values)
