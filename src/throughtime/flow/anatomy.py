"""What the parts of a cell do, read from its tape: which net inputs are gates, and which states are memories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine import torch_backend
from throughtime.engine.interpret import evaluate
from throughtime.engine.tape import Op, Tape
from throughtime.engine.trace import tape_of
from throughtime.flow.recurrence import Recurrence

Term = tuple[float, tuple[int, ...]]  # a constant times a product of values


@dataclass(frozen=True)
class Anatomy:
    """The parts of a cell, as numbers of values on its tape.

    gates:    by name, the sigmoid of a net input that multiplies something: LSTM i, f, o; GRU r, u. (A sigmoid that is
              the activation itself, as in a logistic network, is no gate.) The net input may have more added to it
              before the sigmoid: a peephole, a constant.
    memories: the states m with m_t = F * m_{t-1} + ...: for each the terms whose sum is F, the factor of the direct
              path (the carousel): f for an LSTM, 1 for that of 1997, u for a GRU.
    roles:    for each memory that has both, the values of its input gate and of its output gate.
    """

    tape: Tape
    gates: Mapping[str, int]
    memories: Mapping[str, tuple[Term, ...]]
    roles: Mapping[str, tuple[int, int]]


def anatomy(cell: Cell) -> Anatomy:
    """Reads the parts of a cell, a user's own included, from its tape."""
    return _anatomy(tape_of(cell))


@lru_cache(maxsize=256)
def _anatomy(tape: Tape) -> Anatomy:
    reader = _Reader(tape)
    gates = reader.gates()
    memories, roles = {}, {}
    for out in tape.outputs:
        terms = reader.direct(out.values[0], tape.number("s", out.name))
        if not terms:
            continue
        memories[out.name] = terms
        found = reader.roles(out.name, set(gates.values()))
        if found is not None:
            roles[out.name] = found
    return Anatomy(tape, gates, memories, roles)


@torch.no_grad()
def tape_values(recurrence: Recurrence) -> dict[int, Tensor]:
    """Every value of the cell's tape at every step of a recurrence, by number: [T, B, H], weights as they are."""
    tape, v = tape_of(recurrence.cell), recurrence.operands
    before = [
        torch_backend.previous(s, first, recurrence.lengths, recurrence.reverse)
        for s, first in zip(recurrence.sequences, v.states, strict=True)
    ]
    values = dict(enumerate([*recurrence.net_inputs.values(), *before, *v.units, *v.matrices]))
    n = len(tape.inputs)
    evaluate([(n + i, op) for i, op in enumerate(tape.ops)], values)
    return values


def carousel_factor(recurrence: Recurrence, state: str, values: Mapping[int, Tensor] | None = None) -> Tensor:
    """F_t [T, B, H] of a memory m_t = F_t * m_{t-1} + ...: dm_t/dm_{t-1} along the carousel is diag(F_t)."""
    values = tape_values(recurrence) if values is None else values
    like = recurrence.sequences[list(recurrence.cell.states).index(state)]
    factor = torch.zeros_like(like)
    for k, numbers in anatomy(recurrence.cell).memories[state]:
        product = torch.full_like(like, k)
        for number in numbers:
            product = product * values[number]
        factor = factor + product
    return factor


class _Reader:
    def __init__(self, tape: Tape):
        self.tape, self.n = tape, len(tape.inputs)
        self.users = tape.users()
        self.new = {o.values[0]: o.name for o in tape.outputs}

    def op(self, v: int) -> Op | None:
        return None if v < self.n else self.tape.ops[v - self.n]

    def gates(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for i, op in enumerate(self.tape.ops):
            if op.name != "sigmoid" or not self._multiplies(self.n + i, op.args[0]):
                continue
            names = self._net_inputs(op.args[0])
            if len(names) == 1:
                found.setdefault(names.pop(), self.n + i)
        order = [c.name for c in self.tape.columns]
        return dict(
            sorted(found.items(), key=lambda item: next(k for k, c in enumerate(order) if item[0] in (c, c[:-2])))
        )

    def _multiplies(self, v: int, before: int) -> bool:
        """Whether v, or 1 - v, is a factor of something other than what it was made from (that is SiLU)."""
        for i in self.users.get(v, []):
            op = self.tape.ops[i]
            if op.name == "mul" and not {v, before}.issuperset(op.args):
                return True
            if op.name == "affine" and self._multiplies(self.n + i, before):
                return True
        return False

    def _net_inputs(self, v: int) -> set[str]:
        """The gates whose net input v is, with other things added; never through another gate or a new state."""
        op = self.op(v)
        if op is None:
            inp = self.tape.inputs[v]
            if inp.kind != "z":
                return set()
            column = self.tape.columns[v]
            apart = {c.name for c in self.tape.columns}
            stem = column.name[:-2]
            return (
                {stem} if column.name.endswith(("_x", "_h")) and {f"{stem}_x", f"{stem}_h"} <= apart else {column.name}
            )
        if v in self.new or op.name in ("sigmoid", "tanh", "linear", "linear_t"):
            return set()
        return set().union(*(self._net_inputs(a) for a in op.args))

    def direct(self, v: int, s: int) -> tuple[Term, ...]:
        """The factor of the old state s in v, through sums and products alone, as terms; empty where there is none."""
        if v == s:
            return ((1.0, ()),)
        op = self.op(v)
        if op is None:
            return ()
        if op.name == "affine":
            return _scaled(self.direct(op.args[0], s), op.consts[0])
        if op.name in ("add", "sub"):
            sign = 1.0 if op.name == "add" else -1.0
            return self.direct(op.args[0], s) + _scaled(self.direct(op.args[1], s), sign)
        if op.name == "mul":
            a, b = op.args
            return _times(self.direct(a, s), b) + _times(self.direct(b, s), a)
        return ()

    def roles(self, state: str, gates: set[int]) -> tuple[int, int] | None:
        """The input gate, a factor of what is added to the memory; the output gate, a factor of the memory as shown."""
        memory = next(v for v, name in self.new.items() if name == state)
        shown = self.tape.outputs[0].values[0]
        old = self.tape.number("s", state)
        if shown == memory:
            return None
        into = [v for term in self._terms(memory) if not self.direct(term, old) for v in self._factors(term, gates)]
        out = [v for term in self._terms(shown) if self._reads(term, memory) for v in self._factors(term, gates)]
        return (into[0], out[0]) if into and out else None

    def _terms(self, v: int) -> list[int]:
        op = self.op(v)
        if op is not None and op.name in ("add", "sub", "linear"):
            return [t for a in op.args if a >= self.n or op.name != "linear" for t in self._terms(a)]
        return [v]

    def _factors(self, v: int, gates: set[int]) -> list[int]:
        """The gates, and the 1 - gate, that multiply in the product v."""
        op = self.op(v)
        if op is None or op.name != "mul":
            return []
        found = []
        for a in op.args:
            inner = self.op(a)
            is_gate = a in gates or (inner is not None and inner.name == "affine" and inner.args[0] in gates)
            found += [a] if is_gate else self._factors(a, gates)
        return found

    def _reads(self, v: int, wanted: int) -> bool:
        op = self.op(v)
        if v == wanted:
            return True
        # What a gate is made from is not what it multiplies: peepholes read the memory too.
        return op is not None and op.name != "sigmoid" and any(self._reads(a, wanted) for a in op.args)


def _scaled(terms: tuple[Term, ...], k: float) -> tuple[Term, ...]:
    return tuple((c * k, values) for c, values in terms if k)


def _times(terms: tuple[Term, ...], value: int) -> tuple[Term, ...]:
    return tuple((c, (*values, value)) for c, values in terms)
