"""What one step of the past adds to the gradient of each parameter, as factors that need not be multiplied out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.engine import torch_backend
from throughtime.flow.recurrence import Followed, Recurrence


class Block(NamedTuple):
    """Rows `start` and following of a parameter's gradient: for each loss step, sum over the batch of left right^T.

    left: [rows, B, M], what arrived from each loss step. right: [B, N], what the parameter was multiplied by.
    """

    start: int
    left: Tensor
    right: Tensor


class Parameter(NamedTuple):
    """A parameter of a recurrence: its name, its shape, how many units its rows belong to, and its shape as [M, N]."""

    name: str
    shape: tuple[int, ...]
    units: int
    flat: tuple[int, int]


def parameters(recurrence: Recurrence) -> list[Parameter]:
    """The parameters of a recurrence in torch's names; row m belongs to unit m mod H (for a projection, to unit m)."""
    cell, w = recurrence.cell, recurrence.weights
    H = w.weight_ih.shape[0] // len(cell.gates)
    named = [("weight_ih", w.weight_ih), ("weight_hh", w.weight_hh), ("bias_ih", w.bias_ih), ("bias_hh", w.bias_hh)]
    found = [(n, v, H) for n, v in named if v is not None]
    found += [(n, v, H) for n, v in zip(cell.units, w.units, strict=True)]
    found += [(matrix_name(n), v, v.shape[0]) for n, v in zip(cell.matrices, w.matrices, strict=True)]
    return [
        Parameter(n, tuple(v.shape), units, (v.shape[0], v.shape[1] if v.dim() == 2 else 1)) for n, v, units in found
    ]


def matrix_name(name: str) -> str:
    """The name of a cell's matrix as the layers' parameters have it: W_hr is torch's weight_hr."""
    return f"weight_{name[2:]}" if name.startswith("W_") else name


class PartsOf:
    """Reads, for one recurrence, the factors of every parameter's gradient out of what arrives at a step."""

    def __init__(self, recurrence: Recurrence):
        self.recurrence = recurrence
        v, w, cell = recurrence.operands, recurrence.weights, recurrence.cell
        self.H, self.X = v.W.shape[0] // len(cell.gates), v.W.shape[0]
        self.keep = recurrence.keep
        # Padding may hold anything, a NaN too.
        self.x = v.x if self.keep is None else torch.where(self.keep, v.x, v.x.new_zeros(()))
        self.before = torch_backend.previous(
            recurrence.sequences[0], v.states[0], recurrence.lengths, recurrence.reverse
        )
        self.ones = v.x.new_ones(v.x.shape[1], 1)
        tape = recurrence.linearised().tape
        self.unit_values = {o.name: o.values[0] for o in tape.outputs if o.kind == "w"}
        self.matrix_values = {o.name: o.values for o in tape.outputs if o.kind == "m"}
        self.has_bias = (w.bias_ih is not None, w.bias_hh is not None)

    def __call__(self, step: Followed) -> dict[str, list[Block]]:
        """The blocks of each parameter's gradient; their sum over all steps k is the gradient."""
        cell, H, dz, k = self.recurrence.cell, self.H, step.dz, step.k
        from_x = dz[..., : self.X]
        blocks: dict[str, list[Block]] = {"weight_ih": [Block(0, from_x, self.x[k])]}
        column = {c.name: slice(i * H, (i + 1) * H) for i, c in enumerate(cell.columns)}
        for n, gate in enumerate(cell.recurrent_gates):
            dgate = dz[..., column[f"{gate}_h" if gate in cell.apart else gate]]
            if self.has_bias[1]:
                blocks.setdefault("bias_hh", []).append(Block(n * H, dgate, self.ones))
            here = blocks.setdefault("weight_hh", [])
            if gate in cell.inside:
                here += self._matrix(f"U_{gate}", step, n * H)
            else:
                here.append(Block(n * H, dgate, self.before[k]))
        if self.has_bias[0]:
            blocks["bias_ih"] = [Block(0, from_x, self.ones)]
        for name in cell.units:
            value = step.values[self.unit_values[name]] if name in self.unit_values else dz[..., :H] * 0
            blocks[name] = [Block(0, self._kept(value.expand(*dz.shape[:-1], H), k), self.ones)]
        for name in cell.matrices:
            blocks[matrix_name(name)] = self._matrix(name, step, 0)
        return blocks

    def _matrix(self, name: str, step: Followed, start: int) -> list[Block]:
        numbers, blocks = self.matrix_values.get(name, ()), []
        for a, b in zip(numbers[::2], numbers[1::2], strict=True):
            left, right = step.values[a], step.values[b]
            left = self._kept(left.expand(*step.dz.shape[:-1], left.shape[-1]), step.k)
            blocks.append(Block(start, left, right.expand(left.shape[1], right.shape[-1])))
        return blocks

    def _kept(self, v: Tensor, k: int) -> Tensor:
        return v if self.keep is None else torch.where(self.keep[k], v, v.new_zeros(()))
