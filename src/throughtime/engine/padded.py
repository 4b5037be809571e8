"""The derivative of a walk over packed rows, to be differentiated again: by the operator, on the padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from throughtime.engine.cpu.packed_batch import PackedRows
from throughtime.engine.operands import Operands


def padded_backward(
    text: str,
    batch: PackedRows,
    rule: tuple[bool, float | None, bool],
    v: Operands,
    sequences: Sequence[Tensor],
    kept: Tensor,
    d_sequences: Sequence[Tensor],
    d_finals: Sequence[Tensor],
    need_dx: bool,
) -> list[Tensor | None]:
    """The gradients that `throughtime::unroll_backward` gives, that of x for the packed rows (None unless need_dx).

    v.x, sequences and d_sequences [rows, .]; kept as the kernels wrote it; rule: reverse, clip, truncated.
    """

    def padded(a: Tensor) -> Tensor:
        room = a.new_zeros(batch.T * batch.B, a.shape[1])
        return room.index_copy(0, batch.places, a.contiguous()).view(batch.T, batch.B, -1)

    # What was kept stands in the kernels' order, rows first.
    room = kept.new_zeros(batch.T * batch.B, kept.shape[1])
    room[: batch.rows] = kept
    dx, *others = torch.ops.throughtime.unroll_backward(
        text, padded(v.x), *v[1:], batch.lengths, [padded(s) for s in sequences], room.view(batch.T, batch.B, -1),
        [padded(d) for d in d_sequences], list(d_finals), *rule, "cpu", "fast", need_dx,
    )  # fmt: skip
    return [dx.reshape(batch.T * batch.B, -1).index_select(0, batch.places) if need_dx else None, *others]
