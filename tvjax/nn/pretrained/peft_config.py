"""What an adapter_config.json of the peft package may say, and what it says of each module.

A field that nobody reads here is passed over if it changes nothing of what the model computes (`INERT`), or if it says
that there is no such thing. Any other is refused by its name: DoRA is one of some thirty.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tvjax.errors import UserError, reject
from tvjax.files import read_json

FOLDER = "accepted: a folder that peft's save_pretrained wrote: adapter_config.json, adapter_model.safetensors"
_TASK: tuple[Any, ...] = (None, "CAUSAL_LM")

# peft_type: the fields that are read.
READ: Mapping[str, frozenset[str]] = {
    "LORA": frozenset(
        """
        alpha_pattern exclude_modules layers_pattern layers_to_transform lora_alpha r rank_pattern target_modules
        use_rslora
        """.split()  # noqa: SIM905
    ),
    "PREFIX_TUNING": frozenset(["num_attention_heads", "num_layers", "num_virtual_tokens", "token_dim"]),
}
# Fields that have a say in training alone, or in where the base model is. What fan_in_fan_out says, a module tells by
# itself.
INERT = frozenset(
    """
    auto_mapping base_model_name_or_path corda_config encoder_hidden_size eva_config fan_in_fan_out inference_mode
    init_weights lora_dropout lora_ga_config megatron_core peft_type peft_version prefix_projection qalora_group_size
    revision runtime_config
    """.split()  # noqa: SIM905
)
# Fields with the values that leave an adapter as it is computed here: some ways to begin change the base model too.
HELD: Mapping[str, tuple[Any, ...]] = {
    "task_type": _TASK,
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "num_transformer_submodules": (None, 1),
}


class Options:
    """The fields of one adapter_config.json; `kind` is its peft_type.

    Raises `UserError` for another kind of adapter, and for a field that may change the model and is not implemented.
    """

    def __init__(self, file: Path) -> None:
        self.file, self._values = file, read_json(file, FOLDER)
        self.kind = self._values.get("peft_type")
        if not isinstance(self.kind, str) or self.kind not in READ:
            raise self.reject("peft_type", f"{' or '.join(READ)} (others are not implemented)")
        for name, value in self._values.items():
            if name in READ[self.kind] or name in INERT:
                continue
            if name in HELD:
                if not any(type(value) is type(held) and value == held for held in HELD[name]):
                    raise self.reject(name, " or ".join(map(repr, HELD[name])) + " (others are not implemented)")
            elif not (value is None or value is False or value in ({}, [])):
                raise self.reject(name, "null, false or nothing in it (it is not implemented)")

    def reject(self, name: str, accepted: str, value: Any = None) -> UserError:
        """What to raise for the field `name`."""
        return reject(f"{self.file}: {name}", self._values.get(name) if value is None else value, accepted)

    def _get(self, name: str, default: Any, holds: Callable[[Any], bool], accepted: str) -> Any:
        """The value of a field, where it is absent or null that which peft has then."""
        value = self._values.get(name)
        value = default if value is None else value
        if not holds(value):
            raise self.reject(name, accepted)
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """A number of things."""
        return int(self._get(name, default, _is_size, "a whole number, 1 or more"))

    def rank(self, module: str) -> int:
        """The rank of LoRA in the module."""
        return int(self._of_module("rank_pattern", module, self.size("r", 8), _is_size, "whole numbers, 1 or more"))

    def scale(self, module: str) -> float:
        """What the product of LoRA's matrices is multiplied with in the module: alpha / r, or alpha / r^1/2."""
        default = self._get("lora_alpha", 8, _is_number, "a finite number")
        alpha = self._of_module("alpha_pattern", module, default, _is_number, "finite numbers")
        rank, rooted = self.rank(module), self._get("use_rslora", False, _is_flag, "true or false")
        return float(alpha / (math.sqrt(rank) if rooted else rank))

    def _of_module(self, field: str, module: str, default: Any, holds: Callable[[Any], bool], accepted: str) -> Any:
        """What a map from patterns says of the module: the first pattern that is its name, or ends it behind a dot."""
        patterns = self._get(field, {}, lambda v: isinstance(v, dict), f"a map from patterns to {accepted}")
        for pattern, value in patterns.items():
            if not holds(value):
                raise self.reject(field, f"a map from patterns to {accepted}", {pattern: value})
            if self._match(field, rf"(.*\.)?({pattern})$", module):
                return value
        return default

    def _match(self, field: str, pattern: str, text: str, *, whole: bool = False) -> re.Match[str] | None:
        try:
            return re.fullmatch(pattern, text) if whole else re.match(pattern, text)
        except (re.error, OverflowError, RecursionError) as error:
            raise self.reject(field, f"regular expressions ({error})") from None

    def targets(self) -> str | list[str]:
        """The modules that are adapted: a pattern of whole names, or names and ends of names."""
        accepted = "a pattern, or a list of at least one name"
        return self._get("target_modules", None, lambda v: _is_name(v) or (_are_names(v) and bool(v)), accepted)

    def adapts(self, module: str) -> bool:
        """Whether the module of that name is adapted."""
        excluded = self._get("exclude_modules", [], lambda v: _is_name(v) or _are_names(v), "a pattern or names")
        if self._named("exclude_modules", excluded, module):
            return False
        targets = self.targets()
        if isinstance(targets, str):
            return targets.lower() == "all-linear" or self._named("target_modules", targets, module)
        return module in targets or (self._named("target_modules", targets, module) and self._in_layers(module))

    def _named(self, field: str, names: str | list[str], module: str) -> bool:
        if isinstance(names, str):
            return self._match(field, names, module, whole=True) is not None
        return any(module == name or module.endswith(f".{name}") for name in names)

    def _in_layers(self, module: str) -> bool:
        """Whether the layer of the module is one of those that are adapted."""
        layers = self._get("layers_to_transform", [], _are_layers, "a layer, or a list of them, from 0")
        patterns = self._get("layers_pattern", [], lambda v: _is_name(v) or _are_names(v), "names of lists of layers")
        if layers == []:
            return True
        for pattern in [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]:
            found = self._match("layers_pattern", rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", module)
            if found:
                return int(found["layer"]) in ([layers] if isinstance(layers, int) else layers)
        return False


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**31


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _are_layers(value: Any) -> bool:
    return all(type(layer) is int and layer >= 0 for layer in (value if isinstance(value, list) else [value]))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))
