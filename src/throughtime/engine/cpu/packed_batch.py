"""A batch of sequences of several lengths without its padding: the longest first, step after step."""

from __future__ import annotations

import ctypes
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from throughtime.engine.cpu import library
from throughtime.engine.cpu.library import ForwardCall
from throughtime.engine.cpu.memory import fresh
from throughtime.errors import ShapeError


class PackedBatch:
    """The rows [T * B] of a batch in the kernels' order; without lengths, the batch as it is.

    Step t has rows offset[t] .. offset[t + 1): the sequences still running, the longest first, as in torch's
    PackedSequence. running: how many of the B sequences have a step at all.
    """

    def __init__(self, T: int, B: int, lengths: Tensor | None):
        self.T, self.B = T, B
        self.index: Tensor | None = None
        if lengths is None or B == 0 or int(lengths.min()) >= T:
            self.offset, self.rows, self.running = _even(T, B), T * B, B
            return
        ordered, self.order = torch.sort(lengths, descending=True, stable=True)
        there = torch.arange(T)[:, None] < ordered
        ends = there.sum(1).cumsum(0).tolist()
        self.offset, self.rows, self.running = (ctypes.c_int64 * (T + 1))(0, *ends), ends[-1], ends[0]
        self.index = (torch.arange(T)[:, None] * B + self.order)[there]

    def fill(self, call: ForwardCall, reverse: bool = False) -> None:
        """Fills in the rows of a call; the batch must live as long as the structure is used."""
        call.offset, call.T, call.B, call.reverse = ctypes.addressof(self.offset), self.T, self.running, reverse

    def room(self, n: int, dtype: torch.dtype) -> Tensor:
        """Memory for n numbers a row, to be written: [T, B, n], or [rows, n] where rows are packed."""
        return fresh(self.shape(n), dtype)

    def cleared(self, whole: Tensor) -> Tensor:
        """Memory of the shape [T, B, n] with what stands behind the packed rows set to zero."""
        if self.index is not None:
            whole.view(self.T * self.B, -1)[self.rows :].zero_()
        return whole

    def shape(self, n: int, whole: bool = False) -> tuple[int, ...]:
        """The shape of what `room` gives."""
        return (self.T, self.B, n) if whole or self.index is None else (self.rows, n)

    def gather(self, a: Tensor) -> Tensor:
        """[T, B, n], contiguous -> [rows, n]; as it is without lengths."""
        if self.index is None:
            return a
        return self._move(a.new_empty(self.rows, a.shape[2]), a, scatter=False)

    def spread(self, a: Tensor) -> Tensor:
        """What `room` gave -> [T, B, n], zero beyond each sequence's length"""
        if self.index is None:
            return a
        return self._move(a.new_zeros(self.T, self.B, a.shape[1]), a, scatter=True)

    def sorted(self, a: Tensor) -> Tensor:
        """[B, n] in the kernels' order"""
        return a if self.index is None else a[self.order]

    def unsorted(self, a: Tensor) -> Tensor:
        """[B, n] in the caller's order"""
        if self.index is None:
            return a
        out = torch.empty_like(a)
        out[self.order] = a
        return out

    def _move(self, out: Tensor, a: Tensor, scatter: bool) -> Tensor:
        assert self.index is not None
        library.load().tt_move_rows(
            out.data_ptr(), a.data_ptr(), self.index.data_ptr(), self.rows, a.shape[-1] * a.element_size(), scatter,
            torch.get_num_threads(),
        )  # fmt: skip
        return out


class PackedRows(PackedBatch):
    """A batch that comes and goes as packed rows [rows, n]: step t has sizes[t] of them, the longest sequence first.

    Raises ShapeError for sizes that grow, or that are none.
    """

    def __init__(self, sizes: tuple[int, ...]):
        if not sizes or sizes[-1] < 1 or any(a < b for a, b in pairwise(sizes)):
            raise ShapeError(
                "batch_sizes must say how many sequences are still running at each step, at least 1 and never more "
                f"than before; came {list(sizes[:8])}{'...' if len(sizes) > 8 else ''}"
            )
        ends = list(accumulate(sizes))
        self.T, self.B = len(sizes), sizes[0]
        self.offset, self.rows, self.running = (ctypes.c_int64 * (self.T + 1))(0, *ends), ends[-1], self.B
        self.index, self.sizes = None, sizes

    def shape(self, n: int, whole: bool = False) -> tuple[int, ...]:
        return (self.rows, n)

    @cached_property
    def places(self) -> Tensor:
        """Where each row stands in [T * B]: to pad it, and to pack it again."""
        there = torch.arange(self.B) < torch.tensor(self.sizes)[:, None]
        return torch.arange(self.T * self.B)[there.view(-1)]

    @cached_property
    def lengths(self) -> Tensor:
        """How many steps each sequence has, [B]."""
        return (torch.arange(self.B) < torch.tensor(self.sizes)[:, None]).sum(0)


def packed_batch(T: int, B: int, lengths: Tensor | None) -> PackedBatch:
    """The batch of these lengths; the last few are kept, for the backward pass comes after the forward pass."""
    return PackedBatch(T, B, None) if lengths is None else _packed(T, B, tuple(lengths.tolist()))


@lru_cache(maxsize=4)
def _packed(T: int, B: int, lengths: tuple[int, ...]) -> PackedBatch:
    with torch.inference_mode(False):
        return PackedBatch(T, B, torch.tensor(lengths, dtype=torch.int64))


@lru_cache(maxsize=4)
def packed_rows(sizes: tuple[int, ...]) -> PackedRows:
    """The batch of these sizes; the last few are kept, for the backward pass and the next layer come after."""
    with torch.inference_mode(False):
        return PackedRows(sizes)


@lru_cache(maxsize=64)
def _even(T: int, B: int) -> ctypes.Array:
    return (ctypes.c_int64 * (T + 1))(*(t * B for t in range(T + 1)))
