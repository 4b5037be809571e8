"""One recurrence of a model, measured: how its gradient fades with the lag, how it contracts, its gates, memories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from throughtime.diagnosis.chance import between
from throughtime.diagnosis.finding import Where, steps
from throughtime.diagnosis.following import Follower
from throughtime.diagnosis.horizons import Interval, gradient_interval, together
from throughtime.diagnosis.pictures import Draughtsman, Pictures
from throughtime.engine.interpret import evaluate
from throughtime.engine.trace import trace
from throughtime.errors import BrokenFlowError, FlowError, NoFlowError
from throughtime.flow import (
    Captured,
    GateResult,
    Horizon,
    LyapunovSpectrum,
    MemoryStatistics,
    Recurrence,
    RecurrentMatrix,
    StepRecurrence,
    gate_statistics,
    lyapunov_spectrum,
    memory_statistics,
    recurrent_matrices,
)
from throughtime.flow.anatomy import anatomy
from throughtime.flow.bound import largest_slope
from throughtime.flow.figure import blocks, plot
from throughtime.flow.gradient_flow import half_life_of, horizon_of
from throughtime.flow.running import valid
from throughtime.plain import Plain


@dataclass(frozen=True)
class Measured(Plain):
    """One recurrence of a model over one batch or several, measured, as plain data.

    where, cell:  which layer and direction, and what kind.     steps, batch, units: T, B and H.
    profiles:  the size of the gradient by lag relative to lag 0, [n] float64, of the net inputs "z" and of each state
               (`GradientFlow.profile`), over all batches together; empty where `broken` or `unreached`.
    interval:  the 95 % interval of the horizon, from 5 batches or more.
    estimated: from what the profiles were estimated ("16 of 256 loss steps"); None where they are exact.
    loss_steps: the steps of the sequence at which a loss enters, how many.
    lyapunov:  the largest Lyapunov exponent, nats a step.     matrices: spectral radius and sigma_1 of U.
    gates, memories: statistics of the first batch; None and empty for a cell without.
    active:    for each unit of a simple cell, the share of the time in which its slope is above 5 % of the largest,
               [H]; None for other cells.
    broken:    what is NaN or infinite, and where; None if nothing is.
    overflow:  whether the gradient leaves the range of float64 on its way back.
    unreached: whether no gradient enters it.     carried: how its first state came ("attached", "detached", None).
    pictures:  a map, shares and eigenvalues of the first sequence, for a page; None where nobody asked for them.
    notes:     what could not be measured, and why.
    """

    where: Where
    cell: str
    steps: int
    batch: int
    units: int
    profiles: dict[str, Tensor] = field(default_factory=dict)
    interval: Interval | None = None
    estimated: str | None = None
    loss_steps: int = 0
    lyapunov: LyapunovSpectrum | None = None
    matrices: tuple[RecurrentMatrix, ...] = ()
    gates: GateResult | None = None
    memories: tuple[MemoryStatistics, ...] = ()
    active: Tensor | None = None
    broken: str | None = None
    overflow: bool = False
    unreached: bool = False
    carried: str | None = None
    notes: tuple[str, ...] = ()
    pictures: Pictures | None = None

    @property
    def profile(self) -> Tensor | None:
        """The first of the profiles: of the net inputs, which is what the parameters see; None if there is none."""
        return next(iter(self.profiles.values()), None)

    def horizon(self, fraction: float = 0.01) -> Horizon | None:
        """The gradient horizon, in steps (`GradientFlow.horizon`); None if there is no profile."""
        return None if self.profile is None else horizon_of(self.profile, fraction)

    def half_life(self) -> float:
        """The half-life of the gradient, in steps; NaN if there is no profile."""
        return math.nan if self.profile is None else half_life_of(self.profile)

    def line(self) -> str:
        """The recurrence, its horizon and its half-life in one line."""
        sizes = f" ({self.cell}, {self.units} units, {steps(self.steps)})" if self.cell else ""
        what = f"{self.where}{sizes}"
        if self.broken is not None:
            return f"{what}: {self.broken}"
        horizon = self.horizon()
        if horizon is None:
            return f"{what}: no gradient enters it" if self.unreached else f"{what}: not measured"
        spread = f" (95 %: {between(self.interval)})" if self.interval else ""
        half = self.half_life()
        life = "none within" if math.isinf(half) else steps(half)
        return f"{what}: gradient horizon {horizon}{spread}, half-life {life}"

    def plot(self, ax: Any = None) -> Any:
        """Draws the profiles over lags with matplotlib; gives the axes, empty ones where there is no profile.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        return plot(self.profiles, ax=ax)

    def __str__(self) -> str:
        lines = [self.line()]
        if self.profile is not None:
            lines.append(f"  {blocks(self.profile)}")
        if self.estimated is not None:
            lines.append(f"  estimated from {self.estimated}")
        return "\n".join([*lines, *(f"  {n}" for n in self.notes)])


def measure(
    found: Sequence[Captured], follower: Follower | None = None, draughtsman: Draughtsman | None = None
) -> Measured:
    """Measures one recurrence from what was captured of it, in one batch or in several of the same length.

    draughtsman: makes the pictures for a page as well.
    """
    first, follower = found[0], follower or Follower()
    where = Where(first.name, first.layer, first.reverse)
    known = Measured(where, "", 0, 0, 0, carried=first.carried)
    try:
        known = _as_it_ran(known, first.recurrence)
        followed = [follower.flow(captured) for captured in found]
    except BrokenFlowError as error:
        return replace(known, broken=str(error))
    except NoFlowError:
        return replace(known, unreached=True)
    except FlowError as error:
        return replace(known, notes=(*known.notes, str(error)))
    flows = [flow for flow, _, _ in followed]
    estimated = next((kind for _, kind, _ in followed if kind), None)
    known = replace(known, estimated=estimated, loss_steps=max(n for _, _, n in followed))
    whole = together(flows)
    if any(not bool(m.isfinite().all()) for m in whole.maps.values()):
        return replace(known, overflow=True)
    profiles = {name: whole.profile(name) for name, m in whole.maps.items() if bool(m.any())}
    if not profiles:
        return replace(known, unreached=True)
    spread = gradient_interval(flows, next(iter(profiles))) if len(flows) >= 5 else None
    known = replace(known, profiles=profiles, interval=spread)
    if draughtsman is None:
        return known
    try:
        return replace(known, pictures=draughtsman.draw(first, flows[0], followed[0][1] is None))
    except FlowError as error:
        return replace(known, notes=(*known.notes, f"the pictures were not made: {error}"))


@torch.no_grad()
def _as_it_ran(known: Measured, recurrence: Recurrence | StepRecurrence) -> Measured:
    """What needs no gradient: sizes, contraction, gates, memories, activity."""
    T, *rest = recurrence.output.shape
    batch, units = (rest[0], rest[-1]) if len(rest) > 1 else (1, rest[-1] if rest else 1)
    if isinstance(recurrence, StepRecurrence):
        return replace(known, cell=recurrence.kind, steps=T, batch=batch, units=units)
    cell, parts = recurrence.cell, anatomy(recurrence.cell)
    notes: tuple[str, ...] = ()
    lyapunov = None
    if T > 1:
        try:
            lyapunov = lyapunov_spectrum(recurrence, 1)
        except BrokenFlowError:
            raise
        except FlowError as error:
            notes = (f"the largest Lyapunov exponent was not measured: {error}",)
    return replace(
        known, cell=cell.name, steps=T, batch=batch, units=units, lyapunov=lyapunov,
        matrices=recurrent_matrices(recurrence), gates=gate_statistics(recurrence) if parts.gates else None,
        memories=tuple(memory_statistics(recurrence, m) for m in parts.memories), active=activity(recurrence),
        notes=notes,
    )  # fmt: skip


def activity(recurrence: Recurrence) -> Tensor | None:
    """The share of the time in which each unit of a simple cell can be moved, [H]: its slope f'(z) is above 5 % of the
    largest that f has. 0: a dead ReLU, or a unit that is saturated all the time. None for other cells."""
    slope, tape = largest_slope(recurrence.cell), trace(recurrence.cell)
    if slope is None or len(tape.ops) != 1 or tape.columns[0].h is None:
        return None
    with torch.enable_grad():
        z = next(iter(recurrence.net_inputs.values())).detach().requires_grad_()
        values = {0: z}
        evaluate([(len(tape.inputs), tape.ops[0])], values)
        (slopes,) = torch.autograd.grad(values[len(tape.inputs)].sum(), z)
    return (slopes.abs() > 0.05 * slope)[valid(recurrence)].double().mean(0)
