"""How what holds arrays looks in a notebook: by their types and shapes, without their numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def brief(value: Any) -> str:
    """The `repr` of a dataclass on one line: fields that have their default are left out, an array is its shape."""
    parts = []
    for field in dataclasses.fields(value):
        entry = getattr(value, field.name)
        if entry is None or (field.default is not dataclasses.MISSING and entry is field.default):
            continue
        parts.append(f"{field.name}={_one(entry)}")
    return f"{type(value).__name__}({', '.join(parts)})"


def _one(entry: Any) -> str:
    if hasattr(entry, "shape") and hasattr(entry, "dtype"):
        return f"{entry.dtype}{list(entry.shape)}"
    if isinstance(entry, Mapping):
        return "{" + ", ".join(f"{name!r}: {_one(inner)}" for name, inner in entry.items()) + "}"
    text = repr(entry)
    return text if len(text) <= 100 else f"{text[:100]}..."
