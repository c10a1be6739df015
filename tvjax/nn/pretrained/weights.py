"""Read a model's tensors one by one into place, and write a Hugging Face folder.

Reading holds one tensor of a file at a time beside the parameters: each is cast, laid out as we need it and written
into its layer's entry of the stacked array, which lies sharded as the mesh says from the first.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh

from tvjax.errors import UserError, reject, warn
from tvjax.files import inside, read_json
from tvjax.nn.decoder import ALIGNMENT, Decoder, DecoderConfig
from tvjax.nn.pretrained.families import FAMILIES, MULTIMODAL, Family, describe, read_config, text_values
from tvjax.nn.pretrained.folder import CONFIG, FOLDER, Folder, TextPart, write_model
from tvjax.nn.pretrained.forms import Form
from tvjax.parallel.mesh import on_cpu, path_of, shardings

# Buffers that some versions wrote and no version reads.
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Fields of a config that say how the model is computed and kept: no config.json has them, or only as a hint.
HOW = ("dtype", "param_dtype", "matmul_precision", "unroll", "remat")
COLUMNS = 16
"""How many columns of a transposed tensor are copied at once: the fastest of 8 to 32, in float32 and bfloat16."""
Planned = tuple[str, Form, tuple[str, ...], int | None, list[tuple[int, ...]]]


def abstract_params(config: DecoderConfig) -> Any:
    """Shapes and dtypes of a decoder's parameters: nothing is made."""
    # Neither changes the parameters, and one layer is traced faster than all.
    return jax.tree.map(lambda leaf: leaf, _abstract(dataclasses.replace(config, unroll=1, remat="none")))


@functools.lru_cache(maxsize=32)
def _abstract(config: DecoderConfig) -> Any:
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(lambda t: Decoder(config).init(jax.random.key(0), t)["params"], tokens)


def _plan(family: Family, config: DecoderConfig, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> Iterable[Planned]:
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


def _room(shape: tuple[int, ...], kind: np.dtype[Any]) -> np.ndarray:
    """An array to fill, which begins where XLA wants one to: so it becomes a parameter without being copied."""
    size = math.prod(shape) * kind.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(kind).reshape(shape)


def _copy(to: np.ndarray, part: np.ndarray) -> None:
    """``to[...] = part``; of a transposed `part` a few columns at a time, each of which numpy walks along its memory.

    As a whole, numpy would take each number of a row from another cache line: a fifth to two thirds of the speed.
    """
    part = np.broadcast_to(part, to.shape)  # as the assignment has it: other shapes raise, and no number stays unset
    inner = int(np.argmin(part.strides)) if part.ndim else 0
    if inner >= part.ndim - 1:
        to[...] = part
        return
    to, part = (np.moveaxis(array, inner, -2) for array in (to, part))
    for index in np.ndindex(part.shape[:-2]):
        for start in range(0, part.shape[-1], COLUMNS):
            to[index][:, start : start + COLUMNS] = part[index][:, start : start + COLUMNS]


def _laid_out(part: np.ndarray, kind: np.dtype[Any]) -> np.ndarray:
    """The array in another dtype, row after row."""
    if part.flags.c_contiguous:
        return part.astype(kind, copy=False)
    room = _room(part.shape, kind)
    _copy(room, part)
    return room


class Tensors(Protocol):
    """Tensors by their names in a Hugging Face folder. Nothing is read before it is asked for."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read(self, name: str) -> np.ndarray: ...

    def same(self, first: str, second: str) -> bool: ...


def load_folder(path: str | Path, **how: Any) -> tuple[DecoderConfig, Any, dict[str, Any]]:
    """The config, the parameters and config.json of a Hugging Face folder; `how` is that of `load_tensors`.

    Of a multimodal folder they are those of the text model, as a folder of its own would have them. Raises `UserError`
    for a folder that is not whole, or a model that is not implemented.
    """
    path = Path(path)
    values = read_json(inside(path, CONFIG), FOLDER)
    if values.get("transformers_weights") is not None:
        raise reject(f"{path / CONFIG}: transformers_weights", values["transformers_weights"], "none")
    source, part = str(path / CONFIG), values.get("model_type") in MULTIMODAL
    values = text_values(values, source)
    config = read_config(values, f"{source}: text_config" if part else source)
    tensors = TextPart(Folder(path)) if part else Folder(path)
    return *load_tensors(tensors, config, values, **how), values


def load_tensors(
    tensors: Tensors,
    config: DecoderConfig,
    values: Mapping[str, Any],
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    **how: Any,
) -> tuple[DecoderConfig, Any]:
    """The parameters of `config`, sharded over `mesh` by the rules, and the config as they are: `values` describes it.

    dtype: of parameters and activations; by default the narrowest that holds every tensor that is read as it is, with a
    warning where `values` names another (transformers would convert to that one). `how` sets remat, and unroll: 1
    by default, so that no pass cuts all layers of a large model out of the stacked ones. A readout of its own is kept,
    with a warning, where `values` ties it to an embedding that differs. Raises `UserError` where the tensors are not
    those of `config`.
    """
    family = _as_named(FAMILIES[values["model_type"]], tensors)
    config, abstract, plan, names = _choose(tensors, family, config)
    if dtype is None:
        dtype = _narrowest({DTYPES[tensors.dtypes[name]] for name in names.values()})
        for field in ("dtype", "torch_dtype"):
            if values.get(field) not in (None, dtype):
                warn(
                    f"{tensors.path}: {field} of config.json is {values[field]}, its tensors are {dtype}: the model is "
                    "read in that; dtype= chooses another",
                )
    if dtype not in DTYPES.values():
        raise reject("dtype", dtype, ", ".join(DTYPES.values()))
    config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype, **({"unroll": 1} | how))
    if not 0 <= config.unroll <= config.num_layers:
        raise reject("unroll", config.unroll, f"0 (all layers) to {config.num_layers}")
    leaves = _flat(abstract)
    leaf_shardings = {} if mesh is None else _flat(shardings(mesh, abstract, members=False))
    kind = _kind(dtype)
    arrays: dict[str, Any] = {}
    here = mesh is None and on_cpu()
    for name, form, paths, layer, shapes in plan:
        parts = form.split(tensors.read(names[name]), shapes, config)
        for target, part in zip(paths, parts, strict=True):
            if here:
                if target not in arrays:
                    arrays[target] = _room(leaves[target].shape, kind)
                _copy(arrays[target] if layer is None else arrays[target][layer], part)
                continue
            part = _laid_out(part, kind)
            if layer is None:
                arrays[target] = jax.device_put(part, leaf_shardings.get(target))
                continue
            if target not in arrays:
                arrays[target] = jnp.zeros(leaves[target].shape, kind, device=leaf_shardings.get(target))
            arrays[target] = _set_layer(arrays[target], jnp.asarray(layer), part)
    if here:
        arrays = {target: jax.device_put(array, may_alias=True) for target, array in arrays.items()}
    params = jax.tree_util.tree_map_with_path(lambda keys, _: arrays[path_of(keys)], abstract)
    return config, params


def _kind(dtype: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _narrowest(dtypes: set[str]) -> str:
    """The dtype that holds every number of these, with no bit to spare: neither half precision holds the other."""
    return next(iter(dtypes)) if len(dtypes) == 1 else "float32"


def _choose(
    tensors: Tensors, family: Family, config: DecoderConfig
) -> tuple[DecoderConfig, Any, list[Planned], dict[str, str]]:
    """The config with or without a readout of its own, the parameters' shapes, and what is read for them."""
    head, bias, table = (_name_of(family, p) for p in ("readout/kernel", "readout/bias", "front/embedding"))
    if config.tied_readout and (head in tensors.shapes or bias in tensors.shapes):
        own = dataclasses.replace(config, tied_readout=False)
        abstract = abstract_params(own)
        plan = list(_plan(family, own, _flat(abstract)))
        names = _match(tensors, family, plan, own, tied=True)
        differs = not tensors.same(names[head], names[table])
        if differs:
            warn(
                f"{tensors.path}: config.json ties {head} to {table}, but they differ: the model keeps both, as in "
                "transformers (tie_word_embeddings false says so)",
            )
        if differs or bias in tensors.shapes:
            return own, abstract, plan, names
    abstract = abstract_params(config)
    plan = list(_plan(family, config, _flat(abstract)))
    return config, abstract, plan, _match(tensors, family, plan, config, tied=config.tied_readout)


def _as_named(family: Family, tensors: Tensors) -> Family:
    """`family` with its readout under the name that the folder has: transformers takes ``lm_head`` in all families."""
    head = _name_of(family, "readout/kernel")
    if head in tensors.shapes or "lm_head.weight" not in tensors.shapes:
        return family
    stem = head.removesuffix("weight")
    return dataclasses.replace(family, rows=tuple((n.replace(stem, "lm_head."), form, p) for n, form, p in family.rows))


def _name_of(family: Family, path: str) -> str:
    """The name in the file of the tensor that is one parameter."""
    return next((name for name, _, paths in family.rows if paths == (path,)), "")


def _match(
    tensors: Tensors, family: Family, plan: list[Planned], config: DecoderConfig, *, tied: bool
) -> dict[str, str]:
    """For each planned tensor its name in the folder. Raises `UserError` for a missing, misshaped or surplus one.

    tied: of embedding and readout the folder needs to have one.
    """
    bare = not any(name.startswith(family.prefix) for name in tensors.shapes)
    names = {name: name.removeprefix(family.prefix) if bare else name for name, *_ in plan}
    head, table = _name_of(family, "readout/kernel"), _name_of(family, "front/embedding")
    if tied and names[table] not in tensors.shapes:
        names[table] = head
    if tied and head in names and head not in tensors.shapes:
        names[head] = names[table]
    for name, form, _, _, shapes in plan:
        key, wanted = names[name], form.shape(shapes, config)
        if key not in tensors.shapes:
            raise UserError(f"{tensors.path}: has no tensor {name if key == head else key}, which this model needs")
        if tensors.shapes[key] != tuple(wanted):
            raise UserError(
                f"{tensors.path}: tensor {key}: given shape {list(tensors.shapes[key])}; accepted: {list(wanted)}, "
                "as its config says"
            )
        if tensors.dtypes[key] not in DTYPES:
            raise UserError(f"{tensors.path}: tensor {key}: given {tensors.dtypes[key]}; accepted: {', '.join(DTYPES)}")
    for name in tensors.shapes:
        if name not in names.values() and not (tied and name == head) and not name.endswith(BUFFERS):
            raise UserError(f"{tensors.path}: holds a tensor {name} that this model has no place for")
    return names


def save_folder(
    path: str | Path,
    config: DecoderConfig,
    params: Any,
    values: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a folder that `transformers` loads, with one file of weights, in place of the model that is there.

    values: a config.json that describes this model but for its depth, dtype and tied readout (default: `describe`);
    files: those of its tokenizer, by name (None: those that are there stay). The tensors, and config.json, have the
    narrowest dtype that holds all of `params`. Raises `UserError`, before anything is written, for a decoder that no
    family or not `values` describes, for parameters that are not this decoder's, and for a folder that cannot be
    written or that holds a model in another form (`write_model`).
    """
    values = describe(config) if values is None else _restated(values, config)
    leaves = _whole(config, params)
    kind = leaves["front/embedding"].dtype
    values = {name: v for name, v in values.items() if name not in ("dtype", "torch_dtype")} | {"dtype": kind.name}
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    for name, leaf in _flat(abstract_params(read_config(values, CONFIG, warn=False))).items():
        shapes.setdefault(name, leaf)
        if name == "readout/kernel" and leaves[name].shape != leaf.shape:
            leaves[name] = np.pad(leaves[name], ((0, 0), (0, leaf.shape[1] - leaves[name].shape[1])))
            shapes[name] = leaf
    tensors = {}
    for name, form, paths, layer, _ in _plan(FAMILIES[values["model_type"]], config, shapes):
        parts = [leaves.get(p, np.zeros(shapes[p].shape, kind)) for p in paths]
        parts = parts if layer is None else [part[layer] for part in parts]
        tensors[name] = _laid_out(form.join(parts, config), kind)
    weights = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    write_model(Path(path), weights, json.dumps(values, indent=2) + "\n", files)


def _whole(config: DecoderConfig, params: Any) -> dict[str, np.ndarray]:
    """The parameters by path, in one dtype. Raises `UserError` where they are not those of `config`."""
    leaves = {name: np.asarray(jax.device_get(leaf)) for name, leaf in _flat(params).items()}
    wanted = {name: leaf.shape for name, leaf in _flat(abstract_params(config)).items()}
    for name in sorted(leaves.keys() | wanted.keys()):
        if name not in wanted:
            raise UserError(
                f"export: params: {name}: given an array; accepted: none, since this model's config has none"
            )
        shape = leaves[name].shape if name in leaves else None
        if shape != wanted[name]:
            raise UserError(f"export: params: {name}: given shape {shape}; accepted: {wanted[name]}, by its config")
        if leaves[name].dtype.name not in DTYPES.values():
            raise reject(f"export: params: {name}", leaves[name].dtype.name, ", ".join(DTYPES.values()))
    kind = _kind(_narrowest({leaf.dtype.name for leaf in leaves.values()}))
    return {name: leaf.astype(kind, copy=False) for name, leaf in leaves.items()}


def _restated(values: Mapping[str, Any], config: DecoderConfig) -> dict[str, Any]:
    """`values` with the depth and the readout that `config` has. Raises `UserError` where they do not describe it."""
    source = "config.json of the model's folder"
    values = dict(values)
    if read_config(values, source, warn=False).num_layers != config.num_layers:
        values["n_layer" if values["model_type"] in ("gpt2", "gptj") else "num_hidden_layers"] = config.num_layers
        if values.get("layer_types") is not None:
            windows = config.windows or (0,) * config.num_layers
            values["layer_types"] = ["sliding_attention" if window else "full_attention" for window in windows]
        if values.get("no_rope_layers") is not None:
            values["no_rope_layers"] = [int(rotary is not None) for rotary in config.layer_rotaries]
    values["tie_word_embeddings"] = config.tied_readout
    written = read_config(values, source, warn=False)
    for field in dataclasses.fields(config):
        ours, theirs = getattr(config, field.name), getattr(written, field.name)
        if ours != theirs and field.name not in HOW:
            raise reject(f"export: {field.name}", ours, f"{theirs!r}, which {source} says")
    return values
