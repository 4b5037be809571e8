"""The tensors inside nested tuples, lists, dicts and dataclasses, taken out and put back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor


def leaves(value: Any) -> list[Tensor]:
    """The tensors in `value`, in order."""
    if isinstance(value, Tensor):
        return [value]
    inside: Any = ()
    if isinstance(value, tuple | list):
        inside = value
    elif isinstance(value, dict):
        inside = value.values()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = (getattr(value, x.name) for x in dataclasses.fields(value) if x.init)
    return [v for part in inside for v in leaves(part)]


def with_leaves(value: Any, new: list[Tensor]) -> Any:
    """The same nest with its tensors replaced, in the order of `leaves`."""
    put: Iterator[Tensor] = iter(new)
    return _put(value, put)


def _put(value: Any, new: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(new)
    if isinstance(value, tuple):
        parts = [_put(v, new) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [_put(v, new) for v in value]
    if isinstance(value, dict):
        copy = value.copy()
        for k in value:
            copy[k] = _put(value[k], new)
        return copy
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts_by_name = {x.name: _put(getattr(value, x.name), new) for x in dataclasses.fields(value) if x.init}
        return dataclasses.replace(value, **parts_by_name)
    return value
