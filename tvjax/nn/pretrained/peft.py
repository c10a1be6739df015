"""Folders of the peft package, LoRA and prefix tuning, read as our adapters and written from them.

A folder has an adapter_config.json (`peft_config`) and an adapter_model.safetensors. Nothing else of it is read.

Behind a prefix of P virtual tokens peft has a prompt begin at position P, and we at 0, with the prefix at -P..-1.
Rotary keys know distances alone: they are turned by -P when a prefix is read, and back when it is written. A table of
positions tells the two apart: there the model that comes back begins P rows into its table.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from tvjax.errors import UserError, reject
from tvjax.files import inside, user_path
from tvjax.nn import selection
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.lora import apply_lora
from tvjax.nn.model import Model
from tvjax.nn.prefix import check_prefix
from tvjax.nn.pretrained import Pretrained
from tvjax.nn.pretrained.families import FAMILIES, Family, describe
from tvjax.nn.pretrained.folder import CONFIG as MODEL_CONFIG
from tvjax.nn.pretrained.folder import write_files
from tvjax.nn.pretrained.forms import LINEAR_NEIGHBOURS, turned_order
from tvjax.nn.pretrained.peft_config import FOLDER, Options
from tvjax.nn.pretrained.peft_lora import read_lora, write_lora
from tvjax.nn.pretrained.weights import DTYPES
from tvjax.nn.rotary import rotate, turns

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EMBEDDINGS = "prompt_embeddings"


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
    """A model with an adapter: ``tvjax.run(adapted.model, prompts, prefix=adapted.prefix)``.

    model: with the kernels that LoRA changes; of a prefix and a table of positions, with the rows from P on.
    lora: LoRA's parameters, ``{site: {"down": [L, in, r], "up": [L, r, out]}}``, or None.
    prefix: keys and values that stand before every prompt, ``{"keys", "values": [L, G, P, C]}``, or None.
    """

    model: Model
    lora: Any = None
    prefix: Any = None


def load_adapter(path: str | Path, model: Model) -> Adapted:
    """`model` with the adapter in a folder of peft: LoRA, with its scale multiplied in, or prefix tuning.

    Raises `UserError` for another kind or option of adapter, for one whose modules, ranks or sizes are not those of the
    model or of its own config, and for weights in a pickle.
    """
    family, folder = _family(model), user_path(path)
    options = Options(inside(folder, CONFIG))
    c, tensors = model.config, _tensors(folder)
    if options.kind == "LORA":
        lora = read_lora(folder / WEIGHTS, options, tensors, c, family)
        params = apply_lora(model.params, lora, c.matmul_precision)
        return Adapted(dataclasses.replace(model, params=params), lora=lora)
    prefix = _read_prefix(folder / WEIGHTS, options, tensors, c, family)
    return Adapted(_moved_on(model, prefix["keys"].shape[2]), prefix=prefix)


def export_adapter(path: str | Path, adapter: Any, model: Model) -> None:
    """Write an adapter of `model` as a folder that peft loads, in place of an adapter that is there.

    adapter: what `load_adapter` gave, or parameters: LoRA's, ``{site: {"down", "up"}}`` as `init_lora` has them, or a
        prefix's, ``{"keys", "values"}`` as `start_prefix` has them.
    model: the one that the adapter is of, as it is without.

    Raises `UserError`, before anything is written, for what is no adapter of this model, for a prefix of a model with a
    table of positions unless `load_adapter` gave it, since peft's prompts begin behind it, and for a folder that holds
    a model or an adapter in another form.
    """
    family, folder, c, source = _family(model), user_path(path), model.config, model.source
    params = adapter
    if isinstance(adapter, Adapted):
        params = adapter.prefix if adapter.lora is None else adapter.lora
    if isinstance(params, dict) and "keys" in params:
        if c.positions == "learned" and not isinstance(adapter, Adapted):
            raise reject(
                "adapter",
                "a prefix before prompts that begin at position 0",
                "one that load_adapter gave: peft's prompts begin behind the prefix, in other rows of the table",
            )
        kind, (fields, tensors) = "PREFIX_TUNING", _write_prefix(params, c, family)
    else:
        kind, (fields, tensors) = "LORA", write_lora(params, c, family)
    base = str(source.path) if isinstance(source, Pretrained) and source.path.is_dir() else None
    values = {"peft_type": kind, "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True}
    weights = safetensors.numpy.save(dict(sorted(tensors.items())), metadata={"format": "pt"})
    config = json.dumps(values | fields, indent=2) + "\n"
    if folder.exists() and not folder.is_dir():
        raise reject("path", str(path), "a folder, or a name for one that is not there yet")
    write_files(folder, {WEIGHTS: weights, CONFIG: config.encode()}, lambda: _earlier(folder))


def _earlier(folder: Path) -> list[str]:
    """Nothing else goes: what is in the way is refused."""
    others = {MODEL_CONFIG} | {file.name for file in folder.glob("adapter_model*")} - {WEIGHTS}
    for name in sorted(name for name in others if (folder / name).exists()):
        raise UserError(f"{folder}: holds {name}; accepted: a folder without, or with an adapter in {WEIGHTS}")
    return []


def _family(model: Any) -> Family:
    """The family whose names of modules the folder has: for a model that was trained here, that of its export."""
    if not isinstance(model, Model):
        raise reject("model", model, "what tvjax.load gives")
    values = model.source.values if isinstance(model.source, Pretrained) else describe(model.config)
    return FAMILIES[values["model_type"]]


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the folder, in float32."""
    file = inside(folder, WEIGHTS)
    if not file.is_file():
        for pickle in sorted(folder.glob("adapter_model*.bin")):
            raise UserError(
                f"{folder}: holds {pickle.name}, a pickle, which can run any program when it is read; accepted: "
                f"{WEIGHTS} (peft writes it with save_pretrained)"
            )
        raise UserError(f"{folder}: holds no {WEIGHTS}; {FOLDER}")
    tensors = {}
    try:
        with safetensors.safe_open(str(file), framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118
                kind = opened.get_slice(name).get_dtype()
                if kind not in DTYPES:
                    raise UserError(f"{file}: tensor {name}: given {kind}; accepted: {', '.join(DTYPES)}")
                tensors[name] = np.asarray(opened.get_tensor(name)).astype(np.float32)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); fetch it again") from None
    for name, tensor in tensors.items():
        selection.finite(f"{file}: tensor {name}", tensor)
    return tensors


def _read_prefix(
    file: Path, options: Options, tensors: dict[str, np.ndarray], c: DecoderConfig, family: Family
) -> dict[str, np.ndarray]:
    """``prompt_embeddings [P, L * 2 * G * C]`` as keys and values ``[L, G, P, C]``."""
    length = options.size("num_virtual_tokens")
    sizes = {"num_layers": c.num_layers, "num_attention_heads": c.kv_heads, "token_dim": c.kv_heads * c.channels}
    for field, wanted in sizes.items():
        if (value := options.size(field, wanted)) != wanted:
            raise options.reject(field, f"{wanted}, which the model's keys have", value)
    for name in sorted(tensors.keys() - {EMBEDDINGS}):
        raise UserError(f"{file}: holds a tensor {name}; accepted: {EMBEDDINGS} alone")
    shape = (length, 2 * c.num_layers * c.kv_heads * c.channels)
    given = tensors[EMBEDDINGS].shape if EMBEDDINGS in tensors else None
    if given != shape:
        raise UserError(
            f"{file}: tensor {EMBEDDINGS}: given {'none' if given is None else f'shape {list(given)}'}; accepted: "
            f"{list(shape)}, by num_virtual_tokens of {options.file.name} and the model's sizes"
        )
    both = tensors[EMBEDDINGS].reshape(length, c.num_layers, 2, c.kv_heads, c.channels).transpose(2, 1, 3, 0, 4)
    keys, values = (np.ascontiguousarray(part) for part in both)
    return {"keys": _turned(keys[..., _order(c, family)], c, -length), "values": values}


def _write_prefix(prefix: Any, c: DecoderConfig, family: Family) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    keys, values = (np.asarray(part, np.float32) for part in check_prefix(prefix, c))
    length = keys.shape[2]
    keys = _turned(keys, c, length)[..., np.argsort(_order(c, family))]
    both = np.stack([keys, values]).transpose(3, 1, 0, 2, 4).reshape(length, -1)
    fields = {
        "num_virtual_tokens": length,
        "num_layers": c.num_layers,
        "num_attention_heads": c.kv_heads,
        "token_dim": c.kv_heads * c.channels,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": c.kv_heads * c.channels,
        "prefix_projection": False,
    }
    return fields, {EMBEDDINGS: np.ascontiguousarray(both)}


def _order(c: DecoderConfig, family: Family) -> np.ndarray:
    """Where the channels of a key of ours are in one of transformers."""
    (form,) = {form for _, form, paths in family.rows if "blocks/key/kernel" in paths}
    return turned_order(c) if form is LINEAR_NEIGHBOURS else np.arange(c.channels)


def _turned(keys_LGSC: np.ndarray, c: DecoderConfig, positions: int) -> np.ndarray:
    """Keys as they are so many positions further on."""
    if c.positions != "rotary":
        return keys_LGSC
    positions_GS = jnp.full(keys_LGSC.shape[1:3], positions)
    frequency_LR, _ = turns(c.turned, c.layer_rotaries)  # the keys have their amplitude
    moved = [rotate(jnp.asarray(k)[:, :, None], positions_GS, f) for k, f in zip(keys_LGSC, frequency_LR, strict=True)]
    return np.stack(moved)[:, :, :, 0]


def _moved_on(model: Model, count: int) -> Model:
    """The model whose prompts begin `count` rows into its table of positions; without a table, as it is."""
    c = model.config
    if c.positions != "learned":
        return model
    if count >= c.max_positions:
        raise reject("num_virtual_tokens", count, f"fewer than the model's {c.max_positions} positions")
    params = {**model.params, "positions": model.params["positions"][count:]}
    return dataclasses.replace(
        model, params=params, config=dataclasses.replace(c, max_positions=c.max_positions - count)
    )
