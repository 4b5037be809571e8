"""One process' share of a source of batches: every n-th sequence of each batch, with the counts of the whole."""

from __future__ import annotations

import torch

from throughtime.train.data.batch import Batch, Source


class Share:
    """The columns `rank`, `rank + size`, `rank + 2 size`, ... of every batch of `source`.

    So each process has long sequences and short ones, its own go from long to short too, and those that go on are its
    first ones: states stay with the process that made them. Where a batch has no sequence for a process, it reads one
    step that counts for nothing (`Batch.filler`): all processes do the same number of steps.
    """

    def __init__(self, source: Source, rank: int, size: int) -> None:
        self.source, self.rank, self.size = source, rank, size

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, position: int) -> Batch:
        """This process' part of the batch at a position."""
        batch = self.source.batch(position)
        if self.rank >= batch.inputs.shape[1]:
            return _nothing(batch)
        mine = slice(self.rank, None, self.size)
        inputs, targets, scored = batch.inputs[:, mine], batch.targets[:, mine], batch.scored
        lengths = None if batch.lengths is None else batch.lengths[mine]
        allowed = None if batch.allowed is None else batch.allowed[:, mine]
        scored = None if scored is None else scored[:, mine]
        if lengths is not None:  # the longest of all may be another process'
            T, longest = len(inputs), int(lengths[0])
            inputs, allowed = inputs[:longest], None if allowed is None else allowed[:longest]
            if len(targets) == T:
                targets, scored = targets[:longest], None if scored is None else scored[:longest]
            lengths = None if int(lengths[-1]) == longest else lengths
        return Batch(inputs, targets, scored, lengths, batch.carried, allowed, whole=batch.count)


def _nothing(batch: Batch) -> Batch:
    """One step of one sequence, all zeros, whose target does not count."""
    inputs, targets = torch.zeros_like(batch.inputs[:1, :1]), torch.zeros_like(batch.targets[:1, :1])
    allowed = None if batch.allowed is None else torch.ones_like(batch.allowed[:1, :1])
    scored = torch.zeros(1, 1, dtype=torch.bool)
    return Batch(inputs, targets, scored, allowed=allowed, whole=batch.count, filler=True)
