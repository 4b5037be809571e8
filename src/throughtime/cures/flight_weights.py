"""The flight recorder's reading of an optimiser's step: bad weights after it, and a bad state that it keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from throughtime.cures import flight
from throughtime.cures.cliff import Cliff
from throughtime.cures.flight import FlightRecord
from throughtime.cures.flight_where import first_value
from throughtime.cures.guard_checks import finite
from throughtime.flow.tree import leaves

HUGE = 1e30  # a step of this length leaves float32
TOO_LONG = 10.0  # times that the loss grew along an update


class Taken(NamedTuple):
    """The optimiser's step: the largest learning rate, and the norm of the gradient."""

    rate: float
    norm: float


def of_weights(iteration: int, model: nn.Module, optimizers: Sequence[Optimizer], step: Taken) -> FlightRecord:
    """The record of weights that were found bad after an optimiser's step: made so by it, or bad before.

    A finite step cannot make a finite weight NaN: where the optimiser's step was finite, something else wrote to it.
    """
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    names = [n for n, v in held.items() if v.is_floating_point() and not finite(v.detach())]
    notes: tuple[str, ...] = (f"learning rate {step.rate:g}, norm of the gradient {step.norm:.4g}",)
    if not names:
        return FlightRecord(iteration, flight.UPDATE, notes=notes)
    owner, _, own = names[0].rpartition(".")
    by_update = isinstance(held[names[0]], nn.Parameter) and not _finite_step(held[names[0]], optimizers, step)
    if len(names) > 1:
        notes = (f"{len(names)} tensors are bad, this is the first", *notes)
    return FlightRecord(
        iteration, flight.UPDATE if by_update else flight.PARAMETER, module=owner or type(model).__name__, part=own,
        value=first_value(held[names[0]]), notes=notes,
    )  # fmt: skip


def with_picture(record: FlightRecord, picture: Cliff) -> FlightRecord:
    """The record of a step for which no cause was found, with what the loss along the update before it tells.

    The update is the cause where the loss is TOO_LONG times larger after it than before it, on the same data.
    """
    if record.located or not picture.after > TOO_LONG * abs(picture.before):
        return record
    note = (
        f"with the weights as they were before the last update this loss is {picture.before:.4g}, after it "
        f"{picture.after:.4g}: that update was too long"
    )
    return replace(record, cause=flight.UPDATE, ruled_out=(), notes=(*record.notes, note))


def of_optimizer(iteration: int, model: nn.Module, optimizers: Sequence[Optimizer]) -> FlightRecord:
    """The record of an optimiser that keeps NaN or infinity, an infinite second moment of Adam for one.

    A square of a gradient above 1.8e19 is not in float32: the weight is from then on divided by infinity, and stays.
    """
    names: dict[Tensor, str] = {p: n for n, p in model.named_parameters()}
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            for key, v in state.items():
                if isinstance(v, Tensor) and v.is_floating_point() and not finite(v):
                    owner, _, own = names.get(p, "").rpartition(".")
                    return FlightRecord(
                        iteration, flight.UPDATE, module=owner or type(model).__name__, part=f"{key} of {own}".rstrip(),
                        value=first_value(v), notes=(f"it is kept by {type(optimizer).__name__}",),
                    )  # fmt: skip
    return FlightRecord(iteration, flight.UNKNOWN, ruled_out=("no tensor that an optimiser keeps by name is bad",))


def _finite_step(p: Tensor, optimizers: Sequence[Optimizer], step: Taken) -> bool:
    states = [s for o in optimizers for s in [o.state.get(p, {})] if p in o.state]
    kept = [v for s in states for v in leaves(s) if v.is_floating_point()]
    return math.isfinite(step.norm * step.rate) and step.norm * step.rate < HUGE and all(finite(v) for v in kept)
