"""Sequences of their own: batches sorted by length for packing, shuffled anew each pass, cut into windows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from throughtime.train.data.batch import Batch


class Sequences:
    """N sequences of any lengths, `batch` of them at a time, the last batch of a pass perhaps smaller.

    inputs: N tensors [T_n] or [T_n, D]. targets: N tensors [T_n, ...], or with `at_end` [1, ...]: one for the whole.
    window: steps of truncated BPTT, the states of the sequences that go on being carried; 0 for whole sequences.
    scored: N tensors [T_n], True where a target counts; without them all do.
    seed:   of the order, which is drawn anew for each pass; None leaves it as it is, from short to long.

    A batch holds its sequences from long to short, so that those that go on are its first ones.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        batch: int,
        window: int = 0,
        *,
        seed: int | None = None,
        at_end: bool = False,
        scored: Sequence[Tensor] | None = None,
    ) -> None:
        self.inputs, self.targets, self.at_end, self.scored = inputs, targets, at_end, scored
        self.lengths = torch.tensor([len(x) for x in inputs])
        self.size, self.window, self.seed = batch, window, seed
        self._ends = [0]  # of the passes, as positions
        self._pass: tuple[int, Tensor, list[int]] = (-1, torch.empty(0), [])

    def __len__(self) -> int:
        return self._ends[1] if len(self._ends) > 1 else self._plan(0)[1][-1]

    def batch(self, position: int) -> Batch:
        """The window at a position, of the pass over the sequences that it falls into."""
        while self._ends[-1] <= position:
            self._ends.append(self._ends[-1] + self._plan(len(self._ends) - 1)[1][-1])
        number = bisect_right(self._ends, position) - 1
        order, ends = self._plan(number)
        rest = position - self._ends[number]
        which = bisect_right(ends, rest)
        first = ends[which - 1] if which else 0
        return self._batch(order[which * self.size : (which + 1) * self.size], rest - first)

    def _plan(self, number: int) -> tuple[Tensor, list[int]]:
        """The order of the sequences in a pass, and where in it, as positions, the windows of each batch end."""
        if self._pass[0] != number:
            if self.seed is None:
                order = torch.argsort(self.lengths, stable=True)
            else:
                generator = torch.Generator().manual_seed((self.seed << 31) + number)
                order = torch.randperm(len(self.lengths), generator=generator)
            longest = [int(part.max()) for part in self.lengths[order].split(self.size)]
            windows = torch.tensor([-(-n // self.window) if self.window else 1 for n in longest])
            self._pass = (number, order, windows.cumsum(0).tolist())
        return self._pass[1:]

    def _batch(self, members: Tensor, window: int) -> Batch:
        """Window number `window` of some sequences."""
        T = self.window or int(self.lengths[members].max())
        begin = window * T
        members = members[torch.argsort(self.lengths[members], descending=True, stable=True)]
        left = self.lengths[members] - begin
        members, left = members[left > 0], left[left > 0]
        lengths = left.clamp_max(T)
        numbers = members.tolist()
        inputs = pad_sequence([self.inputs[n][begin : begin + T] for n in numbers])
        if self.at_end:
            targets = torch.stack([self.targets[n] for n in numbers], 1)
            scored = (left <= T).unsqueeze(0)
        else:
            targets = pad_sequence([self.targets[n][begin : begin + T] for n in numbers])
            scored = torch.arange(len(inputs)).unsqueeze(1) < lengths
            if self.scored is not None:
                scored &= pad_sequence([self.scored[n][begin : begin + T] for n in numbers])
        return Batch(
            inputs,
            targets,
            None if bool(scored.all()) else scored,
            None if int(lengths.min()) == len(inputs) else lengths,
            carried=window > 0,
        )
