"""The result of taking a gradient apart: each parameter's gradient as parts that add up to it, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from throughtime.errors import FlowError
from throughtime.flow import drawing
from throughtime.plain import Plain


@dataclass(frozen=True)
class Parts(Plain):
    """The parts G_i of one parameter's gradient G = sum_i G_i.

    at:           what each part stands for: a lag in steps, a step, or a unit; int64 [n].
    contribution: <G_i, G> / ||G||^2, float64 [n]: how much of G the part makes up, along G; negative where it points
                  the other way. They sum to 1. NaN where G is 0.
    norm:         ||G_i||, float64 [n]; None where it was not asked for, or would only be an estimate.
    error:        the standard error of each contribution; None where the contributions are exact.
    """

    at: Tensor
    contribution: Tensor
    norm: Tensor | None = None
    error: Tensor | None = None

    def plot(self, ax: Any = None) -> Any:
        """Draws the contributions, in a band of two standard errors where they are estimates; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        shown = {"contribution": self.contribution}
        ax = drawing.lines(shown, ax, self.at, xlabel="lag, step or unit", ylabel="share of the gradient")
        if self.error is not None:
            ends = [(self.contribution + k * self.error).tolist() for k in (-2, 2)]
            ax.fill_between(self.at.tolist(), *ends, alpha=0.2)
        return ax


@dataclass(frozen=True)
class ParameterShares(Plain):
    """Where one parameter's gradient comes from.

    gradient:        G, float64, in the parameter's shape; exact.
    by_lag:          G_d = sum_t delta_{t,t-d} v_{t-d}^T, how far back; v is x_k, h_{k-1} or 1.
    by_loss_step:    G_t = sum_k delta_{t,k} v_k^T, which loss.
    by_past_step:    G_k = sum_t delta_{t,k} v_k^T, which step of the past.
    by_unit:         the rows of G that belong to a hidden unit (all its gates). None for a module not made of units.
    by_lag_and_unit: contributions [lags, units]; their sum over units is by_lag.contribution.
    pairs:           contributions [T, T] of each loss step t (row) and past step k (column).
    """

    gradient: Tensor
    by_lag: Parts
    by_loss_step: Parts
    by_past_step: Parts
    by_unit: Parts | None
    by_lag_and_unit: Tensor | None
    pairs: Tensor

    def plot(self, ax: Any = None) -> Any:
        """Draws the shares by lag with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        ax = self.by_lag.plot(ax)
        ax.set_xlabel("lag (steps)")
        return ax


@dataclass(frozen=True)
class Shares(Plain):
    """Where the gradient of every parameter of one recurrence comes from, as plain data.

    parameters: by name as in torch without the layer's suffix: weight_ih, weight_hh, bias_ih, bias_hh, and the cell's.
    estimated:  from what the parts were estimated ("16 of 256 loss steps"); None where they are exact.
    """

    parameters: dict[str, ParameterShares]
    cell: str
    layer: int = 0
    reverse: bool = False
    estimated: str | None = None

    def __getitem__(self, name: str) -> ParameterShares:
        if name not in self.parameters:
            raise FlowError(f"there is no parameter {name!r}; these shares are of {', '.join(self.parameters)}")
        return self.parameters[name]

    def plot(self, ax: Any = None) -> Any:
        """Draws the share of each parameter's gradient by lag with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        for name, p in self.parameters.items():
            lag = p.by_lag
            shown = {name: lag.contribution}
            ax = drawing.lines(shown, ax, lag.at, xlabel="lag (steps)", ylabel="share of the gradient")
        ax = drawing.axes(ax)
        ax.legend()
        return ax

    def __str__(self) -> str:
        where = f"{self.cell}, layer {self.layer}{', reverse' if self.reverse else ''}"
        kind = f"estimated from {self.estimated}" if self.estimated else "exact"
        lines = [f"Share of the gradient by lag ({where}; {kind})"]
        for name, p in self.parameters.items():
            lag = p.by_lag
            order = lag.contribution.nan_to_num(0.0).abs().argsort(descending=True)[:5].sort().values
            shown = ", ".join(f"{int(lag.at[i])}: {100 * float(lag.contribution[i]):.1f} %" for i in order)
            lines.append(f"  {name}: norm {float(p.gradient.norm()):.2e}; lags with most of it {shown}")
        return "\n".join(lines)
