"""One recurrence as it ran: a cell, its weights, what went in; and the gradients of losses sent back through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine import torch_backend
from throughtime.engine.rules import with_rule
from throughtime.engine.trace import trace
from throughtime.engine.unroll import Operands, operands
from throughtime.nn.stack import Weights


@dataclass(frozen=True)
class Recurrence:
    """One layer of one network in one direction, as it ran over one batch; everything about it is recomputed from this.

    cell, weights: what ran.          x: its input [T, B, D].          states: the initial ones, each [B, .].
    lengths: [B] or None.             reverse: whether it ran from the last step to the first.
    truncated: whether its training cuts the gradient as of 1997 (see `throughtime.engine.unroll`).
    name, layer: which one it is in the model it is from.

    All computation is in float64, whatever the dtype of the tensors given.
    """

    cell: Cell
    weights: Weights
    x: Tensor
    states: Sequence[Tensor] | None = None
    lengths: Tensor | None = None
    reverse: bool = False
    truncated: bool = False
    name: str = ""
    layer: int = 0

    @cached_property
    def operands(self) -> Operands:
        """What the engine takes, in float64 and without a graph."""

        def double(v: Tensor | None) -> Tensor | None:
            return None if v is None else v.detach().double()

        w = self.weights
        units, matrices = ([v.detach().double() for v in group] for group in (w.units, w.matrices))
        states = None if self.states is None else [s.detach().double() for s in self.states]
        rest = (double(w.weight_hh), double(w.bias_ih), double(w.bias_hh))
        x, W = self.x.detach().double(), w.weight_ih.detach().double()
        return operands(self.cell, x, W, *rest, units, matrices, states, self.lengths)

    @cached_property
    def _ran(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        with torch.no_grad():
            return torch_backend.forward(trace(self.cell), *self.operands, self.lengths, self.reverse, True)

    @property
    def sequences(self) -> list[Tensor]:
        """Every state of the cell at every step, each [T, B, .] float64."""
        return self._ran[0]

    @property
    def finals(self) -> list[Tensor]:
        """Every state of the cell after the last step, each [B, .] float64."""
        return self._ran[1]

    @property
    def output(self) -> Tensor:
        """The state that is shown, [T, B, P] float64."""
        return self.sequences[0]

    @property
    def net_inputs(self) -> dict[str, Tensor]:
        """The net inputs z by column name, each [T, B, H] float64."""
        columns = self.cell.columns
        z = self._ran[2].split(self._ran[2].shape[-1] // len(columns), dim=-1)
        return {c.name: v for c, v in zip(columns, z, strict=True)}

    @torch.no_grad()
    def linearised(self) -> torch_backend.Linearised:
        """The pass made ready to send gradients back through, with the total gradients of the states."""
        v = self.operands
        tape = with_rule(trace(self.cell), None, self.truncated)
        return torch_backend.linearise(
            tape, self._ran[2], v.U, v.units, v.matrices, v.states, self.sequences, self.lengths, self.reverse,
            self.truncated, totals=True,
        )  # fmt: skip

    @torch.no_grad()
    def send_back(
        self, direct: Tensor | None, above: Tensor | None = None, want_dx: bool = False
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The maps of the gradient through time [T, T] (see `GradientFlow`), and dL_t/dx [T, T, B, D] if asked for.

        direct: g [T, B, P], the gradient of the loss that enters the output at each step, each followed alone.
        above:  what enters at each step from each loss further up the network, [loss step, T, B, P].
        """
        v, T = self.operands, self.output.shape[0]
        lin = self.linearised()
        totals = {o.name: o.values[0] for o in lin.tape.outputs if o.kind == "total"}
        maps = {name: self.output.new_zeros(T, T) for name in ("z", *self.cell.states)}
        dx = self.output.new_zeros(T, T, *v.x.shape[1:]) if want_dx else None
        rows: list[int] = [] if above is None else list(range(T))  # the loss steps that are on their way

        def inject(t: int, ds: list[Tensor]) -> list[Tensor]:
            if above is not None:
                entering = ds[0] + above[:, t]
                if direct is not None:
                    entering[t] += direct[t]
                return [entering, *ds[1:]]
            # Only losses at steps already passed are on their way: a new row joins at each step.
            assert direct is not None
            rows.append(t)
            new = [direct[t][None], *(d.new_zeros(1, *d.shape[1:]) for d in ds[1:])]
            return [torch.cat([d, n]) for d, n in zip(ds, new, strict=True)]

        start = [s.new_zeros(len(rows), *s.shape) for s in v.states]
        for k, dz, _, values in torch_backend.backward_steps(lin, start, inject):
            maps["z"][rows, k] = dz.flatten(1).norm(dim=1)
            for name, number in totals.items():
                value = values[number]
                maps[name][rows, k] = value.expand(len(rows), *value.shape[-2:]).flatten(1).norm(dim=1)
            if dx is not None:
                dx[rows, k] = torch.matmul(dz[..., : v.W.shape[0]], v.W)
        return maps, dx
