"""What watches a training: it hears what the user's loop does, and never does harm to it."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from throughtime.diagnosis import taps
from throughtime.diagnosis.budget import Budget, Clock
from throughtime.diagnosis.several import trains
from throughtime.diagnosis.watch_cycle import Cycle

TIMED = 16  # of so many steps in which there is nothing to do one is timed, for all
OF = 7  # the middle one of the last so many times counts: another program may have run within one


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


class Watch(Cycle):
    """What `watch` gives: it listens to the training, measures a step of it now and then, and holds what was seen.

    history: the records, oldest first.   steps: backward passes through the model so far.
    cost:    the share of training time that watching took.   notes: what could not be seen, in sentences.
    name:    what is watched: the class of the model.
    """

    def __init__(self, budget: float, path: str | os.PathLike[str] | None, clock: Clock | None = None):
        super().__init__(Budget(budget) if clock is None else Budget(budget, clock), path)
        self._process = os.getpid()
        self._busy = threading.Lock()
        self._slept, self._timed = 0, 0.0
        self._idled: list[float] = []  # seconds, of the last few that were timed

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
        self.finish()

    @_safely
    def _finish(self) -> None:
        self._look_at_the_rest()

    # --- what is heard -----------------------------------------------------------------------------------------------

    def before_backward(self) -> None:
        if not self._asleep or self._busy.locked():
            self._before_backward()
            return
        self._slept += 1  # most steps; in these as little is done as can be
        if self._slept % TIMED:
            self._reach.begin()
            return
        began = self.budget.clock()
        self._reach.begin()
        self._timed = self.budget.clock() - began

    def after_backward(self, start: Any) -> None:
        if self._asleep and not self._busy.locked():
            now = self.budget.clock()
            if now < self._again and self._reach.ended():
                self.steps += 1
                if not self._slept % TIMED:
                    self._idled = [*self._idled[1 - OF :], self._timed + self.budget.clock() - now]
                    self.budget.spend(TIMED * median(self._idled))
                return
        self._after_backward(start)

    @_safely
    def _before_backward(self) -> None:
        self._settle()
        self._reach.begin()

    @_safely
    def _after_backward(self, start: Any) -> None:
        moved, self._asleep = self._reach.ended(), False
        if self._measuring is not None:
            if moved or self._measuring.reached:
                self.steps += 1
                self._caught(taps.one_number(start))
        elif not moved:
            self._other_backward()
        else:
            self.steps += 1
            self._stepped()
        self._asleep = not self._armed and self._measuring is None and self._pending is None and self.held.settled

    def _other_backward(self) -> None:
        """A backward pass of something else."""

    @_safely
    def backward_failed(self) -> None:
        if self._measuring is not None:
            self._give_up()
            self._arm()

    def before_call(self, module: nn.Module) -> None:
        if id(module) in self._watched and torch.is_grad_enabled():
            self._called()

    @_safely
    def _called(self) -> None:
        """A forward pass begins that may lead to a backward pass."""
        assert self._model is not None
        if self._armed and (trains(self._model) or self._evaluating):
            self._open(self._model)

    def _went_wrong(self, error: Exception) -> None:
        self._stop(f"watching went wrong and ended ({type(error).__name__}: {error}); the training did not")
        self._give_up()
