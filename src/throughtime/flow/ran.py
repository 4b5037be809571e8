"""A recurrence run again, forward through time: by the kernels that are chosen for it, else step by step in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine import cpu, torch_backend, triton
from throughtime.engine.backends import BACKENDS, choose, why_not
from throughtime.engine.cpu.laid_out import LaidOut, forward_laid_out
from throughtime.engine.operands import Operands
from throughtime.engine.rules import with_rule
from throughtime.engine.tape import Tape
from throughtime.engine.trace import tape_of

# Bytes that a walk may keep for the gradients that are sent back after it. Where it would be more, they are computed
# once they are needed, and one layer at a time.
MOST_KEPT = 1 << 28


def kernels_for(v: Operands, backend: str) -> str | None:
    """Which kernels run these operands, "cpu" or "triton"; None for torch.

    backend: what the layer runs on. It is followed where that backend can run what is measured, which may have another
    dtype than the layer; else, and for "reference", it is as for "auto".
    """
    how = (v.x.device.type, v.states[0].dtype, v.x.dtype)
    followed = backend in BACKENDS and why_not(backend, *how) is None
    name = choose(backend if followed else "auto", *how)[0]
    return name if name in ("cpu", "triton") else None


@torch.no_grad()
def run_forward(
    cell: Cell, v: Operands, lengths: Tensor | None, reverse: bool, backend: str
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Every state at every step [T, B, .], the states after the last step [B, .], and the net inputs [T, B, C * H] if
    they come with it."""
    tape = tape_of(cell)
    name = kernels_for(v, backend)
    if name is None:
        return torch_backend.forward(tape, *v, lengths, reverse, True)
    sequences, finals, _ = (cpu if name == "cpu" else triton).forward(tape, *v, lengths, reverse, False)
    return sequences, finals, None


@torch.no_grad()
def run_laid_out(
    cell: Cell, v: Operands, lengths: Tensor | None, reverse: bool, truncated: bool, backend: str
) -> tuple[list[Tensor], list[Tensor], LaidOut] | None:
    """The same states, and what the step's derivative multiplies by, which the walk keeps on its way.

    None where other kernels run it, or none, and where there would be too much of it.
    """
    if kernels_for(v, backend) != "cpu":
        return None
    return forward_laid_out(with_rule(tape_of(cell), None, truncated), *v, lengths, reverse, MOST_KEPT)


def net_inputs(tape: Tape, v: Operands, h: Tensor) -> Tensor:
    """z [T, B, C * H], all columns side by side, from the input and the shown state before each step, h [T, B, P]."""
    T, B, _ = v.x.shape
    C = len(tape.columns)
    H, X = v.b.shape[0] // C, v.W.shape[0]
    z = v.b.expand(T, B, C * H).clone()
    z[..., :X] += F.linear(v.x, v.W)
    if v.U.shape[0]:
        past = F.linear(h, v.U)
        for (c0, c1), (h0, h1) in torch_backend.column_runs(tape.columns):
            z[..., c0 * H : c1 * H] += past[..., h0 * H : h1 * H]
    return z
