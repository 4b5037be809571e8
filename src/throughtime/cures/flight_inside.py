"""Looks inside a recurrent layer for the first number, in the order of its steps, that its dtype cannot hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.flow.capture_calls import LayerCall
from throughtime.flow.entering import Entering
from throughtime.flow.passed import Outside, PassedStack, run
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.running import order, valid

Range = float | None  # the largest number of the dtype; None for any finite one


class Place(NamedTuple):
    """Where a bad number stands inside a layer; see `FlightRecord`. entered: it is among what went in."""

    layer: int
    reverse: bool
    t: int
    part: str
    gate: str | None
    sample: int | None
    value: float | None
    entered: bool = False


@torch.no_grad()
def stack_of(call: LayerCall) -> PassedStack:
    """The layers of a call, run again in float64, NaN and all. Beyond the model's own dtype the numbers go on, so that
    the step at which they left it is seen, and how far."""
    return run(
        call.cell, call.layers, call.x, call.first,
        lengths=call.layout.lengths, skip=call.skip, masks=call.masks(), truncated=call.truncated, name=call.name,
        backend=call.backend,
    )  # fmt: skip


@torch.no_grad()
def first_forward(stack: PassedStack, largest: Range) -> Place | None:
    """The first bad number of the forward pass: layer by layer, direction by direction, in the order of the steps."""
    for k, directions in enumerate(stack.recurrences):
        for r in directions:
            found = _forward(r, k, largest)
            if found is not None:
                return found
    return None


def _forward(r: Recurrence, layer: int, largest: Range) -> Place | None:
    keep, steps = valid(r), order(r)
    # Padding holds what it will.
    candidates = [("input", None, r.x.double()), *((f"net input {n}", gate_of(r.cell, n), v) for n, v in _z(r))]
    candidates += [(f"state {n}", None, v) for n, v in zip(r.cell.states, r.sequences, strict=True)]
    for n, v in zip(r.cell.states, r.operands.states, strict=True):
        hit = outside_range(v, largest)
        if hit.any():
            return _place(layer, r.reverse, steps[0], f"initial state {n}", None, v, hit, True)
    hits = [(part, gate, v, outside_range(v, largest) & keep[..., None]) for part, gate, v in candidates]
    by_step = torch.stack([hit.any(-1).any(-1) for *_, hit in hits]).any(0).tolist()
    for t in steps:
        if by_step[t]:
            part, gate, v, hit = next(h for h in hits if h[3][t].any())
            return _place(layer, r.reverse, t, part, gate, v[t], hit[t], part == "input")
    return None


def _z(r: Recurrence) -> Iterator[tuple[str, Tensor]]:
    return iter(r.net_inputs.items())


@torch.no_grad()
def first_backward(stack: PassedStack, outside: Outside, largest: Range) -> Place | None:
    """The first bad number of the backward pass: from the last layer down, each from its last step back.

    It is the gradient of a net input or of a state, the losses of all steps together.
    """
    for k in reversed(range(len(stack.recurrences))):
        for r, entering in zip(stack.recurrences[k], stack.entering(outside, k, summed=True), strict=True):
            found = _backward(r, entering, k, largest)
            if found is not None:
                return found
    return None


def _backward(r: Recurrence, entering: Entering, layer: int, largest: Range) -> Place | None:
    names = [c.name for c in r.cell.columns]
    for step in r.follow(entering):
        for name, v in step.states.items():
            hit = outside_range(v[0], largest)
            if hit.any():
                return _place(layer, r.reverse, step.k, f"state {name}", None, v[0], hit)
        for name, v in zip(names, step.dz[0].split(step.dz.shape[-1] // len(names), -1), strict=True):
            hit = outside_range(v, largest)
            if hit.any():
                return _place(layer, r.reverse, step.k, f"net input {name}", gate_of(r.cell, name), v, hit)
    return None


class Growth(NamedTuple):
    """How the gradient grew on its way back through one recurrence: times what entered, and where it is largest."""

    times: float
    place: Place


@torch.no_grad()
def growth(stack: PassedStack, outside: Outside) -> Growth | None:
    """The recurrence of a stack in which the gradient of a state grew most; None where nothing enters."""
    best: Growth | None = None
    for k, directions in enumerate(stack.recurrences):
        for r, entering in zip(directions, stack.entering(outside, k, summed=True), strict=True):
            entered = [v for v in (entering.above or ()) if v is not None]
            begin = max((float(v.abs().max()) for v in entered), default=0.0)
            if begin == 0:
                continue
            for step in r.follow(entering):
                for name, v in step.states.items():
                    times = float(v.abs().max()) / begin
                    if best is None or times > best.times:
                        hit = v[0].abs() == v[0].abs().max()
                        best = Growth(times, _place(k, r.reverse, step.k, f"state {name}", None, v[0], hit))
    return best


def outside_range(v: Tensor, largest: Range) -> Tensor:
    """Where a tensor holds NaN, infinity, or a number that a dtype with that largest one cannot hold."""
    return ~(v.abs() <= largest) if largest is not None else ~v.isfinite()


def gate_of(cell: Cell, column: str) -> str:
    """The gate that a net input belongs to; n for both n_x and n_h."""
    return column if column in cell.gates else column[:-2]


def gate_of_row(cell: Cell, parameter: str, row: int, rows: int) -> str | None:
    """The gate that a row of a weight or bias of a recurrent layer belongs to."""
    names: Sequence[str] = ()
    if parameter.startswith(("weight_ih", "bias_ih")):
        names = cell.gates
    elif parameter.startswith(("weight_hh", "bias_hh")):
        names = cell.recurrent_gates
    return names[row * len(names) // rows] if names and rows % len(names) == 0 else None


def _place(
    layer: int, reverse: bool, t: int, part: str, gate: str | None, v: Tensor, hit: Tensor, entered: bool = False
) -> Place:
    """v, hit: [B, .] at the step."""
    samples = hit.any(-1).nonzero().flatten().tolist()
    value = float(v[hit][0])
    return Place(layer, reverse, t, part, gate, samples[0] if _one(samples, hit) else None, value, entered)


def _one(samples: list[int], hit: Tensor) -> bool:
    # All of a larger batch at once is no matter of a sample.
    return len(samples) == 1 or len(samples) < hit.shape[0]
