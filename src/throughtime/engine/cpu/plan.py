"""The plan of a call: all that a tape, its sizes, dtypes and threads decide, worked out once and kept."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.engine.cpu import library
from throughtime.engine.cpu.compiled import Columns, Programs, arrange, compiled, everything, ints, sizes_of
from throughtime.engine.cpu.library import BackwardCall, ForwardCall
from throughtime.engine.cpu.packing import Layout, layout
from throughtime.engine.cpu.program import Sizes
from throughtime.engine.tape import Tape

# Rows of a chunk of steps, over the whole batch: its net inputs stay in the second-level cache. Where they are too wide
# for that, longer chunks read and write the gradients of the weights less often.
CHUNK, WIDE, WIDE_CHUNK = 256, 1 << 20, 512
# Below this many multiply-adds a call runs on one thread: waking the others costs more.
SMALL = 1 << 19


@dataclass(frozen=True, eq=False)
class Plan:
    """What a tape at one set of sizes, dtypes and threads needs, whatever the length of the batch.

    forward, backward: the structures of a call with everything filled in that calls share; copied for each call.
    """

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
    forward: ForwardCall
    backward: BackwardCall | None
    arrays: tuple[Any, ...]  # what the structures point to

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.double else torch.float32


# By the tape's identity: to compare tapes would take longer than a step of one. The plan keeps its tape alive.
_plans: dict[tuple, Plan] = {}


class Kind(NamedTuple):
    """What of a call's tensors a plan depends on: input size, H, the first state's width, the shapes of the matrices,
    the dtype of the states and that of the products."""

    D: int
    H: int
    P: int
    matrices: tuple[tuple[int, int], ...]
    dtype: torch.dtype
    products: torch.dtype


def kind_of(tape: Tape, D: int, W: Tensor, b: Tensor, matrices: Sequence[Tensor], states: Sequence[Tensor]) -> Kind:
    """The kind of a call with these tensors."""
    shapes = tuple((int(m.shape[0]), int(m.shape[1])) for m in matrices)
    return Kind(D, b.shape[0] // len(tape.columns), states[0].shape[1], shapes, states[0].dtype, W.dtype)


def plan(tape: Tape, rows: int, B: int, kind: Kind, shown: tuple[bool, ...] | None) -> Plan:
    """The plan for a batch of B sequences and `rows` steps in all; shown: as in `compiled`, None for inference."""
    isa, threads = library.load().tt_current(), torch.get_num_threads()
    C = arrange(tape.columns)
    if rows * kind.H * (C.nx * kind.D + C.nh * kind.P) < SMALL:
        threads = 1
    row_groups = _row_groups(B, threads)
    key = (id(tape), kind, threads, row_groups, isa, shown)
    found = _plans.get(key)
    if found is not None and found.tape is tape:
        return found
    if len(_plans) > 1024:
        _plans.clear()
    made = _plans[key] = _make(tape, kind, isa, threads, row_groups, shown)
    return made


def _make(tape: Tape, kind: Kind, isa: int, threads: int, row_groups: int, shown: tuple[bool, ...] | None) -> Plan:
    D, dtype, sizes = kind.D, kind.dtype, sizes_of(tape, kind.H, kind.P, kind.matrices)
    lib, C, H = library.load(), arrange(tape.columns), sizes.H
    programs = compiled(tape, sizes, shown)
    full = programs if shown is None else compiled(tape, sizes, everything(tape))
    double, low = dtype == torch.float64, kind.products == torch.bfloat16
    pairs = low and library.ISAS[isa] in library.PAIRS
    lanes = lib.tt_lanes(int(double))
    width = lanes * min(lib.tt_panel_vectors(), max(1, -(-H // (lanes * (threads // row_groups)))))
    padded = -(-H // lanes) * lanes
    x_blocks, h_blocks = C.x_blocks[: C.nx], C.h_blocks[C.h0 :]
    kept_row = padded_row(full.forward.kept_row)
    chunk = WIDE_CHUNK if CHUNK * len(C.order) * H * dtype.itemsize > WIDE else CHUNK

    def how(turned: bool, blocks: tuple[int, ...], n: int, up_to: int) -> Layout:
        return layout(turned, blocks, n, up_to, width, pairs, isa)

    arrays = column_of, state_widths, x_at, h_at, shapes = (
        ints(C.order), ints(sizes.states), ints(C.x_blocks), ints(C.h_blocks),
        ints([n for shape in sizes.matrices for n in shape]),
    )  # fmt: skip

    def call(program: int) -> ForwardCall:
        at = ctypes.addressof
        return ForwardCall(
            program=program, column_of=at(column_of), state_widths=at(state_widths), D=D, H=H, P=sizes.states[0],
            S=len(sizes.states), n_units=len(tape.names("w")), C=len(C.order), nx=C.nx, h0=C.h0, nh=C.nh, dtype=double,
            pairs=pairs, threads=threads, kept_row=kept_row, chunk=chunk, row_groups=row_groups,
        )  # fmt: skip

    back = programs.backward
    backward = None if back is None else BackwardCall(
        forward=call(back.address), x_blocks=ctypes.addressof(x_at), h_blocks=ctypes.addressof(h_at), x_bf16=low,
        matrix_shapes=ctypes.addressof(shapes), pairs_of=ctypes.addressof(back.pairs), n_pairs=back.n_pairs,
        n_matrices=len(sizes.matrices),
    )  # fmt: skip
    return Plan(
        tape, sizes, C, programs, kept_row, D, double, low, pairs, threads, row_groups,
        how(True, x_blocks, H, H), how(True, h_blocks, H, H),
        how(False, x_blocks, H, padded), how(False, h_blocks, H, padded),
        tuple(how(True, (0,), n, n) for n, _ in sizes.matrices),
        tuple(how(False, (0,), n, n) for n, _ in sizes.matrices),
        call(programs.forward.address), backward, arrays,
    )  # fmt: skip


def padded_row(n: int) -> int:
    """Numbers from one row of what is kept to the next: rows a multiple of 2 KiB apart fall on the same cache sets."""
    return n + 16 if n and n % 512 == 0 else n


def _row_groups(B: int, threads: int) -> int:
    """Into how many groups of sequences a batch is split; the threads left over split the units of a group."""
    for groups in range(threads, 1, -1):
        if threads % groups == 0 and 4 * groups <= B:
            return groups
    return 1
