"""The steps that were caught and wait to be measured: the first of the training, and the last so far."""

from __future__ import annotations

from torch import nn

from throughtime.diagnosis.watch_step import Pending, let_go


class Held:
    """Keeps the first step until there is room to measure it, and of all that are caught later the last."""

    def __init__(self) -> None:
        self.first: Pending | None = None
        self.last: Pending | None = None

    @property
    def settled(self) -> bool:
        """Whether it is known of all how far their steps moved the weights."""
        return all(step is None or step.settled for step in (self.first, self.last))

    def settle(self, model: nn.Module) -> None:
        """Looks for the steps that followed."""
        for step in (self.first, self.last):
            if step is not None:
                step.settle(model)

    def hold(self, step: Pending, first: bool) -> None:
        """One more. first: whether it is the beginning of the training that is held, where none is yet."""
        if first and self.first is None:
            self.first = step
            return
        if self.last is not None:
            let_go(self.last.found)
        self.last = step

    def take(self) -> tuple[Pending | None, Pending | None]:
        """The first and the last; a single one is the last. They are held no more."""
        first, last = self.first, self.last
        self.first = self.last = None
        return (first, last) if last is not None else (None, first)

    def let_go(self) -> None:
        """Forgets all."""
        for step in (self.first, self.last):
            if step is not None:
                let_go(step.found)
        self.first = self.last = None
