"""Many gradients sent back through one pass by the CPU kernels, side by side: the (t,k) map of the gradient."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from throughtime.cells import Column
from throughtime.engine.arrived import Arrived, Asked, Ready
from throughtime.engine.cpu import library, plan
from throughtime.engine.cpu.backend import refusal
from throughtime.engine.cpu.call import addresses
from throughtime.engine.cpu.compiled import Compiled, arrange, ints, sizes_of
from throughtime.engine.cpu.laid_out import LaidOut
from throughtime.engine.cpu.library import MapCall
from throughtime.engine.cpu.lower import lower
from throughtime.engine.cpu.packing import Packed, layout, pack, panels_array
from throughtime.engine.cpu.program import Sizes
from throughtime.engine.linear import LinearStep, laid_out, linear_step
from throughtime.engine.tape import Tape
from throughtime.errors import BackendError

# Rows of a block, at most: all of them share one folding of the recurrent weights at each step.
BLOCK = 256
# Tasks for each thread, at least, where there is enough to share out: they are not of one length.
TASKS = 4
# Where the total gradient of a state stands, as the kernels number it; see `LinearStep.totals`.
KINDS = {"own": 0, "base": 1, "given": 2}


@lru_cache(maxsize=256)
def _compiled(step: LinearStep, sizes: Sizes, kept: tuple[int, ...]) -> Compiled:
    tape = step.tape
    names = [tape.columns[k].name for k in arrange(tape.columns).order]
    if step.bases:
        names = [str(j) for j in range(step.bases)]
    states = tuple(i.name for i in tape.inputs if i.kind == "d")
    return Compiled(lower(tape, sizes, names, states, kept))


@dataclass(frozen=True, eq=False)
class Prepared(Ready):
    """A pass made ready: what each step multiplies by, the program of the step, and the weights packed.

    dtype: in what the kernels compute, float64 or float32. The latter takes half the time and has a relative error of
    about 1e-6; the range is that of float64 all the same, for every row is kept near 1 by a power of two of its own.
    """

    T: int
    B: int
    H: int
    states: tuple[int, ...]
    dtype: torch.dtype
    step: LinearStep
    program: Compiled
    n_kept: int
    factors: int  # where in a row of `kept` what the bases are multiplied by begins
    kept: Tensor
    units: list[Tensor]
    U: Packed
    W: Packed
    matrices: list[Packed]
    turned: list[Packed]
    columns: tuple[Column, ...]
    lengths: Tensor | None
    reverse: bool
    truncated: bool
    D: int
    multiplications: int  # that a row of one sequence takes a step

    def _send(self, asked: Asked) -> Arrived:
        loss_steps, direct, above, want_dx, input_slope, want_values, each = asked
        T, B, S = self.T, self.B, len(self.states)
        starts = list(loss_steps) if above is None else self._starts(loss_steps, direct, above)
        order = sorted(range(len(loss_steps)), key=lambda i: starts[i], reverse=not self.reverse)
        n = len(order)
        threads = torch.get_num_threads()
        if n * T // 2 * B * self.multiplications < plan.SMALL:
            threads = 1
        sharing = -(-TASKS * threads // max(1, B)) if threads > 1 else 1
        block = max(1, min(BLOCK, -(-n // sharing)))
        blocks = -(-n // block)
        parts = min(B, -(-TASKS * threads // max(1, blocks))) if threads > 1 else 1
        parts = max(1, B if each else parts)
        sizes = torch.zeros(parts, 1 + S, T, n, dtype=torch.float64)
        dx = torch.zeros(n, T, B, self.D, dtype=torch.float64) if want_dx else None
        values = None
        if want_values:
            values = [torch.zeros(n, T, B, w, dtype=torch.float64) for w in (len(self.columns) * self.H, *self.states)]
        if n and B:
            direct = None if direct is None else [None if v is None else _plain(v) for v in direct]
            above = None if above is None else [None if v is None else _plain(_picked(v, order)) for v in above]
            slope = None if input_slope is None else _plain(input_slope)
            self._call(
                [loss_steps[i] for i in order], [starts[i] for i in order], direct, above, slope, dx, sizes, values,
                block, parts, each, threads,
            )  # fmt: skip
        back = torch.tensor(order).argsort()
        if order != list(range(n)):
            dx = None if dx is None else dx[back]
            values = None if values is None else [v[back] for v in values]
        sizes = sizes.mT[..., back, :]  # [parts, 1 + S, rows, T]
        return Arrived(sizes[:B].transpose(0, 1) if each else sizes[0], dx, values)

    def _starts(
        self, loss_steps: Sequence[int], direct: Sequence[Tensor | None] | None, above: Sequence[Tensor | None]
    ) -> list[int]:
        """The step at which each row begins: where something first enters, in the order of the walk back."""
        enters = torch.zeros(len(loss_steps), self.T, dtype=torch.bool)
        if direct is not None and any(v is not None for v in direct):
            enters[torch.arange(len(loss_steps)), torch.tensor(loss_steps, dtype=torch.int64)] = True
        for v in above:
            if v is not None:
                enters |= (v != 0).flatten(2).any(2)
        first = enters.int().argmax(1) if self.reverse else self.T - 1 - enters.flip(1).int().argmax(1)
        never = self.T if self.reverse else -1
        return torch.where(enters.any(1), first, never).tolist()

    def _call(self, loss_steps, starts, direct, above, slope, dx, sizes, values, block, parts, apart, threads) -> None:
        T, B, C = self.T, self.B, arrange(self.columns)
        lengths = [T] * B if self.lengths is None else self.lengths.tolist()
        step = self.step
        kinds, ats = zip(*step.totals, strict=True)
        folded = [
            ints([step.columns[c][0] for c in C.order] if step.bases else []),
            ints([KINDS[k] for k in kinds]),
            ints(ats),
        ]
        arrays = [
            ints(C.order), ints(self.states), ints(lengths), ints(loss_steps), ints(starts), addresses(self.units),
            panels_array(self.matrices), panels_array(self.turned),
        ]  # fmt: skip
        maybe = [None if v is None else addresses(v) for v in (direct, above, values)]
        column_of, widths, ends, losses, begins, units, matrices, turned = map(ctypes.addressof, arrays)
        from_direct, from_above, arrived = (None if v is None else ctypes.addressof(v) for v in maybe)
        struct = MapCall(
            program=self.program.address, column_of=column_of, T=T, B=B, D=self.D, H=self.H, S=len(self.states),
            C=len(C.order), nx=C.nx, h0=C.h0, nh=C.nh, reverse=self.reverse, truncated=self.truncated,
            dtype=self.dtype == torch.float64, threads=threads, bases=step.bases,
            bases_x=sum(r < 2 for r in step.base_ranks), base_h=sum(r < 1 for r in step.base_ranks),
            base_of=ctypes.addressof(folded[0]), factors=self.factors, total_kind=ctypes.addressof(folded[1]),
            total_at=ctypes.addressof(folded[2]), rows=len(loss_steps), block=block, parts=parts, apart=apart,
            n_kept=self.n_kept, kept_row=self.kept.shape[-1], state_widths=widths, lengths=ends, loss_steps=losses,
            starts=begins, kept=self.kept.data_ptr(), units=units, Wt=self.W.address, Ut=self.U.address,
            matrices=matrices, turned_matrices=turned, direct=from_direct, above=from_above,
            input_slope=None if slope is None else slope.data_ptr(), dx=None if dx is None else dx.data_ptr(),
            sizes=sizes.data_ptr(), arrived=arrived,
        )  # fmt: skip
        library.load().tt_map(ctypes.byref(struct))


def prepare(
    tape: Tape,
    z: Tensor,
    W: Tensor,
    U: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    before: Sequence[Tensor],
    lengths: Tensor | None,
    reverse: bool,
    truncated: bool,
    dtype: torch.dtype = torch.float64,
) -> Prepared:
    """Makes a pass ready: z [T, B, C * H] are its net inputs, before [T, B, .] its states before each step.

    Raises BackendError for what the kernels cannot take.
    """
    why = refusal(z, W, U, matrices, before)
    if why is not None:
        raise BackendError(f'{why}; choose backend="torch"')
    if dtype not in (torch.float32, torch.float64):
        raise BackendError(f"the gradient is followed in float64 or float32; came {dtype}")
    order, H = arrange(tape.columns).order, z.shape[2] // len(tape.columns)
    laid = LaidOut(*laid_out(linear_step(tape), z, before, units, matrices, order, plan.padded_row, dtype))
    return prepare_laid_out(tape, laid, H, before[0].shape[-1], W, U, matrices, lengths, reverse, truncated)


def prepare_laid_out(
    tape: Tape,
    laid: LaidOut,
    H: int,
    P: int,
    W: Tensor,
    U: Tensor,
    matrices: Sequence[Tensor],
    lengths: Tensor | None,
    reverse: bool,
    truncated: bool,
) -> Prepared:
    """The same from what the linear steps multiply by, in its dtype; P: how wide the first state is, H the others."""
    lib, C, step, dtype = library.load(), arrange(tape.columns), linear_step(tape), laid.kept.dtype
    T, B = laid.kept.shape[:2]
    sizes = sizes_of(tape, H, P, [(int(m.shape[0]), int(m.shape[1])) for m in matrices])
    program = _compiled(step, sizes, laid.widths)
    lanes, isa, threads = lib.tt_lanes(int(dtype == torch.float64)), lib.tt_current(), torch.get_num_threads()
    width, padded = lanes * min(lib.tt_panel_vectors(), max(1, -(-H // lanes))), -(-H // lanes) * lanes

    def packed(v: Tensor, turned: bool, blocks: tuple[int, ...], n: int, up_to: int) -> Packed:
        return pack(v.detach().to(dtype), layout(turned, blocks, n, up_to, width, False, isa), threads)

    x_blocks, h_blocks = C.x_blocks[: C.nx], C.h_blocks[C.h0 :]
    return Prepared(
        T, B, H, sizes.states, dtype, step, program, len(laid.widths), sum(laid.widths), laid.kept, laid.units,
        packed(U, False, h_blocks, H, padded), packed(W, False, x_blocks, H, padded),
        [packed(m, True, (0,), m.shape[0], m.shape[0]) for m in matrices],
        [packed(m, False, (0,), m.shape[0], m.shape[0]) for m in matrices],
        tape.columns, lengths, reverse, truncated, int(W.shape[1]),
        C.nh * H * sizes.states[0] + sum(m.numel() for m in matrices) + len(C.order) * H,
    )  # fmt: skip


def _plain(v: Tensor) -> Tensor:
    return v.detach().to(torch.float64).contiguous()


def _picked(v: Tensor, order: Sequence[int]) -> Tensor:
    return v if list(order) == list(range(len(order))) else v[torch.tensor(order)]
