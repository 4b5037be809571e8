"""The order in which a recurrence ran: its steps from first to last, which of them count, how far back each lies."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.errors import BrokenFlowError
from throughtime.flow.recurrence import Recurrence


def order(recurrence: Recurrence) -> list[int]:
    """The steps t in the order in which the recurrence took them."""
    T = recurrence.x.shape[0]
    return list(range(T - 1, -1, -1) if recurrence.reverse else range(T))


def valid(recurrence: Recurrence) -> Tensor:
    """Which steps belong to the sequences and not to their padding: bool [T, B]."""
    keep = recurrence.keep
    return recurrence.x.new_ones(recurrence.x.shape[:2], dtype=torch.bool) if keep is None else keep[..., 0]


def step_at_lag(recurrence: Recurrence) -> tuple[Tensor, Tensor]:
    """For each lag d and sample, the step that lies d before the last one that this sample took.

    Returns (step [T, B], whether there is one [T, B]); where there is none the step is 0.
    """
    T, B = recurrence.x.shape[:2]
    device = recurrence.x.device
    lags = torch.arange(T, device=device)[:, None].expand(T, B)
    lengths = torch.full((B,), T, device=device) if recurrence.lengths is None else recurrence.lengths
    there = lags < lengths
    return torch.where(there, lags if recurrence.reverse else lengths - 1 - lags, 0), there


def check_finite(recurrence: Recurrence) -> None:
    """Raises BrokenFlowError, with the first step, where a state of the recurrence is NaN or infinite."""
    keep = valid(recurrence)
    for name, sequence in zip(recurrence.cell.states, recurrence.sequences, strict=True):
        if bool(sequence.sum().isfinite()):  # the common case, in one pass
            continue
        bad = (~sequence.isfinite()).any(-1) & keep
        if bad.any():
            t = next(t for t in order(recurrence) if bad[t].any())
            raise BrokenFlowError(
                f"the state {name} is NaN or infinite from step {t} on; look at the weights and at the input there "
                "first, nothing can be measured behind it"
            )


def where(cell: str, layer: int, reverse: bool) -> str:
    """Which recurrence it was, for titles."""
    return f"{cell}, layer {layer}{', reverse' if reverse else ''}"
