"""Rotary positions of a config.json: the block `rope_parameters` (once `rope_scaling`), and the fields beside it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tvjax.nn.pretrained.fields import FLAG, NUMBER, POSITIVE, SIZE, Fields
from tvjax.nn.rotary import Rotary, Scaling

# The numbers that each kind of scaling needs in the block, and what it may have beside them.
SCALINGS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor"),
}
ORIGINAL = "original_max_position_embeddings"
WITH_ORIGINAL = ("llama3", "yarn", "longrope")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Base and scaling, and the channels of a head that turn."""

    rotary: Rotary
    width: int


@dataclasses.dataclass(frozen=True)
class Beside:
    """What stands beside the block: the names of base and fraction there, and the base where neither says one.

    acts: whether the fraction does, or the family turns all channels whatever it is.
    original: whether the family has the length of training as a field of its own.
    kinds: of scaling, that the family has.
    """

    base: str = "rope_theta"
    fraction: str = "partial_rotary_factor"
    acts: bool = False
    original: bool = False
    kinds: Sequence[str] = tuple(SCALINGS)


def read_rope(f: Fields, channels: int, beside: Beside | None = None) -> Rope:
    """The rotary positions of a model whose heads have so many `channels`.

    What the block says holds; what stands beside it counts where the block is silent, as in `transformers`. Raises
    `UserError` for a scaling that is not implemented, a number that is missing or senseless, and for two blocks that
    disagree.
    """
    beside = beside or Beside()
    blocks = [name for name in ("rope_parameters", "rope_scaling") if f[name]] or ["rope_parameters"]
    ropes = [_Block(f, name, f[name] or {}, channels, beside).read() for name in blocks]
    if ropes[0] != ropes[-1]:
        raise f.reject("rope_scaling", "what rope_parameters says, or only one of the two")
    return ropes[0]


def read_ropes(f: Fields, channels: int, kinds: Mapping[str, str | float]) -> dict[str, Rope]:
    """The rotary positions of each of the `kinds` of layers, which have blocks of their own in `rope_parameters`.

    `rope_scaling` is of those with full attention. kinds: where the block is silent, the field beside it that says the
    base, or the base. Raises as `read_rope`.
    """
    blocks, scaling = f["rope_parameters"] or {}, f["rope_scaling"] or {}
    for name, block in blocks.items():
        if name not in kinds or not isinstance(block, dict | None):
            raise f.reject(f"rope_parameters.{name}", f"a block each of {', '.join(kinds)}", block)
    if scaling and f["rope_parameters"] is not None and not blocks.get("full_attention"):
        raise f.reject("rope_scaling", "null, or none, beside rope_parameters without full_attention")
    ropes = {}
    for kind, base in kinds.items():
        name, block = f"rope_parameters.{kind}", blocks.get(kind) or {}
        if kind == "full_attention" and scaling:
            name, block = "rope_scaling", block | scaling
        if isinstance(base, str):
            ropes[kind] = _Block(f, name, block, channels, Beside(base), nested=True).read()
        else:
            ropes[kind] = _Block(f, name, {"rope_theta": base} | block, channels, Beside(), nested=True).read()
    return ropes


class _Block:
    """One block under its name, with what is beside it; `nested`, if it is of one kind of layers alone."""

    def __init__(
        self, f: Fields, name: str, values: Mapping[str, Any], channels: int, beside: Beside, nested: bool = False
    ) -> None:
        self.f, self.name, self.values, self.channels = f, name, values, channels
        self.beside, self.nested = beside, nested

    def read(self) -> Rope:
        """What the block says, checked. Raises `UserError` for a kind, a base or a number that is not known."""
        kind = self._kind()
        base = self._either("rope_theta", self.beside.base)
        if base is None:
            raise self.f.reject(self.beside.base, "a value of type float", None)
        base = self.f.check(f"{self.name}.rope_theta", base, POSITIVE)
        width = self._width(kind)
        rope = Rope(Rotary(base, self._scaling(kind, base, width)), width)
        known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *SCALINGS[kind], *OPTIONS.get(kind, ())}
        self._pass_over(f"{self.name}.{key}" for key in self.values if key not in known | {ORIGINAL})
        if kind not in WITH_ORIGINAL:
            self._pass_over(f"{self.name}.{ORIGINAL}" for key in self.values if key == ORIGINAL)
        if self.nested or not (kind in WITH_ORIGINAL or self.beside.original):
            self._pass_over(key for key in (ORIGINAL,) if key in self.f)
        return rope

    def _kind(self) -> str:
        names = [key for key in ("rope_type", "type") if key in self.values]
        kinds = [self.values[key] for key in names] or ["default"]
        for key, value in self.values.items():
            if isinstance(value, dict):
                raise self.f.reject(f"{self.name}.{key}", "a number or a word, the same for all layers", value)
        for key, kind in zip(names, kinds, strict=False):
            if not isinstance(kind, str) or kind not in self.beside.kinds:
                raise self.f.reject(f"{self.name}.{key}", f"rope_type {', '.join(self.beside.kinds)}", kind)
        if kinds[0] != kinds[-1]:
            raise self.f.reject(f"{self.name}.type", f"{kinds[0]!r}, as rope_type says", kinds[-1])
        return str(kinds[0])

    def _pass_over(self, names: Any) -> None:
        self.f.unread.extend(name for name in names if name not in self.f.unread)

    def _either(self, key: str, beside: str) -> Any:
        """`key` of the block, or else the field beside it, which is named as unread where it says something else."""
        if key not in self.values:
            return self.f[beside]
        if beside in self.f and self.f[beside] != self.values[key]:
            self._pass_over([beside])
        return self.values[key]

    def _width(self, kind: str) -> int:
        """The channels of a head that turn."""
        key, beside = "partial_rotary_factor", self.beside
        inside = f"{self.name}.{key}" if key in self.values else beside.fraction
        fraction = self._either(key, beside.fraction)
        if fraction is None and inside == beside.fraction and not beside.acts:
            return self._even(inside, self.channels)
        if beside.acts:
            # More than 1 is refused, however much it is.
            return self._even(inside, int(self.channels * min(self.f.check(inside, fraction, NUMBER), 2.0)))
        if kind == "default":
            self._pass_over([inside])
        elif self.f.check(inside, fraction, NUMBER) != 1.0:
            raise self.f.reject(inside, f"1 with rope_type {kind}", fraction)
        return self._even("head_dim", self.channels)

    def _even(self, name: str, width: int) -> int:
        if width % 2 or not 0 < width <= self.channels:
            said = "head_dim" if self.f["head_dim"] else "num_attention_heads"
            name = name if self.beside.acts else said
            wanted = f"one that turns an even number of channels, but {width} of a head's {self.channels} turn"
            raise self.f.reject(name, wanted)
        return width

    def _number(self, key: str, kind: Any = POSITIVE) -> Any:
        return self.f.check(f"{self.name}.{key}", self.values[key], kind)

    def _scaling(self, kind: str, base: float, width: int) -> Scaling | None:
        for key in SCALINGS[kind]:
            if key not in self.values:
                raise self.f.reject(f"{self.name}.{key}", f"all numbers that rope_type {kind} needs", None)
        if kind == "default":
            return None
        if kind == "yarn":
            return self._yarn(base)
        if kind == "longrope":
            return self._longrope(width)
        factor = self._number("factor")
        if kind == "linear":
            return Scaling("linear", factor)
        if kind == "dynamic":
            if width == 2:
                raise self.f.reject(f"{self.name}.rope_type", "another in heads of which 2 channels turn", kind)
            return Scaling("dynamic", factor, original=self.f["max_position_embeddings"])
        low, high = self._number("low_freq_factor"), self._number("high_freq_factor")
        if low >= high:
            raise self.f.reject(f"{self.name}.high_freq_factor", f"more than low_freq_factor, {low}", high)
        return Scaling("llama3", factor, low, high, self._original())

    def _yarn(self, base: float) -> Scaling:
        """What is 0 or null has its default, but for `attention_factor` 0 and `truncate` null, which mean that."""
        if base == 1.0:
            raise self.f.reject(f"{self.name}.rope_theta", "another than 1 with rope_type yarn", base)
        original = self._original()
        factor, given = self._factor(original), {}
        for key in ("beta_fast", "beta_slow", "mscale", "mscale_all_dim"):
            given[key] = self._number(key, NUMBER) if self.values.get(key) is not None else 0.0
        amplitude = self._optional("attention_factor", NUMBER)
        if amplitude is None:
            amplitude = _grown(factor)
            if given["mscale"] and given["mscale_all_dim"]:
                amplitude = _grown(factor, given["mscale"]) / _grown(factor, given["mscale_all_dim"])
        whole = True
        if "truncate" in self.values:
            whole = bool(self._optional("truncate", FLAG))
            if self.nested and not whole:  # transformers looks for it outside of the blocks of layers
                raise self.f.reject(f"{self.name}.truncate", "true in a block of one kind of layers", False)
        return Scaling(
            "yarn",
            factor,
            low=given["beta_slow"] or 1.0,
            high=given["beta_fast"] or 32.0,
            original=original,
            whole_channels=whole,
            amplitude=amplitude,
        )

    def _longrope(self, width: int) -> Scaling:
        original, factors = self._original(), {}
        for key in SCALINGS["longrope"]:
            name, values = f"{self.name}.{key}", self.values[key]
            if not isinstance(values, list) or len(values) != width // 2:
                shown = f"{len(values)} numbers" if isinstance(values, list) else values
                raise self.f.reject(name, f"a list of {width // 2} numbers, one a pair of channels", shown)
            factors[key] = tuple(self.f.check(name, value, POSITIVE) for value in values)
        amplitude, factor = self._optional("attention_factor", NUMBER), self._factor(original)
        if amplitude is None:
            if factor > 1 and original == 1:
                raise self.f.reject(ORIGINAL, "2 or more with rope_type longrope", original)
            amplitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        short = factors["short_factor"]
        limit = 0 if short == factors["long_factor"] else original
        return Scaling("longrope", 1.0, original=limit, divisors=short, amplitude=amplitude)

    def _optional(self, key: str, kind: Any) -> Any:
        return None if self.values.get(key) is None else self._number(key, kind)

    def _factor(self, original: int) -> float:
        factor = self._optional("factor", POSITIVE)
        return float(self.f["max_position_embeddings"] / original) if factor is None else float(factor)

    def _original(self) -> int:
        """The length of training: in the block, beside it, or else the largest position."""
        originals = {f"{self.name}.{ORIGINAL}": self.values[ORIGINAL]} if ORIGINAL in self.values else {}
        if not self.nested and (ORIGINAL in self.f or self.beside.original):
            originals |= {ORIGINAL: self.f[ORIGINAL]}
        lengths = [self.f.check(name, value, SIZE) for name, value in originals.items()]
        if len(set(lengths)) > 1:
            raise self.f.reject(ORIGINAL, f"{lengths[0]}, as {self.name} says", lengths[1])
        return int(lengths[0] if lengths else self.f["max_position_embeddings"])


def _grown(factor: float, weight: float = 1.0) -> float:
    """By how much attention's factor grows with `factor`, in YaRN."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
