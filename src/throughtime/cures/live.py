"""A stack as it runs with the graph to its weights and input kept, so that what is measured of it can be a penalty."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.diagnosis.parts import Part, parts
from throughtime.engine import torch_backend
from throughtime.engine.operands import Operands, operands
from throughtime.engine.trace import tape_of, trace
from throughtime.engine.unroll import unroll
from throughtime.errors import ConfigError, ShapeError
from throughtime.flow.ran import net_inputs
from throughtime.flow.recurrence import Recurrence
from throughtime.nn.layer import StackedLayer


class LiveRecurrence(Recurrence):
    """A `Recurrence` in its own dtype, whose numbers are all differentiable by its weights, its input and its state."""

    @cached_property
    def operands(self) -> Operands:
        w = self.weights
        tensors = (w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh, w.units, w.matrices)
        return operands(self.cell, self.x, *tensors, self.states)

    @cached_property
    def _ran(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        w, v = self.weights, self.operands
        sequences, finals = unroll(
            self.cell, self.x, w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh,
            units=w.units, matrices=w.matrices, states=self.states, reverse=self.reverse,
        )  # fmt: skip
        return list(sequences), list(finals), net_inputs(tape_of(self.cell), v, self._before(sequences[0], 0))

    @property
    def before(self) -> list[Tensor]:
        """Every state of the cell before each step, [T, B, .], in the order of x."""
        return [self._before(s, k) for k, s in enumerate(self.sequences)]

    def _before(self, sequence: Tensor, k: int) -> Tensor:
        return torch_backend.previous(sequence, self.operands.states[k], None, self.reverse)

    def linear(self) -> torch_backend.Linearised:
        """The pass made ready to send gradients back through, the graph kept."""
        v = self.operands
        return torch_backend.linearise(
            trace(self.cell), self._ran[2], v.U, v.units, v.matrices, v.states, self.sequences, None, self.reverse,
            False,
        )  # fmt: skip


class LiveStack:
    """A layer of torch.nn or throughtime.nn run over x [T, B, D], without dropout, the graph kept.

    recurrences[layer][direction]: each as a `LiveRecurrence`.     output: y as the layer returns it.
    x and state are as the layer's call takes them, but not packed. Raises ConfigError for other modules and for
    dropout that is switched on, ShapeError for packed or misshapen input.
    """

    def __init__(self, layer: nn.Module, x: Tensor, state: Any = None) -> None:
        found = _directions(layer)
        if not isinstance(x, Tensor) or x.dim() not in (2, 3):
            came = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"x must be [T, B, D] (or [B, T, D] with batch_first, or [T, D]), not packed; came {came}")
        self._batched, self._batch_first = x.dim() == 3, bool(layer.batch_first)
        self.skip = bool(getattr(layer, "skip", False))
        seq = (x.transpose(0, 1) if self._batch_first else x) if self._batched else x[:, None]
        states = None if state is None else [state] if isinstance(state, Tensor) else list(state)
        if states is not None and not self._batched:
            states = [s[:, None] for s in states]
        self.recurrences: list[list[LiveRecurrence]] = []
        below, row = seq, 0
        outputs: list[Tensor] = []
        for directions in found:
            if outputs:
                below = torch.cat([seq, outputs[-1]], -1) if self.skip else outputs[-1]
            here = []
            for part in directions:
                first = None if states is None else [s[row] for s in states]
                layer_number = part.layer or 0
                here.append(
                    LiveRecurrence(
                        part.cell, part.weights, below, first, None, part.reverse, name=part.module, layer=layer_number
                    )
                )
                row += 1
            self.recurrences.append(here)
            outputs.append(torch.cat([r.output for r in here], -1))
        y = torch.cat(outputs, -1) if self.skip else outputs[-1]
        self.output = (y.transpose(0, 1) if self._batch_first else y) if self._batched else y[:, 0]

    def time_first(self, y: Tensor) -> Tensor:
        """What is shaped as the output, as [T, B, .]."""
        if not self._batched:
            return y[:, None]
        return y.transpose(0, 1) if self._batch_first else y


def _directions(layer: nn.Module) -> list[list[Part]]:
    if not isinstance(layer, nn.RNNBase | StackedLayer):
        raise ConfigError(
            f"expected one recurrent layer of torch.nn or throughtime.nn; came {type(layer).__name__}. For what runs "
            "inside a model, pass that layer and its input"
        )
    if layer.training and layer.dropout > 0 and int(layer.num_layers) > 1:  # type: ignore[operator, arg-type]
        raise ConfigError(
            "the layer is in training mode and its dropout draws anew at each run; set layer.dropout = 0 for the "
            "penalty, or call eval() on the layer"
        )
    found: dict[int, list[Part]] = {}
    for part in parts(layer):
        found.setdefault(part.layer or 0, []).append(part)
    return [found[k] for k in sorted(found)]
