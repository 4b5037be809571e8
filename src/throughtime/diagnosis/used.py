"""How far back a model uses its inputs, from one batch and its loss: what `use_horizon` asks for, made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.diagnosis.batches import Batch
from throughtime.diagnosis.sequences import Axes, Unseen
from throughtime.diagnosis.use import LEAST, Use, use_horizon
from throughtime.errors import FlowError

LAGS = 32  # at most, for the model runs once for each


def measure_use(model: nn.Module, batch: Batch, of: Callable[[Any, Batch], Tensor], axes: Axes) -> Use:
    """The use of the past at the last step of a batch, each sequence one observation, in eval mode.

    The loss of one sequence is that of its slice of output and targets. axes: of the first recurrence
    (`sequences.axes_of`). Raises Unseen where output, inputs or targets do not show their sequences.
    """
    T, B, batch_first = axes
    x, y = (batch.args[0] if batch.args else None), batch.targets
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise Unseen("it needs one tensor of inputs, and targets beside them")
    if B < LEAST:
        raise Unseen(f"at least {LEAST} sequences are needed; the batch has {B}")
    came = list(x.shape[:2])
    if came not in ([B, T], [T, B]):
        raise Unseen(f"the input {list(x.shape)} does not show the {T} steps and {B} sequences of the recurrent layer")
    flip = batch_first if T == B else came == [B, T]

    def cut(v: Tensor, b: int, what: str) -> Tensor:
        """What belongs to sequence b, of its last step where there are several."""
        if v.dim() >= 2 and tuple(v.shape[:2]) == ((B, T) if flip else (T, B)) and T > 1:
            return v[b : b + 1, -1:] if flip else v[-1:, b : b + 1]
        if v.shape[0] == T * B and T > 1:
            own = v.view(*((B, T) if flip else (T, B)), *v.shape[1:])
            return own[b, -1:] if flip else own[-1, b : b + 1]
        if v.shape[0] == B:
            return v[b : b + 1]
        if v.dim() >= 2 and tuple(v.shape[:2]) == (1, B):  # a label for each, at one step
            return v[:, b : b + 1]
        raise Unseen(f"the {what} {list(v.shape)} does not show {B} sequences")

    def losses(inputs: Tensor) -> Tensor:
        out = model(inputs, *batch.args[1:], **batch.kwargs)
        several = isinstance(out, tuple | list)
        shown = out[0] if several else out
        if not isinstance(shown, Tensor):
            raise Unseen("the model's output is no tensor")
        found = []
        for b in range(B):
            part = cut(shown, b, "output")
            given = (part, *out[1:]) if several else part
            found.append(of(given, Batch((), {}, cut(y, b, "targets"))))
        return torch.stack([v.detach().reshape(()) for v in found])

    model.eval()
    far = T - 1
    lags = sorted({round(far * k / (LAGS - 1)) for k in range(LAGS)} | set(range(min(far, 8) + 1)))
    try:
        return use_horizon(losses, x, lags, batch_first=flip)
    except FlowError as error:
        raise Unseen(str(error)) from None
