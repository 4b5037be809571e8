"""The hooks that find the recurrences of a model while it runs, and take them off again without a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.flow.capture_calls import Call, OwnCall, kind_of
from throughtime.flow.capture_graph import Edge, Slot, edge, walk
from throughtime.flow.capture_layers import LayerHooks
from throughtime.flow.capture_own import OwnHooks
from throughtime.flow.capture_weights import Snapshots
from throughtime.flow.tree import leaves


class Recorder:
    """Records the calls of every recurrent module of a model, from `open` to `close`.

    Nothing it does reaches the model: arguments, results and gradients are read and never replaced. An error of its
    own does not stop the model; it is kept in `failures`.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.calls: list[Call] = []
        self.failures: list[str] = []
        self.notes: list[str] = []
        self.changed: list[tuple[Call, str]] = []  # calls whose state was changed on the way from the call before
        self.without_graph = 0  # calls under no_grad, or of a frozen model
        self.backward = False  # whether a gradient came back to the model's output, or to a recurrence
        self._handles: list[Any] = []
        self.snapshots = Snapshots()
        self._open: list[Call] = []
        self._numbers: dict[int, int] = {}
        self._layers, self._own = LayerHooks(self), OwnHooks(self)
        self._slots: dict[Edge, list[Slot]] = {}
        self._seen: set[Any] = set()
        self.linked = False

    def open(self) -> None:
        """Puts the hooks on."""
        for name, module in self.model.named_modules():
            kind = kind_of(module)
            if kind is not None:
                before, after = self._hooks(kind, name or type(module).__name__)
                self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                # Before a user's own hooks, which may put something else in the place of what a layer returns. A module
                # of the user's is run again with them.
                first = kind != "own"
                self._handles.append(module.register_forward_hook(after, with_kwargs=True, prepend=first))
            if isinstance(module, nn.RNN | nn.LSTM | nn.GRU) and kind == "own":
                self.notes.append(
                    f"{name or 'the model'} ({type(module).__name__}) is a torch layer with a forward of its own: "
                    "its steps cannot be seen from outside"
                )
        if not type(self.model).__module__.startswith("torch.nn.modules.transformer"):
            self._handles.append(self.model.register_forward_hook(self._guarded(self._after_model)))

    def close(self) -> None:
        """Takes every hook off and lets go of the graph."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for call in self.calls:
            call.release()
        self.snapshots = Snapshots()
        self._layers.clear()
        self._own.clear()
        self._slots.clear()
        self._seen.clear()
        self._open.clear()

    # --- hooks -------------------------------------------------------------------------------------------------------

    def _guarded(self, f: Callable[..., None], failures: list[str] | None = None) -> Callable[..., None]:
        failures = self.failures if failures is None else failures

        def hook(*args: Any) -> None:
            try:
                with torch.no_grad():
                    f(*args)
            except Exception as err:  # whatever it is, the user's model goes on; it is told when a result is asked for
                module = next((type(a).__name__ for a in args if isinstance(a, nn.Module)), "autograd")
                failures.append(f"{module}: {type(err).__name__}: {err}")

        return hook

    def _hooks(self, kind: str, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        hooks = self._own if kind == "own" else self._layers
        pending: list[str] = []  # of arguments that the module itself refuses, it tells the user itself
        # A module that may be a step of a recurrence, but most likely is not, must not stop the rest.
        failures = self.notes if kind == "own" else self.failures
        enter, leave = self._guarded(hooks.enter, pending), self._guarded(hooks.leave, failures)

        # What is read is read without a graph; whether the model has one is asked before.
        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            pending.clear()
            enter(module, name, args, kwargs, torch.is_grad_enabled())

        def after(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            failures.extend(pending)
            leave(module, out, torch.is_grad_enabled())

        return before, after

    def begin(self, kind: type[Call], module: nn.Module, name: str) -> Any:
        """A new call, of the class `kind`, that has just been entered."""
        number = self._numbers.get(id(module), 0)
        self._numbers[id(module)] = number + 1
        call = kind(module, name, number, 0, tuple(self._open))
        call.again = torch._C._current_graph_task_id() >= 0
        self._open.append(call)
        return call

    def end(self, module: nn.Module, graph: bool, out: Any) -> Any:
        """The call that has just been left; None if there is nothing to follow back through it."""
        while self._open:
            call = self._open.pop()
            if call.module is module:  # others never came back: an error in between
                break
        else:
            return None
        if not graph or not call.ready or not any(v.requires_grad for v in leaves(out)):
            self.without_graph += not isinstance(call, OwnCall)
            if call.before is not None:
                call.before.after = None
            return None
        call.order = len(self.calls)
        self.calls.append(call)
        return call

    def slot(self, tensor: Tensor, here: list[Slot]) -> Slot | None:
        """The slot of a tensor that a call returned, one for each tensor; `here` are the call's."""
        if not tensor.is_floating_point():
            return None
        where = edge(tensor)
        for slot in here:
            if slot.tensor is tensor or (where is not None and slot.edge == where):
                return slot
        slot = Slot(tensor)
        here.append(slot)
        if where is not None:
            self._slots.setdefault(where, []).append(slot)
        if tensor.requires_grad:
            self._on_gradient(tensor, slot.total)
        return slot

    def _on_gradient(self, tensor: Tensor, take: Callable[[Tensor], None]) -> None:
        take = self._guarded(take)

        def hook(g: Tensor) -> None:
            self.backward = True
            take(g)

        self._handles.append(tensor.register_hook(hook))

    def _on_sent(self, node: Any, i: int, take: Callable[[Tensor], None]) -> None:
        """Calls `take` with the gradient that a node sends to its i-th input, in every backward pass."""
        take = self._guarded(take)

        def hook(sent: tuple[Tensor | None, ...], _: tuple[Tensor | None, ...]) -> None:
            g = sent[i]
            if g is not None:
                take(g)

        self._handles.append(node.register_hook(hook))

    def listen_inside(self, starts: list[Tensor], call: Call, slots: list[tuple[Edge | None, Slot]]) -> None:
        """Tells each slot what the nodes between the call's results (`starts`) and its arguments send to it."""
        own = {slot.edge[0] for slot in call.slots if slot.edge is not None}

        def found(node: Any, i: int, slot: Slot) -> None:
            slot.inner.add(node)
            if (node, i) not in slot.heard:
                slot.heard.add((node, i))
                self._on_sent(node, i, slot.add_inside)

        edges: dict[Edge, list[Slot]] = {}
        for where, slot in slots:
            if where is not None:
                edges.setdefault(where, []).append(slot)
        walk(starts, call.ends - own, edges, found, set())

    # --- the model's own output ---------------------------------------------------------------------------------------

    def _after_model(self, module: nn.Module, args: Any, out: Any) -> None:
        results = [v for v in leaves(out) if v.requires_grad]
        for v in results:
            self._on_gradient(v, lambda _: None)
        if not self.linked:
            return

        def found(node: Any, i: int, slot: Slot) -> None:
            if node not in slot.inner:
                self._on_sent(node, i, slot.add_outside)

        walk(results, set(), self._slots, found, self._seen)
