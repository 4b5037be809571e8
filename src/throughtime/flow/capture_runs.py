"""From the calls of a model to its recurrences: calls that continue one another are put together and run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import BrokenFlowError, FlowError, NoFlowError
from throughtime.flow.capture_calls import Call, LayerCall, OwnCall
from throughtime.flow.entering import Entering
from throughtime.flow.passed import Outside, PassedStack, run
from throughtime.flow.running import check_finite
from throughtime.flow.steps import StepCall, StepRecurrence
from throughtime.flow.tree import leaves, with_leaves


@dataclass
class LayerRun:
    """Calls of a layer or a cell that make one stack of recurrences, and what entered it from outside."""

    calls: list[LayerCall]
    dtype: torch.dtype = torch.float64
    ahead: bool = False  # whether it is run only to send gradients back through it
    _single: LayerRun | None = None

    @property
    def title(self) -> str:
        return title(self.calls)

    @cached_property
    def passed(self) -> PassedStack:
        """The stack, run again; FlowError where that goes wrong."""
        first = self.calls[0]
        x = torch.cat([c.x for c in self.calls])
        finite(x, f"{self.title}: its input", first.layout.lengths)
        for k, directions in enumerate(first.layers):
            for w in directions:
                for name, v in zip(w._fields, w[:4], strict=False):
                    if v is not None and not bool(v.sum().isfinite() or v.isfinite().all()):
                        raise BrokenFlowError(f"{self.title}: {name} of layer {k} holds NaN or infinite numbers")
        drawn = [c.masks() for c in self.calls]
        masks: list[Tensor | None] | None = None
        if drawn[0] is not None:
            masks = [None, *(torch.cat([m[k] for m in drawn if m]) for k in range(1, len(first.layers)))]  # type: ignore
        passed = run(
            first.cell, first.layers, x, first.first,
            lengths=first.layout.lengths, skip=first.skip, masks=masks, truncated=first.truncated, name=first.name,
            dtype=self.dtype, backend=first.backend, ahead=0 if self.ahead else None,
        )  # fmt: skip
        for directions_run in passed.recurrences:
            for r in directions_run:
                try:
                    check_finite(r)
                except BrokenFlowError as err:
                    raise BrokenFlowError(f"{self.title}: {err}") from None
        self._same(passed)
        return passed

    def _same(self, passed: PassedStack) -> None:
        # The first steps must come out as they did: rounding does not grow large in so few.
        last = passed.recurrences if passed.skip else passed.recurrences[-1:]
        y = torch.cat([r.output for directions in last for r in directions], -1)
        start = 0
        for call in self.calls:
            shown = call.shown
            assert shown is not None
            ours = y[start : start + shown.shape[0]]
            start += call.x.shape[0]
            if not shown.numel():
                raise FlowError(f"{title([call])}: it ran over {list(call.x.shape[:2])} steps and sequences, so none")
            if not bool(shown.isfinite().all()):
                raise BrokenFlowError(f"{title([call])}: its output is NaN or infinite at its first steps")
            if float((ours - shown).abs().max()) > 0.05 * (1.0 + float(shown.abs().max())):
                why = (
                    "its dropout cannot be drawn again (cuDNN keeps its own random numbers); run the step that you "
                    "measure within torch.backends.cudnn.flags(enabled=False), or in eval mode"
                    if call.dropout > 0
                    else "something outside it, a hook or a wrapper, changes its weights or its output"
                )
                raise FlowError(f"{title([call])}: run again, the layer gives another output: {why}")

    @cached_property
    def outside(self) -> Outside:
        """What entered from outside: at the output and at the states between and after the calls."""
        return _sum(self.at_output, self.at_states)

    @cached_property
    def at_output(self) -> Outside:
        """What entered at the layer's output; for a cell at its first state."""
        passed, first = self.passed, self.calls[0]
        if first.is_cell:
            return [[[self._between(0)[0][0], *[None] * (len(first.cell.states) - 1)]]]
        ys = []
        for call in self.calls:
            g = None if call.y is None else call.y.entered
            width = sum(r.output.shape[-1] for d in passed.recurrences[0 if passed.skip else -1 :] for r in d)
            ys.append(
                torch.zeros(*call.x.shape[:2], width, dtype=torch.float64, device=call.x.device)
                if g is None
                else call.output_order(g)
            )
        return passed.enters(torch.cat(ys))

    @cached_property
    def at_states(self) -> Outside:
        """What entered at the states after each call; for a cell at its states but the first."""
        first = self.calls[0]
        if first.is_cell:
            return [[[None, *(self._between(s)[0][0] for s in range(1, len(first.cell.states)))]]]
        by_state = [self._between(s) for s in range(len(first.cell.states))]
        return [
            [[state[k][d] for state in by_state] for d in range(len(directions))]
            for k, directions in enumerate(self.passed.recurrences)
        ]

    def _between(self, state: int) -> list[list[Tensor | None]]:
        # For each layer and direction what entered one state, [T, B, .], at the steps after which it was returned.
        found: list[list[Tensor | None]] = [[None] * len(d) for d in self.passed.recurrences]
        end = 0
        for call in self.calls:
            end += call.x.shape[0]
            g = call.slots[state].entered
            if g is None:
                continue
            g, n = call.state_order(g), 0
            for k, directions in enumerate(self.passed.recurrences):
                for d, r in enumerate(directions):
                    if len(self.calls) == 1:
                        found[k][d] = r.at_last_step([g[n]])[0]
                    else:
                        here = found[k][d]
                        here = r.output.new_zeros(r.x.shape[0], *g[n].shape) if here is None else here
                        here[end - 1] = g[n]
                        found[k][d] = here
                    n += 1
        return found

    @cached_property
    def maps(self) -> list[list[dict[str, Tensor]]]:
        """The maps of every layer and direction."""
        self.ahead = True
        self.check()
        return self.passed.maps(self.outside)

    def within(self, dtype: torch.dtype) -> LayerRun:
        """The same run, computed in float64 or in float32; each once."""
        if dtype == self.dtype:
            return self
        if self._single is None or self._single.dtype != dtype:
            self._single = LayerRun(self.calls, dtype)
        return self._single

    def check(self) -> None:
        """Raises FlowError where nothing entered, or NaN did."""
        passed, entered = self.passed, [v for k in self.outside for d in k for v in d if v is not None]
        for v in entered:
            finite(v, f"{self.title}: the gradient that enters it", passed.recurrences[0][0].lengths)
        if not any(bool(v.any()) for v in entered):
            raise NoFlowError(f"{self.title}: no gradient entered it: the loss does not depend on this layer")


@dataclass
class StepRun:
    """Calls of a module of the user's own that make one recurrence, and what entered it from outside."""

    recurrence: StepRecurrence
    entering: Entering
    names: str
    spoiled: str | None = None
    calls: list[OwnCall] = field(default_factory=list)

    @property
    def title(self) -> str:
        return self.names

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        """The maps of its states."""
        self.check()
        return self.recurrence.send_back(self.entering)

    def check(self) -> None:
        """Raises FlowError where nothing entered, or NaN did, or it cannot be run again."""
        if self.spoiled is not None:
            raise FlowError(f"{self.title}: {self.spoiled}")
        for name, sequence in zip(self.recurrence.states, self.recurrence.sequences, strict=True):
            finite(sequence, f"{self.title}: its state {name}", None)
        for v in self.entering.direct:
            if v is not None:
                finite(v, f"{self.title}: the gradient that enters it", None)
        if self.entering.nothing:
            raise NoFlowError(f"{self.title}: no gradient entered it: the loss does not depend on this module")


def title(calls: list[Any]) -> str:
    """The module and its calls, for messages."""
    numbers = [c.number for c in calls]
    shown = f"call {numbers[0]}" if len(numbers) == 1 else f"calls {numbers[0]} to {numbers[-1]}"
    return f"{calls[0].name}, {shown}"


def finite(v: Tensor, what: str, lengths: Tensor | None) -> None:
    """Raises FlowError with the first step where v [T, B, .] is NaN or infinite, padding aside."""
    if bool(v.sum().isfinite()):  # the common case, in one pass
        return
    bad = (~v.isfinite()).flatten(1).any(1)
    if lengths is not None:
        keep = torch.arange(v.shape[0], device=v.device)[:, None] < lengths
        bad = ((~v.isfinite()).flatten(2).any(2) & keep).any(1)
    if bool(bad.any()):
        raise BrokenFlowError(f"{what} is NaN or infinite, first at step {int(bad.nonzero()[0])}")


def runs(calls: list[Call]) -> list[LayerRun | StepRun]:
    """The recurrences among the calls, in the order in which they began. Calls that continue no other and are
    continued by none count for layers and cells, not for modules of the user's own; nor for a cell that is a part of
    such a module's step."""
    found: list[LayerRun | StepRun] = []
    links = [(c.before, c) for c in calls if c.before is not None]
    for call in calls:
        if call.before is not None:
            continue
        chain: list[Any] = call.chain()
        if all(c.again and not c.reached for c in chain):
            continue  # a forward that checkpointing ran once more for its values only
        if isinstance(call, LayerCall):
            found.append(LayerRun(chain))
        elif len(chain) > 1 and not _seen_within(chain, links):
            found.append(_step_run(chain))
    return [r for r in found if isinstance(r, StepRun) or not (r.calls[0].is_cell and _inside_one(r.calls, found))]


def part_of_a_step(call: Call, found: Sequence[LayerRun | StepRun]) -> bool:
    """Whether a call ran inside one step of a recurrence that is a module of the user's own."""
    steps = {id(c) for r in found if isinstance(r, StepRun) for c in r.calls}
    return any(id(c) in steps for c in call.inside)


def _inside_one(calls: list[LayerCall], found: Sequence[LayerRun | StepRun]) -> bool:
    return len(calls) == 1 and part_of_a_step(calls[0], found)


def _seen_within(chain: list[OwnCall], links: list[tuple[Call, Call]]) -> bool:
    # Whether a module inside carries the state itself: then that is the recurrence, and this is its wrapper.
    pairs = {(id(a), id(b)) for a, b in pairwise(chain)}
    return any((id(a), id(b)) in pairs for before, after in links for a in before.inside for b in after.inside)


def _step_run(chain: list[OwnCall]) -> StepRun:
    links = chain[1].links
    first, spoiled = chain[0], None
    of_states = [first.returned[o] for o, _ in links]
    outputs = tuple(i for i, slot in enumerate(first.returned) if slot is not None and slot not in of_states)
    steps, direct = [], [[] for _ in links]  # type: ignore[var-annotated]
    entered: list[list[Tensor | None]] = []
    for call in chain:
        if any(v._version != n for v, n in zip(call.given, call.versions, strict=True)):
            spoiled = f"an argument of call {call.number} was changed in place afterwards; pass a copy of it"
        tensors = [v.detach().clone() for v in leaves((call.args, call.kwargs))]
        args, kwargs = with_leaves((call.args, call.kwargs), tensors)
        assert call.random is not None
        states = [call.values[o].detach().clone() for o, _ in links]
        steps.append(StepCall(args, kwargs, call.random, states))
        for s, (o, _) in enumerate(links):
            slot = call.returned[o]
            g = None if slot is None else slot.entered
            direct[s].append(torch.zeros_like(states[s], dtype=torch.float64) if g is None else g)
        slots = [call.returned[i] if i < len(call.returned) else None for i in outputs]
        entered.append([None if slot is None else slot.entered for slot in slots])
    assert first.weights is not None
    recurrence = StepRecurrence(first.module, first.weights, first.modes, steps, links, outputs, first.name)
    entering = Entering([torch.stack(d) for d in direct], outputs=entered)
    return StepRun(recurrence, entering, title(chain), spoiled, chain)


def _sum(a: Outside, b: Outside) -> Outside:
    def plus(v: Tensor | None, w: Tensor | None) -> Tensor | None:
        return w if v is None else v if w is None else v + w

    return [
        [[plus(v, w) for v, w in zip(x, y, strict=True)] for x, y in zip(p, q, strict=True)]
        for p, q in zip(a, b, strict=True)
    ]
