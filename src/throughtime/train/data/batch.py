"""What every source of data gives the loop: some steps of some sequences, and where their states come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """T steps of B sequences.

    inputs:  [T, B] numbers of symbols (int64), or [T, B, D].
    targets: [T, B, ...], or [1, B, ...] where a whole sequence has one: it is asked at the sequence's last step.
    scored:  [T, B] or [1, B], True where a target counts; None where all do.
    lengths: [B] on the CPU, from long to short; steps behind a sequence's length are padding, and are not run. None
             where all have T steps.
    carried: whether the first B sequences of the batch before go on here, with their states; else states are zero.
    allowed: [T, B, classes], where more than one class is a right answer at a step.
    whole:   where this is one process' share of a batch: how many targets count in all of that batch.
    filler:  whether this is one step of nothing, read where a process has no sequence of a batch; its state is dropped.
    """

    inputs: Tensor
    targets: Tensor
    scored: Tensor | None = None
    lengths: Tensor | None = None
    carried: bool = False
    allowed: Tensor | None = None
    whole: int | None = None
    filler: bool = False

    @property
    def count(self) -> int:
        """How many targets count."""
        if self.scored is not None:
            return int(self.scored.sum())
        return self.targets.shape[0] * self.targets.shape[1]

    @property
    def total(self) -> int:
        """How many targets count in the whole batch, the shares of other processes included."""
        return self.count if self.whole is None else self.whole

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; lengths stay on the CPU, where packing wants them."""
        moved = {
            name: value.to(device)
            for name in ("inputs", "targets", "scored", "allowed")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)


class Source(Protocol):
    """Batches by their position; a source for training goes on without end, one for validation has `len` of them."""

    def __len__(self) -> int:
        """Batches in one pass over the data."""

    def batch(self, position: int) -> Batch:
        """The batch at a position from 0 on, the same whenever it is asked for."""
