"""Carries small changes of the whole state forward through time: J_t V, exact, from the tape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from throughtime.engine import torch_backend
from throughtime.engine.derive import derive
from throughtime.engine.interpret import evaluate
from throughtime.engine.rules import with_rule
from throughtime.engine.tape import Tape
from throughtime.engine.trace import tape_of
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.running import check_finite, valid


class Tangent:
    """One recurrence, ready to carry changes of its state from any step to the next.

        J_t = ds_t/ds_{t-1},   s = (h, c, ...), all that is carried; N numbers a sample

    The tape's derivative is reverse mode, v -> J^T v. That is linear in v, and its own derivative with respect to v
    is therefore forward mode, V -> J V: the transpose of the transpose (Griewank & Walther 2008). No equation of any
    cell stands here.

    With the recurrence's rule `truncated` the derivative is the one that training follows; take
    dataclasses.replace(recurrence, truncated=False) for that of the network itself. What a recurrence keeps a graph of
    can be differentiated here too; a `Recurrence` keeps none.
    Raises FlowError where a state is NaN or infinite.
    """

    def __init__(self, recurrence: Recurrence):
        check_finite(recurrence)
        r, v = recurrence, recurrence.operands
        self.sizes = tuple(s.shape[-1] for s in v.states)
        self._names, self._reverse = tuple(r.cell.states), r.reverse
        self._U = None if r.truncated or not v.U.shape[0] else v.U
        self._H = v.b.shape[0] // len(r.cell.columns)
        self._keep = None if r.lengths is None else valid(r)
        tape = _forward_mode(with_rule(tape_of(r.cell), None, r.truncated), self._U is not None)
        self._blocks = {f"z.{c.name}.0": c.h for c in r.cell.columns if c.h is not None}
        self._outputs = {o.name: o.values[0] for o in tape.outputs}
        self._prepare(r, tape)

    def _prepare(self, r: Recurrence, tape: Tape) -> None:
        # All that no change enters is computed once, for all steps; see torch_backend.linearise.
        v, n = r.operands, len(tape.inputs)
        before = [
            torch_backend.previous(s, first, r.lengths, r.reverse)
            for s, first in zip(r.sequences, v.states, strict=True)
        ]
        given = [*r.net_inputs.values(), *before, *v.units, *v.matrices]
        self._fixed = dict(enumerate(given))
        self._stepwise = set(range(len(r.net_inputs) + len(before)))
        self._seeds: dict[str, int] = {}
        for i in range(len(given), n):
            name = tape.inputs[i].name
            if i < len(given) + len(self._names):  # the gradient that reverse mode was to be given: it does not matter
                self._fixed[i] = r.output.new_zeros(())
            else:
                self._seeds[name] = i
        moving, early, self._late = set(self._seeds.values()), [], []
        for i, op in enumerate(tape.ops):
            if moving.isdisjoint(op.args):
                early.append((n + i, op))
                if not self._stepwise.isdisjoint(op.args):
                    self._stepwise.add(n + i)
            else:
                moving.add(n + i)
                self._late.append((n + i, op))
        evaluate(early, self._fixed)

    def carry(self, t: int, V: Tensor) -> Tensor:
        """J_t V [B, N, k] from V [B, N, k], the changes of the state before step t; in padding J_t is the identity."""
        old = V.permute(2, 0, 1).split(self.sizes, dim=-1)
        values = {i: v[t] if i in self._stepwise else v for i, v in self._fixed.items()}
        hs = None if self._U is None else F.linear(old[0], self._U)
        for name, number in self._seeds.items():
            if name in self._blocks:
                assert hs is not None
                k = self._blocks[name]
                values[number] = hs[..., k * self._H : (k + 1) * self._H]
            else:
                values[number] = old[self._names.index(name.split(".")[1])]
        evaluate(self._late, values)
        new = [
            values[self._outputs[s]].expand_as(d) if s in self._outputs else torch.zeros_like(d)
            for s, d in zip(self._names, old, strict=True)
        ]
        if self._keep is not None:
            new = [torch.where(self._keep[t][:, None], v, d) for v, d in zip(new, old, strict=True)]
        return torch.cat(new, -1).permute(1, 2, 0)

    def jacobian(self, t: int) -> Tensor:
        """J_t in full, [B, N, N]: row = a component of the new state, column = one of the old."""
        N, first = sum(self.sizes), next(iter(self._fixed.values()))
        eye = torch.eye(N, dtype=first.dtype, device=first.device)
        return self.carry(t, eye.expand(first.shape[1], N, N))


def _forward_mode(tape: Tape, product: bool) -> Tape:
    """The tape of J V: seeds for the changes of the states and of the net inputs that come through U, if `product`."""
    recurrent = {c.name for c in tape.columns if c.h is not None} if product else set()
    back = derive(tape)
    kept = tuple(o for o in back.outputs if o.kind == "s" or (o.kind == "z" and o.name in recurrent))
    twice = derive(Tape(back.columns, back.inputs, back.ops, kept).pruned())
    outputs = tuple(o for o in twice.outputs if o.kind == "g")
    return Tape(twice.columns, twice.inputs, twice.ops, outputs).pruned()
