"""How often may be measured: a budget of time, kept by a clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from throughtime.errors import ConfigError

Clock = Callable[[], float]


CATCHING = 0.25  # the part of the share that goes to steps which are caught only, to be measured at the end
LATER = 1.05  # a step is caught when training has lasted this much longer than at the one before


class Budget:
    """Says when the next measurement is due, so that watching takes no more than its share of training time.

        cost = watching / training,   training = elapsed - watching

    The first measurement is always due, and counts. So does the last, after training. Another in between is due once
    it fits, and the last one too: watching + 2 expected <= share * training, where expected is the longest of the last
    three. So a run that is too short for the first and the last exceeds the share, and is told its true cost; a
    longer one keeps it as long as no measurement takes much longer than those before.

    To catch a step without measuring it costs much less; for that a quarter of the share is there from the beginning,
    and it is done when training has gone on for a twentieth of its time since the last one.

    share: of training time, no unit: 0.02 is 2 %; 0 measures once, math.inf every time.
    clock: seconds, from any zero; `time.perf_counter` if not given.
    """

    def __init__(self, share: float = 0.02, clock: Clock = time.perf_counter):
        if isinstance(share, bool) or not isinstance(share, int | float) or math.isnan(share) or share < 0:
            raise ConfigError(f"the budget is a share of training time, a number >= 0 (0.02 for 2 %); came {share!r}")
        self.share = float(share)
        self.clock = clock
        self._spent = 0.0
        self._since: float | None = None  # between `begin` and `end`
        self._began = clock()
        self._ended: float | None = None
        self._before_end = 0.0  # spent before `stop`
        self._measured: list[float] = []
        self._caught: list[float] = []
        self._catching = 0.0
        self._at = 0.0  # how long training had lasted when a step was last caught or measured

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning, up to `stop`."""
        return (self.clock() if self._ended is None else self._ended) - self._began

    @property
    def watching(self) -> float:
        """Seconds spent on watching."""
        return self._spent + (0.0 if self._since is None else self.clock() - self._since)

    @property
    def training(self) -> float:
        """Seconds in which there was no watching."""
        return max(0.0, self.elapsed - (self.watching if self._ended is None else self._before_end))

    @property
    def cost(self) -> float:
        """The share of time spent so far, watching / training; 0 before anything was spent."""
        if self.watching == 0:
            return 0.0
        return self.watching / self.training if self.training > 0 else math.inf

    @property
    def any_measured(self) -> bool:
        """Whether there was a measurement."""
        return bool(self._measured)

    def due(self) -> bool:
        """Whether a measurement fits now."""
        if not self._measured or math.isinf(self.share):
            return True
        return self.watching + 2 * max(self._measured) <= self.share * self.training

    def may_catch(self) -> bool:
        """Whether to catch a step without measuring it fits now, after a first measurement."""
        expected, share = max(self._caught, default=0.0), self.share * self.training
        if self.training < LATER * self._at:
            return False
        if len(self._measured) > 1 and self.watching + expected + max(self._measured) > share:
            return False  # that much is for the last one
        return self._catching + expected <= CATCHING * share

    def wait(self) -> float:
        """Seconds from now in which neither will fit, so that nobody need ask; 0 or less if one may now."""
        if self.share == 0 or not self._measured:
            return math.inf if self._measured else 0.0
        longest, expected = max(self._measured), max(self._caught, default=0.0)
        watching = self.watching
        measuring = (watching + 2 * longest) / self.share
        catching = max((self._catching + expected) / (CATCHING * self.share), LATER * self._at)
        if len(self._measured) > 1:
            catching = max(catching, (watching + expected + longest) / self.share)
        return min(measuring, catching) - self.training

    def measured(self, seconds: float, catching: float = 0.0) -> None:
        """One whole measurement took this long, `catching` of it to catch the step; `spend` has counted it already."""
        self._measured = [*self._measured[-2:], seconds]
        self._caught = [*self._caught[-2:], catching]
        self._at = self.training

    def took_longer(self, seconds: float, to_measure: bool = True) -> None:
        """The last measurement took that much more, or the last step that was caught only."""
        times = self._measured if to_measure else self._caught
        if times:
            times[-1] += seconds
        self._catching += 0.0 if to_measure else seconds

    def caught(self, seconds: float) -> None:
        """To catch a step took this long; `spend` has counted it already."""
        self._caught = [*self._caught[-2:], seconds]
        self._catching += seconds
        self._at = self.training

    def spend(self, seconds: float) -> None:
        """Counts time as spent on watching."""
        self._spent += seconds

    def begin(self) -> None:
        """Counts the time from here on, until `end`."""
        self._since = self.clock()

    def end(self) -> None:
        """The end of what `begin` began."""
        since, self._since = self._since, None
        if since is not None:
            self._spent += self.clock() - since

    def stop(self) -> None:
        """The end of training: the clock counts no further. What is spent from here on was spent on watching still."""
        if self._ended is None:
            self._ended, self._before_end = self.clock(), self.watching
