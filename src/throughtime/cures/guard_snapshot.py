"""A copy in memory of all that training changes, and the way back to it."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from throughtime.errors import ConfigError
from throughtime.flow.tree import leaves, with_leaves


@dataclass
class Parts:
    """What changes while a model is trained. stateful: all else with state_dict() and load_state_dict(): schedulers,
    a GradScaler, the data."""

    model: nn.Module
    optimizers: Sequence[Optimizer]
    stateful: Sequence[Any] = field(default_factory=tuple)


class Generators(NamedTuple):
    """The states of the random number generators: Python's, numpy's, torch's on the CPU and on each CUDA device."""

    python: Any
    numpy: Any
    torch: Tensor
    cuda: list[Tensor]


class Snapshot:
    """One copy of a training's state, in memory of its own that is used again and again.

    `begin` notes what moves first (random numbers, schedule, data, buffers, what is carried), at the start of a step;
    `finish` copies the rest (weights, optimiser), which does not move before the optimiser does. Between the two the
    caller can find out whether the state is good, so that only good ones are kept. Copies of CUDA tensors go to
    pinned memory of the host, without waiting.

    iteration: at the start of whose step it was taken. complete: whether it can be restored.
    weights: the parameters' values, in the order of model.parameters(). stateful: the state_dicts of `parts.stateful`.
    """

    def __init__(self, parts: Parts):
        self.parts = parts
        self.iteration = -1
        self.complete = False
        self.weights: list[Tensor] = []
        self._buffers: list[Tensor] = []
        self._state: dict[Optimizer, dict[Any, Any]] = {}
        self._groups: dict[Optimizer, list[dict[str, Any]]] = {}
        self.stateful: list[Any] = []
        self._carry: Any = None
        self._generators: Generators | None = None

    @torch.no_grad()
    def begin(self, iteration: int, carry: Any = None) -> None:
        """Copies what a forward pass may change."""
        self.complete, self.iteration = False, iteration
        self._generators = generators()
        self._buffers = _copied(list(self.parts.model.buffers()), self._buffers)
        self.stateful = [copy.deepcopy(s.state_dict()) for s in self.parts.stateful]
        self._carry = with_leaves(carry, [v.detach().clone() for v in leaves(carry)])

    @torch.no_grad()
    def finish(self) -> None:
        """Copies the weights and the optimiser: the snapshot can be gone back to from now on."""
        self.weights = _copied(list(self.parts.model.parameters()), self.weights)
        for optimizer in self.parts.optimizers:
            had = self._state.get(optimizer, {})
            self._state[optimizer] = {p: _tree_copied(s, had.get(p)) for p, s in optimizer.state.items()}
            self._groups[optimizer] = [
                {k: _plain_copy(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups
            ]
        self.complete = True

    def take(self, iteration: int, carry: Any = None) -> None:
        """Copies everything at once."""
        self.begin(iteration, carry)
        self.finish()

    @torch.no_grad()
    def restore(self) -> Any:
        """Puts everything back, in place; gives what was carried."""
        if not self.complete or self._generators is None:
            raise ConfigError("there is nothing to go back to: call `take`, or `begin` and `finish`, first")
        model = self.parts.model
        if len(list(model.parameters())) != len(self.weights) or len(list(model.buffers())) != len(self._buffers):
            raise ConfigError("the model has other parameters than those of the snapshot; make a new guard for it")
        pairs = [*zip(model.parameters(), self.weights, strict=True), *zip(model.buffers(), self._buffers, strict=True)]
        for now, kept in pairs:
            now.copy_(kept, non_blocking=True)
        for optimizer in self.parts.optimizers:
            self._restore_optimizer(optimizer)
        for part, state in zip(self.parts.stateful, self.stateful, strict=True):
            part.load_state_dict(copy.deepcopy(state))
        set_generators(self._generators)
        return with_leaves(self._carry, [v.clone() for v in leaves(self._carry)])

    def _restore_optimizer(self, optimizer: Optimizer) -> None:
        # Not by load_state_dict, which casts the state to the parameter's dtype.
        kept = self._state[optimizer]
        for p in [p for p in optimizer.state if p not in kept]:
            del optimizer.state[p]
        for p, state in kept.items():
            had = optimizer.state.get(p, {})
            optimizer.state[p] = _tree_restored(state, had)
        for group, saved in zip(optimizer.param_groups, self._groups[optimizer], strict=True):
            group.update({k: _plain_copy(v) for k, v in saved.items()})


def generators() -> Generators:
    """The generators' states now; reading them changes nothing."""
    numpy = sys.modules.get("numpy")
    return Generators(
        random.getstate(),
        None if numpy is None else numpy.random.get_state(),
        torch.get_rng_state(),
        torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else [],
    )


def set_generators(state: Generators) -> None:
    """Puts the generators where they were."""
    random.setstate(state.python)
    if state.numpy is not None:
        sys.modules["numpy"].random.set_state(state.numpy)
    torch.set_rng_state(state.torch)
    if state.cuda:
        torch.cuda.set_rng_state_all(state.cuda)


class _Kept(NamedTuple):
    # A tensor of an optimiser's state: the copy, and the device that it belongs on.
    data: Tensor
    device: torch.device


def _host(v: Tensor, into: Tensor | None) -> Tensor:
    if into is None or into.shape != v.shape or into.dtype != v.dtype:
        into = torch.empty_like(v, device="cpu", pin_memory=True) if v.is_cuda else torch.empty_like(v)
    return into.copy_(v, non_blocking=v.is_cuda)


def _copied(tensors: list[Tensor], into: list[Tensor]) -> list[Tensor]:
    had: Sequence[Tensor | None] = into if len(into) == len(tensors) else [None] * len(tensors)
    return [_host(v.detach(), h) for v, h in zip(tensors, had, strict=True)]


def _tree_copied(value: Any, had: Any) -> Any:
    if isinstance(value, Tensor):
        return _Kept(_host(value.detach(), had.data if isinstance(had, _Kept) else None), value.device)
    if isinstance(value, dict):
        before = had if isinstance(had, dict) else {}
        return {k: _tree_copied(v, before.get(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_tree_copied(v, None) for v in value)
    return copy.deepcopy(value)


def _tree_restored(kept: Any, now: Any) -> Any:
    if isinstance(kept, _Kept):
        same = isinstance(now, Tensor) and now.shape == kept.data.shape and now.dtype == kept.data.dtype
        # In place where there is one: captured graphs and fused kernels hold on to it.
        return (now if same else torch.empty_like(kept.data, device=kept.device)).copy_(kept.data, non_blocking=True)
    if isinstance(kept, dict):
        before = now if isinstance(now, dict) else {}
        return {k: _tree_restored(v, before.get(k)) for k, v in kept.items()}
    if isinstance(kept, list | tuple):
        return type(kept)(_tree_restored(v, None) for v in kept)
    return copy.deepcopy(kept)


def _plain_copy(v: Any) -> Any:
    return v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v)
