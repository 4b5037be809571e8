"""Clip thresholds that follow the norm's own history: AutoClip (a percentile) and ZClip (a running z-score)."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from throughtime.cures.clip import Clipper, ClipStep, clip_to, is_number, positive
from throughtime.errors import ConfigError


class AutoClip(Clipper):
    """Clips at the p-th percentile of all gradient norms so far, this one included (Seetharaman 2020).

        threshold_t = percentile_p(||g_1||, ..., ||g_t||),  linear between neighbours

    percentile: p in (0, 100]; the paper recommends 10, which clips about nine steps in ten: all steps then have nearly
                one length, that of the small gradients. A p of 90 clips outliers only.
    window:     how many of the last norms count; None for all, as in the paper.

    One call costs a search in a sorted list besides the norm itself, and 16 bytes for each norm of the history.
    """

    def __init__(
        self, percentile: float = 10.0, *, window: int | None = None, nonfinite: str = "raise", keep: int | None = None
    ) -> None:
        super().__init__(nonfinite, keep)
        if not is_number(percentile) or not 0 < percentile <= 100:
            raise ConfigError(f"percentile must lie in (0, 100]; came {percentile!r}")
        if window is not None and window < 1:
            raise ConfigError(f"window must be at least 1 step, or None for all; came {window}")
        self.percentile, self.window = float(percentile), window
        self._history: deque[float] = deque()
        self._sorted: list[float] = []

    def clip(self, parameters: list[Tensor], norm: float) -> ClipStep:
        self._learn(norm)
        return clip_to(parameters, norm, self.threshold)

    @property
    def threshold(self) -> float:
        """The percentile of the history; inf before the first step."""
        if not self._sorted:
            return math.inf
        spot = self.percentile / 100 * (len(self._sorted) - 1)
        low = math.floor(spot)
        high = min(low + 1, len(self._sorted) - 1)
        return self._sorted[low] + (spot - low) * (self._sorted[high] - self._sorted[low])

    def _learn(self, norm: float) -> None:
        self._history.append(norm)
        insort(self._sorted, norm)
        if self.window is not None and len(self._history) > self.window:
            del self._sorted[bisect_left(self._sorted, self._history.popleft())]

    def state_dict(self) -> dict[str, Any]:
        """The history of norms."""
        return {"history": list(self._history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._history, self._sorted = deque(), []
        for norm in state["history"]:
            self._learn(float(norm))


class ZClip(Clipper):
    """Clips norms that stand out from a running mean by more than z standard deviations (Kumar 2025).

        z_t = (||g_t|| - m) / (s + eps);   if z_t > z:  threshold = m + z^2 / z_t * s,   else the norm is kept
        m <- a m + (1 - a) n,   s^2 <- a s^2 + (1 - a) (n - m)^2,   n = the threshold where it clipped, else ||g_t||

    The farther out, the lower the threshold. m and s start as mean and standard deviation of the first `warmup`
    norms, during which nothing is clipped but by `max_norm`.

    alpha: a, the smoothing.   z: how many standard deviations are an outlier.   eps: keeps s = 0 from dividing.
    max_norm: a fixed bound besides, or None; the paper's code has 1.0 on by default, here it is off. It does not change
              what m and s learn, except that a step it shortens counts with its full norm (as in the paper's code).
    """

    def __init__(
        self,
        *,
        alpha: float = 0.97,
        z: float = 2.5,
        warmup: int = 25,
        eps: float = 1e-6,
        max_norm: float | None = None,
        nonfinite: str = "raise",
        keep: int | None = None,
    ) -> None:
        super().__init__(nonfinite, keep)
        if not 0 < alpha < 1:
            raise ConfigError(f"alpha, the smoothing, must lie in (0, 1); came {alpha}")
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 2:
            raise ConfigError(f"warmup must be at least 2 steps, for a standard deviation; came {warmup!r}")
        self.alpha, self.z, self.warmup = float(alpha), positive("z", z), warmup
        self.eps = positive("eps", eps)
        self.max_norm = None if max_norm is None else positive("max_norm", max_norm)
        self._first: list[float] = []
        self.mean: float | None = None
        self.variance: float | None = None

    def clip(self, parameters: list[Tensor], norm: float) -> ClipStep:
        found = self._threshold(norm)
        self._learn(norm if found is None else found)
        threshold = min(math.inf if found is None else found, self.max_norm or math.inf)
        if norm <= threshold:
            return ClipStep(norm, threshold, norm, "kept")
        return clip_to(parameters, norm, threshold)

    def _threshold(self, norm: float) -> float | None:
        if self.mean is None or self.variance is None:
            return None
        s = math.sqrt(self.variance)
        z = (norm - self.mean) / (s + self.eps)
        return self.mean + self.z**2 / z * s if z > self.z else None

    def _learn(self, norm: float) -> None:
        if self.mean is None or self.variance is None:
            self._first.append(norm)
            if len(self._first) == self.warmup:
                self.mean = sum(self._first) / self.warmup
                self.variance = sum((v - self.mean) ** 2 for v in self._first) / self.warmup
                self._first = []
            return
        self.mean = self.alpha * self.mean + (1 - self.alpha) * norm
        self.variance = self.alpha * self.variance + (1 - self.alpha) * (norm - self.mean) ** 2

    def state_dict(self) -> dict[str, Any]:
        """The running mean and variance, or the norms of the warm-up so far."""
        return {"first": list(self._first), "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._first = [float(v) for v in state["first"]]
        self.mean, self.variance = state["mean"], state["variance"]
