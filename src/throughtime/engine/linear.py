"""The derivative of a step as the linear map that it is: what it multiplies by, and the operations that are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.engine.derive import derive
from throughtime.engine.interpret import evaluate
from throughtime.engine.optimise import fuse, without_identities
from throughtime.engine.tape import Builder, Input, Op, Output, Tape


@dataclass(frozen=True)
class LinearStep:
    """The vector-Jacobian product of one step, for many gradients at one point.

    inputs: those of the step's tape, in order: "z", "s" (the old states), "w" and "m".
    early:  numbered operations over them that no gradient enters: done once, whatever is sent back.
    kept:   the early values that the map multiplies by and that change from step to step.
    units:  those that are the same at all steps, [H] each.
    tape:   the map itself. Inputs "k" (kept), "w" (units), "m", and "d", the gradient of each new state; outputs the
            gradients of the net inputs "z" (or of `bases`) and of the old states "s", and as "k", behind those that
            came in, the total gradients (see `derive`) of the new states that stand nowhere else.
    totals: where the total gradient of each new state stands: ("own", number of the "k"), ("base", number of the base),
            or ("given", 0): it is the gradient that came in.

    Where the gradients of several net inputs are multiples of one value, unit by unit, as those of a GRU's gates all
    are of dL/dh, the step is folded: that value is a base, and the products with the recurrent weights are one,
        sum_g (r * a_g) U_g = r (sum_g diag(a_g) U_g).

    bases:   how many there are, 0 for a step that is not folded. The tape's outputs "z" are they, by number; those with
             a part from x come first, those with a part from h last.
    columns: for each net input its base and what that is multiplied by: an early value (or None) and a number.
    """

    inputs: tuple[Input, ...]
    early: tuple[tuple[int, Op], ...]
    kept: tuple[int, ...]
    units: tuple[int, ...]
    tape: Tape
    totals: tuple[tuple[str, int], ...]
    bases: int
    base_ranks: tuple[int, ...]
    columns: tuple[tuple[int, int | None, float], ...]

    def values(self, given: Sequence[Tensor]) -> dict[int, Tensor]:
        """All values by number, from tensors for `inputs`; any dimensions may stand in front of z and the states."""
        values = dict(enumerate(given))
        evaluate(self.early, values)
        return values


@lru_cache(maxsize=512)
def linear_step(tape: Tape) -> LinearStep:
    """The linear map behind the tape of a step. Products of what it multiplies by are done before, not for each row."""
    return _Split(without_identities(derive(tape, True))).run()


class _Scaled(NamedTuple):
    """A value that moves with the gradients: a value of the late tape, times an early value, times a number."""

    base: int
    by: int | None = None
    k: float = 1.0


class _Split:
    def __init__(self, back: Tape):
        self.back, n = back, len(back.inputs)
        given = [i for i in back.inputs if i.kind != "g"]
        self.early = Builder(given)
        self.still: dict[int, int] = {}  # value of `back` -> early value
        self.moving: dict[int, _Scaled] = {}  # value of `back` -> what it is on the late tape
        self.late: list[Op] = []  # early values among the arguments as ~number, gradients as the numbers 0, 1, ...
        self.gradients = [i.name for i in back.inputs if i.kind == "g"]
        for v, i in enumerate(back.inputs):
            if i.kind == "g":
                self.moving[v] = _Scaled(self.gradients.index(i.name))
            else:
                self.still[v] = given.index(i)
        self.done: dict[_Scaled, int] = {}
        self.made: dict[Op, int] = {}
        for v, op in enumerate(back.ops, n):
            if any(a in self.moving for a in op.args):
                self.moving[v] = self._moved(op)
            else:
                self.still[v] = self._before(op.name, *(self.still[a] for a in op.args), consts=op.consts)

    def _before(self, name: str, *args: int, consts: Sequence[float] = ()) -> int:
        """An operation on early values, done once however often it is asked for."""
        op = Op(name, tuple(sorted(args)) if name in ("add", "mul") else args, tuple(consts))
        if op not in self.made:
            self.made[op] = self.early.emit(name, *op.args, consts=consts)
        return self.made[op]

    def _emit(self, name: str, *args: int, consts: Sequence[float] = ()) -> int:
        self.late.append(Op(name, args, tuple(consts)))
        return len(self.gradients) + len(self.late) - 1

    def _moved(self, op: Op) -> _Scaled:
        first, rest = op.args[0], op.args[1:]
        if op.name == "affine" and op.consts[1] == 0:
            return self._times(self.moving[first], None, op.consts[0])
        if op.name == "mul" and sum(a in self.moving for a in op.args) == 1:
            v, by = op.args if first in self.moving else op.args[::-1]
            return self._times(self.moving[v], self.still[by])
        if op.name in ("add", "sub") and all(a in self.moving for a in op.args):
            a, b = (self.moving[v] for v in op.args)
            if a.base == b.base:
                return self._sum(a, b if op.name == "add" else b._replace(k=-b.k))
        if first in self.moving and rest and rest[0] in self.still:
            y = self.still[rest[0]]
            if op.name == "div":
                return self._times(self.moving[first], self._before("reciprocal", y))
            if op.name == "dsigmoid":
                rest_of_1 = self._before("affine", y, consts=(-1, 1))
                return self._times(self.moving[first], self._before("mul", y, rest_of_1))
            if op.name == "dtanh":
                square = self._before("mul", y, y)
                return self._times(self.moving[first], self._before("affine", square, consts=(-1, 1)))
        return _Scaled(self._emit(op.name, *(self._whole(a) for a in op.args), consts=op.consts))

    def _times(self, v: _Scaled, by: int | None, k: float = 1.0) -> _Scaled:
        if v.by is not None and by is not None:
            by = self._before("mul", v.by, by)
        return _Scaled(v.base, v.by if by is None else by, v.k * k)

    def _sum(self, a: _Scaled, b: _Scaled) -> _Scaled:
        if a.by is None and b.by is None:
            return _Scaled(a.base, None, a.k + b.k)
        if a.by is None:
            a, b = b, a
        assert a.by is not None
        if b.by is None:
            return _Scaled(a.base, self._before("affine", a.by, consts=(a.k, b.k)))
        return _Scaled(a.base, self._before("add", self._scaled(a.by, a.k), self._scaled(b.by, b.k)))

    def _scaled(self, v: int, k: float) -> int:
        """An early value times a number."""
        return v if k == 1 else self._before("affine", v, consts=(k, 0.0))

    def _whole(self, v: int) -> int:
        """A value of `back` as one of the late tape, multiplied out."""
        if v in self.still:
            return ~self.still[v]
        s = self.moving[v]
        if s not in self.done:
            if s.by is None:
                made = s.base if s.k == 1 else self._emit("affine", s.base, consts=(s.k, 0.0))
            else:
                made = self._emit("mul", s.base, ~self._scaled(s.by, s.k))
            self.done[s] = made
        return self.done[s]

    def run(self) -> LinearStep:
        bases, ranks, columns = self._fold()
        ends: list[tuple[str, str, int]] = []  # kind, name, late value; the old states last, in place of the new ones
        totals, own = [], 0
        for state, v in self._outputs("total").items():
            end = self._whole(v)
            if end in bases:
                totals.append(("base", bases.index(end)))
            elif end == self.gradients.index(state):
                totals.append(("given", 0))
            else:
                totals.append(("own", own))
                ends.append(("k", str(own), end))
                own += 1
        if bases:
            ends += [("z", str(j), v) for j, v in enumerate(bases)]
        else:
            ends += [("z", name, self._whole(v)) for name, v in self._outputs("z").items()]
        ends += [("s", name, self._whole(v)) for name, v in self._outputs("s").items()]
        return self._step(ends, tuple(totals), ranks, columns)

    def _outputs(self, kind: str) -> dict[str, int]:
        return {o.name: o.values[0] for o in self.back.outputs if o.kind == kind}

    def _fold(self) -> tuple[list[int], tuple[int, ...], tuple[tuple[int, int | None, float], ...]]:
        """The bases, as late values; whether each is of net inputs from x only (0), from both (1) or from h only (2);
        and the columns. None where folding saves no product."""
        where = self._outputs("z")
        found = {c.name: self.moving.get(where[c.name]) for c in self.back.columns if c.name in where}
        uses: dict[int, set[str]] = {}
        for c in self.back.columns:
            here = found.get(c.name)
            if here is not None:
                uses.setdefault(here.base, set()).update("x" * (c.x is not None) + "h" * (c.h is not None))
        recurrent = sum(c.h is not None for c in self.back.columns)
        if None in found.values() or sum("h" in u for u in uses.values()) >= recurrent:
            return [], (), ()
        rank = {base: 0 if "h" not in u else 1 if "x" in u else 2 for base, u in uses.items()}
        bases = sorted(rank, key=lambda base: rank[base])
        columns: list[tuple[int, int | None, float]] = []
        for c in self.back.columns:
            s = found.get(c.name)
            columns.append((0, None, 0.0) if s is None else (bases.index(s.base), s.by, s.k))
        return bases, tuple(rank[base] for base in bases), tuple(columns)

    def _step(self, ends, totals, ranks, columns) -> LinearStep:
        used = sorted({~a for op in self.late for a in op.args if a < 0} | {~v for _, _, v in ends if v < 0})
        moves = self._with_the_steps()
        matrices = [v for v, i in enumerate(self.early.inputs) if i.kind == "m"]
        kept = [v for v in used if v in moves]
        units = [v for v in used if v not in moves and v not in matrices]
        inputs = [*(Input("k", str(j)) for j in range(len(kept))), *(Input("w", str(j)) for j in range(len(units)))]
        inputs += [*(self.early.inputs[v] for v in matrices), *(Input("d", name) for name in self.gradients)]
        at = {~v: spot for spot, v in enumerate([*kept, *units, *matrices])}
        first = len(inputs) - len(self.gradients)

        def number(v: int) -> int:
            return at[v] if v < 0 else first + v

        ops = tuple(Op(op.name, tuple(number(a) for a in op.args), op.consts) for op in self.late)
        outputs = tuple(
            Output(kind, str(len(kept) + int(name)) if kind == "k" else name, (number(v),)) for kind, name, v in ends
        )
        tape = fuse(Tape(self.back.columns, tuple(inputs), ops, outputs).pruned())
        early = self._needed([*kept, *units, *(by for _, by, _ in columns if by is not None)])
        return LinearStep(self.early.inputs, early, tuple(kept), tuple(units), tape, totals, len(ranks), ranks, columns)

    def _with_the_steps(self) -> set[int]:
        """The early values that change from step to step; a product's result too, for it may have any width."""
        n = len(self.early.inputs)
        found = {v for v, i in enumerate(self.early.inputs) if i.kind in "zs"}
        for i, op in enumerate(self.early.ops):
            if op.name in ("linear", "linear_t") or not found.isdisjoint(op.args):
                found.add(n + i)
        return found

    def _needed(self, values: Sequence[int]) -> tuple[tuple[int, Op], ...]:
        n, needed = len(self.early.inputs), set(values)
        for i in reversed(range(len(self.early.ops))):
            if n + i in needed:
                needed.update(self.early.ops[i].args)
        return tuple((n + i, op) for i, op in enumerate(self.early.ops) if n + i in needed)


def laid_out(
    step: LinearStep, z: Tensor, before: Sequence[Tensor], units: Sequence[Tensor], matrices: Sequence[Tensor],
    order: Sequence[int], row: Callable[[int], int], dtype: torch.dtype,
) -> tuple[Tensor, tuple[int, ...], list[Tensor]]:  # fmt: skip
    """All that a step multiplies by, side by side [T, B, row]; the widths of `kept`; and `units`.

    A row holds `kept`; then, for a folded step, [H] for each column in `order`, what its base is multiplied by; then
    [H] for each base, the sum of the squares of its columns'. row(n): how far apart rows of n numbers shall stand.
    z [T, B, C * H]: the net inputs; before [T, B, .]: every state before each step.
    """
    T, B, H = z.shape[0], z.shape[1], z.shape[2] // len(step.tape.columns)
    # Steps at a time: what is computed on the way stays in the cache, or, on a GPU, in a part of its memory.
    some = max(1, (1 << 24 if z.is_cuda else 16384) // max(1, B * H))
    out, weights = z.new_empty(0), []
    widths: tuple[int, ...] = ()
    for t in range(0, T, some):
        here = slice(t, min(t + some, T))
        values = step.values([*z[here].split(H, -1), *(s[here] for s in before), *units, *matrices])
        parts = [values[v] for v in step.kept]
        if t == 0:
            widths, weights = tuple(int(v.shape[-1]) for v in parts), [values[v] for v in step.units]
            n = sum(widths) + H * (step.bases and len(step.columns) + step.bases)
            out = z.new_empty(T, B, row(n), dtype=dtype)
        squares: list[Tensor | float] = [0.0] * step.bases
        for c in order if step.bases else ():
            base, by, k = step.columns[c]
            part = z.new_full((H,), k) if by is None else values[by] * k if k != 1 else values[by]
            squares[base] = part.square() + squares[base]
            parts.append(part)
        at = 0
        for v in [*parts, *squares]:
            assert isinstance(v, Tensor)
            out[here, :, at : at + v.shape[-1]] = v
            at += v.shape[-1]
    return out, widths, [w.to(dtype).expand(H).contiguous() for w in weights]
