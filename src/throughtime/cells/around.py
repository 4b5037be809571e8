"""A cell built around another one: it takes over the other's names, adds its own, and changes the step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from throughtime.cells.cell import Cell, Names, _columns
from throughtime.errors import CellError


class CellAround(Cell):
    """Base of a cell around another; the subclass writes `step`, and calls `inner` for the step of the other.

    changed: the lists of names (gates, states, input_only, ...) that differ from those of `cell`. They belong to this
    one object, for they depend on the cell that it is around. Raises CellError where a new name is there already.
    """

    def __init__(self, cell: Cell, **changed: Names) -> None:
        self.cell = cell
        for field in ("gates", "states", "units", "matrices", "apart", "inside", "input_only"):
            names = tuple(changed.get(field, getattr(cell, field)))
            if len(set(names)) != len(names):
                raise CellError(f"{type(self).__name__} adds a name to the {field} of {cell!r} that is there: {names}")
            setattr(self, field, names)
        self.recurrent_gates = tuple(g for g in self.gates if g not in self.input_only)
        self.columns = _columns(self)

    def inner(self, z: Any, s: Any, w: Any) -> tuple[Any, ...]:
        """The new states of the cell inside."""
        new = self.cell.step(z, s, w)
        return tuple(new) if isinstance(new, tuple | list) else (new,)

    def input(self, x: Tensor) -> Tensor:
        return self.cell.input(x)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.cell!r})"
