"""A layer made ready for a stream: one step of one sequence a call; weights, states, results in fixed places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine.backends import choose
from throughtime.engine.bound import BoundCell, BoundStep
from throughtime.nn.layer import StackedLayer
from throughtime.nn.small_call import bound_layers


class Stepper:
    """Takes x_t [D] and gives y_t [P], with skip connections [layers * P]; carries the states, zero at first.

    What `small_call` looks at in each call is looked at once, when this is made: the weights are those of that moment.
    What a call gives is overwritten by the next one.
    """

    def __init__(self, cell: Cell, layers: list[BoundCell], skip: bool) -> None:
        self.cell, self.skip = cell, skip
        self._plain = type(cell).input is Cell.input
        self._steps = [BoundStep(bound) for bound in layers]
        self.begun = False

    @classmethod
    def of(cls, layer: Any) -> Stepper | None:
        """The layer, ready; None where only its own call can run it: in two directions, on a GPU, on another backend,
        with weights that are worked out from others."""
        if not isinstance(layer, StackedLayer) or getattr(layer, "bidirectional", False):
            return None
        weight = next(layer.parameters())
        if not weight.is_cpu or choose(layer.backend, "cpu", weight.dtype, weight.dtype)[0] != "cpu":
            return None
        layers = bound_layers(layer)
        return None if layers is None else cls(layer.step_cell(), [directions[0] for directions in layers], layer.skip)

    @property
    def dtype(self) -> torch.dtype:
        """Of what goes in and comes out."""
        return self._steps[0].dtype

    def reset(self) -> None:
        """All states are zero again."""
        self.begun = False
        for step in self._steps:
            step.reset()

    @property
    def state(self) -> Any:
        """A copy of the states as the layer's call gives them, each [layers, 1, H]; None before the first step."""
        if not self.begun:
            return None
        columns = zip(*(step.states for step in self._steps), strict=True)
        found = tuple(torch.cat(column).unsqueeze(1) for column in columns)
        return found[0] if len(found) == 1 else found

    def __call__(self, x: Tensor) -> Tensor:
        """The next step; x must have the dtype of the weights, in one piece, on the CPU."""
        self.begun = True
        if len(self._steps) == 1:
            return self._steps[0](x if self._plain else self.cell.input(x))
        shown: list[Tensor] = []
        for step in self._steps:
            below = x if not shown else torch.cat([x, shown[-1]]) if self.skip else shown[-1]
            shown.append(step(below if self._plain else self.cell.input(below)))
        return torch.cat(shown) if self.skip else shown[-1]
