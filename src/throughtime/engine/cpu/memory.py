"""Memory for the kernels to write to: fresh, or what the last training step of the same weights had."""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from throughtime.engine.cpu import library

# From here on, memory is asked for in large pages, and used again: the system hands it out anew, page by page, zeroed.
MANY = 1 << 22  # bytes


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory to be written; of many megabytes in large pages, which cost less to touch for the first time."""
    out = torch.empty(shape, dtype=dtype)
    if out.nbytes > MANY:
        library.load().tt_large_pages(out.data_ptr(), out.nbytes)
    return out


class Lent:
    """Memory that is lent to one training step after the other of the same weight, as long as the weight lives.

    Fresh pages of what a step keeps cost up to a tenth of the step. A loan ends when nothing refers to the memory any
    more, however it was passed on; `release` gives back to the system what is not lent.
    """

    def __init__(self) -> None:
        self._free: dict[int, tuple[Any, list[Tensor]]] = {}  # by the weight's id
        self._lock = threading.RLock()  # a loan may end while another is being made

    def room(self, weight: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory to be written."""
        n, size = math.prod(shape), math.prod(shape) * dtype.itemsize
        if size <= MANY:
            return torch.empty(shape, dtype=dtype)
        with self._lock:
            free = self._blocks(weight)
            fits = next((k for k, b in enumerate(free) if size <= b.nbytes <= 2 * size), None)
            if fits is None:
                free.clear()  # what was kept for other sizes
                block = fresh((n,), dtype).view(torch.uint8)
            else:
                block = free.pop(fits)
        memory = (ctypes.c_byte * block.nbytes).from_address(block.data_ptr())
        weakref.finalize(memory, self._end, weakref.ref(weight), block).atexit = False
        return torch.frombuffer(memory, dtype=dtype, count=n).view(shape)

    def release(self, weight: Tensor) -> None:
        """Gives back what is kept for a weight and not lent."""
        self._free.pop(id(weight), None)

    def _blocks(self, weight: Tensor) -> list[Tensor]:
        entry = self._free.get(id(weight))
        if entry is None or entry[0]() is not weight:
            key, known = id(weight), self._free

            def forget(gone: Any) -> None:
                if key in known and known[key][0] is gone:
                    del known[key]

            entry = known[key] = (weakref.ref(weight, forget), [])
        return entry[1]

    def _end(self, weight: Any, block: Tensor) -> None:
        with self._lock:
            owner = weight()
            if owner is not None and id(owner) in self._free:
                self._blocks(owner).append(block)

    def __len__(self) -> int:
        return sum(len(blocks) for _, blocks in self._free.values())


lent = Lent()
