"""Watches every module of a model while one call is run again, forward and backward, for the first bad number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cures.flight_calls import listen
from throughtime.cures.flight_where import Extent
from throughtime.flow.capture_calls import Call, LayerCall, OwnCall, kind_of
from throughtime.flow.tree import leaves, with_leaves


@dataclass(frozen=True)
class Visit:
    """One call of a module: its name, its number among the module's calls, and the visits that it lies within."""

    module: nn.Module
    name: str
    number: int
    within: tuple[Visit, ...]

    @property
    def key(self) -> tuple[int, int]:
        return id(self.module), self.number


@dataclass(frozen=True)
class Seen:
    """A bad tensor. how: it "enters" a module, or a module "made" it. index: among the tensors given or returned."""

    how: str
    visit: Visit
    index: int
    tensor: Tensor


@dataclass
class ModuleLog:
    """What is seen of one call of `root` and of all modules within it.

    received: every bad tensor that a module was given, in order. forward: the first bad one of the forward pass;
    "enters" with a visit inside another means that the outer one made it, in its own code.
    backward: the first bad gradient: one that a module "made" for what it was given, or that "enters" at what it
    returned. entered: the gradients at what each visit returned, by index.
    """

    root: nn.Module
    names: dict[nn.Module, str]
    received: list[Seen] = field(default_factory=list)
    forward: Seen | None = None
    backward: Seen | None = None
    entered: dict[tuple[int, int], dict[int, Tensor]] = field(default_factory=dict)
    order: list[Visit] = field(default_factory=list)
    _open: list[Visit] = field(default_factory=list)
    _numbers: dict[int, int] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)

    def open(self) -> None:
        """Puts the hooks on every module."""
        for module in self.root.modules():
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after))

    def close(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if torch._C._current_graph_task_id() >= 0:  # checkpointing, in the backward pass
            return None
        number = self._numbers.get(id(module), 0)
        self._numbers[id(module)] = number + 1
        visit = Visit(module, self.names.get(module, type(module).__name__), number, tuple(self._open))
        self._open.append(visit)
        self.order.append(visit)
        given = leaves((args, kwargs))
        for i, v in enumerate(given):
            if is_bad(v):
                self.received.append(Seen("enters", visit, i, v.detach()))
                self.forward = self.forward or self.received[-1]
        if not any(v.requires_grad for v in given):
            return None
        # Each module gets the tensor under a name of its own, so that the gradient that it sends back is seen alone.
        own = [v.view_as(v) if v.requires_grad else v for v in given]
        for i, v in enumerate(own):
            if v.requires_grad:
                v.register_hook(lambda g, i=i: self._gradient("made", visit, i, g))
        return with_leaves((args, kwargs), own)

    def _after(self, module: nn.Module, args: Any, out: Any) -> None:
        if torch._C._current_graph_task_id() >= 0:
            return
        visit = self._open.pop()
        for i, v in enumerate(leaves(out)):
            if self.forward is None and is_bad(v):
                self.forward = Seen("made", visit, i, v.detach())
            if v.requires_grad:
                listen(v, lambda g, i=i: self._gradient("enters", visit, i, g))

    def _gradient(self, how: str, visit: Visit, i: int, g: Tensor) -> None:
        if how == "enters":
            self.entered.setdefault(visit.key, {})[i] = g.detach()
        if self.backward is None and is_bad(g):
            self.backward = Seen(how, visit, i, g.detach())


class Steps:
    """Which of a model's calls are the steps of a recurrence, from what `throughtime.flow.capture` saw of them.

    extent: the steps and sequences of the last recurrence; None without one.
    """

    def __init__(self, calls: list[Call]):
        self.calls = {(id(c.module), c.number): c for c in calls}
        self._t: dict[tuple[int, int], int] = {}
        for key, call in sorted(self.calls.items(), key=lambda item: item[1].number):
            chained = call.before is not None or call.after is not None or call.carried is not None
            if not chained and not (isinstance(call, LayerCall) and call.is_cell):
                continue
            if isinstance(call, LayerCall) and not call.is_cell:
                continue  # it has its steps inside
            before = call.before or (self.calls.get((key[0], key[1] - 1)) if call.carried else None)
            self._t[key] = 0 if before is None else self._t.get((id(before.module), before.number), -1) + 1
        self.extent = self._extent()  # now, for the calls let go of what they were given

    def t(self, visit: Visit) -> int | None:
        """The step that a visit is, or that it lies within; None outside loops."""
        for v in (visit, *reversed(visit.within)):
            if v.key in self._t:
                return self._t[v.key]
        return None

    def state(self, visit: Visit, index: int) -> str | None:
        """The state that a step was given as its tensor number `index`, by name; None for its other inputs."""
        call = self.calls.get(visit.key)
        if isinstance(call, LayerCall):
            return call.cell.states[index - 1] if call.is_cell and index else None
        given = [i for _, i in call.links] if isinstance(call, OwnCall) else []
        return ("h" if given.index(index) == 0 else f"h{given.index(index) + 1}") if index in given else None

    def is_step(self, visit: Visit) -> bool:
        """Whether the visit itself is a step of a recurrence."""
        return visit.key in self._t

    def _extent(self) -> Extent | None:
        layers = [c for c in self.calls.values() if isinstance(c, LayerCall) and not c.is_cell and c.layout.batched]
        if layers:
            return Extent(*layers[-1].x.shape[:2])
        if not self._t:
            return None
        key = max(self._t, key=lambda k: self._t[k])
        call = self.calls[key]
        if isinstance(call, LayerCall):
            return Extent(self._t[key] + 1, call.x.shape[1])
        B = next((v.shape[0] for v in call.given if v.dim() > 1), 0)
        return Extent(self._t[key] + 1, B) if B else None

    def layer(self, visit: Visit) -> LayerCall | None:
        """What was captured of a visit to a recurrent layer or cell."""
        call = self.calls.get(visit.key)
        return call if isinstance(call, LayerCall) else None


def recurrent(visit: Visit) -> bool:
    """Whether a visit is to a recurrent layer or cell, torch's or ours."""
    return kind_of(visit.module) in ("layer", "cell")


def is_bad(v: Tensor) -> bool:
    """Whether a tensor holds NaN or infinity."""
    return (v.is_floating_point() or v.is_complex()) and not bool(v.detach().isfinite().all())
