"""The audit of the time axis: whether one sample of the batch is one sequence to the recurrent layer, or one step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.diagnosis.finding import Finding, Where
from throughtime.diagnosis.recording import Recording, record
from throughtime.errors import FlowError


def axis(
    model: nn.Module, args: tuple[Any, ...], recording: Recording, batch_axis: int | None, output: Any
) -> Iterator[Finding]:
    """Changes one sample and looks where the first recurrent layer's input changes: in one column, or in one step."""
    first, x = recording.calls[0] if recording.calls else None, args[0]
    if first is None or first.x is None or first.cell or first.batch == 1 or first.steps == 1:
        return
    if not isinstance(x, Tensor) or x.dim() < 2:
        return
    certain = batch_axis is not None
    if batch_axis is not None and not -x.dim() <= batch_axis < x.dim():
        raise FlowError(
            f"batch_axis {batch_axis} is no axis of the input {list(x.shape)}; give one from 0 to {x.dim() - 1}"
        )
    if batch_axis is None:
        # Without being told: one output for each of the layer's steps, and none for each of its samples.
        if not isinstance(output, Tensor) or output.dim() not in (1, 2) or output.shape[0] != first.steps:
            return
        if first.steps == first.batch or first.batch in output.shape or first.steps not in x.shape[:2]:
            return
        batch_axis = list(x.shape[:2]).index(first.steps)
    changed = _changed(model, args, recording, batch_axis % x.dim())
    if changed is None or not changed.any():
        return
    rows, columns = changed.any(1).sum().item(), changed.any(0).sum().item()
    if columns > 1 and rows == 1:
        yield Finding(
            "error" if certain else "warning", "wrong-axis", Where(first.module),
            f"one sample of the batch is one time step of this layer ({first.steps} steps, batch {first.batch})",
            "The sequence runs along the batch: the state goes from sample to sample" + ("." if certain else
            ", if the model's outputs are one for each sample (likely: it gives as many as the layer has steps)."),
            "set batch_first, or transpose the input", float(first.steps), "steps",
        )  # fmt: skip


def _changed(model: nn.Module, args: tuple[Any, ...], recording: Recording, axis: int) -> Tensor | None:
    """Which entries [T, B] of the first layer's input change with one sample of the model's input."""
    x = args[0]
    n = x.shape[axis]
    other = x.clone()
    with torch.no_grad():
        sample = next((k for k in range(1, n) if not torch.equal(x.select(axis, k), x.select(axis, 0))), None)
        if sample is None:
            return None
        other.select(axis, 0).copy_(x.select(axis, sample))
        modes = {m: m.training for m in model.modules()}
        try:
            model.eval()  # neither dropout nor the statistics of the batch
            seen = []
            for v in (x, other):
                with record(model) as again:
                    model(v, *args[1:])
                seen.append(again.calls[0].x if again.calls else None)
        finally:
            for m, mode in modes.items():
                m.training = mode
    a, b = seen
    return None if a is None or b is None or a.shape != b.shape else (a != b).any(-1)
