"""What all modules of this folder share: the call, and the states at every step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from throughtime.cells import Cell
from throughtime.engine.operands import autocast_dtype
from throughtime.engine.rows import takes_rows
from throughtime.nn.layout import Layout, enter, enter_rows
from throughtime.nn.small_call import small_call
from throughtime.nn.stack import Result, Rules, Weights, run_stack

State = Tensor | tuple[Tensor, ...]


class StackedLayer(torch.nn.Module, ABC):
    """A stack of recurrent layers as a module; subclasses hold the parameters and check the input.

    Attributes that may be changed at any time: `clip`, `truncated`, `backend`, `memory` (see
    `throughtime.engine.unroll`), `dropout`.
    """

    batch_first: bool
    dropout: float
    skip: bool = False
    clip: float | None
    truncated: bool
    backend: str
    memory: str = "fast"  # as it is in layers saved before there was a choice

    @abstractmethod
    def step_cell(self) -> Cell:
        """The cell whose equations this layer runs."""

    @abstractmethod
    def layer_weights(self) -> list[list[Weights]]:
        """The weights, layer by layer, and in each layer the forward direction first."""

    @abstractmethod
    def _check(self, input: Any, state: Any) -> tuple[Tensor, ...] | None:
        """Raises where input and state do not fit; the state as a tuple, in the layout of the input."""

    def weight(self, name: str) -> Tensor:
        """The parameter of a name, or what stands for it (a parametrised weight)."""
        found = self._parameters.get(name)
        return getattr(self, name) if found is None else found  # a module's getattr is slow

    def _takes_rows(self, data: Tensor, weight: Tensor) -> bool:
        return not torch.compiler.is_compiling() and takes_rows(data, weight, self.backend, self.memory)

    def _run(self, input: Tensor | PackedSequence, state: Any, every_state: bool) -> tuple[Result, Layout]:
        given = self._check(input, state)
        layers = self.layer_weights()
        weight = layers[0][0].weight_ih
        if not every_state and isinstance(input, PackedSequence) and self._takes_rows(input.data, weight):
            x, layout = enter_rows(input)
        else:
            x, layout = enter(input, self.batch_first)
        states = None
        if given is not None:
            # Under autocast the states keep the parameters' dtype, whatever dtype they come in.
            dtype = weight.dtype
            states = [s if s.dtype == dtype else s.to(dtype) for s in map(layout.state_in, given)]
        result = run_stack(
            self.step_cell(),
            layers,
            x,
            states,
            layout,
            dropout=self.dropout if self.training else 0.0,
            skip=self.skip,
            rules=Rules(self.clip, self.truncated, self.backend, self.memory),
            every_state=every_state,
        )
        return result, layout

    def _call(self, input: Tensor | PackedSequence, state: Any) -> tuple[Any, State]:
        small = small_call(self, input, state)
        if small is not None:
            return small[0], small[1][0] if len(small[1]) == 1 else small[1]
        result, layout = self._run(input, state, every_state=False)
        y, low = result.output, autocast_dtype(result.output.device.type)
        # As all of autocast, it leaves float64 and complex numbers as they are.
        if low is not None and y.is_floating_point() and y.dtype != torch.float64:
            y = y.to(low)
        finals = tuple(layout.state_out(s) for s in result.finals)
        return layout.output(y), finals[0] if len(finals) == 1 else finals

    def states(self, input: Tensor | PackedSequence, state: Any = None) -> dict[str, Tensor]:
        """All states at every step, by name: what h_n and c_n are at the last step, at each of them.

        Takes what the layer's call takes. Gives, for each state of the cell, a tensor [layers * dirs, T, B, H],
        layers and directions in the order of h_n: for an LSTM, `layer.states(x)["c"][-1]` is the memory cell of
        the last layer, [T, B, H]. With batch_first T and B change places; without a batch there is no B. A packed
        batch comes back padded with 0 in the order of its sequences before packing. A reverse direction stands
        in the order of the input, so that its last state is at step 0. In training mode dropout is drawn anew.

        It can be differentiated; but the gradient that arrives at one of these tensors is that which enters there
        from outside, not what comes back through later steps.
        """
        result, layout = self._run(input, state, every_state=True)
        columns: Sequence[tuple[Tensor, ...]] = list(zip(*result.sequences, strict=True))
        names = self.step_cell().states
        return {name: layout.steps(torch.stack(s)) for name, s in zip(names, columns, strict=True)}
