"""The memory cells of a gated network: how long each unit keeps, how the memory grows, and how full it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import FlowError
from throughtime.flow import drawing
from throughtime.flow.anatomy import anatomy, carousel_factor, tape_values
from throughtime.flow.gates import quantiles
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.running import check_finite, order, valid, where
from throughtime.plain import Plain

FULL = 0.95  # |tanh(c)| above this: what is added hardly shows any more


@dataclass(frozen=True)
class MemoryStatistics(Plain):
    """One memory m_t = F_t * m_{t-1} + ... of a recurrence over one run, as plain data.

        log_factor[u] = mean over steps and samples of ln |F_t|         [H], nats a step
        tau = -1 / log_factor      half_life = ln 2 * tau               [H], steps

    The mean is taken of the logarithms, for F multiplies from step to step: what is left after n steps is
    exp(n log_factor) (the mean of 1 / (1 - f), or 1 / (1 - mean f), says something else). inf where nothing is
    forgotten; 0 where F was 0 at some step. This is the carousel path alone, which is what the unit keeps by itself.

    size: mean |m_t| over samples and units, [T], in the order of the run; NaN at steps that no sequence has.
    full: the share of units with |tanh(m_t)| > 0.95, [T]; None where the cell takes no tanh of the memory.
    """

    state: str
    log_factor: Tensor
    size: Tensor
    full: Tensor | None
    cell: str
    layer: int = 0
    reverse: bool = False

    @property
    def tau(self) -> Tensor:
        """The time constant of every unit, [H], steps: the memory falls to 1/e."""
        return torch.where(self.log_factor < 0, -1 / self.log_factor, torch.inf)

    @property
    def half_life(self) -> Tensor:
        """The half-life of every unit, [H], steps."""
        return self.tau * math.log(2)

    @property
    def growth(self) -> float:
        """The power p of size ~ t^p over the second half of the run, by least squares on logarithms; no unit.

        About 0: it has levelled off. 1/2: it grows as a random walk does. 1: by the same amount at each step.
        NaN with fewer than 8 steps, or where the memory is empty.
        """
        size = self.size[~self.size.isnan()]
        n = len(size)
        if n < 8 or not bool((size[n // 2 :] > 0).all()):
            return math.nan
        t = torch.arange(1, n + 1, dtype=size.dtype, device=size.device)[n // 2 :].log()
        y = size[n // 2 :].log()
        t = t - t.mean()
        return ((t * y).sum() / t.square().sum()).item()

    def plot(self, ax: Any = None) -> Any:
        """Draws the size of the memory by step with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        curves = {f"mean |{self.state}|": self.size}
        return drawing.lines(curves, ax, xlabel="step of the run", ylabel=f"mean |{self.state}| over units")

    def __str__(self) -> str:
        marks = quantiles(self.tau, (0.0, 0.25, 0.5, 0.75, 1.0))
        shown = ", ".join("inf" if math.isinf(v) else f"{v:.1f}" for v in marks)
        half = self.half_life.median().item()
        size = self.size[~self.size.isnan()]
        lines = [
            f"Memory {self.state} ({where(self.cell, self.layer, self.reverse)}), {len(self.log_factor)} units",
            f"  time constant: {shown} steps (least, quartiles, most); median half-life {half:.1f} steps",
            f"  mean |{self.state}|: {size[0]:.3g} at the first step, {size[-1]:.3g} at the last ({self._grows()})",
        ]
        if self.full is not None:
            full = self.full[~self.full.isnan()]
            lines.append(
                f"  full (|tanh({self.state})| > {FULL}): {full[0]:.0%} of the units at first, {full[-1]:.0%} at last"
            )
        return "\n".join(lines)

    def _grows(self) -> str:
        p = self.growth
        if math.isnan(p):
            return "too little to say whether it grows"
        if p > 0.25:
            return f"still growing, as t^{p:.2f}"
        return "shrinking" if p < -0.25 else "levelled off"


@torch.no_grad()
def memory_statistics(recurrence: Recurrence, state: str | None = None) -> MemoryStatistics:
    """Measures a memory of a recurrence as it ran, padding left out.

    state: which; None for the cell's last memory (c of an LSTM, h of a GRU).
    F is read from the tape, through sums and products: f for an LSTM, u for a GRU, 1 where there is no forget gate.
    Raises FlowError for a cell without a memory, for a state that is none, and where a state is NaN or infinite.
    """
    check_finite(recurrence)
    cell = recurrence.cell
    state = memory_of(recurrence, state)
    values, keep = tape_values(recurrence), valid(recurrence)
    factor = carousel_factor(recurrence, state, values)[keep]
    sequence = recurrence.sequences[list(cell.states).index(state)]
    tape = anatomy(cell).tape
    new = next(o.values[0] for o in tape.outputs if o.name == state)
    behind = any(op.name == "tanh" and op.args == (new,) for op in tape.ops)
    steps = order(recurrence)
    full = _over_time(sequence.tanh().abs() > FULL, keep)[steps] if behind else None
    return MemoryStatistics(
        state, factor.abs().log().mean(0), _over_time(sequence.abs(), keep)[steps], full, cell.name, recurrence.layer,
        recurrence.reverse,
    )  # fmt: skip


def memory_of(recurrence: Recurrence, state: str | None) -> str:
    """The name of the memory meant; raises FlowError where the cell has none, or not that one."""
    memories = tuple(anatomy(recurrence.cell).memories)
    if not memories:
        raise FlowError(
            f"{recurrence.cell.name} has no memory: none of its states is its old value times a factor, plus something"
        )
    if state is not None and state not in memories:
        raise FlowError(f"{state!r} is not a memory of {recurrence.cell.name}; it has {', '.join(memories)}")
    return memories[-1] if state is None else state


def _over_time(v: Tensor, keep: Tensor) -> Tensor:
    """The mean over units and the samples that are there, [T]; NaN where none is."""
    per_sample = torch.where(keep, v.double().mean(-1), 0.0)
    return per_sample.sum(1) / keep.sum(1)
