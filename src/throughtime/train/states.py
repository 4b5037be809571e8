"""What is carried from window to window: a tensor, or a tuple of tensors, each [layers * directions, B, ...]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def detach_state(state: Any) -> Any:
    """The same state, cut from the graph: the next window starts from its value only."""
    return _map(state, lambda s: s.detach())


def move_state(state: Any, device: torch.device) -> Any:
    """The state on another device; None stays None."""
    return _map(state, lambda s: s.to(device))


def first_of(state: Any, batch: int) -> Any:
    """The states of the first `batch` sequences: those that go on."""
    return _map(state, lambda s: s[:, :batch].contiguous())


def share_of(state: Any, rank: int, size: int) -> Any:
    """The states of the sequences rank, rank + size, ...; None where there are none."""
    mine = _map(state, lambda s: s[:, rank::size].contiguous())
    return mine if _width(mine) else None


def merged(shares: Sequence[Any]) -> Any:
    """The states that `share_of` took apart, given in the order of the ranks; None where all are."""
    size, found = len(shares), [s for s in shares if s is not None]
    if not found:
        return None
    if not isinstance(found[0], Tensor):
        return tuple(merged([None if s is None else s[n] for s in shares]) for n in range(len(found[0])))
    whole = found[0].new_empty(found[0].shape[0], sum(map(_width, found)), *found[0].shape[2:])
    for rank, share in enumerate(shares):
        if share is not None:
            whole[:, rank::size] = share
    return whole


def _width(state: Any) -> int:
    first = state if state is None or isinstance(state, Tensor) else state[0]
    return 0 if first is None else int(first.shape[1])


def _map(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if state is None:
        return None
    return change(state) if isinstance(state, Tensor) else tuple(change(s) for s in state)
