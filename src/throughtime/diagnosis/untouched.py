"""Runs a model and leaves it as it was: gradients, buffers, attributes, modes, random numbers."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from throughtime.flow.tree import leaves

_OWN = ("_parameters", "_buffers", "_modules")


@contextmanager
def untouched(model: nn.Module, given: Iterable[Any] = ()) -> Iterator[None]:
    """Within it the model may run forward and backward, with gradients, from no gradient at all; then all is put back.

    Put back are the gradients of the parameters and of the tensors in `given`, the buffers' values, training mode, the
    attributes of every module (a hidden state that it keeps for itself), and torch's random numbers. What a module
    changes inside a list or a dict of its own, or outside of torch, stays changed.
    """
    modules = list(model.modules())
    tensors = [*model.parameters(), *(v for v in leaves(list(given)) if v.is_leaf and v.requires_grad)]
    grads = [(v, v.grad) for v in tensors]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    attributes = [(m, {k: v for k, v in vars(m).items() if k not in _OWN}) for m in modules]
    held = [(m, dict(m._buffers)) for m in modules]
    devices = sorted({v.device.index for v in model.parameters() if v.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
            for v in tensors:
                v.grad = None
            yield
    finally:
        for v, g in grads:
            v.grad = g
        for m, were in held:
            m._buffers.clear()
            m._buffers.update(were)
        with torch.no_grad():
            for b, was in buffers:
                if not torch.equal(b, was):  # what did not change keeps its version
                    b.copy_(was)
        for m, had in attributes:
            now = vars(m)
            for name in [k for k in now if k not in had and k not in _OWN]:
                del now[name]
            now.update(had)


@contextmanager
def left_alone(model: nn.Module | None) -> Iterator[None]:
    """The model, which may be run again within, and every generator of random numbers are afterwards as they were;
    autocast is off."""
    numpy = sys.modules.get("numpy")
    had = random.getstate(), None if numpy is None else numpy.random.get_state()
    devices: list[int] = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        if model is not None:
            stack.enter_context(untouched(model))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            yield
        finally:
            random.setstate(had[0])
            if numpy is not None:
                numpy.random.set_state(had[1])
