"""The tape: the step of a cell, or its derivative, as a short list of element-wise operations in plain data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from throughtime.cells import Column
from throughtime.errors import CellError

# Every operation a tape may hold: how many values it takes, and how many constants.
# All act on [B, H] element by element but `mean` (over the H units, spread back over them), and the two products.
OPS: dict[str, tuple[int, int]] = {
    "affine": (1, 2),  # k0 * a + k1
    "add": (2, 0),
    "sub": (2, 0),
    "mul": (2, 0),
    "div": (2, 0),
    "reciprocal": (1, 0),
    "power": (1, 1),  # a ** k0
    "sqrt": (1, 0),
    "exp": (1, 0),
    "log": (1, 0),
    "sin": (1, 0),
    "cos": (1, 0),
    "erf": (1, 0),
    "abs": (1, 0),
    "sign": (1, 0),
    "tanh": (1, 0),
    "sigmoid": (1, 0),
    "relu": (1, 0),
    "softplus": (1, 0),
    "maximum": (2, 0),
    "minimum": (2, 0),
    "clamp": (1, 2),
    "heaviside": (1, 1),  # 0 below zero, k0 at zero, 1 above
    "select": (3, 0),  # b where a is not zero, else c
    "mean": (1, 0),  # mean over the units, in every unit: its own adjoint
    "stop": (1, 0),  # identity; passes no gradient
    "clip_grad": (1, 1),  # identity; its gradient is clamped to [-k0, k0]
    "dsigmoid": (2, 0),  # a * b * (1 - b), b = sigmoid(.)
    "dtanh": (2, 0),  # a * (1 - b * b), b = tanh(.)
    "linear": (2, 0),  # a M^T, M a matrix of the cell
    "linear_t": (2, 0),  # a M, the adjoint of `linear`
}

FORMAT = 1


@dataclass(frozen=True)
class Op:
    """One operation: its name, the numbers of the values it reads, and its constants."""

    name: str
    args: tuple[int, ...]
    consts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Input:
    """A value that the tape is given. kind: "z" net input, "s" old state, "w" per-unit weight, "m" matrix,
    and in a derivative "g" the gradient of the loss with respect to a new state."""

    kind: str
    name: str


@dataclass(frozen=True)
class Output:
    """A value that the tape gives back. kind: "s" new state; in a derivative the gradient of a "z", "s" or "w", the
    "total" gradient of a new state, or "m": values a, v whose outer products a^T v, summed over rows, are a matrix's.
    """

    kind: str
    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Tape:
    """Values are numbered: first the inputs, then the result of each operation in turn."""

    columns: tuple[Column, ...]
    inputs: tuple[Input, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Output, ...]

    def names(self, kind: str) -> tuple[str, ...]:
        """The names of the inputs of one kind, in order."""
        return tuple(i.name for i in self.inputs if i.kind == kind)

    def number(self, kind: str, name: str) -> int:
        """The value number of an input."""
        return self.inputs.index(Input(kind, name))

    def users(self) -> dict[int, list[int]]:
        """For each value, the indices of the operations that read it."""
        found: dict[int, list[int]] = {}
        for i, op in enumerate(self.ops):
            for a in op.args:
                found.setdefault(a, []).append(i)
        return found

    def pruned(self) -> Tape:
        """The same tape without operations that no output needs, and with repeated ones done once."""
        n = len(self.inputs)
        live = {v for out in self.outputs for v in out.values}
        for i in reversed(range(len(self.ops))):
            if n + i in live:
                live.update(self.ops[i].args)
        number = {i: i for i in range(n)}
        ops: list[Op] = []
        done: dict[Op, int] = {}
        for i, op in enumerate(self.ops):
            if n + i not in live:
                continue
            new = Op(op.name, tuple(number[a] for a in op.args), op.consts)
            if new not in done:
                done[new] = n + len(ops)
                ops.append(new)
            number[n + i] = done[new]
        outputs = tuple(Output(o.kind, o.name, tuple(number[v] for v in o.values)) for o in self.outputs)
        return Tape(self.columns, self.inputs, tuple(ops), outputs)

    def dumps(self) -> str:
        """The tape as one line of JSON; `loads` reads it back."""
        return json.dumps(
            {
                "format": FORMAT,
                "columns": [[c.name, c.x, c.h] for c in self.columns],
                "inputs": [[i.kind, i.name] for i in self.inputs],
                "ops": [[o.name, list(o.args), list(o.consts)] for o in self.ops],
                "outputs": [[o.kind, o.name, list(o.values)] for o in self.outputs],
            },
            separators=(",", ":"),
        )

    def __str__(self) -> str:
        names = [f"{i.kind}.{i.name}" for i in self.inputs]
        lines = [f"inputs  {' '.join(names)}"]
        for op in self.ops:
            names.append(f"v{len(names)}")
            what = [names[a] for a in op.args] + [f"{k:g}" for k in op.consts]
            lines.append(f"{names[-1]} = {op.name}({', '.join(what)})")
        lines += [f"{o.kind}.{o.name} <- {', '.join(names[v] for v in o.values)}" for o in self.outputs]
        return "\n".join(lines)


@lru_cache(maxsize=512)
def loads(text: str) -> Tape:
    """The tape that `Tape.dumps` wrote. Raises CellError on anything else: the text may come from a file."""
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise CellError(f"tape of format {data['format']}, this version reads {FORMAT}; trace the cell again")
        tape = Tape(
            tuple(Column(*c) for c in data["columns"]),
            tuple(Input(*i) for i in data["inputs"]),
            tuple(Op(n, tuple(a), tuple(float(k) for k in c)) for n, a, c in data["ops"]),
            tuple(Output(k, n, tuple(v)) for k, n, v in data["outputs"]),
        )
    except (ValueError, KeyError, TypeError, IndexError) as err:
        if isinstance(err, CellError):
            raise
        raise CellError(f"not a tape: {err}; expected the text that Tape.dumps writes") from None
    check(tape)
    return tape


def check(tape: Tape) -> None:
    """Raises CellError unless every operation exists, has the right operands, and reads only what is before it."""
    n = len(tape.inputs)
    matrices = {i for i, inp in enumerate(tape.inputs) if inp.kind == "m"}
    for i, op in enumerate(tape.ops):
        if OPS.get(op.name) != (len(op.args), len(op.consts)):
            raise CellError(f"tape operation {i}: {op.name} with {len(op.args)} operands, {len(op.consts)} constants")
        if not all(isinstance(a, int) and 0 <= a < n + i for a in op.args):
            raise CellError(f"tape operation {i} ({op.name}) reads a value that is not there: {op.args}")
        spots = [k for k, a in enumerate(op.args) if a in matrices]
        if spots != ([1] if op.name in ("linear", "linear_t") else []):
            raise CellError(f"tape operation {i}: a matrix can only be the weight of a product, not of {op.name}")
    for out in tape.outputs:
        if not all(isinstance(v, int) and 0 <= v < n + len(tape.ops) for v in out.values):
            raise CellError(f"tape output {out.name} is a value that is not there: {out.values}")


class Builder:
    """Writes a tape one operation at a time; each method call gives back the new value's number."""

    def __init__(self, inputs: Sequence[Input], ops: Sequence[Op] = ()):
        self.inputs = tuple(inputs)
        self.ops = list(ops)

    def emit(self, name: str, *args: int, consts: Sequence[float] = ()) -> int:
        self.ops.append(Op(name, args, tuple(float(k) for k in consts)))
        return len(self.inputs) + len(self.ops) - 1

    def scale(self, a: int, k: float) -> int:
        return a if k == 1 else self.emit("affine", a, consts=(k, 0.0))
