"""capture(): finds every recurrence of any PyTorch model while it runs, and measures the gradient through each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.errors import FlowError
from throughtime.flow.capture_hooks import Recorder
from throughtime.flow.capture_runs import LayerRun, StepRun, part_of_a_step, runs
from throughtime.flow.entering import Entering
from throughtime.flow.gradient_flow import GradientFlow, check_dtype
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.shares import shares, totals
from throughtime.flow.shares_result import Shares
from throughtime.flow.steps import StepRecurrence


@dataclass(frozen=True)
class Captured:
    """One recurrence of a model as it ran: a layer in one direction, or a loop over a cell or over a module.

    name:    the module, as `model.named_modules()` has it.
    calls:   the numbers of the module's calls that it is made of, from 0. A cell's are its steps; a layer's are one,
             or several where each was given the state that the one before returned.
    layer, reverse: which layer of the module, and whether it runs from the last step to the first.
    carried: how its first state came from an earlier call: "attached", "detached" from the graph, or None if it did
             not. source: that call.
    """

    name: str
    calls: tuple[int, ...]
    layer: int
    reverse: bool
    carried: str | None
    source: str | None
    _run: Any = field(repr=False)

    @cached_property
    def recurrence(self) -> Recurrence | StepRecurrence:
        """What ran, for every measurement; a `StepRecurrence` for a module of the user's own."""
        if isinstance(self._run, StepRun):
            return self._run.recurrence
        return self._run.passed.recurrences[self.layer][int(self.reverse)]

    @cached_property
    def entering(self) -> Entering:
        """What entered it from outside, split by the loss step: in a layer below the last, from the layers above."""
        self._run.check()
        if isinstance(self._run, StepRun):
            return self._run.entering
        return self._run.passed.entering(self._run.outside, self.layer)[int(self.reverse)]

    @cached_property
    def gradient(self) -> Tensor:
        """g_t, the gradient of the loss that entered at its output at each step [T, B, P], float64."""
        self._run.check()
        if isinstance(self._run, StepRun):
            assert self._run.entering.direct[0] is not None
            return self._run.entering.direct[0]
        outside = list(self._run.outside)
        outside[self.layer] = self._run.at_output[self.layer]
        return self._entered(outside)[0]

    @cached_property
    def final(self) -> dict[str, Tensor]:
        """The gradient of the loss that entered its states after the last step, besides `gradient`, each [B, .]."""
        if isinstance(self._run, StepRun):
            return {}
        self._run.check()
        r = self.recurrence
        assert isinstance(r, Recurrence)
        at, found = self._run.at_states[self.layer][int(self.reverse)], {}
        for name, v in zip(r.cell.states, at, strict=True):
            if v is None:
                continue
            if r.reverse:
                found[name] = v[0]
            elif r.lengths is None:
                found[name] = v[-1]
            else:
                found[name] = v[r.lengths - 1, torch.arange(v.shape[1], device=v.device)]
        return found

    def _entered(self, outside: Any) -> list[Tensor]:
        whole = self._run.passed.entering(outside, self.layer, summed=True)[int(self.reverse)].above
        r = self.recurrence
        assert isinstance(r, Recurrence)
        return [torch.zeros_like(s) if v is None else v[0] for v, s in zip(whole, r.sequences, strict=True)]

    def flow(self, *, dtype: torch.dtype = torch.float64) -> GradientFlow:
        """The exact gradient through time, as maps; row t is the loss that entered the module at step t.

        dtype: torch.float32 takes about half the time, with a relative error of about 1e-6; see `gradient_flow`. A
        module of the user's own is measured in float64 in any case.
        """
        check_dtype(dtype)
        if isinstance(self._run, StepRun):
            return GradientFlow(self._run.maps, self._run.recurrence.kind)
        maps = self._run.within(dtype).maps[self.layer][int(self.reverse)]
        return GradientFlow(maps, self._run.calls[0].cell.name, self.layer, self.reverse)

    def totals(self) -> dict[str, Tensor]:
        """dL/dh_k, dL/dc_k, ... along all paths, each [T, B, .]; see `throughtime.flow.totals`."""
        self._run.check()
        if isinstance(self._run, StepRun):
            return totals(self._run.recurrence, self._run.entering)
        above = self._run.passed.entering(self._run.outside, self.layer, summed=True)[int(self.reverse)]
        return totals(self.recurrence, above)

    def shares(self, **options: Any) -> Shares:
        """Where each parameter's gradient comes from; see `throughtime.flow.shares` for the options."""
        return replace(shares(self.recurrence, self.entering, **options), layer=self.layer, reverse=self.reverse)

    def __str__(self) -> str:
        calls = f"call {self.calls[0]}" if len(self.calls) == 1 else f"calls {self.calls[0]} to {self.calls[-1]}"
        carried = f", state carried from {self.source} ({self.carried})" if self.carried else ""
        return f"{self.name}: layer {self.layer}{', reverse' if self.reverse else ''}, {calls}{carried}"


class Capture:
    """What `capture` found. Its results can be asked for once the with block is left.

    recurrences: every recurrence, in the order in which they began; layers from the lowest, forward first.
    notes:       what could not be seen, in sentences.
    changed:     the cells and layers whose state was changed between two calls (masked, say), so that each call stands
                 by itself.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self._found: list[Captured] | None = None
        self._failed = False
        self.changed: set[str] = set()

    @property
    def notes(self) -> list[str]:
        return list(self._recorder.notes)

    @property
    def recurrences(self) -> list[Captured]:
        """Every recurrence found; empty if there is none (`check` says why)."""
        if self._found is None:
            raise FlowError("the with block is still open; leave it before asking what was captured")
        return self._found

    def check(self) -> None:
        """Raises FlowError that says why there is nothing to measure, if so."""
        found, recorder = self.recurrences, self._recorder
        if self._failed:
            raise FlowError("the with block ended in an error, so that nothing was captured; mend that first")
        if recorder.failures:
            raise FlowError(f"the capture itself went wrong, the model did not: {recorder.failures[0]}")
        if not found and recorder.without_graph:
            raise FlowError(
                f"{recorder.without_graph} call(s) of recurrent layers ran without a graph, under torch.no_grad() or "
                "frozen; run forward and backward with gradients inside the with block"
            )
        if not found:
            raise FlowError(
                "no recurrence was seen: inside the with block ran no torch.nn.RNN, LSTM, GRU or their cells, no "
                "layer of throughtime.nn, and no module that was given again a state it had returned. A step that "
                "is written out inside a larger forward is seen once it is a module that takes the state and "
                "returns it" + "".join(f". {n}" for n in self.notes)
            )
        if not recorder.backward:
            raise FlowError(
                "no gradient came back: call loss.backward() inside the with block, on a loss that depends on the "
                "model's output"
            )

    def flow(self, i: int = 0, *, dtype: torch.dtype = torch.float64) -> GradientFlow:
        """The gradient through time of recurrence i, exact; see `Captured.flow`."""
        return self._at(i).flow(dtype=dtype)

    def flows(self, *, dtype: torch.dtype = torch.float64) -> list[GradientFlow]:
        """The gradient through time of every recurrence, exact, in the order of `recurrences`."""
        self.check()
        return [r.flow(dtype=dtype) for r in self.recurrences]

    def totals(self, i: int = 0) -> dict[str, Tensor]:
        """The total gradients of the states of recurrence i; see `throughtime.flow.totals`."""
        return self._at(i).totals()

    def shares(self, i: int = 0, **options: Any) -> Shares:
        """The shares of the parameters' gradients of recurrence i; see `throughtime.flow.shares`."""
        return self._at(i).shares(**options)

    def only(self, recurrences: Sequence[Captured]) -> Capture:
        """The same capture with these recurrences and no others."""
        self.check()
        some = Capture(self._recorder)
        some._found, some.changed = list(recurrences), self.changed
        return some

    def _at(self, i: int) -> Captured:
        self.check()
        if not isinstance(i, Integral) or not -len(self.recurrences) <= i < len(self.recurrences):
            raise FlowError(f"there is no recurrence {i!r}; {len(self.recurrences)} were captured, numbered from 0")
        return self.recurrences[i]

    def _close(self, failed: bool) -> None:
        recorder, self._failed = self._recorder, failed
        try:
            found = [] if failed else runs(recorder.calls)
            self._found = [c for r in found for c in _captured(r)]
            changed = [(call, text) for call, text in recorder.changed if not part_of_a_step(call, found)]
            recorder.notes += [text for _, text in changed]
            self.changed = {call.name for call, _ in changed}
        finally:
            recorder.close()

    def __str__(self) -> str:
        if self._found is None:
            return "Capture, still open"
        return "\n".join([f"Captured {len(self._found)} recurrence(s)", *(f"  {c}" for c in self._found), *self.notes])


def _captured(r: LayerRun | StepRun) -> Iterator[Captured]:
    first = r.calls[0]
    numbers = tuple(c.number for c in r.calls)
    layers = [1] if isinstance(r, StepRun) else [len(d) for d in r.calls[0].layers]
    for layer, directions in enumerate(layers):
        for d in range(directions):
            yield Captured(first.name, numbers, layer, bool(d), first.carried, first.source, r)


@contextmanager
def capture(model: nn.Module) -> Iterator[Capture]:
    """Finds, by hooks alone, every recurrence of `model` in the forward and backward passes run inside the block.

        with flow.capture(model) as captured:
            loss = criterion(model(x), target)
            loss.backward()
        print(captured.flow())

    What is found: torch.nn.RNN, LSTM and GRU (all layers, both directions, packed, batch_first, proj_size, dropout
    between layers drawn again as it was); our layers; loops over torch.nn.RNNCell, LSTMCell and GRUCell; and a
    module of the user's own that is called again with a state that it returned before. Calls that hand the state on
    in the graph are one recurrence; where it is detached a new one begins.

    What is kept is the input, the first states, copies of the weights, and g_t, the gradient that enters from
    outside at each step. By superposition all else follows, in float64, without the user's loss. The model computes
    the same numbers, bit for bit; every hook is taken off at the end, also on an error, which goes on its way.

    Where the state is fed back as it is, g_t is what is left of the state's whole gradient without that of the next
    step, exact to the rounding of the model's own dtype; for outputs of layers it is exact. The training rule
    `truncated` of our layers is followed; `clip` is not, for a clipped gradient does not add up.

    Raises FlowError for a model that hooks cannot look into (compiled, scripted, DataParallel); results say in a
    FlowError why they cannot be had.
    """
    check_model(model)
    recorder = Recorder(model)
    found = Capture(recorder)
    failed = True
    try:
        recorder.open()
        yield found
        failed = False
    finally:
        found._close(failed)


def check_model(model: Any) -> None:
    """Raises FlowError for what is no module, and for one that hooks cannot look into."""
    if not isinstance(model, nn.Module):
        raise FlowError(f"expected a torch.nn.Module; came {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise FlowError(
                f"{where} is compiled by torch.compile, which passes hooks by; capture the model as it was before "
                "(model._orig_mod), or build it without torch.compile for this measurement"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise FlowError(f"{where} is a TorchScript module, without hooks; capture the model before torch.jit")
        if isinstance(module, nn.DataParallel):
            raise FlowError(
                f"{where} runs copies of the model, which hooks do not follow; capture model.module on one device, "
                "or use DistributedDataParallel"
            )
