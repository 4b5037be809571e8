"""How wide each value of a tape is, and the stage at which it can be had: products of whole rows divide a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from throughtime.engine.cpu.program import WHOLE_ROW, Sizes
from throughtime.engine.tape import Input, Op, Tape
from throughtime.errors import CellError


class Widths(NamedTuple):
    """For each value of a tape, inputs first: its number of units (0 for a matrix), and its stage."""

    width: list[int]
    stage: list[int]


def measure(tape: Tape, sizes: Sizes, states: Sequence[str], kept: Sequence[int]) -> Widths:
    """The width and stage of every value; states and kept as in `lower`. Raises CellError where widths do not fit."""
    width = [_input_width(inp, sizes, states, kept) for inp in tape.inputs]
    stage = [0] * len(tape.inputs)
    first_matrix = next((i for i, inp in enumerate(tape.inputs) if inp.kind == "m"), 0)
    for op in tape.ops:
        here = {width[a] for a in op.args if width[a]}
        if op.name in ("linear", "linear_t"):
            width.append(_product_width(op, here, sizes.matrices[op.args[1] - first_matrix]))
        elif len(here) == 1:
            width.append(here.pop())
        else:
            raise CellError(f"{op.name} joins values of {' and '.join(map(str, sorted(here)))} units")
        stage.append(max(stage[a] for a in op.args if width[a]) + (op.name in WHOLE_ROW))
    return Widths(width, stage)


def _input_width(inp: Input, sizes: Sizes, states: Sequence[str], kept: Sequence[int]) -> int:
    if inp.kind in "snyd":
        return sizes.states[states.index(inp.name)]
    return kept[int(inp.name)] if inp.kind == "k" else sizes.H if inp.kind != "m" else 0


def _product_width(op: Op, came: set[int], shape: tuple[int, int]) -> int:
    rows, columns = shape
    want, width = (columns, rows) if op.name == "linear" else (rows, columns)
    if came != {want}:
        raise CellError(f"a product needs {want} units, its matrix is [{rows}, {columns}]; came {came.pop()}")
    return width
