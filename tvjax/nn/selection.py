"""What a user names - addresses, layers, heads, positions, factors - as what the programs take, or a refusal.

Layers, heads and positions all understand an int (of Python, numpy or jax), a list, tuple, range or array of ints, a
slice and a boolean mask. Nothing is rounded, cut or guessed: a float is no index, an array of 0 and 1 is no mask, and
what is not there is refused by its name. Values are looked at if they are concrete, before any program runs. [ours]
"""

import dataclasses
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.errors import UserError, reject
from tvjax.nn.decoder import PADDING

MANY = "an int, a list of ints, a slice or a boolean mask, which name at least one"
PLACES = (
    "'last', 'all', an int, ints [N] of every prompt, ints [B, N] of each, a slice, or a mask of bools [T] or [B, T]"
)


@dataclasses.dataclass(frozen=True)
class Span:
    """A slice that can be hashed."""

    start: int | None
    stop: int | None
    step: int | None

    def __repr__(self) -> str:
        return f"slice({self.start}, {self.stop}, {self.step})"

    def of(self, low: int, high: int) -> tuple[int, ...]:
        """What Python's slice names of the numbers 0..high, an open end being at `low`."""
        forward = self.step is None or self.step > 0
        start = low if self.start is None and forward else self.start
        numbers = range(high + 1)[start : self.stop : self.step]
        return tuple(n for n in numbers if n >= low) if self.stop is None and not forward else tuple(numbers)


Chosen = tuple[int, ...] | tuple[bool, ...] | Span
Positions = str | Span | tuple[int, ...] | tuple[tuple[int, ...], ...]


def host(value: Any) -> np.ndarray | None:
    """The values of an array, or None if they cannot be looked at: a traced one, or one that lies elsewhere too."""
    if isinstance(value, jax.core.Tracer) or (isinstance(value, jax.Array) and not value.is_fully_addressable):
        return None
    return np.asarray(value)


def integer(field: str, value: Any, accepted: str) -> int:
    """One int of Python, numpy or jax. Raises `UserError` for anything else: a bool, a float, an array of several."""
    array = _indices(field, value, accepted)
    if array.ndim or array.dtype == bool:
        raise reject(field, value, accepted)
    return int(array)


def _indices(field: str, value: Any, accepted: str) -> np.ndarray:
    """An array of ints or of bools, with something in it."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError):  # a traced array, lists of unequal lengths
        raise reject(field, _shown(value), accepted) from None
    if (
        array.dtype.kind not in "iub"
        or (array.dtype != bool and flags_in(value))
        or not array.size
        or (array > np.iinfo(np.int64).max).any()
    ):
        raise reject(field, _shown(value), accepted)
    return array


def flags_in(value: Any) -> bool:
    """Whether a list, at any depth, holds a bool, which numpy would read as an int beside ints."""
    return any(isinstance(one, bool) or getattr(one, "dtype", np.dtype(int)).kind == "b" for one in _leaves(value))


def flag(field: str, value: Any) -> bool:
    """True or False, of Python or numpy. Raises `UserError` for anything else, whose truth would be a guess."""
    if not isinstance(value, bool | np.bool_):
        raise reject(field, _shown(value), "True or False")
    return bool(value)


def _leaves(value: Any) -> Iterable[Any]:
    if not isinstance(value, list | tuple):
        return (value,)
    return (leaf for one in value for leaf in _leaves(one))


def _shown(value: Any) -> Any:
    return "a traced array" if isinstance(value, jax.core.Tracer) else value


def _span(field: str, value: slice) -> Span:
    try:
        bounds = [None if b is None else operator.index(b) for b in (value.start, value.stop, value.step)]
    except TypeError:
        raise reject(field, value, "a slice of ints") from None
    if bounds[2] == 0 or any(isinstance(b, bool) for b in (value.start, value.stop, value.step)):
        raise reject(field, value, "a slice of ints, whose step is not 0")
    return Span(*bounds)


def addresses(value: Sequence[str] | str, known: Sequence[str], field: str = "addresses") -> tuple[str, ...]:
    """One address or several. Raises `UserError` for one that is not `known`."""
    several = (value,) if isinstance(value, str) else value
    if not isinstance(several, Sequence):
        raise reject(field, value, f"one of {', '.join(known)}, or a list of them")
    for one in several:
        if one not in known:
            raise reject(field, one, f"one of {', '.join(known)}")
    return tuple(several)


def token_ids(field: str, value: Any, size: int) -> tuple[int, ...]:
    """One token id or several, of ``0..size-1``, or none. Raises `UserError` for what is no such id."""
    if (isinstance(value, list | tuple) and not value) or getattr(value, "size", 1) == 0:
        return ()
    accepted = f"a token id 0..{size - 1}, or a list of them"
    ids = _indices(field, value, accepted)
    if ids.ndim > 1 or ids.dtype == bool or (ids < 0).any() or (ids >= size).any():
        raise reject(field, value, accepted)
    return tuple(ids.reshape(-1).tolist())


def choice(field: str, value: Any) -> Chosen:
    """Layers or heads before it is known how many there are. Raises `UserError` for what names none."""
    if isinstance(value, slice):
        return _span(field, value)
    array = _indices(field, value, MANY)
    if array.ndim > 1 or (array.dtype == bool and not (array.ndim and array.any())):
        raise reject(field, value, MANY)
    return tuple(array.reshape(-1).tolist())


def several(value: Any) -> bool:
    """Whether `value` is a list, a mask or a slice, and not one number."""
    return isinstance(value, slice) or np.ndim(value) > 0


def once(field: str, chosen: Chosen | Sequence[int]) -> None:
    """Raise `UserError` for a number that stands in `chosen` twice: whether it is written twice would be a guess."""
    numbers = [] if isinstance(chosen, Span) else list(chosen)
    for number in numbers:
        if numbers.count(number) > 1 and not isinstance(number, bool):
            raise reject(field, number, f"each of the {field} once; a list of writes writes more than once")


def layers_of(chosen: Chosen, lowest: int, num_layers: int, where: str = "") -> tuple[int, ...]:
    """The numbers of the layers, ``lowest..L``, in their order, each as often as it is named.

    A mask has L + 1 entries, for 0..L, or L, for 1..L. A slice is one of 0..L, whose open end is `lowest`. Raises
    `UserError` for a layer that is not there.
    """
    return _numbers("layers", chosen, lowest, num_layers, (num_layers, num_layers + 1), where)


def heads_of(chosen: Chosen, num_heads: int) -> tuple[int, ...]:
    """The numbers of the heads, ``0..H-1``; a mask has H entries. Raises `UserError` for a head that is not there."""
    return _numbers("heads", chosen, 0, num_heads - 1, (num_heads,))


def _numbers(
    field: str, chosen: Chosen, low: int, high: int, lengths: tuple[int, ...], where: str = ""
) -> tuple[int, ...]:
    if isinstance(chosen, Span):
        numbers = chosen.of(low, high)
    elif isinstance(chosen[0], bool):
        if len(chosen) not in lengths:
            raise reject(field, f"a mask of {len(chosen)} entries", f"a mask of {' or '.join(map(str, lengths))}")
        first = high + 1 - len(chosen)
        numbers = tuple(first + number for number, there in enumerate(chosen) if there)
    else:
        numbers = chosen
    for number in numbers:
        if not low <= number <= high:
            raise reject(field, number, f"{low}..{high}{where}")
    if not numbers:
        raise reject(field, chosen, f"at least one of {low}..{high}{where}")
    return numbers


def positions(value: Any) -> tuple[Positions, Any]:
    """Positions before the prompts are known: what names them, and the mask if that is "mask" (it may be traced).

    Raises `UserError` for a word, a dtype or a shape that means nothing, and for a mask that is true nowhere.
    """
    if isinstance(value, str):
        if value not in ("last", "all"):
            raise reject("positions", value, PLACES)
        return value, None
    if isinstance(value, slice):
        return _span("positions", value), None
    if isinstance(value, jax.core.Tracer) and value.dtype == bool and value.ndim in (1, 2):
        return "mask", value
    array = _indices("positions", value, PLACES)
    if array.dtype == bool:
        if array.ndim not in (1, 2) or not array.any():
            raise reject("positions", value, "a mask of bools [T] or [B, T] that is true somewhere")
        return "mask", array
    if array.ndim > 2:
        raise reject("positions", f"ints of shape {list(array.shape)}", PLACES)
    if array.ndim == 2:
        return tuple(map(tuple, array.tolist())), None
    return tuple(array.reshape(-1).tolist()), None


@dataclasses.dataclass(frozen=True)
class Own:
    """Where the tokens of each prompt stand in T: `order_BT` ``[B or 1, T]`` is the number among its own, or `PADDING`.

    batch: how many prompts there are (0: not known). The arrays are numpy's if they are concrete.
    """

    order_BT: Any
    batch: int = 0
    field: str = "positions"

    @classmethod
    def of(cls, positions_BT: Any, batch: int = 0, field: str = "positions") -> "Own":
        """From the positions that the decoder is given, whatever number they start at."""
        values = host(positions_BT)
        xp, values = (jnp, positions_BT) if values is None else (np, values)
        real_BT = values != PADDING
        return cls(xp.where(real_BT, xp.cumsum(real_BT, 1) - 1, PADDING).astype(np.int32), batch, field)

    @property
    def concrete(self) -> bool:
        """Whether the values can be looked at."""
        return isinstance(self.order_BT, np.ndarray)

    @property
    def real_BT(self) -> Any:
        """Where a token stands."""
        return self.order_BT != PADDING

    @property
    def count_B(self) -> Any:
        """How many tokens each prompt has."""
        return self.real_BT.sum(1)

    def _rows(self, count: int, what: str) -> None:
        rows = len(self.order_BT)
        prompts = self.batch or rows
        if count != prompts and (self.batch or rows > 1):
            raise reject(self.field, f"{what} for {count} prompts", f"for {prompts}, the number of the prompts")

    def _wanted(self, chosen: tuple[Any, ...]) -> Any:
        """Numbers among each prompt's own tokens, from 0, ``[B or 1, S]``. Raises `UserError` for what is not there."""
        table = np.array(chosen if isinstance(chosen[0], tuple) else [chosen], np.int64)
        length = self.order_BT.shape[1]
        if isinstance(chosen[0], tuple):
            self._rows(len(table), "ints [B, N]")
        zeros_and_ones = table.shape[1] == length and bool(np.isin(table, (0, 1)).all())
        if zeros_and_ones and length > 1 and (isinstance(chosen[0], tuple) or length > 2):
            raise reject(self.field, list(chosen), "indices, or a mask of bools (give `mask.astype(bool)`)")
        count_B1 = self.count_B[:, None]
        for number in table[(table < -length) | (table >= length)][:1]:  # said of traced prompts too
            if not self.concrete:
                raise reject(self.field, int(number), f"{-length}..{length - 1}: no prompt is longer")
        if self.concrete:
            absent = np.argwhere((table < -count_B1) | (table >= count_B1))
            for prompt, entry in absent[:1]:
                count = int(count_B1[min(prompt, len(count_B1) - 1), 0])
                raise reject(
                    self.field,
                    int(table[min(prompt, len(table) - 1), entry]),
                    f"{-count}..{count - 1} for prompt {prompt}, which has {count} tokens",
                )
        xp = np if self.concrete else jnp
        return xp.where(table < 0, count_B1 + table, table + 0 * count_B1)

    def _spans(self, span: Span) -> list[tuple[int, ...]]:
        """What a slice names of each prompt's own tokens."""
        if not self.concrete:
            raise reject(self.field, span, "'last', 'all', indices or a mask, where the prompts are traced")
        rows = [span.of(0, int(count) - 1) for count in self.count_B]
        for prompt, row in enumerate(rows):
            if not row:
                count = int(self.count_B[prompt])
                raise reject(self.field, span, f"a slice with some of the {count} tokens of prompt {prompt}")
        return rows

    def _mask(self, mask: Any) -> Any:
        """The places of a mask where a token stands, ``[B or 1, T]``. Raises `UserError` for padding alone."""
        if mask.shape[-1] != self.order_BT.shape[1]:
            raise reject(self.field, f"a mask over {mask.shape[-1]} positions", f"one over {self.order_BT.shape[1]}")
        if mask.ndim == 2:
            self._rows(len(mask), "a mask [B, T]")
        mask_BT = mask if mask.ndim == 2 else mask[None]
        here_BT = self.real_BT & mask_BT
        if isinstance(here_BT, np.ndarray):
            lost = np.flatnonzero(np.broadcast_to(mask_BT.any(1), len(here_BT)) & ~here_BT.any(1))
            for prompt in lost[:1]:
                raise reject(
                    self.field, f"a mask that is true on padding alone in prompt {prompt}", "one on its tokens"
                )
        return here_BT

    def where(self, chosen: Positions, mask: Any = None) -> Any:
        """The mask ``[B or 1, T]`` of the places that are named; padding never is.

        Raises `UserError` for a position that one of the prompts does not have, naming it, or that is named twice.
        """
        if chosen == "all":
            return self.real_BT
        if chosen == "mask":
            return self._mask(mask)
        if isinstance(chosen, Span):
            rows = self._spans(chosen)
            return np.stack([np.isin(order_T, row) for order_T, row in zip(self.order_BT, rows, strict=True)])
        wanted_BS = self._wanted((-1,) if chosen == "last" else tuple(chosen))
        if isinstance(wanted_BS, np.ndarray):
            for prompt, row in enumerate(wanted_BS):
                if len(set(row.tolist())) < len(row):
                    raise reject(self.field, list(chosen), f"each position of prompt {prompt} once")
        return (self.order_BT[:, None, :] == wanted_BS[:, :, None]).any(1)

    def index(self, chosen: Positions, mask: Any = None) -> Any:
        """The places in T that are named, ``[B or 1, S]``, in their order and as often as they are named.

        Raises `UserError` as `where` does, and if the prompts have unequal numbers of them.
        """
        if chosen == "mask" or isinstance(chosen, Span):
            if isinstance(chosen, Span):
                rows = [list(row) for row in self._spans(chosen)]
            else:
                here_BT = self._mask(mask)
                if not (self.concrete and isinstance(here_BT, np.ndarray)):
                    raise reject(self.field, "a traced mask", "a concrete one: how much it names is a shape")
                order_BT = np.broadcast_to(self.order_BT, here_BT.shape)
                rows = [order_T[here_T].tolist() for order_T, here_T in zip(order_BT, here_BT, strict=True)]
            counts = [len(row) for row in rows]
            if min(counts) < max(counts):
                prompt = counts.index(max(counts))
                accepted = f"as many for every prompt (prompt {prompt} has {max(counts)}, another {min(counts)})"
                raise reject(self.field, chosen, accepted)
            wanted_BS = np.array(rows)
        else:
            wanted_BS = self._wanted((-1,) if chosen == "last" else tuple(chosen))
        return (self.order_BT[:, None, :] == wanted_BS[:, :, None]).argmax(-1).astype(np.int32)


def finite(field: str, value: Any) -> Any:
    """An array of real numbers, `value` itself if it is one. Raises `UserError` for any that is not finite."""
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
    except jax.errors.TracerArrayConversionError:  # a list of traced numbers
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        raise reject(field, value, "an array of numbers") from None
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise reject(field, f"an array of dtype {array.dtype}", "real numbers")
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and not isinstance(array, jax.Array):
        array = array.astype(np.float32)  # jax would cut them to 32 bits
    values = host(array)
    if values is not None and values.dtype == np.float64:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)  # as jax will have it
    if values is not None and not np.isfinite(values).all():
        entry = np.argwhere(~np.isfinite(values))[0].tolist()
        raise UserError(f"{field}: given {values[tuple(entry)]} at {entry}; accepted: finite numbers")
    return array


def factor(field: str, value: Any) -> jax.Array:
    """A number, or one for each layer, for each prompt, or for both ``[layers or 1, B or 1]``; see `factors_of`."""
    array = finite(field, value)
    if array.ndim > 2:
        raise reject(field, f"shape {list(array.shape)}", "a number, [layers], [B], or [layers or 1, B or 1]")
    return jnp.asarray(array if array.dtype == np.float32 else value)


def factors_of(field: str, value: jax.Array, layers: int, batch: int, by_layer: bool) -> jax.Array:
    """A `factor` as ``[layers or 1, B or 1]``, for `layers` that are a list if `by_layer`; batch 0: not known.

    Raises `UserError` for one of another size, and for a list that could be of the layers as well as of the prompts.
    """
    if value.size == 1:
        return value.reshape(1, 1)
    of_layers, of_prompts = by_layer and len(value) == layers > 1, len(value) == batch
    if value.ndim == 1 and of_layers and of_prompts:
        accepted = (
            f"[[{field} of a layer], ..] of shape [{layers}, 1], or [1, {batch}]: there are as many layers as prompts"
        )
        raise reject(field, f"{len(value)} numbers", accepted)
    if value.ndim == 1 and (of_layers or of_prompts or not batch):
        return value[:, None] if of_layers else value[None]
    if value.ndim == 2 and value.shape[0] in (1, layers) and (value.shape[1] in (1, batch) or not batch):
        return value
    accepted = f"a number, one for each of {batch} prompts or {layers} layers, or [layers or 1, B or 1]"
    raise reject(field, f"shape {list(value.shape)}", accepted)
