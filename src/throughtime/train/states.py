"""What is carried from window to window: a tensor, or a tuple of tensors, each [layers * directions, B, ...]."""

from __future__ import annotations

from collections.abc import Callable
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


def _map(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if state is None:
        return None
    return change(state) if isinstance(state, Tensor) else tuple(change(s) for s in state)
