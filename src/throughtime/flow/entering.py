"""What enters a recurrence from outside: the gradient of the loss, by the step at which it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entering:
    """The gradient of the loss that enters one recurrence, split by the loss step t, each to be followed alone.

    direct: one for each state of the cell, [T, B, .] or None: the part L_t of the loss enters that state at step t.
    above:  one for each state, [rows, T, B, .] or None: the part L_t enters at every step, as it comes down from a
            layer further up.
    rows:   the loss steps t that are followed, all if None: the rows of `above`, and the only ones of `direct` whose
            gradient counts.
    summed: whether all loss steps are followed together, as one row, number 0.
    outputs: for a module of the user's own (`StepRecurrence`), what enters at each step the values that it returned
            besides its states: outputs[t], one for each, in its shape, or None.
    """

    direct: Sequence[Tensor | None]
    above: Sequence[Tensor | None] | None = None
    rows: tuple[int, ...] | None = None
    summed: bool = False
    outputs: Sequence[Sequence[Tensor | None]] | None = None

    @property
    def nothing(self) -> bool:
        """Whether no gradient enters at all."""
        given = [*self.direct, *(self.above or ()), *(v for step in self.outputs or () for v in step)]
        return all(v is None or not bool(v.any()) for v in given)

    def sum(self) -> Entering:
        """All loss steps together, as one row: what flows back is then the whole gradient."""
        if self.summed:
            return self
        whole: list[Tensor | None] = []
        for s, direct in enumerate(self.direct):
            above = self.above[s] if self.above is not None else None
            total = None if direct is None else _chosen(direct, self.rows)[None]
            if above is not None:
                total = above.sum(0, keepdim=True) + (0 if total is None else total)
            whole.append(total)
        outputs = self.outputs
        if outputs is not None and self.rows is not None:
            outputs = [step if t in self.rows else [None] * len(step) for t, step in enumerate(outputs)]
        return Entering([None] * len(whole), whole, None, True, outputs)

    def at(self, rows: Sequence[int]) -> Entering:
        """Only some loss steps; the others are taken as if no loss entered there."""
        above = self.above
        if above is not None:
            had = list(self.rows) if self.rows is not None else None
            pick = [r if had is None else had.index(r) for r in rows]
            above = [None if v is None else v[pick] for v in above]
        return Entering(self.direct, above, tuple(rows), False, self.outputs)

    def samples(self, index: Tensor) -> Entering:
        """Only some of the sequences of the batch."""
        direct = [None if v is None else v[:, index] for v in self.direct]
        above = None if self.above is None else [None if v is None else v[:, :, index] for v in self.above]
        return Entering(direct, above, self.rows, self.summed)


def _chosen(direct: Tensor, rows: tuple[int, ...] | None) -> Tensor:
    if rows is None:
        return direct
    kept = torch.zeros_like(direct)
    kept[list(rows)] = direct[list(rows)]
    return kept


def loss_steps(entering: Entering, T: int) -> list[int]:
    """The steps, of T, at which a loss enters."""
    enters = torch.zeros(T, dtype=torch.bool)
    for v in entering.direct:
        if v is not None:
            enters |= (v != 0).flatten(1).any(1).cpu()
    for v in entering.above or ():
        if v is not None:
            enters |= (v != 0).flatten(1).any(1).cpu()
    for t, outputs in enumerate(entering.outputs or ()):
        enters[t] |= any(v is not None and bool(v.any()) for v in outputs)
    return enters.nonzero().flatten().tolist()
