"""Weights packed for the kernels, once for each version of a weight."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.engine.cpu import library
from throughtime.engine.cpu.library import Packing, Panels


@dataclass(frozen=True, eq=False)
class Layout:
    """How a weight is packed.

    turned: for a product a M^T: each row block is a group, its columns the block's rows; else for a M: the sum runs
    over the rows of the blocks, each block padded with zeros to `padded` rows. width: panel width in numbers.
    pairs: bf16 pairs for the machine's own bf16 product; else bf16 is widened to float32.
    """

    turned: bool
    blocks: tuple[int, ...]
    rows: int
    padded: int
    width: int
    pairs: bool
    isa: int


@lru_cache(maxsize=4096)
def layout(turned: bool, blocks: tuple[int, ...], rows: int, padded: int, width: int, pairs: bool, isa: int) -> Layout:
    """The one layout of this kind, so that layouts are compared by identity."""
    return Layout(turned, blocks, rows, padded, width, pairs, isa)


class Packed(NamedTuple):
    """A packed weight: its memory, the structure that the kernels read, and where the structure stands."""

    memory: Tensor
    panels: Panels
    address: int


def pack(weight: Tensor, how: Layout, threads: int) -> Packed:
    """Packs a weight [rows * blocks, columns]."""
    lib = library.load()
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    lanes = lib.tt_lanes(int(dtype == torch.float64))
    weight = weight.detach().contiguous()
    columns = weight.shape[1]
    if how.turned:
        words, n, groups = (columns + 1) // 2 if how.pairs else columns, how.rows, len(how.blocks)
    else:
        each = (how.padded + 1) // 2 if how.pairs else how.padded
        words, n, groups = each * len(how.blocks), columns, 1
    # The product fetches a few rows beyond the end, which must be memory but are not used.
    memory = torch.empty(groups * words * (-(-n // lanes) * lanes) + 1024, dtype=dtype)
    blocks = (ctypes.c_int64 * max(1, len(how.blocks)))(*how.blocks)
    if words and n and groups:
        call = Packing(
            memory.data_ptr(), weight.data_ptr(), ctypes.addressof(blocks), len(how.blocks), how.rows, columns, columns,
            words, how.width, how.turned, weight.dtype == torch.bfloat16, how.pairs, int(dtype == torch.float64),
        )  # fmt: skip
        lib.tt_pack(ctypes.byref(call), threads)
    panels = Panels(memory.data_ptr(), words, n, how.width, groups)
    return Packed(memory, panels, ctypes.addressof(panels))


class PackCache:
    """Packed weights by weight: found again as long as the weight lives and nobody has written to it.

    A write that torch counts is seen by its `_version`. A write behind torch's back, through `.data` or numpy, is seen
    by a checksum of the whole weight: to read a weight once costs little beside a product with it.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Any, tuple, dict[Layout, Packed]]] = {}
        self._checksum: Any = None

    def get(self, weight: Tensor, how: Layout, threads: int) -> Packed:
        if weight.is_inference() or not weight.is_contiguous():  # the first keeps no version
            return pack(weight, how, threads)
        if self._checksum is None:
            self._checksum = library.load().tt_checksum
        at = weight.data_ptr()
        state = (weight._version, at, weight.shape, self._checksum(at, weight.nbytes))
        entry = self._entries.get(id(weight))
        if entry is None or entry[0]() is not weight or entry[1] != state:
            key, entries = id(weight), self._entries

            def forget(gone: Any) -> None:
                if key in entries and entries[key][0] is gone:
                    del entries[key]

            entry = entries[key] = (weakref.ref(weight, forget), state, {})
        packed = entry[2].get(how)
        if packed is None:
            packed = entry[2][how] = pack(weight, how, threads)
        return packed

    def __len__(self) -> int:
        return len(self._entries)


def panels_array(packed: Sequence[Packed]) -> Any:
    """An array of the structures, as the kernels take several matrices."""
    return (Panels * max(1, len(packed)))(*(p.panels for p in packed))
