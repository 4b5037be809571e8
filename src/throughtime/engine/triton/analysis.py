"""What a tape needs of a schedule: how wide each value is, and after how many exchanges between units it can be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from throughtime.engine.tape import Op, Tape
from throughtime.errors import CellError

WHOLE_ROW = ("linear", "linear_t", "mean")


@dataclass(frozen=True)
class Analysis:
    """One optimised tape, its operations in order of stage.

    widths: of every value "H" or "P", the units of a gate or of the first state; "" for a matrix.
    stages: of every value, how many whole rows it waits for: products and means need all units of a value at once.
    order:  the operations' value numbers, stage by stage; matrices: their shapes in widths, (rows, columns).
    """

    tape: Tape
    widths: tuple[str, ...]
    stages: tuple[int, ...]
    order: tuple[int, ...]
    matrices: tuple[tuple[str, str], ...]

    @property
    def n_stages(self) -> int:
        return 1 + max(self.stages, default=0)

    def op(self, v: int) -> Op:
        """The operation behind a value that is not an input."""
        return self.tape.ops[v - len(self.tape.inputs)]

    def whole_rows(self, stage: int) -> list[int]:
        """The products and means at the entry of a stage."""
        return [v for v in self.order if self.stages[v] == stage and self.op(v).name in WHOLE_ROW]

    def elementwise(self, stage: int) -> list[int]:
        """The other operations of a stage."""
        return [v for v in self.order if self.stages[v] == stage and self.op(v).name not in WHOLE_ROW]

    def sources(self, stage: int) -> dict[int, bool]:
        """The values whose whole rows a stage reads; True where a product reads them, in the products' dtype."""
        return {self.op(v).args[0]: self.op(v).name != "mean" for v in self.whole_rows(stage)}

    def matrix(self, v: int) -> tuple[int, bool]:
        """Which matrix a product reads, and whether as it is (`linear_t`, a M) or turned (`linear`, a M^T)."""
        op, first = self.op(v), next(i for i, inp in enumerate(self.tape.inputs) if inp.kind == "m")
        return op.args[1] - first, op.name == "linear_t"


def analyse(tape: Tape, H: int, P: int, matrices: Sequence[tuple[int, int]], kept: Sequence[str] = ()) -> Analysis:
    """The analysis of an optimised tape; kept: the widths of what the forward tape kept, for a backward tape.

    Raises CellError where widths do not fit each other.
    """
    states = tape.names("s") or tape.names("d")  # a linear step has no old states

    def letter(n: int) -> str:
        if n not in (H, P):
            raise CellError(f"a matrix of the cell has a side of {n}; expected H = {H} or P = {P}")
        return "H" if n == H else "P"

    shapes = tuple((letter(rows), letter(columns)) for rows, columns in matrices)
    first = "H" if P == H else "P"
    widths, stages = [], []
    for inp in tape.inputs:
        if inp.kind in "snyd":
            widths.append(first if inp.name == states[0] else "H")
        else:
            widths.append("" if inp.kind == "m" else kept[int(inp.name)] if inp.kind == "k" else "H")
        stages.append(0)
    n = len(tape.inputs)
    matrix = {i: k for k, i in enumerate(i for i, inp in enumerate(tape.inputs) if inp.kind == "m")}
    for op in tape.ops:
        values = [a for a in op.args if a not in matrix]
        came = {widths[a] for a in values}
        stage = max(stages[a] for a in values)
        if op.name in ("linear", "linear_t"):
            rows, columns = shapes[matrix[op.args[1]]]
            want, width = (columns, rows) if op.name == "linear" else (rows, columns)
            if came != {want}:
                raise CellError(f"a product needs a value of {want} units, came {came.pop()} (H = {H}, P = {P})")
        else:
            if len(came) != 1:
                raise CellError(f"{op.name} joins values of H = {H} and P = {P} units")
            width = came.pop()
        widths.append(width)
        stages.append(stage + (op.name in WHOLE_ROW))
    order = tuple(sorted(range(n, n + len(tape.ops)), key=lambda v: (stages[v], v)))
    return Analysis(tape, tuple(widths), tuple(stages), order, shapes)
