"""One training step that is watched: its capture, what is measured of it, and the size of the step that follows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from throughtime.diagnosis.budget import Clock
from throughtime.diagnosis.history import Record, Seen
from throughtime.diagnosis.observe import WORK, chosen, gradient_norms, observe, planned
from throughtime.errors import FlowError
from throughtime.flow import Capture, Captured, UpdateSizes, snapshot, step_sizes
from throughtime.flow.capture import check_model
from throughtime.flow.capture_calls import LayerCall
from throughtime.flow.capture_hooks import Recorder

# Beyond these a forward pass is no training step, but an evaluation with gradients left on: to hold on to it would take
# the user's memory.
MOST_CALLS = 50_000  # of modules that may be steps of a recurrence, all together
MOST_ALONE = 64  # of one layer or of the model itself, none of which continues another
PATIENCE = 64  # backward passes after which a step that has not moved the weights is no longer waited for


class TimedRecorder(Recorder):
    """A recorder that counts the seconds its hooks take, and that gives up where it would keep too much."""

    def __init__(self, model: nn.Module, clock: Clock):
        super().__init__(model)
        self.clock = clock
        self.seconds = 0.0
        self.overfull = ""
        self._counted = 0
        self._alone: dict[int, int] = {}

    def _guarded(self, f: Callable[..., None], failures: list[str] | None = None) -> Callable[..., None]:
        hook = super()._guarded(f, failures)

        def timed(*args: Any) -> None:
            if self.overfull:
                return
            began = self.clock()
            hook(*args)
            self._count()
            self.seconds += self.clock() - began

        return timed

    def close(self) -> None:
        super().close()
        # What was found is kept long after the script may have let go of its model.
        self.model = nn.Module()
        del self._layers, self._own

    def _count(self) -> None:
        if self.backward:  # it is a training step
            return
        for call in self.calls[self._counted :]:
            if call.before is None and (isinstance(call, LayerCall) or call.module is self.model):
                self._alone[id(call.module)] = self._alone.get(id(call.module), 0) + 1
        self._counted = len(self.calls)
        if len(self.calls) > MOST_CALLS or any(n > MOST_ALONE for n in self._alone.values()):
            self.overfull = (
                f"{len(self.calls)} calls went by without a backward pass, too many to hold: they were not captured "
                "(an evaluation belongs under torch.no_grad())"
            )
            for call in self.calls:
                call.release()
            self.calls.clear()


class Measuring:
    """The capture of one training step, from the model's forward pass to the end of backward()."""

    def __init__(self, model: nn.Module, clock: Clock):
        check_model(model)
        self._clock = clock
        self._recorder = TimedRecorder(model, clock)
        self._capture = Capture(self._recorder)
        self._began = clock()
        self._recorder.open()
        self.opening = clock() - self._began  # counted by who opens it

    @property
    def lasted(self) -> float:
        """Seconds that the step has taken so far, without what watching took of them."""
        return max(0.0, self._clock() - self._began - self.opening - self.seconds)

    @property
    def reached(self) -> bool:
        """Whether a gradient came back."""
        return self._recorder.backward

    @property
    def seconds(self) -> float:
        """The time that the hooks took."""
        return self._recorder.seconds

    @property
    def overfull(self) -> str:
        """Why the capture was given up; empty if it was not."""
        return self._recorder.overfull

    def close(self, failed: bool) -> Capture:
        """Takes the hooks off."""
        self._capture._close(failed)
        return self._capture


def let_go(found: Capture | None) -> None:
    """Takes apart what is not needed any more: calls hold one another, and the memory would wait for Python's collector
    of garbage."""
    if found is not None:
        for call in found._recorder.calls:
            call.before, call.after, call.inside = None, None, ()
        found._recorder.calls.clear()


class Pending:
    """A training step that was caught, on its way to a record.

    `look` measures it; `settle` tells the size of the step that follows its backward pass, once that is taken.
    """

    def __init__(self, found: Capture, model: nn.Module, loss: Tensor | None, step: int):
        self.found, self.step = found, step
        self.loss = None if loss is None else float(loss)
        self.norms = gradient_norms(model)
        self.recurrences: tuple[Seen, ...] = ()
        self.notes: list[str] = []
        self.seen = False  # whether there is a recurrence to speak of
        self.spent = 0.0
        self.seconds = 0.0
        self.expected = 0.0  # seconds that to measure it may take, where nothing was timed before
        self.updates: UpdateSizes | None = None
        self._before: dict[str, Tensor] | None = snapshot(model)
        self._waited = 0

    def look(self, turn: int, work: float | None = None) -> None:
        """Measures the step; `turn` is the number of the measurement. work: see `observe`, None for all that one may
        take."""
        try:
            self.found.check()
            stacks, notes = chosen(self.found)
            self.recurrences = tuple(observe(stacks, turn, WORK if work is None else min(work, WORK)))
            self.notes, self.seen = [*self.found.notes, *notes], True
        except FlowError as error:
            self.notes = [str(error)]

    def stacks(self) -> list[list[Captured]]:
        """The recurrences that `look` will measure; none where it will only say why not."""
        try:
            self.found.check()
        except FlowError:
            return []
        return chosen(self.found)[0]

    def grows(self, work: float, more: float) -> bool:
        """Whether anything more of it is measured with more work."""
        work, more = min(work, WORK), min(more, WORK)
        return any(planned(s, work)[:2] != planned(s, more)[:2] for s in self.stacks())

    @property
    def estimated(self) -> bool:
        """Whether anything of it was measured from a part."""
        return any(seen.estimated for seen in self.recurrences)

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self._before is None

    def settle(self, model: nn.Module) -> None:
        """Looks for the step that followed."""
        if self._before is None:
            return
        self._waited += 1
        try:
            sizes = step_sizes(self._before, model)
        except FlowError as error:  # parameters came or went
            self.notes.append(f"the size of the step is not known: {error}")
            self._before = None
            return
        if any(u.step != 0 for u in sizes.updates):  # NaN counts
            self.updates, self._before = sizes, None
        elif self._waited >= PATIENCE:
            self._before = None

    def record(self, cost: float) -> Record:
        """The record, with the step that followed if there was one."""
        moved = {} if self.updates is None else {u.name: u.ratio for u in self.updates.updates if u.step != 0}
        total = math.sqrt(sum(v * v for v in self.norms.values())) if self.norms else None
        return Record(
            self.step, self.seconds, self.spent, cost, self.loss, total, self.norms, moved, self.recurrences,
            tuple(self.notes),
        )  # fmt: skip
