"""Rotary positions of a config.json: the block `rope_parameters` (once `rope_scaling`), and the fields beside it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tvjax.nn.pretrained.fields import NUMBER, POSITIVE, SIZE, Fields
from tvjax.nn.rotary import Scaling

# The numbers that each kind of scaling needs in the block.
SCALINGS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
ORIGINAL = "original_max_position_embeddings"


@dataclasses.dataclass(frozen=True)
class Rope:
    """Base, scaling, and the fraction of a head's channels that turn."""

    base: float
    scaling: Scaling | None
    fraction: float


def read_rope(f: Fields, base: str = "rope_theta", fraction: str = "partial_rotary_factor") -> Rope:
    """The rotary positions of a model whose fields beside the block are called `base` and `fraction`.

    What the block says holds; what stands beside it counts where the block is silent, as in `transformers`. The
    fraction acts in families that call it `rotary_pct`. Raises `UserError` for a scaling that is not implemented, a
    number that is missing or senseless, and for two blocks that disagree.
    """
    blocks = [name for name in ("rope_parameters", "rope_scaling") if f[name]] or ["rope_parameters"]
    ropes = [_Block(f, name, base, fraction).read() for name in blocks]
    if ropes[0] != ropes[-1]:
        raise f.reject("rope_scaling", "what rope_parameters says, or only one of the two")
    return ropes[0]


class _Block:
    """One block under its name, with the names of base and fraction beside it."""

    def __init__(self, f: Fields, name: str, base: str, fraction: str) -> None:
        self.f, self.name, self.base, self.fraction = f, name, base, fraction
        self.values: Mapping[str, Any] = f[name] or {}

    def read(self) -> Rope:
        """What the block says, checked. Raises `UserError` for a kind, a base or a number that is not known."""
        kind = self._kind()
        base = self._either("rope_theta", self.base)
        if base is None:
            raise self.f.reject(self.base, "a value of type float", None)
        rope = Rope(
            self.f.check(f"{self.name}.rope_theta", base, POSITIVE), self._scaling(kind), self._turned_fraction(kind)
        )
        known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *SCALINGS[kind]}
        self._pass_over(f"{self.name}.{key}" for key in self.values if key not in known | {ORIGINAL})
        if kind != "llama3":
            self._pass_over(f"{self.name}.{ORIGINAL}" for key in self.values if key == ORIGINAL)
            self._pass_over(key for key in (ORIGINAL,) if key in self.f)
        return rope

    def _kind(self) -> str:
        names = [key for key in ("rope_type", "type") if key in self.values]
        kinds = [self.values[key] for key in names] or ["default"]
        for key, value in self.values.items():
            if isinstance(value, dict):
                raise self.f.reject(f"{self.name}.{key}", "a number or a word, the same for all layers", value)
        for key, kind in zip(names, kinds, strict=False):
            if not isinstance(kind, str) or kind not in SCALINGS:
                raise self.f.reject(f"{self.name}.{key}", "rope_type default, linear or llama3", kind)
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

    def _turned_fraction(self, kind: str) -> float:
        key = "partial_rotary_factor"
        inside = f"{self.name}.{key}" if key in self.values else self.fraction
        fraction = self._either(key, self.fraction)
        if self.fraction == "rotary_pct":
            return self.f.check(inside, fraction, NUMBER)
        if fraction is None and inside == self.fraction:
            return 1.0
        if kind != "default":
            if self.f.check(inside, fraction, NUMBER) != 1.0:
                raise self.f.reject(inside, f"1 with rope_type {kind}", fraction)
        else:
            self._pass_over([inside])
        return 1.0

    def _scaling(self, kind: str) -> Scaling | None:
        numbers = {}
        for key in SCALINGS[kind]:
            if key not in self.values:
                raise self.f.reject(f"{self.name}.{key}", f"all numbers that rope_type {kind} needs", None)
            numbers[key] = self.f.check(f"{self.name}.{key}", self.values[key], POSITIVE)
        if kind == "default":
            return None
        if kind == "linear":
            return Scaling("linear", numbers["factor"])
        low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
        if low >= high:
            raise self.f.reject(f"{self.name}.high_freq_factor", f"more than low_freq_factor, {low}", high)
        return Scaling("llama3", numbers["factor"], low, high, self._original())

    def _original(self) -> int:
        """The length of training: in the block, beside it, or else the largest position."""
        originals = {f"{self.name}.{ORIGINAL}": self.values[ORIGINAL]} if ORIGINAL in self.values else {}
        originals |= {ORIGINAL: self.f[ORIGINAL]} if ORIGINAL in self.f else {}
        lengths = [self.f.check(name, value, SIZE) for name, value in originals.items()]
        if len(set(lengths)) > 1:
            raise self.f.reject(ORIGINAL, f"{lengths[0]}, as {self.name} says", lengths[1])
        return int(lengths[0] if lengths else self.f["max_position_embeddings"])
