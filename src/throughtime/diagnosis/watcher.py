"""What watches a training: it catches a step of the user's own now and then, measures it, and keeps the history."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.diagnosis import taps
from throughtime.diagnosis.budget import Budget, Clock
from throughtime.diagnosis.observe import WORK
from throughtime.diagnosis.several import name_of, trains
from throughtime.diagnosis.untouched import left_alone
from throughtime.diagnosis.watch_result import Watched
from throughtime.diagnosis.watch_step import Measuring, Pending, let_go
from throughtime.errors import FlowError

# The first measurement, made before anybody knows how long the training will be, takes no longer than the step itself,
# as far as that goes: it follows fewer sequences and loss steps.
RATE = 1e10  # multiplications a second that one core makes of it, about
SOME = 1e8  # that are made in any case
PATIENCE = 3  # training steps in which a forward pass is waited for before it is said that none can be seen


def _safely(method: Callable[..., None]) -> Callable[..., None]:
    """Counts the time within as watching, and lets no error of ours into the user's loop. What is called while another
    call is at work, from another thread or from a measurement itself, does nothing."""

    @functools.wraps(method)
    def safe(self: Watch, *args: Any) -> None:
        if not self._busy.acquire(blocking=False):
            return
        self.budget.begin()
        try:
            method(self, *args)
        except Exception as error:  # whatever it is, the training goes on
            self._went_wrong(error)
        finally:
            self.budget.end()
            self._busy.release()

    return safe


class Watch(Watched, taps.Listener):
    """What `watch` gives: it listens to the training, measures a step of it now and then, and holds what was seen.

    history: the records, oldest first.   steps: backward passes through the model so far.
    cost:    the share of training time that watching took.   notes: what could not be seen, in sentences.
    name:    what is watched: the class of the model.
    """

    def __init__(self, budget: float, path: str | os.PathLike[str] | None, clock: Clock | None = None):
        super().__init__(Budget(budget) if clock is None else Budget(budget, clock), path)
        self._process = os.getpid()
        self._busy = threading.Lock()
        self._watched: set[int] = set()
        self._parameters: list[nn.Parameter] = []
        self._gradients: list[Any] = []
        self._armed = False  # the next forward pass is captured
        self._to_measure = True  # and its step measured at once, not only caught
        self._waited = 0
        self._again = 0.0  # when to ask again whether the budget allows it
        self._evaluating = False  # whether the model trains in eval mode
        self._rate: float | None = None  # multiplications a second, as the first measurement made them
        self._measuring: Measuring | None = None  # the capture that is open
        self._pending: Pending | None = None  # measured; the step that follows it is not known yet
        self._unmeasured: Pending | None = None  # caught after that, its step known or not yet

    # --- the block ---------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Starts to listen."""
        self._process = os.getpid()
        taps.listen(self)

    def end(self) -> None:
        """Stops listening, puts everything back, and finishes the history. A forked process has nothing to finish."""
        taps.leave(self)
        if os.getpid() != self._process:
            return
        self.budget.stop()
        self._give_up()
        self._finish()
        if self.steps and not self.history and not self.notes:
            self.note(
                "training steps were seen, but none whole: a step is measured from the model's forward pass to the end "
                "of backward(), and none began after the model was known"
            )
        if self.writer is not None:
            self.writer.close(self.steps, self.cost, tuple(self.notes))
            self.told_writer()
            self.writer = None

    @_safely
    def _finish(self) -> None:
        self._settle(at_the_end=True)
        step, self._unmeasured = self._unmeasured, None
        if step is not None:  # the last that was caught: now there is time for it
            began = self.budget.clock()
            with left_alone(self._model):
                step.look(len(self.history), self._work_at_end())
            step.spent += self.budget.clock() - began
            self.keep(step)

    def _work_at_end(self) -> float | None:
        """Multiplications that still fit the budget, of a run that is too short for the whole."""
        if self._rate is None:
            return None
        return max(SOME, self._rate * (self.budget.share * self.budget.training - self.budget.watching))

    # --- what is heard -----------------------------------------------------------------------------------------------

    @_safely
    def before_backward(self) -> None:
        self._settle()
        self._gradients = self._signs()

    @_safely
    def after_backward(self, start: Any) -> None:
        moved = self._signs() != self._gradients
        if self._measuring is not None:
            if moved or self._measuring.reached:
                self.steps += 1
                self._caught(taps.one_number(start))
        elif not moved:
            self._other_backward()
        else:
            self.steps += 1
            self._stepped()

    @_safely
    def backward_failed(self) -> None:
        if self._measuring is not None:
            self._give_up()
            self._arm()

    def before_call(self, module: nn.Module) -> None:
        if id(module) in self._watched and torch.is_grad_enabled():
            self._called()

    # --- from one measurement to the next ----------------------------------------------------------------------------

    @_safely
    def _called(self) -> None:
        """A forward pass begins that may lead to a backward pass."""
        assert self._model is not None
        if self._armed and (trains(self._model) or self._evaluating):
            self._open(self._model)

    def _stepped(self) -> None:
        """A training step went by that was not measured."""
        assert self._model is not None
        if not self._armed and self.budget.clock() < self._again:  # most steps end here
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

    def _other_backward(self) -> None:
        """A backward pass of something else."""

    def look_at(self, model: nn.Module | None) -> None:
        """From here on it is this model; None: none is known now."""
        self._settle(at_the_end=True)
        taps.ignore_calls(self)
        self._armed, self._model, self._parameters = False, model, []
        if model is not None:
            self.name = name_of(model)
            self._see_parameters(model)
            self._arm_when_due()

    def _arm_when_due(self) -> None:
        if self.budget.due():
            self._arm()
        elif self.budget.may_catch():
            self._arm(to_measure=False)
        else:
            self._again = self.budget.clock() + self.budget.wait()

    def _arm(self, to_measure: bool = True) -> None:
        """The next forward pass is captured."""
        assert self._model is not None
        if _another_rank():
            self._stop("this process is not rank 0 of the training; it is watched there")
            return
        self._watched = {id(m) for m in self._model.modules()}
        self._see_parameters(self._model)
        self._armed, self._to_measure, self._waited = True, to_measure, 0
        taps.hear_calls(self)

    def _see_parameters(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._gradients = self._signs()

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
            self.budget.measured(before, before)
            return
        step = Pending(found, self._model, loss, self.steps)
        step.seconds = self.budget.elapsed
        catching = before + self.budget.clock() - began
        if not self._to_measure:
            step.spent = catching
            self._forget_unmeasured()
            self._unmeasured = step
            self.budget.caught(catching)
        else:
            self._settle(at_the_end=True)  # one whose step was still to come, gradients being gathered
            more = self._look(step, lasted)
            step.spent = before + self.budget.clock() - began
            self._forget_unmeasured()
            self._pending = step
            self.budget.measured(step.spent + more, catching)
        self._arm_when_due()

    def _look(self, step: Pending, lasted: float) -> float:
        """Measures the step; gives how many seconds more the next time may take, the first being kept short."""
        first = not self.budget.any_measured and 0 < self.budget.share < math.inf
        work = max(SOME, RATE * lasted) if first else None
        began = self.budget.clock()
        with left_alone(self._model):
            step.look(len(self.history), work)
        took = self.budget.clock() - began
        if work is None or not step.estimated or took <= 0:
            return 0.0
        self._rate = work / took
        return took * max(0.0, WORK / work - 1)

    def _forget_unmeasured(self) -> None:
        step, self._unmeasured = self._unmeasured, None
        if step is not None:
            let_go(step.found)

    def _settle(self, at_the_end: bool = False) -> None:
        """Finishes the last record, once the step after its backward pass is known."""
        if self._model is None:
            return
        began = self.budget.clock()
        if self._unmeasured is not None and not self._unmeasured.settled:
            self._unmeasured.settle(self._model)
            self.budget.took_longer(self.budget.clock() - began, to_measure=False)
        pending = self._pending
        if pending is not None:
            pending.settle(self._model)
            self.budget.took_longer(self.budget.clock() - began)
            if pending.settled or at_the_end:  # else gradients are being gathered from several backward passes
                self._pending = None
                self.keep(pending)

    def _stop(self, why: str) -> None:
        self.note(why)
        self._armed = False
        taps.leave(self)

    def _signs(self) -> list[Any]:
        """What changes when a backward pass reaches the parameters."""
        return [None if (g := p.grad) is None else (id(g), g._version) for p in self._parameters]

    def _went_wrong(self, error: Exception) -> None:
        self.note(f"watching went wrong and ended ({type(error).__name__}: {error}); the training did not")
        self._give_up()
        self._armed = False
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
