"""A share of training time that may be spent, and how much of it is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from throughtime.errors import ConfigError

Clock = Callable[[], float]


class Budget:
    """Counts the time spent on watching, and says what still fits its share of training time.

        cost = watching / training,   training = elapsed - watching,   room = share * training - watching

    share: of training time, no unit: 0.02 is 2 %; math.inf for no limit.
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
    def limited(self) -> bool:
        """Whether there is a share to keep: not 0, which measures once, and not math.inf."""
        return 0 < self.share < math.inf

    @property
    def room(self) -> float:
        """Seconds of watching that fit now, less than 0 where more was spent; math.inf without a share to keep."""
        return self.share * self.training - self.watching if self.limited else math.inf

    def wait(self, seconds: float) -> float:
        """Seconds of training until that many more of watching fit; 0 or less if they do now."""
        if math.isinf(self.share):
            return 0.0
        return (self.watching + seconds) / self.share - self.training if self.share > 0 else math.inf

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
