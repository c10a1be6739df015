"""LoRA (Hu et al. 2021) in the form of the peft package, ``scale * B A`` of modules, and in ours, ``A B`` of kernels.

A module of transformers may hold several of our kernels, as queries, keys and values of GPT-2 are one matrix: what it
reads is A of each of them, and B is cut. On the way back different A's stand one behind the other, with zeros in B.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tvjax.errors import UserError, reject
from tvjax.nn.decoder import DecoderConfig
from tvjax.nn.lora import sites
from tvjax.nn.pretrained.families import Family
from tvjax.nn.pretrained.forms import CONV, CONV_OUT, CONV_QKV, Form
from tvjax.nn.pretrained.peft_config import Options
from tvjax.nn.selection import finite

PREFIX = "base_model.model."
_MATRICES = ("A", "B")


@dataclasses.dataclass(frozen=True)
class Module:
    """A linear map of a layer (from 0) as transformers names it: its form in a file, and our kernels that it holds."""

    name: str
    layer: int
    form: Form
    sites: tuple[str, ...]

    @property
    def turned(self) -> bool:
        """Whether its matrix is ``[in, out]`` in a file. peft's B is ``[out, r]`` always."""
        return self.form in (CONV, CONV_OUT, CONV_QKV)

    def tensor(self, matrix: str) -> str:
        """The name in a file of one of LoRA's matrices."""
        return f"{PREFIX}{self.name}.lora_{matrix}.weight"

    def shapes(self, c: DecoderConfig, rank: int) -> list[tuple[int, ...]]:
        """Of each kernel, with `rank` in the place of what goes in."""
        known = sites(c)
        return [(rank, *(1,) * (len(known[site][0]) - 1), *known[site][1]) for site in self.sites]

    def sizes(self, c: DecoderConfig) -> tuple[int, int]:
        """How many numbers go in and come out."""
        known = sites(c)
        return math.prod(known[self.sites[0]][0]), sum(math.prod(known[site][1]) for site in self.sites)


def modules(c: DecoderConfig, family: Family) -> dict[str, Module]:
    """The modules of the model that can be adapted, by name: all linear maps in its blocks."""
    known, found = sites(c), {}
    for name, form, paths in family.rows:
        held = tuple(path.removeprefix("blocks/").removesuffix("/kernel") for path in paths)
        if not set(held) <= set(known):
            continue
        for layer in range(c.num_layers):
            module = Module(name.format(layer).removesuffix(".weight"), layer, form, held)
            found[module.name] = module
    return found


def read_lora(
    file: Path, options: Options, tensors: Mapping[str, np.ndarray], c: DecoderConfig, family: Family
) -> dict[str, dict[str, np.ndarray]]:
    """The adapter as `init_lora` has it: ``{site: {"down": [L, in, r], "up": [L, r, out]}}``, the scale multiplied in.

    r is a site's largest rank; where one is smaller, or a layer is not adapted, there are zeros. `file` holds the
    tensors. Raises `UserError` for a module that the model does not have, that is not in the file, or that is there and
    not in the config, and for a matrix of another shape than both say.
    """
    known = modules(c, family)
    chosen = {name: module for name, module in known.items() if options.adapts(name)}
    _check_targets(options, known, chosen)
    wanted = {module.tensor(matrix): module for module in chosen.values() for matrix in _MATRICES}
    for name in sorted(tensors.keys() - wanted.keys()):
        raise UserError(
            f"{file}: holds a tensor {name}; accepted: lora_A.weight and lora_B.weight of the modules of this model "
            f"that {options.file.name} names, such as {next(iter(chosen))}"
        )
    lora: dict[str, dict[str, np.ndarray]] = {}
    for site in (site for site in sites(c) if any(site in module.sites for module in chosen.values())):
        held = [module for module in chosen.values() if site in module.sites]
        rank = max(options.rank(module.name) for module in held)
        size_in, size_out = (math.prod(shape) for shape in sites(c)[site])
        down, up = np.zeros((c.num_layers, size_in, rank)), np.zeros((c.num_layers, rank, size_out))
        lora[site] = {"down": down.astype(np.float32), "up": up.astype(np.float32)}
    for module in chosen.values():
        rank, scale, (size_in, size_out) = options.rank(module.name), options.scale(module.name), module.sizes(c)
        down = _matrix(file, tensors, module.tensor("A"), (rank, size_in), options).T
        up = _matrix(file, tensors, module.tensor("B"), (size_out, rank), options)
        up = (scale * up.astype(np.float64)).astype(np.float32)
        parts = module.form.split(up.T if module.turned else up, module.shapes(c, rank), c)
        for site, part in zip(module.sites, parts, strict=True):
            lora[site]["down"][module.layer, :, :rank] = down
            lora[site]["up"][module.layer, :rank] = part.reshape(rank, -1)
    return lora


def _check_targets(options: Options, known: Mapping[str, Module], chosen: Mapping[str, Module]) -> None:
    """Raise `UserError` for a target that names no module of the model."""
    targets = options.targets()
    ends = ", ".join(dict.fromkeys(name.split(".")[-1] for name in known))
    for target in targets if isinstance(targets, list) else []:
        if not any(name == target or name.endswith(f".{target}") for name in known):
            raise options.reject("target_modules", f"modules of this model: {ends}", target)
    if not chosen:
        raise options.reject("target_modules", f"one that names some of this model's modules: {ends}")


def _matrix(
    file: Path, tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, int], options: Options
) -> np.ndarray:
    if name not in tensors:
        raise UserError(f"{file}: has no tensor {name}, of a module that {options.file.name} names")
    if tensors[name].shape != shape:
        given, accepted = list(tensors[name].shape), list(shape)
        raise UserError(
            f"{file}: tensor {name}: given shape {given}; accepted: {accepted}, by the rank that {options.file.name} "
            "says and the model's sizes"
        )
    return tensors[name]


def check_lora(lora: Any, c: DecoderConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """``down [L, in, r]`` and ``up [L, r, out]`` of each site. Raises `UserError` for what is no LoRA of this model."""
    known = sites(c)
    if not isinstance(lora, Mapping) or not lora:
        accepted = 'of a LoRA {site: {"down", "up"}}, or of a prefix {"keys", "values"}'
        raise reject("adapter", type(lora).__name__, f"what load_adapter gives, or the parameters {accepted}")
    arrays = {}
    for site, pair in lora.items():
        if site not in known:
            raise reject("adapter", site, f"kernels of this model: {', '.join(known)}")
        if not isinstance(pair, Mapping) or set(pair) != {"down", "up"}:
            raise reject(f"adapter[{site!r}]", sorted(pair) if isinstance(pair, Mapping) else pair, "down and up")
        down, up = (finite(f"adapter[{site!r}][{name!r}]", pair[name]) for name in ("down", "up"))
        size_in, size_out = (math.prod(shape) for shape in known[site])
        rank = down.shape[-1] if down.ndim else 0
        shapes = (c.num_layers, size_in, rank), (c.num_layers, rank, size_out)
        if (down.shape, up.shape) != shapes or not rank:
            accepted = f"down [{c.num_layers}, {size_in}, r] and up [{c.num_layers}, r, {size_out}]"
            raise reject(f"adapter[{site!r}]", f"shapes {list(down.shape)} and {list(up.shape)}", accepted)
        arrays[site] = (np.asarray(down, np.float32), np.asarray(up, np.float32))
    return arrays


def write_lora(lora: Any, c: DecoderConfig, family: Family) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields of adapter_config.json, and the tensors by name: as many ranks as a module needs, of scale 1."""
    arrays, known = check_lora(lora, c), modules(c, family)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for module in known.values():
        pairs = {site: _used(*(part[module.layer] for part in arrays[site])) for site in module.sites if site in arrays}
        down, up = _joined(module, pairs, c)
        if not down.shape[1]:
            continue
        ranks[module.name] = rank = down.shape[1]
        parts = [part.reshape(shape) for part, shape in zip(up, module.shapes(c, rank), strict=True)]
        matrix = module.form.join(parts, c)
        tensors[module.tensor("A")] = np.ascontiguousarray(down.T)
        tensors[module.tensor("B")] = np.ascontiguousarray(matrix.T if module.turned else matrix)
    if not ranks:
        raise reject("adapter", "zeros alone", "one that changes something")
    most = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != most}
    fields = {
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "use_rslora": False,
        "target_modules": _targets(list(known), set(ranks)),
        "fan_in_fan_out": any(known[name].turned for name in ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    return fields, tensors


def _used(down: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of ``[in, r]`` and ``[r, out]`` that are not zero in both."""
    there = down.any(0) | up.any(1)
    return down[:, there], up[there]


def _joined(
    module: Module, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], c: DecoderConfig
) -> tuple[np.ndarray, list[np.ndarray]]:
    """One ``down [in, r]`` for all kernels of a module, and ``up [r, out]`` of each."""
    downs = [down for down, _ in pairs.values()]
    same = bool(downs) and all(np.array_equal(downs[0], down) for down in downs)
    down = downs[0] if same else np.concatenate([np.zeros((module.sizes(c)[0], 0), np.float32), *downs], axis=1)
    ups, begin = [], 0
    for site in module.sites:
        up = np.zeros((down.shape[1], math.prod(sites(c)[site][1])), np.float32)
        if site in pairs:
            rank = len(pairs[site][1])
            up[begin : begin + rank] = pairs[site][1]
            begin += 0 if same else rank
        ups.append(up)
    return down, ups


def _targets(known: list[str], adapted: set[str]) -> list[str]:
    """Names that peft understands: the last word of a module's, where all modules that end so are adapted."""
    words = {name: name.split(".")[-1] for name in known}
    whole = {word for word in words.values() if all(name in adapted for name in known if words[name] == word)}
    return sorted({words[name] if words[name] in whole else name for name in known if name in adapted})
