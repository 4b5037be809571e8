"""What a cell is: named net inputs, named states, and one step from the old states to the new."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from throughtime.errors import CellError

Names = Sequence[str]


@dataclass(frozen=True)
class Column:
    """One net input of a cell: its name in `z`, and the row blocks of W and U that it is the sum of.

    `x` is the index of the [H, D] block of W, `h` that of the [H, P] block of U (the recurrent weights that are
    not taken inside the step); None where the column has no such product.
    """

    name: str
    x: int | None
    h: int | None


class Cell(ABC):
    """The equations of one step of a recurrent network, element-wise over hidden units.

    Subclasses name their net inputs (`gates`) and states and write `step` in plain torch:

        class MyCell(Cell):
            gates = ("a", "k")
            states = ("h",)

            def step(self, z, s, w):
                keep = torch.sigmoid(z.k)
                return keep * s.h + (1 - keep) * torch.tanh(z.a)

    The engine forms the net inputs, z = x_t W^T + b + h_{t-1} U^T, each [B, H], calls `step` once to trace it,
    and runs, differentiates and measures what it traced.

    Attributes
    ----------
    gates:      names of the net inputs; weight_ih is [len(gates) * H, D], the blocks in this order.
    states:     names of what is carried from step to step; the first is multiplied by U and shown as output.
    units:      names of per-unit weights [H], read as `w.<name>` (for example diagonal peepholes).
    matrices:   names of further matrices used inside the step as `linear(v, w.<name>)`.
    apart:      gates whose two products are wanted apart: `z.<gate>_x` = x_t W^T + b_ih and
                `z.<gate>_h` = h_{t-1} U^T + b_hh.
    inside:     gates whose product with U is taken inside the step: `z.<gate>` = x_t W^T + b, and the gate's block
                of weight_hh is `w.U_<gate>` [H, H].
    input_only: gates without recurrent weights: `z.<gate>` = x_t W^T + b.
    """

    gates: Names = ()
    states: Names = ("h",)
    units: Names = ()
    matrices: Names = ()
    apart: Names = ()
    inside: Names = ()
    input_only: Names = ()

    program: str | None = None  # the traced step as text; the engine fills it in, once a cell

    columns: tuple[Column, ...] = ()  # the net inputs in the engine's order, worked out from the names above
    recurrent_gates: tuple[str, ...] = ()  # the gates that have a block of weight_hh, in its order

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_names(cls)
        cls.recurrent_gates = tuple(g for g in cls.gates if g not in cls.input_only)
        cls.columns = _columns(cls)

    @abstractmethod
    def step(self, z: Any, s: Any, w: Any) -> Any:
        """The new states, in the order of `states`, from net inputs `z`, old states `s` and weights `w`.

        All are read by name (`z.i`, `s.c`, `w.p_i`) and have the shape [B, H]; a per-unit weight is [H].
        """

    def input(self, x: torch.Tensor) -> torch.Tensor:
        """An element-wise map of x_t before W; the identity unless a cell says otherwise."""
        return x

    @property
    def name(self) -> str:
        """What the cell is called in tables and pages."""
        return type(self).__name__

    @property
    def equations(self) -> str:
        """The equations, one a line, for people: the first paragraph of the class docstring that is made of them."""
        for paragraph in inspect.cleandoc(type(self).__doc__ or "").split("\n\n")[1:]:
            lines = [line.strip() for line in paragraph.splitlines()]
            if all(" = " in line for line in lines):
                return "\n".join(lines)
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _columns(cell: type[Cell] | Cell) -> tuple[Column, ...]:
    """Those with a part from x first, in the order of the gates; then the recurrent products wanted apart."""
    outside = [g for g in cell.recurrent_gates if g not in cell.inside]
    first, last = [], []
    for i, gate in enumerate(cell.gates):
        h = outside.index(gate) if gate in outside else None
        if gate in cell.apart:
            first.append(Column(f"{gate}_x", i, None))
            last.append(Column(f"{gate}_h", None, h))
        else:
            first.append(Column(gate, i, h))
    return tuple(first + last)


def _check_names(cell: type[Cell]) -> None:
    kind = cell.__name__
    for field in ("gates", "states", "units", "matrices", "apart", "inside", "input_only"):
        value = getattr(cell, field)
        if isinstance(value, str):
            raise CellError(f'{kind}.{field} must be a tuple of names; a single name needs its comma: ("{value}",)')
        if not isinstance(value, tuple | list) or not all(isinstance(n, str) and n.isidentifier() for n in value):
            raise CellError(f"{kind}.{field} must be a tuple of names, class-wide; came {value!r}")
        if len(set(value)) != len(value):
            raise CellError(f"{kind}.{field} names one thing twice: {tuple(value)}")
    both = set(cell.units) & set(cell.matrices)
    if both:
        raise CellError(f"{kind}: {sorted(both)} are both unit weights and matrices; rename one")
    for field in ("apart", "inside", "input_only"):
        stray = [g for g in getattr(cell, field) if g not in cell.gates]
        if stray:
            raise CellError(f"{kind}.{field} names {stray}, which are not among its gates {tuple(cell.gates)}")
    special = [*cell.apart, *cell.inside, *cell.input_only]
    if len(set(special)) != len(special):
        raise CellError(f"{kind}: a gate can be in one of apart, inside and input_only; came {special}")
