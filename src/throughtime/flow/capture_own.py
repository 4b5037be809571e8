"""What the hooks do at the calls of a user's own modules, any of which may turn out to be a step of a recurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from throughtime.flow.capture_calls import OwnCall
from throughtime.flow.capture_graph import edge
from throughtime.flow.randomness import random_state
from throughtime.flow.tree import leaves

if TYPE_CHECKING:
    from throughtime.flow.capture_hooks import Recorder


class OwnHooks:
    """Enters and leaves the calls of modules that are neither layers nor cells."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder
        # By module and address, what stands there: the call that returned it, and where among what it returned.
        self._returned: dict[tuple[int, int], list[tuple[OwnCall, int]]] = {}

    def clear(self) -> None:
        """Lets go of every call."""
        self._returned.clear()

    def enter(self, module: nn.Module, name: str, args: tuple, kwargs: dict, graph: bool) -> None:
        call: OwnCall = self.recorder.begin(OwnCall, module, name)
        if not graph:
            return
        call.args, call.kwargs = args, kwargs
        call.given = leaves((args, kwargs))
        call.versions = [v._version for v in call.given]
        call.ends = {v.grad_fn for v in call.given if v.grad_fn is not None}
        call.random = random_state(next((p.device for p in module.parameters()), torch.device("cpu")))
        call.ready = True
        found = [(*m[:2], i, m[2]) for i, v in enumerate(call.given) if (m := self._match(module, v)) is not None]
        if not found:
            return
        before = max((f[0] for f in found), key=lambda c: c.order)
        call.source = f"{before.name}, call {before.number}"
        # What came back cut from the graph is an input like any other, as long as a state came back in the graph.
        links = tuple((o, i) for c, o, i, how in found if c is before and how == "attached")
        call.carried = "attached" if links else "detached"
        if not links or before.after is not None or before.links not in ((), links):
            return
        weights = self.recorder.snapshots.whole(module)
        if before.weights is None:
            before.weights, before.modes = weights, [(m, m.training) for m in module.modules()]
        if before.weights is weights:
            call.links, call.before, before.after = links, before, call
            call.weights, call.modes = weights, before.modes
            self.recorder.linked = True
            if not before.walked:
                self._walk(before)

    def leave(self, module: nn.Module, out: Any, graph: bool) -> None:
        call = self.recorder.end(module, graph, out)
        if call is None:
            return
        call.values = leaves(out)
        addresses: dict[int, list[tuple[OwnCall, int]]] = {}
        for i, v in enumerate(call.values):
            call.returned.append(self.recorder.slot(v, call.slots))
            addresses.setdefault(v.data_ptr(), []).append((call, i))
        self._returned.update({(id(module), address): here for address, here in addresses.items()})
        if call.before is not None:
            self._walk(call)

    def _match(self, module: nn.Module, given: Tensor) -> tuple[OwnCall, int, str] | None:
        """The call that returned `given`, where among what it returned, and how it was handed on."""
        best: tuple[OwnCall, int, str] | None = None
        for call, i in self._returned.get((id(module), given.data_ptr()), ()):
            slot = call.returned[i]
            how = None if slot is None or not call.values[i].requires_grad else slot.handed_on(given)
            if how is not None and (best is None or (how, best[2]) == ("attached", "detached")):
                best = call, i, how
        return best

    def _walk(self, call: OwnCall) -> None:
        call.walked = True
        slots = [(slot.edge, slot) for slot in call.slots]
        if isinstance(call.before, OwnCall):
            for o, i in call.links:
                slot = call.before.returned[o]
                if slot is not None:
                    slots.append((edge(call.given[i]), slot))
        self.recorder.listen_inside(call.values, call, slots)
