"""A stack of layers as it ran, and the gradient of the loss on its way down from layer to layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.flow.entering import Entering
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.sent import Sent, send
from throughtime.nn.stack import Weights

# The gradient that enters from outside the stack: for each layer, direction and state, [T, B, .] or None.
Outside = list[list[list[Tensor | None]]]


@dataclass(frozen=True)
class PassedStack:
    """Layers over layers as they ran over one batch: recurrences[layer][direction], the forward direction first.

    skip:  whether the input went to every layer and every layer's output to the output (Graves 2013).
    masks: for each layer, what dropout multiplied the output of the layer below it by, [T, B, .]; None without.
    """

    recurrences: list[list[Recurrence]]
    skip: bool = False
    masks: Sequence[Tensor | None] | None = None

    def mask(self, layer: int) -> Tensor | None:
        return None if self.masks is None else self.masks[layer]

    def enters(self, g: Tensor) -> Outside:
        """The gradient g = dL/dy of the stack's output [T, B, .] as what enters each layer and direction."""
        outside: Outside = []
        start = 0
        for k, directions in enumerate(self.recurrences):
            shown = self.skip or k == len(self.recurrences) - 1
            outside.append([])
            for r in directions:
                width = r.output.shape[-1]
                part = g[..., start : start + width] if shown else None
                outside[-1].append([part, *[None] * (len(r.cell.states) - 1)])
                start += width if shown else 0
        return outside

    def entering(self, outside: Outside, layer: int, *, summed: bool = False) -> list[Entering]:
        """What enters every direction of one layer, from outside and from the layers above it.

        Each row is the loss that enters the stack at one step, at whatever layer; with `summed` all in one row.
        """
        above: Tensor | None = None
        for k in reversed(range(layer, len(self.recurrences))):
            here = self._at(outside[k], k, above)
            if k == layer:
                return [e.sum() for e in here] if summed else here
            if summed:
                here = [e.sum() for e in here]
            above = self._below(k, here)
        raise AssertionError("the layer asked for is in the stack")

    def maps(
        self, outside: Outside, lowest: int = 0, rows: Sequence[int] | None = None
    ) -> list[list[dict[str, Tensor]]]:
        """The maps of the gradient through time (see `GradientFlow`), layer by layer, from `lowest` to the last.

        rows: the loss steps that are followed, all if None; the other rows of the maps are 0.
        """
        return [[sent.maps() for sent in directions] for directions in self.sent(outside, lowest, rows)]

    def sent(
        self,
        outside: Outside,
        lowest: int = 0,
        rows: Sequence[int] | None = None,
        by_sample: bool = False,
        values: bool = False,
    ) -> list[list[Sent]]:
        """What arrived in every layer and direction, from `lowest` to the last; see `maps` and `Sent`, whose `values`
        are there if asked for."""
        found: list[list[Sent]] = []
        above: Tensor | None = None
        for k in reversed(range(lowest, len(self.recurrences))):
            here = self._at(outside[k], k, above, rows)
            each = zip(self.recurrences[k], here, strict=True)
            found.append([send(r, e, want_dx=k > lowest, want_values=values, by_sample=by_sample) for r, e in each])
            if k > lowest:
                above = self._leaves(k, torch.stack([sent.dx for sent in found[-1] if sent.dx is not None]).sum(0))
        return found[::-1]

    def _at(
        self,
        outside: list[list[Tensor | None]],
        layer: int,
        above: Tensor | None,
        rows: Sequence[int] | None = None,
    ) -> list[Entering]:
        start, here = 0, []
        chosen = None if rows is None else tuple(rows)
        for r, direct in zip(self.recurrences[layer], outside, strict=True):
            width = r.output.shape[-1]
            part: list[Tensor | None] | None = None
            summed = above is not None and rows is None and above.shape[0] != r.x.shape[0]
            if above is not None:
                part = [above[..., start : start + width], *[None] * (len(direct) - 1)]
            if summed:  # one row: what enters here joins it
                whole = Entering(direct).sum().above
                assert whole is not None and part is not None
                both = zip(part, whole, strict=True)
                here.append(Entering([None] * len(direct), [_plus(a, b) for a, b in both], None, True))
            else:
                here.append(Entering(direct, part, chosen))
            start += width
        return here

    def _below(self, layer: int, here: list[Entering]) -> Tensor:
        # Gradients [rows, T, B, .] at the output of the layer below.
        total: Tensor | None = None
        for r, e in zip(self.recurrences[layer], here, strict=True):
            dx = send(r, e, want_dx=True).dx
            assert dx is not None
            total = dx if total is None else total + dx
        assert total is not None
        return self._leaves(layer, total)

    def _leaves(self, layer: int, dx: Tensor) -> Tensor:
        if self.skip:
            dx = dx[..., self.recurrences[0][0].x.shape[-1] :]  # the rest went to the input itself
        mask = self.mask(layer)
        return dx if mask is None else dx * mask


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


def run(
    cell: Cell,
    layers: Sequence[Sequence[Weights]],
    x: Tensor,
    states: Sequence[Tensor] | None = None,
    *,
    lengths: Tensor | None = None,
    skip: bool = False,
    masks: Sequence[Tensor | None] | None = None,
    truncated: bool = False,
    name: str = "",
    dtype: torch.dtype = torch.float64,
    backend: str = "auto",
    ahead: int | None = None,
) -> PassedStack:
    """The stack of `layers` over x [T, B, D], run again in `dtype` on what `backend` runs on (see `Recurrence`).

    states: the initial ones, each [layers * dirs, B, .]; None for zeros. lengths: [B] or None.
    ahead: the lowest layer that gradients are about to be sent back through, None for nothing of the kind.
    """
    stack: list[list[Recurrence]] = []
    below, n = x, 0
    for k, directions in enumerate(layers):
        if k:
            below = torch.cat([r.output for r in stack[-1]], -1)
            mask = None if masks is None else masks[k]
            below = below if mask is None else below * mask
            below = torch.cat([x.to(below), below], -1) if skip else below
        stack.append([])
        for d, weights in enumerate(directions):
            first = None if states is None else [s[n] for s in states]
            stack[-1].append(
                Recurrence(cell, weights, below, first, lengths, bool(d), truncated, name, k, dtype, backend)
            )
            if ahead is not None and k >= ahead:
                stack[-1][-1].run_ahead()
            n += 1
    return PassedStack(stack, skip, masks)
