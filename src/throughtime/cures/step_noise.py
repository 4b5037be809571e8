"""What variational dropout and zoneout share: a recurrent layer run with another cell, or with masks as inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.cells import Cell
from throughtime.engine import unroll
from throughtime.engine.operands import autocast_dtype
from throughtime.engine.trace import program
from throughtime.errors import ConfigError
from throughtime.nn.convert import convert
from throughtime.nn.layer import StackedLayer, State
from throughtime.nn.layout import Layout, enter
from throughtime.nn.stack import Rules, Weights

States = tuple[Tensor, ...]
C = TypeVar("C", bound=Cell)


class NoisyLayer(nn.Module, ABC):
    """A recurrent layer of torch.nn or throughtime.nn whose steps are disturbed while it trains.

    Calls, returns and shapes are the layer's: packed, batch first, unbatched, its rules and its dropout between layers.
    `layer` is the layer itself, with its parameters: torch's RNN, LSTM and GRU become ours (`throughtime.convert`). In
    a state_dict the names begin with "layer.".
    """

    def __init__(self, layer: nn.Module, generator: Generator | None = None) -> None:
        super().__init__()
        if isinstance(layer, nn.RNNCellBase):
            raise ConfigError(
                f"{type(layer).__name__} is one step, in a loop of yours; there use LockedDropout on h, or zoneout()"
            )
        if isinstance(layer, nn.RNNBase):
            convert(layer)
        if not isinstance(layer, StackedLayer):
            raise ConfigError(
                f"expected a recurrent layer of torch.nn or throughtime.nn; came {type(layer).__name__}. "
                "Pass the layer inside the model, and put what comes back in its place"
            )
        self.layer, self.generator = layer, generator

    def forward(self, input: Tensor | PackedSequence, state: State | None = None) -> tuple[Any, State]:
        """(y, state), as the layer's own call."""
        if not self.disturbed:
            return self.layer(input, state)
        layer = self.layer
        given = layer._check(input, state)
        x, layout = enter(input, layer.batch_first)
        weights = layer.layer_weights()
        states = None if given is None else [layout.state_in(s) for s in given]
        output, finals = self._stack(x, weights, states, layout)
        low = autocast_dtype(output.device.type)
        if low is not None and output.dtype == torch.float32:  # as the layer itself: the states keep their dtype
            output = output.to(low)
        last = tuple(layout.state_out(s) for s in finals)
        return layout.output(output), last[0] if len(last) == 1 else last

    def _stack(
        self, x: Tensor, weights: list[list[Weights]], states: list[Tensor] | None, layout: Layout
    ) -> tuple[Tensor, list[Tensor]]:
        layer, cell = self.layer, self.layer.step_cell()
        below, outputs, finals = x, list[Tensor](), list[States]()
        for number, directions in enumerate(weights):
            if number:
                below = layout.dropout(outputs[-1], layer.dropout if self.training else 0.0)
                below = torch.cat([x, below], -1) if layer.skip else below
            below = self.input(below)
            here = []
            for reverse, w in enumerate(directions):
                P = w.weight_ih.shape[0] // len(cell.gates) if w.weight_hh is None else w.weight_hh.shape[1]
                H = w.weight_ih.shape[0] // len(cell.gates)
                if states is None:
                    sizes = [P if k == 0 else H for k in range(len(cell.states))]
                    first = [w.weight_ih.new_zeros(below.shape[1], n) for n in sizes]
                else:
                    first = [s[len(finals)].to(w.weight_ih.dtype) for s in states]
                shown, last = self.run(cell, below, w, first, layout.lengths, bool(reverse))
                here.append(shown)
                finals.append(last)
            outputs.append(here[0] if len(here) == 1 else torch.cat(here, -1))
        y = torch.cat(outputs, -1) if layer.skip else outputs[-1]
        return y, [torch.stack(column) for column in zip(*finals, strict=True)]

    @property
    def disturbed(self) -> bool:
        """Whether the steps are not the layer's own, as things stand."""
        return self.training

    def input(self, x: Tensor) -> Tensor:
        """What a layer is given [T, B, D], disturbed."""
        return x

    @abstractmethod
    def run(
        self, cell: Cell, x: Tensor, w: Weights, first: list[Tensor], lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, States]:
        """One layer in one direction: its output [T, B, P] and its last states."""

    def unrolled(
        self, cell: Cell, x: Tensor, w: Weights, first: list[Tensor], lengths: Tensor | None, reverse: bool
    ) -> tuple[States, States]:
        """The engine's `unroll`, by the layer's own rules."""
        rules = {name: getattr(self.layer, name) for name in Rules._fields}
        return unroll(
            cell, x, w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh, units=w.units, matrices=w.matrices,
            states=first, lengths=lengths, reverse=reverse, **rules,
        )  # fmt: skip

    def mask(self, like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
        """1 with probability p, else 0, in the dtype and place of `like`."""
        device = like.device if self.generator is None else self.generator.device
        drawn = torch.rand(shape, dtype=torch.float32, device=device, generator=self.generator)
        return (drawn < p).to(device=like.device, dtype=like.dtype)


def ready(cell: C) -> C:
    """The cell, traced: torch.compile cannot look into a tracer later."""
    program(cell)
    return cell


def probability(name: str, p: float, most: float = 1.0) -> float:
    """p, if it is a probability below `most`."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < most:
        raise ConfigError(f"{name} must be a probability in [0, {most:g}); came {p!r}")
    return float(p)
