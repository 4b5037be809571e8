"""A cell bound to its weights on the CPU kernels, for calls so small that preparing them would cost more than they do.

A network that gets one input at a time and answers at once spends its time on checking arguments, choosing a backend
and finding packed weights. What of that follows from the weights is done here once for them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine.cpu import library
from throughtime.engine.cpu.call import Walk, aim, fill, run
from throughtime.engine.cpu.library import ForwardCall
from throughtime.engine.cpu.packed_batch import PackedBatch
from throughtime.engine.cpu.plan import kind_of, plan
from throughtime.engine.eager import PLAIN
from throughtime.engine.operands import operands
from throughtime.engine.operator import tape_of
from throughtime.engine.trace import program


class Watched:
    """Tensors as they were at one time; `unchanged` says whether they still are."""

    def __init__(self, tensors: Collection[Tensor]):
        self._checksum = library.load().tt_checksum
        self._seen = [(v, *self._state(v)) for v in tensors]

    def _state(self, v: Tensor) -> tuple:
        at = v.data_ptr()
        return v._version, at, v.shape, v.dtype, self._checksum(at, v.nbytes)

    def unchanged(self, tensors: Collection[Tensor]) -> bool:
        """Whether these are the tensors, and nobody has written to them, behind torch's back or not."""
        if len(tensors) != len(self._seen):
            return False
        return all(v is seen[0] and self._state(v) == seen[1:] for v, seen in zip(tensors, self._seen, strict=True))


def watchable(tensors: Collection[Tensor]) -> bool:
    """Whether tensors can be watched for changes: plain ones, in one piece in main memory, that count their writes."""
    return all(type(v) in PLAIN and v.is_cpu and v.is_contiguous() and not v.is_inference() for v in tensors)


class BoundCell:
    """A cell with the weights that it had when it was bound, in one direction; weights as `unroll` takes them."""

    def __init__(
        self,
        cell: Cell,
        weight_ih: Tensor,
        weight_hh: Tensor | None,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        units: Sequence[Tensor],
        matrices: Sequence[Tensor],
        *,
        reverse: bool,
    ):
        self.cell, self.dtype, self.reverse = cell, weight_ih.dtype, reverse
        x = weight_ih.new_zeros(1, 1, weight_ih.shape[1])
        v = operands(cell, x, weight_ih, weight_hh, bias_ih, bias_hh, units, matrices, None)
        tape = tape_of(program(cell), None, False)
        p = plan(tape, 1, 1, kind_of(tape, x.shape[2], v.W, v.b, v.matrices, v.states), None)
        self.units = [w.contiguous() for w in v.units]
        self.widths = p.sizes.states
        self._call = ForwardCall.from_buffer_copy(p.forward)
        batch = PackedBatch(1, 1, None)
        self._keep = fill(self._call, Walk(p, batch, x, v.W, v.U, v.b, self.units, v.matrices, v.states, False))

    def __call__(self, x: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The first state at every step [T, B, P], and the last states [1, B, .], from x [T, B, D] and states of B
        rows; all of the weights' dtype, contiguous and in main memory."""
        T, B, _ = x.shape
        x = self.cell.input(x)
        call, batch = ForwardCall.from_buffer_copy(self._call), PackedBatch(T, B, None)
        batch.fill(call, self.reverse)
        sequences = [torch.empty((T, B, w), dtype=self.dtype) for w in self.widths]
        finals = [torch.empty((1, B, w), dtype=self.dtype) for w in self.widths]
        pointers = aim(call, self.units, states, sequences, finals)
        call.x = x.data_ptr()
        run(call)
        del pointers
        return sequences[0], finals


class BoundStep:
    """One step of one sequence a call: a bound cell with its states, and what it shows, in places of its own."""

    def __init__(self, bound: BoundCell):
        self.dtype, self._keep = bound.dtype, bound
        self._now, self._next = ([torch.zeros(1, w, dtype=bound.dtype) for w in bound.widths] for _ in range(2))
        shown = [torch.zeros(w, dtype=bound.dtype) for w in bound.widths]
        self.y, batch = shown[0], PackedBatch(1, 1, None)
        self._batch, self._pointers = batch, []
        self._calls: list[ForwardCall] = []
        for first, finals in ((self._now, self._next), (self._next, self._now)):
            call = ForwardCall.from_buffer_copy(bound._call)
            batch.fill(call, bound.reverse)
            self._pointers.append((aim(call, bound.units, first, shown, finals), shown))
            self._calls.append(call)

    @property
    def states(self) -> list[Tensor]:
        """The states [1, H] as they are now; the step after the next one writes there."""
        return self._now

    def reset(self) -> None:
        """The states are zero again."""
        for s in self._now:
            s.zero_()

    def __call__(self, x: Tensor) -> Tensor:
        """y [P], overwritten by the next call, from x [D] of the weights' dtype, in one piece, in main memory."""
        call, other = self._calls
        call.x = x.data_ptr()
        run(call)
        self._calls, self._now, self._next = [other, call], self._next, self._now
        return self.y
