"""How a batch came in (packed, batch first, unbatched), so that what comes out can go the same way."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class _Pack(torch.autograd.Function):
    """[T, B, .] -> valid rows, packed. Its derivative is the padding; torch's own goes step by step through time."""

    @staticmethod
    def forward(y: Tensor, batch_sizes: Tensor, lengths: Tensor) -> Tensor:
        return pack_padded_sequence(y, lengths).data

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.batch_sizes, ctx.lengths = inputs

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple:
        return _Pad.apply(d, ctx.batch_sizes, ctx.lengths), None, None


class _Pad(torch.autograd.Function):
    """Packed rows -> [T, B, .], zero beyond each length; its derivative is the packing."""

    @staticmethod
    def forward(data: Tensor, batch_sizes: Tensor, lengths: Tensor) -> Tensor:
        return pad_packed_sequence(PackedSequence(data, batch_sizes))[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.batch_sizes, ctx.lengths = inputs

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple:
        return _Pack.apply(d, ctx.batch_sizes, ctx.lengths), None, None


class Layout(NamedTuple):
    """The way in and out of the stack, which works on [T, B, .].

    A packed batch is run in its own order, the longest sequence first, as torch does; its states are put into that
    order on the way in and back on the way out. lengths [B] is None unless packed. rows: the stack works on the packed
    rows [rows, .] as they are, in place of [T, B, .].
    """

    batch_first: bool
    batched: bool
    packed: PackedSequence | None = None
    lengths: Tensor | None = None
    lengths_cpu: Tensor | None = None
    rows: bool = False

    def state_in(self, s: Tensor) -> Tensor:
        """A state as the user gives it -> [layers * dirs, B, .]."""
        if self.packed is not None and self.packed.sorted_indices is not None:
            return s.index_select(1, self.packed.sorted_indices)
        return s if self.batched else s.unsqueeze(1)

    def state_out(self, s: Tensor) -> Tensor:
        """A state [layers * dirs, B, .] -> as the user gets it."""
        return self._steps_order(s, 1) if self.batched else s.squeeze(1)

    def output(self, y: Tensor) -> Tensor | PackedSequence:
        """The output [T, B, .] -> the layout of the input."""
        if self.packed is not None:
            return self.packed._replace(data=y if self.rows else self._pack(y))
        if not self.batched:
            return y.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y

    def steps(self, s: Tensor) -> Tensor:
        """States [layers * dirs, T, B, .] -> the same, padded, with time and batch as in the input."""
        if not self.batched:
            return s.squeeze(2)
        s = self._steps_order(s, 2)
        return s.transpose(1, 2) if self.batch_first else s

    def dropout(self, y: Tensor, p: float) -> Tensor:
        """Leaves out elements of y [T, B, .]; draws the random numbers that torch's layers draw."""
        if p == 0:
            return y
        if self.packed is None or self.rows:
            return F.dropout(y, p)
        return self.padded(F.dropout(self._pack(y), p))

    def _steps_order(self, s: Tensor, dim: int) -> Tensor:
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return s.index_select(dim, self.packed.unsorted_indices)
        return s

    def padded(self, data: Tensor) -> Tensor:
        """Packed rows in the order of the input -> [T, B, .], zero beyond each length."""
        assert self.packed is not None and self.lengths_cpu is not None
        return _Pad.apply(data, self.packed.batch_sizes, self.lengths_cpu)

    def _pack(self, y: Tensor) -> Tensor:
        assert self.packed is not None and self.lengths_cpu is not None
        return _Pack.apply(y, self.packed.batch_sizes, self.lengths_cpu)


def enter_rows(input: PackedSequence) -> tuple[Tensor, Layout]:
    """The packed rows as they are, and their layout."""
    return input.data, Layout(False, True, input, rows=True)


def enter(input: Tensor | PackedSequence, batch_first: bool) -> tuple[Tensor, Layout]:
    """The input as x [T, B, D], and the layout it came in. The input must be packed, 2-D (unbatched) or 3-D."""
    if isinstance(input, PackedSequence):
        # Without the indices, what comes back is in the packed order.
        lengths = _lengths(input.batch_sizes)
        x = _Pad.apply(input.data, input.batch_sizes, lengths)
        return x, Layout(False, True, input, lengths.to(x.device), lengths)
    if input.dim() == 2:
        return input.unsqueeze(1), Layout(batch_first, False)
    return (input.transpose(0, 1) if batch_first else input), Layout(batch_first, True)


def _lengths(batch_sizes: Tensor) -> Tensor:
    """How many steps each sequence has, the longest first, from how many sequences each step has."""
    ended = -batch_sizes.diff(append=batch_sizes.new_zeros(1))  # after step t
    return torch.repeat_interleave(torch.arange(1, len(ended) + 1), ended).flip(0)
