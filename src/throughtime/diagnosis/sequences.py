"""Sequences seen in the batches of a training loop: their axes, symbols or reals, targets at each step or labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from throughtime.errors import FlowError
from throughtime.flow import Capture
from throughtime.flow.capture_runs import LayerRun, StepRun


@dataclass(frozen=True)
class Sequences:
    """Inputs and targets, each [N, ...]: x [N, T] or [N, T, D]; y by `form`.

    form: "each", a target at each step, y [N, T(, K)]; "label", one a sequence, y [N(, K)]; "handed", an encoder
          gives its last state to what makes y [N, T'(, K)], the whole of which is the label.
    """

    x: Tensor
    y: Tensor
    form: str


class Unseen(Exception):
    """It cannot be seen what the data are; the message says why, for the notes."""


class Axes(NamedTuple):
    """The steps T and sequences B of a recurrence, and whether it was given its input with the batch first."""

    T: int
    B: int
    batch_first: bool


def axes_of(captured: Capture) -> tuple[Axes, Axes | None]:
    """The axes of the recurrence that took the input, the first that ran; and where that hands on its last state and
    nothing else (an encoder does), of the last one, whose output the targets are for."""
    first, last = captured.recurrences[0]._run, captured.recurrences[-1]._run
    return _axes(first), _axes(last) if first is not last and _only_at_end(first) else None


def _axes(run: LayerRun | StepRun) -> Axes:
    if isinstance(run, StepRun):
        first = run.recurrence.output[0]
        return Axes(len(run.recurrence.calls), first.shape[0] if first.dim() > 1 else 1, False)
    calls = run.calls
    return Axes(
        sum(c.x.shape[0] for c in calls), calls[0].x.shape[1], not calls[0].is_cell and calls[0].layout.batch_first
    )


def _only_at_end(run: LayerRun | StepRun) -> bool:
    """Whether a gradient enters a recurrence at its last step alone."""
    before: list[Tensor | None] = []
    if isinstance(run, StepRun):
        before += [v if v is None else v[:-1] for v in run.entering.direct]
        before += [v for step in (run.entering.outputs or [])[:-1] for v in step]
    elif run.calls[0].is_cell:
        before += [slot.entered for call in run.calls[:-1] for slot in call.slots]
    else:
        came = [(call, call.y.entered) for call in run.calls if call.y is not None and call.y.entered is not None]
        before += [call.output_order(g)[: None if call is not run.calls[-1] else -1] for call, g in came]
    return not any(bool(v.any()) for v in before if v is not None)


def from_both_ends(captured: Capture) -> bool:
    """Whether the recurrence that took the input ran both ways, and its loss enters the last state of either."""
    run = captured.recurrences[0]._run
    if isinstance(run, StepRun) or run.calls[0].is_cell or len(run.calls[-1].layers[-1]) < 2:
        return False
    try:
        ends = [v for v in run.outside[-1][1] if v is not None]
    except FlowError:  # it says so where it is measured
        return False
    return any(bool(v[0].any()) for v in ends)


def see(
    args: tuple[Any, ...], targets: Any, axes: Axes, handed: Axes | None = None, lengths: Tensor | None = None
) -> Sequences:
    """The sequences in one batch of a training loop, from what the model was called with and its targets.

    axes, handed: of the recurrences that take the input and that the targets are for (`axes_of`).
    lengths: the steps of each sequence without its padding, [B]: labels then count from each one's own end.
    Raises Unseen where that cannot be seen.
    """
    T, B, batch_first = axes
    x = next((a for a in args if isinstance(a, Tensor | PackedSequence)), None)
    if isinstance(x, PackedSequence):
        x, lengths = pad_packed_sequence(x)
        batch_first = False
    if x is None or not isinstance(targets, Tensor):
        what = "input" if x is None else "target"
        raise Unseen(f"the {what} is no tensor, so its sequences cannot be seen; give data=(inputs, targets)")
    x, y = x.detach().cpu(), targets.detach().cpu()
    whole = not x.is_floating_point()
    if B == 1 and x.shape[0] == T and x.dim() == 1 + x.is_floating_point():  # without a batch
        x = x[None]
    else:
        came = tuple(x.shape[:2])
        if came not in ((T, B), (B, T)):
            raise Unseen(
                f"the input {list(x.shape)} does not show the {T} steps and {B} sequences that the recurrent layer ran "
                "over; give data=(inputs, targets)"
            )
        batch_first = came == (B, T) if T != B else batch_first
        x = x if batch_first else x.transpose(0, 1)
    x = x.flatten(2) if x.dim() > 3 else x
    if whole and x.dim() > 2:
        x = x[..., 0] if x.shape[2] == 1 else x.double()
    x = symbols(x) if x.is_floating_point() and x.dim() == 3 else x
    y, each = _targets(y, T, B, batch_first) if handed is None else _targets(y, *handed)
    form = "label" if not each else "each" if handed is None else "handed"
    if lengths is not None and bool((lengths < T).any()):
        x, y = _without_padding(x, y, each and handed is None, lengths)
    return Sequences(x if x.dim() > 1 + x.is_floating_point() else x[..., None], y, form)


def _targets(y: Tensor, T: int, B: int, batch_first: bool) -> tuple[Tensor, bool]:
    """Targets as [N, T(, K)] and True, or as labels [N(, K)] and False."""
    lead, own = tuple(y.shape[:2]), (B, T) if batch_first else (T, B)
    real = y.is_floating_point()
    y = y.long() if not real else y.double()
    if y.dim() >= 2 and lead == own and (not real or y.dim() > 2 or T > 1):
        y = y if batch_first else y.transpose(0, 1)
        y = y.flatten(2) if y.dim() > 3 else y
        if real:
            return symbols(y if y.dim() == 3 else y[..., None]), True
        return (y if y.dim() == 2 else y[..., 0]), True
    if y.dim() == 1 and len(y) == T * B and T > 1:
        y = y.view(own)
        y = y if batch_first else y.T
        return (y[..., None] if real else y), True
    if y.dim() == 2 and lead == (T * B, y.shape[1]) and real and T > 1:
        y = y.view(*own, -1)
        return symbols(y if batch_first else y.transpose(0, 1)), True
    if y.dim() >= 1 and len(y) == B:
        if real:
            return symbols(y.flatten(1) if y.dim() > 1 else y[:, None]), False
        if y.dim() == 1 or y.shape[1:].numel() == 1:
            return y.view(B), False
    raise Unseen(
        f"the targets {list(y.shape)} are neither one a step of {T} steps and {B} sequences nor one a sequence; give "
        "data=(inputs, targets)"
    )


def symbols(v: Tensor) -> Tensor:
    """One-hot vectors [..., K] as the symbols that they are; other real numbers as they came."""
    if v.shape[-1] > 1 and bool(((v == 0) | (v == 1)).all()) and bool((v.sum(-1) == 1).all()):
        return v.argmax(-1)
    return v


def _without_padding(x: Tensor, y: Tensor, each: bool, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """As many steps as the shortest sequence has: its first for targets at each step, its last before a label."""
    n = torch.as_tensor(lengths).cpu().long()
    least = int(n.min())
    if least < 2:
        raise Unseen(f"the shortest sequence has {least} step{'' if least == 1 else 's'}, so no lag is common to all")
    if each:
        return x[:, :least], y[:, :least]
    at = n[:, None] - least + torch.arange(least)
    return x[torch.arange(len(x))[:, None], at], y
