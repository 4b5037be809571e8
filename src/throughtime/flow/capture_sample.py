"""Some sequences of a captured batch, as if only they had been in it: measured where the whole would take long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from throughtime.flow.capture import Captured
from throughtime.flow.capture_calls import LayerCall
from throughtime.flow.capture_graph import Slot
from throughtime.flow.capture_runs import LayerRun
from throughtime.nn.layout import Layout


@dataclass(eq=False)
class _SampledCall(LayerCall):
    """A call of a layer over some sequences of its batch; the dropout is that of the whole batch's call."""

    drawn: list[Tensor | None] | None = None

    def masks(self) -> list[Tensor | None] | None:
        return self.drawn


def batch_of(captured: Sequence[Captured]) -> int | None:
    """How many sequences there are in the batch; None for a module of the user's own, whose layout is not known."""
    run = captured[0]._run
    return run.calls[0].x.shape[1] if isinstance(run, LayerRun) else None


def work_of(captured: Captured) -> tuple[int, int, int]:
    """T, B, and the multiplications that one step of one sequence takes in all layers and directions; B and these are
    1 for a module of the user's own."""
    run = captured._run
    if not isinstance(run, LayerRun):
        return len(run.calls), 1, 1
    T = sum(c.x.shape[0] for c in run.calls)
    weights = [v for directions in run.calls[0].layers for w in directions for v in w[:2] if v is not None]
    return T, run.calls[0].x.shape[1], sum(w.numel() for w in weights)


def sample(
    captured: Sequence[Captured], index: Tensor | None, dtype: torch.dtype = torch.float64, ahead: bool = False
) -> list[Captured]:
    """The recurrences of one run of layers over the sequences `index` of the batch, all if None.

    All of them share a run of their own, so that what is computed for them goes with them. `captured` are layers and
    directions of one run of calls. dtype: in what they are computed, float64 or float32. ahead: whether they are run
    only to send gradients back.
    """
    run = captured[0]._run
    if not isinstance(run, LayerRun):
        return list(captured)
    calls = run.calls if index is None else [_sampled(c, index.to(c.x.device)) for c in run.calls]
    own = LayerRun(list(calls), dtype, ahead)
    return [replace(c, _run=own) for c in captured]


@torch.no_grad()
def _sampled(call: LayerCall, index: Tensor) -> LayerCall:
    layout = call.layout
    if not call.is_cell:  # all in the order in which the stack ran, [T, B, .]
        lengths = None if layout.lengths is None else layout.lengths[index]
        layout = Layout(False, True, None, lengths)
    masks = call.masks()

    def state(s: Slot) -> Slot:
        return _given(None if s.entered is None else _in_batch(call, s.entered, index))

    y = call.y
    if y is not None:
        y = _given(None if y.entered is None else call.output_order(y.entered)[:, index])
    given = {f.name: getattr(call, f.name) for f in fields(LayerCall) if f.init}
    given.update(
        x=call.x[:, index],
        first=None if call.first is None else [s[:, index] for s in call.first],
        shown=None if call.shown is None else call.shown[:, index],
        layout=layout,
        slots=[state(s) for s in call.slots],
        y=y,
    )
    drawn = None if masks is None else [None if m is None else m[:, index] for m in masks]
    return _SampledCall(**given, drawn=drawn)


def _in_batch(call: LayerCall, g: Tensor, index: Tensor) -> Tensor:
    if call.is_cell:
        return g if g.dim() == 1 else g[index]
    return call.state_order(g)[:, index]


def _given(entered: Tensor | None) -> Slot:
    slot = Slot(torch.empty(0) if entered is None else entered)
    slot.entered = entered
    slot.release()
    return slot
