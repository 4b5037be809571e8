"""One call of the kernels: all that a problem's sizes decide, worked out once, and the structure filled for a call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime.engine.cpu import library
from throughtime.engine.cpu.compiled import Columns, Programs, arrange, compiled, everything, ints, sizes_of
from throughtime.engine.cpu.library import ForwardCall
from throughtime.engine.cpu.packing import Layout, PackCache, layout, panels_array
from throughtime.engine.cpu.program import Sizes
from throughtime.engine.tape import Tape

# Rows of a chunk of steps, over the whole batch: its net inputs stay in the second-level cache.
CHUNK = 256
# Below this many multiply-adds a call runs on one thread: waking the others costs more.
SMALL = 1 << 19

cache = PackCache()


@dataclass(frozen=True, eq=False)
class Plan:
    """What a tape at one set of sizes, dtypes and threads needs, whatever the length of the batch."""

    tape: Tape
    sizes: Sizes
    columns: Columns
    programs: Programs
    kept_row: int
    D: int
    double: bool
    low: bool  # weights and x in bf16
    pairs: bool  # and the machine multiplies bf16 itself
    threads: int
    row_groups: int
    W: Layout
    U: Layout
    W_back: Layout
    U_back: Layout
    matrices: tuple[Layout, ...]
    matrices_back: tuple[Layout, ...]
    column_of: Any
    state_widths: Any
    x_blocks: Any
    h_blocks: Any
    shapes: Any

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32


# By the tape's identity: to compare tapes would take longer than a step of one. The plan keeps its tape alive.
_plans: dict[tuple, Plan] = {}


def plan(
    tape: Tape, rows: int, B: int, D: int, W: Tensor, b: Tensor, matrices: Sequence[Tensor], states: Sequence[Tensor],
    shown: tuple[bool, ...] | None,
) -> Plan:  # fmt: skip
    """The plan for a batch of B sequences and `rows` steps in all; shown: as in `compiled`, None for inference."""
    lib = library.load()
    isa, threads = lib.tt_current(), torch.get_num_threads()
    H, P = b.shape[0] // len(tape.columns), states[0].shape[1]
    C = arrange(tape.columns)
    if rows * H * (C.nx * D + C.nh * P) < SMALL:
        threads = 1
    row_groups = _row_groups(B, threads)
    shapes = tuple((int(m.shape[0]), int(m.shape[1])) for m in matrices)
    key = (id(tape), D, H, P, shapes, W.dtype, states[0].dtype, threads, row_groups, isa, shown)
    found = _plans.get(key)
    if found is not None and found.tape is tape:
        return found
    sizes = sizes_of(tape, H, P, shapes)
    programs = compiled(tape, sizes, shown)
    full = programs if shown is None else compiled(tape, sizes, everything(tape))
    double, low = states[0].dtype == torch.float64, W.dtype == torch.bfloat16
    pairs = low and library.ISAS[isa] == "avx512_bf16"
    lanes = lib.tt_lanes(int(double))
    width = lanes * min(lib.tt_panel_vectors(), max(1, -(-H // (lanes * (threads // row_groups)))))
    padded = -(-H // lanes) * lanes
    x_blocks, h_blocks = C.x_blocks[: C.nx], C.h_blocks[C.h0 :]

    def how(turned: bool, blocks: tuple[int, ...], n: int, up_to: int) -> Layout:
        return layout(turned, blocks, n, up_to, width, pairs, isa)

    if len(_plans) > 1024:
        _plans.clear()
    made = _plans[key] = Plan(
        tape, sizes, C, programs, padded_row(full.forward.kept_row), D, double, low, pairs, threads, row_groups,
        how(True, x_blocks, H, H), how(True, h_blocks, H, H),
        how(False, x_blocks, H, padded), how(False, h_blocks, H, padded),
        tuple(how(True, (0,), n, n) for n, _ in shapes), tuple(how(False, (0,), n, n) for n, _ in shapes),
        ints(C.order), ints(sizes.states), ints(C.x_blocks), ints(C.h_blocks), ints([n for s in shapes for n in s]),
    )  # fmt: skip
    return made


def padded_row(n: int) -> int:
    """Numbers from one row of what is kept to the next: rows a multiple of 2 KiB apart fall on the same cache sets."""
    return n + 16 if n and n % 512 == 0 else n


def _row_groups(B: int, threads: int) -> int:
    """Into how many groups of sequences a batch is split; the threads left over split the units of a group."""
    for groups in range(threads, 1, -1):
        if threads % groups == 0 and 4 * groups <= B:
            return groups
    return 1


class Call:
    """The part of a call that both directions share. It keeps alive what the structure points to."""

    def __init__(
        self, p: Plan, backward: bool, T: int, B: int, offset: Any, x: Tensor, W: Tensor, U: Tensor, b: Tensor,
        units: Sequence[Tensor], matrices: Sequence[Tensor], first: Sequence[Tensor], reverse: bool,
        sequences: Sequence[Tensor], finals: Sequence[Tensor], kept: Tensor,
    ):  # fmt: skip
        words = x
        if p.low and not p.pairs:
            words = x.float()
        elif p.low and p.D % 2:
            words = torch.nn.functional.pad(x, (0, 1))
        C, threads = p.columns, p.threads
        program = p.programs.backward if backward else p.programs.forward
        assert program is not None
        packed_W, packed_U = cache.get(W, p.W, threads), cache.get(U, p.U, threads)
        packed = [cache.get(m, how, threads) for m, how in zip(matrices, p.matrices, strict=True)]
        pointers = [addresses(units), addresses(first), addresses(sequences), addresses(finals)]
        array = panels_array(packed)
        self.keep = (
            p,
            offset,
            words,
            packed_W,
            packed_U,
            packed,
            array,
            pointers,
            units,
            first,
            sequences,
            finals,
            kept,
            b,
        )
        at = ctypes.addressof
        self.struct = ForwardCall(
            program.address, at(offset), at(p.column_of), T, B, p.D, p.sizes.H, p.sizes.states[0], len(first),
            len(units), len(C.order), C.nx, C.h0, C.nh, reverse, p.double, p.pairs, threads, words.data_ptr(),
            b.data_ptr(),
            packed_W.address, packed_U.address, at(array), at(pointers[0]), at(pointers[1]), at(p.state_widths),
            at(pointers[2]), at(pointers[3]), kept.data_ptr(), p.kept_row, CHUNK, p.row_groups,
        )  # fmt: skip


def addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    """Where tensors begin, 0 for None."""
    return (ctypes.c_void_p * max(1, len(tensors)))(*[None if t is None else t.data_ptr() for t in tensors])


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory to be written; of many megabytes in large pages, which cost less to touch for the first time."""
    out = torch.empty(shape, dtype=dtype)
    if out.numel() > 1 << 20:
        library.load().tt_large_pages(out.data_ptr(), out.nbytes)
    return out
