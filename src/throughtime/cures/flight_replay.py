"""Runs a recorded call of a model once more, from the same random numbers, with every module watched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from throughtime.cures.flight_calls import ModelCall, few, total
from throughtime.cures.flight_log import ModuleLog, Steps, is_bad
from throughtime.cures.guard_snapshot import generators, set_generators
from throughtime.flow.capture_hooks import Recorder
from throughtime.flow.tree import leaves, with_leaves


class Replay:
    """One call, run again; the model and the random numbers are left as they were.

    log, steps: what the modules did, and which of their calls are steps of a recurrence.
    same:       whether the same numbers came out.
    gradients:  after `backward`, of the parameters by name; NaN-free or not.
    """

    def __init__(self, call: ModelCall, names: dict[nn.Module, str], mode: Any = None):
        self.call, self.names = call, names
        self.module = _inner(call.module)
        self.log = ModuleLog(self.module, {**names, self.module: names[call.module]})
        self.steps = Steps([])
        self.same = False
        self.gradients: dict[str, Tensor | None] = {}
        self._mode = mode if mode is not None else contextlib.nullcontext()

    def run(self, backward: bool = True) -> Replay:
        """Runs it forward, and backward from the gradients that came to its outputs where they are good."""
        recorder = Recorder(self.module)
        with self._as_it_was():
            try:
                self.log.open()
                recorder.open()
                given = [_again(v) for v in leaves((self.call.args, self.call.kwargs))]
                args, kwargs = with_leaves((self.call.args, self.call.kwargs), given)
                with self._mode:
                    returned = leaves(self.module(*args, **kwargs))
                self.same = _same(returned, self.call)
                self.steps = Steps(list(recorder.calls))
                if backward and self.log.forward is None:
                    self._backward(returned, given)
            finally:
                recorder.close()
                self.log.close()
        return self

    def _backward(self, returned: list[Tensor], given: list[Tensor]) -> None:
        pairs = [(v, g) for v, g in zip(returned, self.call.gradients, strict=False) if g is not None]
        pairs = [(v, g) for v, g in pairs if v.requires_grad and not is_bad(g)]
        named = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        wanted = [*named.values(), *(v for v in given if v.requires_grad)]
        if not pairs or not wanted:
            return
        outs, gs = zip(*pairs, strict=True)
        found = torch.autograd.grad(outs, wanted, gs, allow_unused=True)
        self.gradients = dict(zip(named, found, strict=False))

    @contextlib.contextmanager
    def _as_it_was(self) -> Iterator[None]:
        buffers = [(b, b.detach().clone()) for b in self.module.buffers()]
        now = generators()
        set_generators(self.call.random)
        try:
            with contextlib.ExitStack() as stack:
                for device, dtype in self.call.autocast:
                    stack.enter_context(torch.autocast(device, dtype))
                stack.enter_context(torch.enable_grad())
                yield
        finally:
            set_generators(now)
            with torch.no_grad():
                for b, kept in buffers:
                    b.copy_(kept)

    @property
    def largest(self) -> float:
        """The largest number that the dtype of the recurrent products can hold."""
        types = [p.dtype for p in self.module.parameters() if p.is_floating_point()]
        types += [dtype for _, dtype in self.call.autocast]
        return min((torch.finfo(t).max for t in types), default=torch.finfo(torch.float32).max)


def _inner(module: nn.Module) -> nn.Module:
    # Compiled modules know no hooks; DistributedDataParallel would talk to the other processes.
    while True:
        inside = getattr(module, "_orig_mod", None)
        if inside is None and isinstance(module, DistributedDataParallel | nn.DataParallel):
            inside = module.module
        if inside is None:
            return module
        module = inside


def _again(v: Tensor) -> Tensor:
    return v.detach().clone().requires_grad_(v.requires_grad)


def _same(returned: list[Tensor], call: ModelCall) -> bool:
    if len(returned) != len(call.outputs):
        return False
    for v, w, s in zip(returned, call.outputs, call.sums, strict=True):
        if bool(total(v).isfinite()) != bool(s.isfinite()):
            return False
        now = few(v)
        if now.shape != w.shape or now.dtype != w.dtype:
            return False
        if not now.is_floating_point():
            continue
        both = now.isfinite() & w.isfinite()
        a, b = now[both].double(), w[both].double()
        close = bool(((a - b).abs() <= 1e-3 * (1e-3 + b.abs().amax())).all()) if b.numel() else True
        if not close or not torch.equal(now.isfinite(), w.isfinite()):
            return False
    return True
