"""The gradient by layer of a stack: the product over layers instead of time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import FlowError
from throughtime.flow import drawing
from throughtime.flow.passed import Outside, PassedStack
from throughtime.flow.running import check_finite, valid
from throughtime.flow.sent import send
from throughtime.plain import Plain


@dataclass(frozen=True)
class DepthProfile(Plain):
    """How the gradient of a loss shrinks or grows from layer to layer on its way down, as plain data, float64.

    total:    ||dL/dh^(l)|| for l = 0..layers-1, along all paths, those through the layer's own future included.
    entering: ||dL/dy^(l)||: what comes into the layer's output from above only (and, in the last layer or with skip
              connections, from the loss). It is what out.retain_grad() shows.
    net:      ||dL/dz^(l)||, the net inputs: what the layer's parameters see.
    by_step:  total taken apart by step, [layers, T].

    ||.|| is the Euclidean norm over steps, batch, directions and units; the unit is that of the loss.
    """

    total: tuple[float, ...]
    entering: tuple[float, ...]
    net: tuple[float, ...]
    by_step: Tensor
    cells: tuple[str, ...]

    def factor(self) -> float:
        """By how much the total gradient changes per layer on its way down: (total[0] / total[-1])^(1 / (layers-1)).

        Below 1 it vanishes with depth, above 1 it grows. NaN for one layer, or where nothing enters the last.
        """
        n = len(self.total) - 1
        if n == 0 or self.total[-1] == 0:
            return math.nan
        return (self.total[0] / self.total[-1]) ** (1 / n)

    def plot(self, ax: Any = None) -> Any:
        """Draws the gradient by layer with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        curves = {"dL/dh": self.total, "dL/dy, from above": self.entering, "dL/dz": self.net}
        return drawing.lines(curves, ax, xlabel="layer", ylabel="size of the gradient", log=True)

    def __str__(self) -> str:
        lines = [f"Gradient by layer, {len(self.total)} layers, from the loss down"]
        for k in reversed(range(len(self.total))):
            lines.append(
                f"  layer {k} ({self.cells[k]}): ||dL/dh|| {self.total[k]:.3g}, of which enters from above "
                f"{self.entering[k]:.3g}; ||dL/dz|| {self.net[k]:.3g}"
            )
        if not math.isnan(self.factor()):
            lines.append(f"  a factor of {self.factor():.3g} a layer")
        return "\n".join(lines)


@torch.no_grad()
def depth_profile(stack: PassedStack, g: Tensor | Outside) -> DepthProfile:
    """Sends the whole gradient of a loss down through a stack of layers, exactly, on the engine.

    stack: the layers as they ran, skip connections and dropout's masks included, from `throughtime.flow.passed`.
    g:     dL/dy [T, B, dirs * P] of the stack's output (with skip connections of all outputs side by side); or what
           enters each layer, direction and state from outside, as `PassedStack.enters` gives it.
    Raises FlowError where a state is NaN or infinite, and for g of another shape or not finite.
    """
    for directions in stack.recurrences:
        for recurrence in directions:
            check_finite(recurrence)
    outside = _enters(stack, g) if isinstance(g, Tensor) else g
    T, layers = stack.recurrences[0][0].x.shape[0], len(stack.recurrences)
    entering, net = [0.0] * layers, [0.0] * layers
    by_step = stack.recurrences[0][0].output.new_zeros(layers, T)  # squares, until the end
    for k, directions in enumerate(stack.recurrences):
        for recurrence, e in zip(directions, stack.entering(outside, k, summed=True), strict=True):
            keep, shown = valid(recurrence)[..., None], recurrence.cell.states[0]
            from_above = None if e.above is None else e.above[0]
            if from_above is not None:
                entering[k] += torch.where(keep, from_above, 0.0).square().sum().item()
            sizes = send(recurrence, e).sizes
            by_step[k] += sizes[shown][0].square()
            net[k] += sizes["z"][0].square().sum().item()
    return DepthProfile(
        tuple(by_step.sum(1).sqrt().tolist()), tuple(map(math.sqrt, entering)), tuple(map(math.sqrt, net)),
        by_step.sqrt(), tuple(directions[0].cell.name for directions in stack.recurrences),
    )  # fmt: skip


def _enters(stack: PassedStack, g: Tensor) -> Outside:
    widths = [sum(r.output.shape[-1] for r in directions) for directions in stack.recurrences]
    want = [*stack.recurrences[0][0].x.shape[:2], sum(widths) if stack.skip else widths[-1]]
    if list(g.shape) != want:
        raise FlowError(f"g = dL/dy must be {want}, as the stack's output; came {list(g.shape)}")
    if not g.isfinite().all():
        raise FlowError("the gradient that enters from the loss is NaN or infinite; nothing can be followed down")
    return stack.enters(g.detach().double())
