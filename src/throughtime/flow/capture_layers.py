"""What the hooks do at the calls of recurrent layers and of cells: which call continues which."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, equal

from throughtime.flow.capture_calls import LayerCall, read_layer, read_used, source_tensor
from throughtime.flow.capture_graph import Edge, Slot, edge, walk
from throughtime.flow.randomness import random_state
from throughtime.flow.tree import leaves

if TYPE_CHECKING:
    from throughtime.flow.capture_hooks import Recorder

SHOWN = 4  # steps of each output that are kept, to compare with what is run again


class LayerHooks:
    """Enters and leaves the calls of torch's layers and cells, and of ours."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder
        self._states: dict[int, tuple[LayerCall, int]] = {}  # by address, the last state that stands there
        self._last: dict[int, LayerCall] = {}
        self._noted: set[int] = set()

    def clear(self) -> None:
        """Lets go of every call."""
        self._states.clear()
        self._last.clear()

    def enter(self, module: Any, name: str, args: tuple, kwargs: dict, graph: bool) -> None:
        call: LayerCall = self.recorder.begin(LayerCall, module, name)
        if not graph:
            return
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        given: dict[str, Any] = {"input": None, "state": None}
        for key, value in [*zip(names, args, strict=False), *kwargs.items()]:
            given["input" if names.index(key) == 0 else "state"] = value
        call.given = [] if given["state"] is None else leaves(given["state"])
        read_layer(call, given, self.recorder.snapshots)
        if call.dropout > 0 and len(call.layers) > 1:
            call.random = random_state(call.x.device)
        x = source_tensor(given["input"])
        call.ends = {v.grad_fn for v in (x, *call.given) if v.grad_fn is not None}
        if call.given:
            self._continue(call, x)
        call.ready = True

    def _continue(self, call: LayerCall, x: Tensor) -> None:
        matches = [self._match(s) for s in call.given]
        before, how = _agreed(matches, list(range(len(call.given))))
        if before is None:
            last = self._last.get(id(call.module))
            if last is not None and _copies(call.given, last):
                before, how = last, "detached"
        if before is None:
            found = next((m for m in matches if m is not None), None)
            if found is None:
                self._note_changed(call)
                return
            before, how = found[0], found[2]
        call.carried, call.source = how, f"{before.name}, call {before.number}"
        if how == "attached" and before.module is call.module and _agreed(matches, list(range(len(call.given))))[0]:
            if any(edge(x) is not None and edge(x) == edge(s) for s in call.given):
                self.recorder.notes.append(
                    f"{call.name}, call {call.number}: the state is also its input, so that the two gradients cannot "
                    "be told apart; its steps are measured each by itself (give the input as state.clone())"
                )
            elif _joinable(before, call):
                before.after, call.before = call, before
                self.recorder.linked = True

    def _match(self, given: Tensor) -> tuple[LayerCall, int, str] | None:
        found = self._states.get(given.data_ptr())
        if found is None:
            return None
        how = found[0].slots[found[1]].handed_on(given)
        return None if how is None else (*found, how)

    def _note_changed(self, call: LayerCall) -> None:
        last = self._last.get(id(call.module))
        if last is None or id(call.module) in self._noted or not any(s.requires_grad for s in call.given):
            return
        used: list[Slot] = []
        walk(call.given, set(), _by_edge(last.slots), lambda node, i, slot: used.append(slot), set())
        if used:
            self._noted.add(id(call.module))
            by = next(s.grad_fn.name() for s in call.given if s.grad_fn is not None)
            text = (
                f"{call.name}, call {call.number}: its state was computed from the one that call {last.number} "
                f"returned ({by}), not handed on as it is; the two are measured as recurrences of their own. Put "
                "what happens between the steps into a module that takes the state and returns it"
            )
            self.recorder.changed.append((call, text))

    def leave(self, module: Any, out: Any, graph: bool) -> None:
        call = self.recorder.end(module, graph, out)
        if call is None:
            return
        read_used(call, self.recorder.snapshots)
        y, finals = (None, leaves(out)) if call.is_cell else (source_tensor(out[0]), leaves(out[1]))
        for i, state in enumerate(finals):
            self.recorder.slot(state, call.slots)
            self._states[state.data_ptr()] = (call, i)
        if y is None:
            call.shown = call.state_order(finals[0].detach()).double().clone()
        else:
            call.shown, call.dtype = call.output_order(y.detach())[:SHOWN].double().clone(), y.dtype
            call.y = self.recorder.slot(y, [])
        self._last[id(module)] = call
        # A cell's h is made from the very c that it returns: that path is the step's own too.
        slots = [(slot.edge, slot) for slot in call.slots] if call.is_cell else []
        if call.before is not None:
            slots += [(edge(s), slot) for s, slot in zip(call.given, call.before.slots, strict=True)]
        if slots:
            self.recorder.listen_inside(finals if y is None else [y, *finals], call, slots)


def _by_edge(slots: list[Slot]) -> dict[Edge, list[Slot]]:
    return {slot.edge: [slot] for slot in slots if slot.edge is not None}


def _agreed(matches: list[Any], order: list[int]) -> tuple[LayerCall | None, str | None]:
    """The one call that all states come from, in their order, and how; (None, None) where there is none."""
    if any(m is None for m in matches) or not matches:
        return None, None
    calls = {id(m[0]) for m in matches}
    if len(calls) > 1 or [m[1] for m in matches] != order:
        return None, None
    return matches[0][0], "attached" if all(m[2] == "attached" for m in matches) else "detached"


def _copies(given: list[Tensor], last: LayerCall) -> bool:
    # A state that was cloned or moved about outside the graph is known by its numbers.
    pairs = list(zip(given, last.slots, strict=False))
    return len(given) == len(last.slots) and all(
        s.tensor is not None and not v.requires_grad and v.shape == s.tensor.shape and equal(v, s.tensor)
        for v, s in pairs
    )


def _joinable(before: LayerCall, call: LayerCall) -> bool:
    """Whether two calls can be seen as one recurrence that took the steps of both."""
    return (
        before.after is None
        and before.layers is call.layers
        and len(call.layers[0]) == 1
        and before.layout.lengths is None
        and call.layout.lengths is None
        and before.x.shape[1:] == call.x.shape[1:]
        and (before.dropout, before.truncated, before.skip) == (call.dropout, call.truncated, call.skip)
        and before.backend == call.backend
    )
