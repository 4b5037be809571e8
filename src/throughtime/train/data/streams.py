"""One long sequence cut into pieces that are read side by side, in windows of truncated BPTT."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.train.data.batch import Batch


class Streams:
    """B contiguous streams of a sequence, cut into windows of T steps, in order.

    inputs [N, ...], targets [N, ...], scored [N] or None. Stream b starts at step b * (N // B). The steps after a
    stream's last whole window are left out; with `tail`, a shorter last window has them. The state is carried from
    window to window, not over the end of the streams.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch: int,
        window: int,
        scored: Tensor | None = None,
        *,
        tail: bool = False,
    ) -> None:
        length = len(inputs) // batch
        self.window_length = window
        self.inputs, self.targets = (t[: batch * length].unflatten(0, (batch, length)) for t in (inputs, targets))
        self.scored = None if scored is None else scored[: batch * length].unflatten(0, (batch, length))
        self.windows = -(-length // window) if tail else length // window

    def __len__(self) -> int:
        return self.windows

    def window(self, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, both [T, B, ...], of window `index`."""
        return self._cut(self.inputs, index), self._cut(self.targets, index)

    def batch(self, position: int) -> Batch:
        """The window at a position; after the last one comes the first again."""
        index = position % self.windows
        scored = None if self.scored is None else self._cut(self.scored, index)
        return Batch(*self.window(index), scored, carried=index > 0)

    def _cut(self, part: Tensor, index: int) -> Tensor:
        cut = part[:, index * self.window_length : (index + 1) * self.window_length].transpose(0, 1)
        return cut if part.dtype in (torch.bool, torch.int64) or part.is_floating_point() else cut.long()
