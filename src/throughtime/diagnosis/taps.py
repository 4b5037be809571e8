"""Where a training loop is listened to: every backward pass, and, while somebody asks, every call of a module."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Listener:
    """What wants to hear. None of its methods may raise an Exception: they run in the middle of the user's loop."""

    def before_backward(self) -> None:
        """A backward pass is about to begin."""

    def after_backward(self, start: Any) -> None:
        """A backward pass has come to its end; `start` is what it started from, see `one_number`."""

    def backward_failed(self) -> None:
        """A backward pass ended in an error."""

    def before_call(self, module: nn.Module) -> None:
        """A module is about to be called; heard between `hear_calls` and `ignore_calls` only."""


_listeners: list[Listener] = []
_to_calls: list[Listener] = []
_real_backward: Callable[..., Any] = torch.autograd.backward
_real_call: Callable[..., Any] = nn.Module.__call__


def listen(listener: Listener) -> None:
    """From here on the listener hears of backward passes.

    torch.autograd.backward, which Tensor.backward calls too, is replaced for as long as there is a listener. A module's
    own hooks would not do: who saves a model by pickling it would save them too.
    """
    global _real_backward
    if not _listeners and torch.autograd.backward is not _heard_backward:
        _real_backward = torch.autograd.backward
        torch.autograd.backward = _heard_backward
    _listeners.append(listener)


def leave(listener: Listener) -> None:
    """The listener hears no more; after the last one all is as it was."""
    ignore_calls(listener)
    if listener in _listeners:
        _listeners.remove(listener)
    if not _listeners and torch.autograd.backward is _heard_backward:  # else somebody has wrapped ours since
        torch.autograd.backward = _real_backward


def hear_calls(listener: Listener) -> None:
    """From here on the listener hears of every call of a module, before its hooks run."""
    global _real_call
    if listener in _to_calls:
        return
    if not _to_calls and nn.Module.__call__ is not _heard_call:
        _real_call = nn.Module.__call__
        nn.Module.__call__ = _heard_call  # type: ignore[method-assign,assignment]
    _to_calls.append(listener)


def ignore_calls(listener: Listener) -> None:
    """The opposite of `hear_calls`."""
    if listener in _to_calls:
        _to_calls.remove(listener)
    if not _to_calls and nn.Module.__call__ is _heard_call:
        nn.Module.__call__ = _real_call  # type: ignore[method-assign]


def _backward(*args: Any, **kwargs: Any) -> None:
    # A backward pass inside another one is checkpointing: the same step.
    if not _listeners or torch._C._current_graph_task_id() >= 0:
        _real_backward(*args, **kwargs)
        return
    listeners = tuple(_listeners)
    for listener in listeners:
        listener.before_backward()
    try:
        _real_backward(*args, **kwargs)
    except BaseException:
        for listener in listeners:
            listener.backward_failed()
        raise
    start = args[0] if args else kwargs.get("tensors")
    for listener in listeners:
        listener.after_backward(start)


_heard_backward = functools.wraps(torch.autograd.backward)(_backward)


@functools.wraps(nn.Module.__call__)
def _heard_call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if not torch.compiler.is_compiling():  # a constant to torch.compile, which sees the real call only
        for listener in tuple(_to_calls):
            listener.before_call(self)
    return _real_call(self, *args, **kwargs)


def one_number(start: Any) -> Tensor | None:
    """What a backward pass started from, where that is one number, without its graph."""
    if isinstance(start, tuple | list) and len(start) == 1:
        start = start[0]
    return start.detach() if isinstance(start, Tensor) and start.numel() == 1 else None


def _in_a_fork() -> None:
    """A process that was forked off, such as a DataLoader's worker, does not watch."""
    for listener in (*_listeners, *_to_calls):
        leave(listener)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_fork)
