"""Every gate of a gated cell over one run: its distribution, its saturation, and the time spent in each gate regime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import FlowError
from throughtime.flow import drawing
from throughtime.flow.anatomy import anatomy, carousel_factor, tape_values
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.running import check_finite, valid, where
from throughtime.plain import Plain

LOW, HIGH = 0.05, 0.95  # a gate below or above passes under a fifth of the gradient into its net input: s(1-s) < 0.0475
BINS = 20
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# What a memory cell does, by (input, forget, output) gate as 0 or 1. The forget gate open means: keep.
REGIMES: dict[tuple[int, int, int], str] = {
    (0, 0, 0): "erase",  # emptied, nothing written, nothing shown
    (0, 0, 1): "blank",  # emptied, and shown as empty
    (0, 1, 0): "hold",  # kept, shut on both sides
    (0, 1, 1): "read-only",  # kept and shown
    (1, 0, 0): "overwrite",  # written anew, not yet shown
    (1, 0, 1): "refresh",  # written anew and shown
    (1, 1, 0): "store",  # added to silently
    (1, 1, 1): "accumulate",  # added to and shown
}


@dataclass(frozen=True)
class GateStatistics(Plain):
    """One gate, sigmoid values in (0, 1), over all steps, samples and units of a run.

    histogram: the share of values in each of 20 equal bins from 0 to 1; sums to 1.
    quantiles: at 0.05, 0.25, 0.5, 0.75, 0.95.
    low, high: the share below 0.05 and above 0.95: saturated, hardly any gradient reaches the net input.
    unit_mean, unit_low, unit_high: the same for each unit, [H].
    """

    name: str
    mean: float
    histogram: tuple[float, ...]
    quantiles: tuple[float, ...]
    low: float
    high: float
    unit_mean: Tensor
    unit_low: Tensor
    unit_high: Tensor

    @property
    def stuck_units(self) -> int:
        """How many units have this gate saturated on one side for more than 99 % of the time."""
        return int(((self.unit_low > 0.99) | (self.unit_high > 0.99)).sum())

    def plot(self, ax: Any = None) -> Any:
        """Draws the distribution of the gate's values with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        bins = len(self.histogram)
        at = [(k + 0.5) / bins for k in range(bins)]
        return drawing.lines({self.name: self.histogram}, ax, at, xlabel=f"gate {self.name}", ylabel="share of values")

    def __str__(self) -> str:
        bars = "".join(" .:-=+*#%@"[min(9, round(9 * share / max(self.histogram)))] for share in self.histogram)
        return (
            f"{self.name}: mean {self.mean:.2f}, median {self.quantiles[2]:.2f}, 0 [{bars}] 1, "
            f"saturated {self.low:.0%} low, {self.high:.0%} high; "
            f"{self.stuck_units} of {len(self.unit_mean)} units stuck"
        )


@dataclass(frozen=True)
class GateRegimes(Plain):
    """The share of time that a memory spends in each of the eight regimes of its (input, forget, output) gates.

    shares:    by name (see REGIMES), over all units, samples and steps; sums to 1. A gate counts as 1 above 1/2.
    unit:      for each unit and regime, [H, 8], in the order of REGIMES.
    undecided: the share of time in which at least one gate lies between 0.4 and 0.6; a new network, whose gates all
               stand at 1/2, is undecided all the time and its regimes mean nothing.
    """

    state: str
    shares: Mapping[str, float]
    unit: Tensor
    undecided: float

    def plot(self, ax: Any = None) -> Any:
        """Draws the share of time in each regime with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        ax = drawing.axes(ax)
        ax.barh(list(self.shares), list(self.shares.values()))
        ax.set_xlabel(f"share of time, {self.state}")
        return ax

    def __str__(self) -> str:
        ranked = sorted(self.shares.items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {share:.0%}" for name, share in ranked)
        return f"{self.state}: {told}; undecided {self.undecided:.0%} of the time"


@dataclass(frozen=True)
class GateResult(Plain):
    """The gates of one recurrence over one run, as plain data: each gate's statistics, each memory's regimes.

    regimes is empty for a cell whose memory has no input gate or no output gate of its own (a GRU).
    """

    gates: tuple[GateStatistics, ...]
    regimes: tuple[GateRegimes, ...]
    cell: str
    layer: int = 0
    reverse: bool = False

    def __getitem__(self, name: str) -> GateStatistics:
        for gate in self.gates:
            if gate.name == name:
                return gate
        raise FlowError(f"{name!r} is not a gate of {self.cell}; its gates are {', '.join(g.name for g in self.gates)}")

    def plot(self, ax: Any = None) -> Any:
        """Draws the distribution of every gate's values with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        for gate in self.gates:
            ax = gate.plot(ax)
        ax = drawing.axes(ax)
        ax.set_xlabel("value of the gate")
        ax.legend([gate.name for gate in self.gates])
        return ax

    def __str__(self) -> str:
        lines = [f"Gates ({where(self.cell, self.layer, self.reverse)})"]
        lines += [f"  {gate}" for gate in self.gates]
        return "\n".join(lines + [f"  time in each regime, {r}" for r in self.regimes])


@torch.no_grad()
def gate_statistics(recurrence: Recurrence) -> GateResult:
    """Measures each gate of a recurrence as it ran, padding left out.

    A gate is a sigmoid of a net input that multiplies something; it is found on the cell's tape, so a user's own gated
    cell works too. Regimes after Gers 2000 and Hochreiter & Schmidhuber 1997: input, forget and output gate as 0 or 1;
    where there is no forget gate the memory is kept, forget = 1.
    Raises FlowError for a cell without gates, and where a state is NaN or infinite.
    """
    check_finite(recurrence)
    parts = anatomy(recurrence.cell)
    if not parts.gates:
        raise FlowError(
            f"{recurrence.cell.name} has no gates: none of its net inputs goes through a sigmoid that multiplies "
            "something"
        )
    values, keep = tape_values(recurrence), valid(recurrence)
    shape = next(iter(recurrence.net_inputs.values())).shape
    gates = tuple(_statistics(name, values[number].expand(shape)[keep]) for name, number in parts.gates.items())
    regimes = []
    for state, (into, out) in parts.roles.items():
        kept = carousel_factor(recurrence, state, values)
        regimes.append(_regimes(state, *(v.expand(shape)[keep] for v in (values[into], kept, values[out]))))
    return GateResult(gates, tuple(regimes), recurrence.cell.name, recurrence.layer, recurrence.reverse)


def _statistics(name: str, v: Tensor) -> GateStatistics:
    """v: [n, H], the values of one gate."""
    low, high = (v < LOW).double(), (v > HIGH).double()
    counts = torch.histc(v, BINS, 0.0, 1.0) / v.numel()
    return GateStatistics(
        name, v.mean().item(), tuple(counts.tolist()), quantiles(v, QUANTILES), low.mean().item(), high.mean().item(),
        v.mean(0), low.mean(0), high.mean(0),
    )  # fmt: skip


def quantiles(v: Tensor, at: tuple[float, ...]) -> tuple[float, ...]:
    """Quantiles of all elements, linear between neighbours; torch.quantile stops at 16 million."""
    ordered = v.flatten().sort().values
    spots = torch.tensor(at, dtype=torch.float64) * (len(ordered) - 1)
    below = spots.floor().long()
    above = (below + 1).clamp(max=len(ordered) - 1)
    return tuple(torch.lerp(ordered[below], ordered[above], (spots - below).to(ordered)).tolist())


def _regimes(state: str, i: Tensor, f: Tensor, o: Tensor) -> GateRegimes:
    code = 4 * (i > 0.5).long() + 2 * (f > 0.5).long() + (o > 0.5).long()
    unit = torch.stack([(code == 4 * a + 2 * b + c).double().mean(0) for a, b, c in REGIMES], -1)
    shares = dict(zip(REGIMES.values(), unit.mean(0).tolist(), strict=True))
    unsure = torch.stack([(v - 0.5).abs() < 0.1 for v in (i, f, o)]).any(0)
    return GateRegimes(state, shares, unit, unsure.double().mean().item())
