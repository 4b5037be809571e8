"""A batch of sequences of several lengths without its padding: the longest first, step after step."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch
from torch import Tensor

from throughtime.engine.cpu import library


class PackedBatch:
    """The rows [T * B] of a batch in the kernels' order; without lengths, the batch as it is.

    Step t has rows offset[t] .. offset[t + 1): the sequences still running, the longest first, as in torch's
    PackedSequence.
    """

    def __init__(self, T: int, B: int, lengths: Tensor | None):
        self.T, self.B, self.start, self.begin = T, B, 0, 0
        self.index: Tensor | None = None
        if lengths is None or B == 0 or int(lengths.min()) >= T:
            self.offset = _even(T, B)
            self.rows = T * B
            return
        ordered, self.order = torch.sort(lengths, descending=True, stable=True)
        running = torch.arange(T)[:, None] < ordered
        counts = running.sum(1)
        self.rows = int(counts.sum())
        self.offset = (ctypes.c_int64 * (T + 1))(0, *counts.cumsum(0).tolist())
        self.index = (torch.arange(T)[:, None] * B + self.order)[running]

    def at(self, t: int) -> slice:
        """The rows of step t; none outside the batch."""
        return slice(self.offset[t], self.offset[t + 1]) if 0 <= t < self.T else slice(0, 0)

    def part(self, t0: int, t1: int) -> PackedBatch:
        """Steps t0 .. t1 - 1 as a batch of their own: rows from `begin`, steps from `start`."""
        part = object.__new__(PackedBatch)
        part.T, part.start, part.begin, part.index = t1 - t0, t0, self.offset[t0], None
        part.B = self.offset[t0 + 1] - part.begin
        part.rows = self.offset[t1] - part.begin
        part.offset = (ctypes.c_int64 * (part.T + 1))(*(self.offset[t] - part.begin for t in range(t0, t1 + 1)))
        return part

    def gather(self, a: Tensor) -> Tensor:
        """[T, B, n] -> [rows, n]"""
        if self.index is None:
            return a.reshape(self.T * self.B, a.shape[2])
        return self._move(a.new_empty(self.rows, a.shape[2]), a, scatter=False)

    def spread(self, a: Tensor) -> Tensor:
        """[rows, n] -> [T, B, n], zero beyond each sequence's length"""
        if self.index is None:
            return a.view(self.T, self.B, a.shape[1])
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
        a = a.contiguous()
        library.load().tt_move_rows(
            out.data_ptr(), a.data_ptr(), self.index.data_ptr(), self.rows, a.shape[-1] * a.element_size(), scatter,
            torch.get_num_threads(),
        )  # fmt: skip
        return out


@lru_cache(maxsize=64)
def _even(T: int, B: int) -> ctypes.Array:
    return (ctypes.c_int64 * (T + 1))(*(t * B for t in range(T + 1)))
