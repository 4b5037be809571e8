"""When to catch a step of a training, and when to measure one, so that watching keeps its budget."""

from __future__ import annotations

import math

from throughtime.diagnosis.budget import Budget
from throughtime.diagnosis.watch_looks import LAST, START, Looks

CATCHING = 0.4  # the part of the share that goes to steps which are caught only, the first one aside
LATER = 1.05  # a step is caught when training has lasted this much longer than at the one before


class Pace:
    """Says how long to wait, in seconds of training, until the next step may be caught or measured.

    The first step is caught at once. It is measured later, as soon as a first measurement may fit the budget; only a
    budget without a limit (0: once, math.inf: always), or a huge one, has it measured where it is caught. From then on
    another step is measured where it is caught once that fits and the last measurement too, by the times they took:

        room >= to catch it + 2 expected,   room = share * training - watching

    To catch a step without measuring it costs less; for that two fifths of the share are there from the beginning, and
    it is done when training has gone on for a twentieth of its time since the last one, if the last measurement still
    fits afterwards. So there is a late step at the end.
    """

    def __init__(self, budget: Budget):
        self.budget = budget
        self.looks = Looks(budget.clock)
        self.measured = 0
        self.guessed = 0.0  # seconds that the first measurement may take
        self._catches: list[float] = []  # the last few, seconds each
        self._catching = 0.0  # all that were not measured where they were caught, the first one aside
        self._only = False  # whether the last one was such
        self._at = 0.0  # how long training had lasted at the last one

    @property
    def to_measure(self) -> float:
        """Seconds until a step may be caught and measured at once."""
        if not self.budget.limited:
            return 0.0 if not self.measured or self.budget.share else math.inf
        if not self.measured:
            return math.inf if self._catches else self.budget.wait(START)
        return self.budget.wait(self._catch() + 2 * self.looks.expected())

    @property
    def to_catch(self) -> float:
        """Seconds until a step may be caught to be measured later."""
        if not self.budget.limited:
            return math.inf
        if not self._catches:
            return 0.0
        each = self._catch()
        share = (self._catching + each) / (CATCHING * self.budget.share) - self.budget.training
        later = LATER * self._at - self.budget.training
        fits = self.budget.wait(each + self.reserve)
        if not self.measured:  # what is guessed may be far too much: two thirds of the share are enough for it
            fits = min(fits, self.budget.wait(3 * each + 2 * self.budget.watching))
        return max(share, later, fits)

    @property
    def reserve(self) -> float:
        """Seconds that are kept for the last measurement: those of the smallest, until there were several, and before
        the first what it is guessed to take."""
        if not self.measured:
            return self.guessed
        return self.looks.expected(-1 if self.measured > 1 else 0)

    def caught(self, seconds: float, to_measure: bool = False) -> None:
        """To catch a step took this long, the time until its capture was closed and its gradients' norms were known."""
        self._only = bool(self._catches) and not to_measure
        self._catches = [*self._catches[1 - LAST :], seconds]
        self._catching += seconds if self._only else 0.0
        self._at = self.budget.training

    def settled(self, seconds: float) -> None:
        """To see how far its step moved the weights took that much more."""
        if self._catches:
            self._catches[-1] += seconds
            self._catching += seconds if self._only else 0.0

    def _catch(self) -> float:
        return max(self._catches, default=0.0)
