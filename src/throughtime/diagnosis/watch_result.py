"""What a watched training leaves: its history, in memory and on disk, what could not be seen, and a diagnosis."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from throughtime.diagnosis.budget import Budget
from throughtime.diagnosis.history import Record, Writer
from throughtime.diagnosis.result import Diagnosis
from throughtime.diagnosis.untouched import left_alone
from throughtime.diagnosis.watch_end import closing, over_budget, summary
from throughtime.diagnosis.watch_held import Held
from throughtime.diagnosis.watch_step import Pending, let_go
from throughtime.errors import FlowError
from throughtime.flow import Capture, UpdateSizes


class Watched:
    """The part of a watch that outlives the training; see `Watch`."""

    def __init__(self, budget: Budget, path: str | os.PathLike[str] | None):
        self.budget = budget
        self.history: list[Record] = []
        self.steps = 0
        self.name = "no model"
        self.notes: list[str] = []
        self.writer: Writer | None = None
        self._path = None if path is None else Path(path)
        self._model: nn.Module | None = None
        self._last: Capture | None = None
        self._updates: UpdateSizes | None = None
        self.held = Held()

    @property
    def cost(self) -> float:
        """The share of training time that watching has taken: watching / training; 0.02 is 2 %."""
        return self.budget.cost

    def diagnosis(self, **options: Any) -> Diagnosis:
        """A diagnosis of the last training step that was measured, with the history's gradient norms and step sizes.

        options: as of `throughtime.diagnosis.from_capture`, such as data=, use= and clip=.
        Raises FlowError, in a sentence, where nothing was measured.
        """
        if self._last is None:
            raise FlowError("nothing was measured: " + ("; ".join(self.notes) or "no training step was seen"))
        with left_alone(self._model):
            return closing(self._last, self._model, self.history, self._updates, self.notes, **options)

    def __str__(self) -> str:
        return summary(self)

    def keep(self, step: Pending) -> None:
        """One more record, of a step that was measured."""
        self._updates = step.updates or self._updates
        record = step.record(self.cost)
        if step.seen:
            let_go(self._last)
            self._last = step.found
        else:
            let_go(step.found)
        self.history.append(record)
        for note in record.notes:
            self.note(note)
        if self.writer is None and self._path is not None:
            self.writer = Writer(self._path, self.name, self.budget.share)
        if self.writer is not None:
            self.writer.append(record)
            self.told_writer()

    def finish(self) -> None:
        """The history ends here; where it cost more than its budget, that is said, and why."""
        why = over_budget(self)
        if why:
            self.note(why)
        if self.writer is not None:
            self.writer.close(self.steps, self.cost, tuple(self.notes))
            self.told_writer()
            self.writer = None

    def told_writer(self) -> None:
        """Notes where the file could not be written."""
        if self.writer is not None and self.writer.failed:
            self.note(self.writer.failed)

    def note(self, text: str) -> None:
        """Something that could not be seen, once."""
        if text not in self.notes:
            self.notes.append(text)
