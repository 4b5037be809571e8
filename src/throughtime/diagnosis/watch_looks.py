"""Measures caught steps in sizes that fit the time there is, by the times that the sizes took before."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

from throughtime.diagnosis.budget import Clock
from throughtime.diagnosis.observe import WORK, planned
from throughtime.diagnosis.watch_step import Pending

GROWTH = 10**0.5  # one size has this many times the multiplications of the one before, and takes no longer than that
SIZES = (WORK / GROWTH**2, WORK / GROWTH, WORK)  # multiplications for each stack of recurrences
LAST = 3  # of so many times of a size the longest is what the next is expected to take

# Before anything was timed: what the smallest size takes at most, as measured on one slow core.
START = 0.05  # seconds for each stack, what is done once only included
RATE = 2e9  # multiplications a second
AGAIN = 16.0  # how many times as long as the step itself it takes to run a module of the user's own again and back


class Looks:
    """Looks at steps that were caught, at each in the largest size that is known to fit.

    The first look begins with the smallest size, which follows a sequence or a few, and goes on to the next size while
    that fits too: it takes at most `GROWTH` times as long as the one just timed. Later ones begin with the largest size
    that fits by its own times. The very first time of a size is forgotten when there is a second one: whatever is done
    only once (kernels loaded, a cell traced) is in it.
    """

    def __init__(self, clock: Clock):
        self.clock = clock
        self._times: list[list[float]] = [[] for _ in SIZES]
        self._cold = [True for _ in SIZES]

    @property
    def any(self) -> bool:
        """Whether there was one."""
        return any(self._times)

    def expected(self, size: int = -1) -> float:
        """Seconds that a look of this size will take at most, -1 for the whole; 0 before anything was timed."""
        size %= len(SIZES)
        for larger in range(size, len(SIZES)):
            if self._times[larger]:
                return max(self._times[larger])
        for smaller in reversed(range(size)):
            if self._times[smaller]:
                return max(self._times[smaller]) * GROWTH ** (size - smaller)
        return 0.0

    @staticmethod
    def guess(step: Pending, lasted: float) -> float:
        """Seconds that the smallest look at a step that lasted so long may take, before anything was timed."""
        seconds = 0.0
        for stack in step.stacks():
            plan = planned(stack, SIZES[0])
            seconds += START + (AGAIN * lasted if plan.own else plan.work / RATE)
        return seconds

    def look(self, step: Pending, turn: int, room: float, around: AbstractContextManager[None]) -> None:
        """Measures the step within `room` seconds if they are enough for anything, in the smallest size if not.

        turn: the number of the measurement. around: what the model is to be run in.
        """
        fits = [i for i in range(len(SIZES)) if self._times[i] and self.expected(i) <= room]
        size = max(fits, default=0) if math.isfinite(room) else len(SIZES) - 1
        began = self.clock()
        with around:
            entered = self.clock()
            step.look(turn, SIZES[size])
            took = self._timed(size, began, step)
            while size < len(SIZES) - 1 and step.estimated and step.grows(SIZES[size], SIZES[size + 1]):
                if self.clock() - began + GROWTH * took > room:
                    break
                size, entered = size + 1, self.clock()
                step.look(turn, SIZES[size])
                took = self._timed(size, entered, step)

    def _timed(self, size: int, since: float, step: Pending) -> float:
        took = self.clock() - since
        if step.recurrences:
            # What was measured whole with less takes no longer with more.
            for i in range(size, size + 1 if step.estimated else len(SIZES)):
                times = self._times[i]
                if self._cold[i] and times:
                    times, self._cold[i] = [], False
                self._times[i] = [*times, took][-LAST:]
        return took
