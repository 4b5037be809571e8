"""The watch of a run: tt.watch inside the trainer's loop, its history beside the run's log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from throughtime.diagnosis.history import Writer, cut
from throughtime.diagnosis.several import name_of
from throughtime.diagnosis.untouched import left_alone
from throughtime.diagnosis.watcher import Watch, _safely
from throughtime.train.compiled import as_written, is_compiled
from throughtime.train.data.batch import Source
from throughtime.train.measures import run_batch, total_loss
from throughtime.train.session import Session


class RunWatch(Watch):
    """Measures the gradient through time of a run now and then, and goes on with the history when the run goes on.

    Its steps are the run's. Of several windows that make one update the first is measured. A model that is compiled
    is measured on a window that is run once more as the model is written, with the same weights, state and dropout;
    that changes nothing either, and its time counts as watching.
    """

    def __init__(self, session: Session, budget: float, path: Path) -> None:
        first = session.group.first  # of several processes that one watches, its own share
        super().__init__(budget if first else 0.0, path)
        self.session = session
        self.history = list(cut(path, session.step)) if first else []
        self.name = name_of(session.model)
        self.on = False

    def start(self) -> None:
        """Begins to listen; a budget of 0 never does."""
        self.on = self.budget.share > 0
        if self.on:
            self.writer = self._new_writer()
            self.begin()
            self.look_at(self.session.model)

    def before_step(self, source: Source) -> None:
        """A step of the run is about to begin; `source` is what it will read."""
        self.steps = self.session.step
        if self.on and is_compiled(self.session.model):
            self._rehearse(source)

    def before_call(self, module: nn.Module) -> None:
        """Hears a forward pass, if it is that of the step's first window."""
        if self.steps == self.session.step:
            super().before_call(module)

    def after_backward(self, start: Any) -> None:
        """Hears the end of a backward pass, if it is that of the step's first window, which is then counted."""
        if self.steps == self.session.step:
            super().after_backward(start)

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Hears nothing within: what runs there is no part of the training."""
        alone = self._busy.acquire(blocking=False)
        try:
            yield
        finally:
            if alone:
                self._busy.release()

    def around_step(self) -> AbstractContextManager[None]:
        """Around the gradients of a step."""
        return self.deaf() if is_compiled(self.session.model) else nullcontext()

    def go_back(self) -> None:
        """The run has gone back to an earlier step: what came after it is taken out."""
        if not self.session.group.first:
            return
        self._pending = None
        self._forget_unmeasured()
        if self.writer is not None:
            self.writer.close(self.steps, self.cost, ())
        assert self._path is not None
        self.history = list(cut(self._path, self.session.step))
        self.writer = self._new_writer() if self.on else None

    def stop(self, measure: bool) -> None:
        """The run ends. measure: whether there is time to measure the last step that was caught."""
        if not self.on:
            return
        self.on, self.steps = False, self.session.step
        if not measure:
            self._forget_unmeasured()
        self.end()

    def _rehearse(self, source: Source) -> None:
        self._look_round()
        batch = source.batch(self.session.position) if self._armed else None
        if batch is None or not batch.count:
            return
        began, counted = self.budget.clock(), self.budget.watching
        model = self.session.model
        with as_written(model), left_alone(model):
            batch = batch.to(self.session.device)
            outputs, _ = run_batch(model, batch, self.session.state)
            (total_loss(model.schema, outputs, batch) / batch.count).backward()
        self.budget.spend(max(0.0, self.budget.clock() - began - (self.budget.watching - counted)))

    @_safely
    def _look_round(self) -> None:
        """What the backward passes of a model that is not compiled give occasion for."""
        self._settle()
        if not self._armed and self.budget.clock() >= self._again:
            self._arm_when_due()

    def _new_writer(self) -> Writer:
        assert self._path is not None
        return Writer(self._path, self.name, self.budget.share, goes_on=True)
