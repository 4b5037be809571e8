"""The cliff picture: the loss along the last update of the weights, so that a step that was too long is seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cures.guard_checks import total_norm
from throughtime.cures.guard_snapshot import generators, set_generators
from throughtime.errors import ConfigError
from throughtime.flow import drawing
from throughtime.plain import Plain

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Cliff(Plain):
    """The loss along a straight line in the space of the weights.

    at:   positions [n], float64: 0 before the update, 1 after it, and a little beyond on both sides.
    loss: the loss there [n], float64; NaN and infinity are kept.
    length, weight: ||dW|| of the update and ||W|| before it, over all parameters.
    """

    at: Tensor
    loss: Tensor
    length: float
    weight: float

    @property
    def before(self) -> float:
        """The loss before the update."""
        return float(self.loss[self.at.abs().argmin()])

    @property
    def after(self) -> float:
        """The loss after it."""
        return float(self.loss[(self.at - 1).abs().argmin()])

    @property
    def best(self) -> float:
        """The position of the smallest loss between 0 and the end; below 1 the update went too far."""
        ahead = (self.at >= 0) & self.loss.isfinite()
        if not bool(ahead.any()):
            return math.nan
        return float(self.at[ahead][self.loss[ahead].argmin()])

    def __str__(self) -> str:
        size = f"||dW|| = {self.length:.3g}"
        size += f", {self.length / self.weight:.2g} of ||W||" if self.weight else ""
        lines = [f"Loss along the last update ({size}): {self.before:.4g} before, {self.after:.4g} after"]
        lines.append(f"  {self._bars()}   from {float(self.at[0]):g} to {float(self.at[-1]):g}, | marks 0 and 1")
        if not math.isnan(self.best) and self.best < 1:
            lines.append(f"  smallest at {self.best:.2g} of the step: it was too long")
        return "\n".join(lines)

    def _bars(self) -> str:
        good = self.loss[self.loss.isfinite()]
        if not good.numel():
            return "!" * len(self.loss)
        low, high = float(good.min()), float(good.max())
        wide = low > 0 and high > 100 * low  # a cliff is seen best on a logarithmic scale

        def height(v: float) -> float:
            return math.log(v / low) / math.log(high / low) if wide else (v - low) / ((high - low) or 1.0)

        marks = {int((self.at - p).abs().argmin()) for p in (0.0, 1.0)}
        shown = []
        for i, v in enumerate(self.loss.tolist()):
            shown.append(("|" if i in marks else "") + (BARS[int(7 * height(v))] if math.isfinite(v) else "!"))
        return "".join(shown)

    def plot(self, ax: Any = None) -> Any:
        """Draws the loss along the update with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        ax = drawing.axes(ax)
        ax.plot(self.at.tolist(), self.loss.tolist(), marker=".")
        for p, label in ((0.0, "before"), (1.0, "after")):
            ax.axvline(p, linewidth=0.8, color="grey")
            ax.annotate(label, (p, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom")
        good = self.loss[self.loss.isfinite()]
        if good.numel() and float(good.min()) > 0 and float(good.max()) > 100 * float(good.min()):
            ax.set_yscale("log")
        ax.set_xlabel("part of the last update")
        ax.set_ylabel("loss")
        return ax


@torch.no_grad()
def cliff(
    model: nn.Module,
    loss: Callable[[], Tensor | float],
    before: Sequence[Tensor],
    after: Sequence[Tensor] | None = None,
    *,
    beyond: float = 0.5,
    points: int = 25,
) -> Cliff:
    """The loss at W_before + a (W_after - W_before), for `points` values of a from -beyond/2 to 1 + beyond, 0 and 1
    among them.

    loss: a function without arguments that computes it on the model as it is. before, after: the values of
    model.parameters(); after=None for those that it has now. Every point sees the same random numbers. The weights,
    the buffers and the random numbers are afterwards what they were, also on an error.
    Raises ConfigError where the weights are not those of the model, or not finite.
    """
    parameters = list(model.parameters())
    now = [p.detach().clone() for p in parameters]
    ends = [list(before), now if after is None else [v.detach() for v in after]]
    for name, end in zip(("before", "after"), ends, strict=True):
        if [v.shape for v in end] != [p.shape for p in parameters]:
            raise ConfigError(f"`{name}` must hold one tensor for each of model.parameters(), in their shapes")
        if not all(bool(v.isfinite().all()) for v in end):
            raise ConfigError(f"`{name}` holds NaN or infinity: there is no line through it")
    if not beyond >= 0 or points < 3:
        raise ConfigError(f"beyond must be at least 0 and points at least 3; came {beyond} and {points}")
    steps = [w.double() - v.to(w).double() for v, w in zip(*ends, strict=True)]
    at = torch.linspace(-beyond / 2, 1 + beyond, points, dtype=torch.float64)
    for mark in (0.0, 1.0):
        at[int((at - mark).abs().argmin())] = mark
    buffers = [(b, b.clone()) for b in model.buffers()]
    random, losses = generators(), []
    try:
        for a in at.tolist():
            for p, v, d in zip(parameters, ends[0], steps, strict=True):
                p.copy_(v.to(p).double() + a * d)
            set_generators(random)
            losses.append(float(loss()))
    finally:
        set_generators(random)
        for p, v in zip(parameters, now, strict=True):
            p.copy_(v)
        for b, v in buffers:
            b.copy_(v)
    length = total_norm(steps)
    return Cliff(at, torch.tensor(losses, dtype=torch.float64), length, total_norm(ends[0]))
