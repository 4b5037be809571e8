"""What else goes on around a call: whether torch's dispatcher would do more than run a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from throughtime.errors import BackendError

PLAIN = (Tensor, torch.nn.Parameter)


def _asked(place: Any, name: str) -> Callable[[], Any]:
    # torch has no public way to ask for these; one that lacks this way too is taken to be watching.
    return getattr(place, name, lambda: True)


def _in_forward_mode() -> bool:
    return getattr(forward_ad, "_current_level", 0) >= 0


_WATCHERS = (
    torch.jit.is_tracing,
    _in_forward_mode,
    _asked(torch._C, "_len_torch_dispatch_stack"),
    _asked(torch._C, "_len_torch_function_stack"),
    _asked(torch._C, "_are_functorch_transforms_active"),
    _asked(torch._C._autograd, "_profiler_enabled"),
)


def unwatched(tensors: Iterable[Tensor] = ()) -> bool:
    """True if nobody compiles, traces, transforms, overrides or profiles what is done, to these tensors at least: then
    an operator called on them, without gradients, is a call of its kernel and nothing else."""
    if torch.compiler.is_compiling():
        return False
    return not any(watcher() for watcher in _WATCHERS) and all(type(t) in PLAIN for t in tensors)


def refuse_transforms(tensors: Iterable[Tensor]) -> None:
    """Raises BackendError inside of torch.func's transforms, and for tensors with a forward-mode tangent: the operators
    have no rule for the first, and would lose the second."""
    if torch.compiler.is_compiling():
        return
    if getattr(torch._C, "_are_functorch_transforms_active", bool)():
        raise BackendError(
            "torch.func's transforms (grad, vmap, jacrev, ...) cannot go through the traced step; choose "
            'backend="reference", or torch.autograd.grad'
        )
    if _in_forward_mode() and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise BackendError(
            "there is no forward-mode derivative of the traced step; differentiate backwards, or choose "
            'backend="reference"'
        )
