"""The norms of the parts of a gradient, for which the parts must be multiplied out and held."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.errors import FlowError
from throughtime.flow.parameter_parts import Block

MEMORY = 2**30  # bytes that the parts may take


def check_memory(parts: int, numbers: int) -> None:
    """Raises FlowError where so many parts of so many numbers would take more memory than `MEMORY`."""
    size = 8 * parts * numbers
    if size > MEMORY:
        raise FlowError(
            f"the norms of the parts would take {size / 2**30:.1f} GiB; leave them out with norms=False "
            "(the contributions are exact all the same), or estimate with anchors or samples"
        )


class PartNorms:
    """The parts of one parameter by lag and by loss step, summed up in blocks of steps so that products are large."""

    STEPS = 16

    def __init__(self, like: Tensor, T: int, L: int, flat: tuple[int, int]):
        self.by_lag, self.by_loss = like.new_zeros(L, *flat), like.new_zeros(T, *flat)
        self.waiting: dict[int, list[tuple[Block, Tensor, Tensor]]] = {}

    def add(self, b: Block, t: Tensor, lag: Tensor) -> None:
        """Takes in a block whose rows belong to the loss steps t, and to the lags of these numbers."""
        here = self.waiting.setdefault(b.start, [])
        here.append((b, t, lag))
        if len(here) == self.STEPS:
            self._flush(b.start)

    def _flush(self, start: int) -> None:
        here = self.waiting.pop(start)
        right = torch.cat([b.right for b, _, _ in here])  # [steps * B, N]
        loss, lag = [t for _, t, _ in here], [d for _, _, d in here]
        for total, index in ((self.by_loss, loss), (self.by_lag, lag)):
            used = torch.unique(torch.cat(index))
            where = torch.full((len(total),), -1, device=used.device)
            where[used] = torch.arange(len(used), device=used.device)
            M = here[0][0].left.shape[-1]
            left = right.new_zeros(len(used), len(here), here[0][0].left.shape[1], M)
            for i, (b, _, _) in enumerate(here):
                left[where[index[i]], i] = b.left
            total[used, start : start + M] += left.flatten(1, 2).mT @ right

    def close(self) -> tuple[Tensor, Tensor]:
        """The norms of the parts by lag, and by loss step."""
        for start in list(self.waiting):
            self._flush(start)
        return self.by_lag.flatten(1).norm(dim=1), self.by_loss.flatten(1).norm(dim=1)
