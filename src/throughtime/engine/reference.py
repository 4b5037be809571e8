"""The per-step loop in torch: slow, obvious, differentiable any number of times; the definition of correct."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from throughtime.cells import Column

Step = Callable[[list[Tensor]], Sequence[Tensor]]  # [*z, *s, *w, *m] -> new states


def unroll(
    step: Step,
    columns: Sequence[Column],
    x: Tensor,
    W: Tensor,
    U: Tensor,
    b: Tensor,
    units: Sequence[Tensor],
    matrices: Sequence[Tensor],
    states: Sequence[Tensor],
    lengths: Tensor | None = None,
    reverse: bool = False,
    truncated: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Runs a step over x [T, B, D] from `states`; the states at every step [T, B, .] and the last ones [B, .].

    z_t = x_t W^T + b + h_{t-1} U^T, block by block as `columns` say; b is [len(columns) * H]. Beyond a sequence's
    length its states stand still and its output is 0. With `truncated` no gradient flows through h_{t-1} U^T
    into h_{t-1}.
    """
    T, dtype = x.shape[0], states[0].dtype
    H = b.shape[0] // len(columns)
    xs = F.linear(x, W).to(dtype)
    now = list(states)
    history: list[list[Tensor]] = [[] for _ in states]
    for t in reversed(range(T)) if reverse else range(T):
        h = now[0].detach() if truncated else now[0]
        hs = F.linear(h.to(U.dtype), U).to(dtype)
        z = []
        for k, column in enumerate(columns):
            parts = [b[k * H : (k + 1) * H].expand(h.shape[0], H)]
            if column.x is not None:
                parts.append(xs[t, :, column.x * H : (column.x + 1) * H])
            if column.h is not None:
                parts.append(hs[:, column.h * H : (column.h + 1) * H])
            z.append(sum(parts[1:], parts[0]))
        new = step([*z, *now, *units, *matrices])
        if lengths is None:
            now = [v.expand_as(old) for v, old in zip(new, now, strict=True)]
            shown = now
        else:
            valid = (t < lengths)[:, None]
            now = [torch.where(valid, v, old) for v, old in zip(new, now, strict=True)]
            shown = [torch.where(valid, v, torch.zeros_like(v)) for v in now]
        for steps, value in zip(history, shown, strict=True):
            steps.append(value)
    if reverse:
        history = [steps[::-1] for steps in history]
    return [torch.stack(steps) for steps in history], now
