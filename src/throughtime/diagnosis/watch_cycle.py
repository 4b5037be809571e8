"""From one step of a training that is caught to the next: when, what is measured of it, and what waits."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from throughtime.diagnosis import taps
from throughtime.diagnosis.budget import Budget
from throughtime.diagnosis.several import name_of, trains
from throughtime.diagnosis.untouched import left_alone
from throughtime.diagnosis.watch_pace import Pace
from throughtime.diagnosis.watch_reach import Reach
from throughtime.diagnosis.watch_result import Watched
from throughtime.diagnosis.watch_step import Measuring, Pending
from throughtime.errors import FlowError

SURE = 1.25  # a measurement after which none can make up for it must fit even if it takes this much longer
PATIENCE = 3  # training steps in which a forward pass is waited for before it is said that none can be seen


class Cycle(Watched, taps.Listener):
    """Catches the next step when `Pace` says so, and measures it then or later. `Watch` calls it."""

    def __init__(self, budget: Budget, path: str | os.PathLike[str] | None):
        super().__init__(budget, path)
        self.pace = Pace(budget)
        self._watched: set[int] = set()
        self._reach = Reach()
        self._armed = False  # the next forward pass is captured
        self._to_measure = True  # and its step measured at once, not only caught
        self._asleep = False  # there is nothing to do until `_again`, but to count the steps
        self._again = 0.0  # when to ask again whether the budget allows it
        self._waited = 0
        self._evaluating = False  # whether the model trains in eval mode
        self._measuring: Measuring | None = None  # the capture that is open
        self._pending: Pending | None = None  # measured; the step that follows it is not known yet

    def look_at(self, model: nn.Module | None) -> None:
        """From here on it is this model; None: none is known now."""
        self._settle(at_the_end=True)
        taps.ignore_calls(self)
        self._armed, self._asleep, self._model = False, False, model
        self._reach.look_at(() if model is None else model.parameters())
        if model is not None:
            self.name = name_of(model)
            self._arm_when_due()

    def _stepped(self) -> None:
        """A training step went by that was not caught."""
        assert self._model is not None
        if not self._armed and self.budget.clock() < self._again:
            return
        self._evaluating = not trains(self._model)
        if not self._armed:
            self._arm_when_due()
            return
        self._waited += 1
        if self._waited >= PATIENCE:
            self._stop(
                f"{PATIENCE} training steps went by without a forward pass of {self.name} or of a module in it that "
                "could be seen: a function around it is compiled by torch.compile, or it is computed in another way"
            )

    def _arm_when_due(self) -> None:
        """The first step that was caught is measured if there is room for it now; then another may be caught."""
        first = self.held.first
        if first is not None and first.settled and self.budget.wait(first.expected) <= 0:
            self.held.first = None
            self._look(first, self.budget.room)
            self.keep(first)
        waits = [self.pace.to_measure, self.pace.to_catch]
        if min(waits) <= 0:
            self._arm(waits[0] <= 0)
            return
        if self.held.first is not None:
            waits.append(self.budget.wait(self.held.first.expected))
        self._again = self.budget.clock() + min(waits)

    def _arm(self, to_measure: bool = True) -> None:
        """The next forward pass is captured."""
        assert self._model is not None
        if _another_rank():
            self._stop("this process is not rank 0 of the training; it is watched there")
            return
        self._watched = {id(m) for m in self._model.modules()}
        self._reach.look_at(self._model.parameters())
        self._armed, self._to_measure, self._waited, self._asleep = True, to_measure, 0, False
        taps.hear_calls(self)

    def _open(self, model: nn.Module) -> None:
        self._armed = False
        taps.ignore_calls(self)
        try:
            self._measuring = Measuring(model, self.budget.clock)
        except FlowError as error:
            self._stop(str(error))

    def _caught(self, loss: Tensor | None) -> None:
        """The step that was captured has come to the end of its backward pass."""
        measuring, self._measuring = self._measuring, None
        assert measuring is not None and self._model is not None
        began = self.budget.clock()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            self.budget.spend(began - self.budget.clock())  # what the user's own kernels still took is not ours
            began = self.budget.clock()
        lasted = measuring.lasted
        found = measuring.close(failed=bool(measuring.overfull))
        self.budget.spend(measuring.seconds)
        before = measuring.opening + measuring.seconds
        if measuring.overfull:
            self.note(measuring.overfull)
            self.pace.caught(before)
            return
        step = Pending(found, self._model, loss, self.steps)
        step.seconds = self.budget.elapsed
        self._settle(at_the_end=True)  # one whose step was still to come, gradients being gathered
        if not self._to_measure:
            step.expected = self.pace.guessed = self.pace.looks.guess(step, lasted)
        step.spent = before + self.budget.clock() - began
        self.pace.caught(step.spent, self._to_measure)
        if self._to_measure:
            self._look(step, self.budget.room - self.pace.reserve)
            self.held.let_go()
            self._pending = step
        else:
            self.held.hold(step, first=not self.pace.measured)
        self._arm_when_due()

    def _look(self, step: Pending, room: float) -> None:
        """Measures the step in so many seconds."""
        began = self.budget.clock()
        self.pace.looks.look(step, len(self.history), room, left_alone(self._model))
        self.pace.measured += 1
        step.spent += self.budget.clock() - began

    def _look_at_the_rest(self) -> None:
        """Training is over: what waits is measured, as far as the budget has room; one step in any case."""
        self._settle(at_the_end=True)
        first, last = self.held.take()
        looks, budget = self.pace.looks, self.budget
        if last is None or (self.pace.measured and SURE * looks.expected(0) > budget.room):
            return
        self._look(last, budget.room / SURE)
        if first is not None and SURE * looks.expected(0) <= budget.room:
            self._look(first, budget.room / SURE)
            self.keep(first)
        self.keep(last)

    def _settle(self, at_the_end: bool = False) -> None:
        """Finishes the last record, once the step after its backward pass is known."""
        pending = self._pending
        if self._model is None or (self.held.settled and pending is None):
            return
        began = self.budget.clock()
        self.held.settle(self._model)
        if pending is not None:
            pending.settle(self._model)
            if pending.settled or at_the_end:  # else gradients are being gathered from several backward passes
                self._pending = None
                self.keep(pending)
        self.pace.settled(self.budget.clock() - began)

    def _forget_unmeasured(self) -> None:
        self.held.let_go()

    def _stop(self, why: str) -> None:
        self.note(why)
        self._armed = self._asleep = False
        taps.leave(self)

    def _give_up(self) -> None:
        """Takes off the hooks of a capture that is open."""
        measuring, self._measuring = self._measuring, None
        if measuring is not None:
            measuring.close(failed=True)
            self.budget.spend(measuring.seconds)


def _another_rank() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0
