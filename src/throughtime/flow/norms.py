"""The history of gradient norms over training, and what a clip threshold would have done to it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from throughtime.errors import FlowError
from throughtime.flow import drawing
from throughtime.plain import Plain


@dataclass(frozen=True)
class NormHistory(Plain):
    """The global gradient norm of each training step, before any clipping, in the order of the steps, as plain data.

    Steps whose norm is NaN or infinite are kept, counted apart, and left out of quantiles and shares.
    """

    norms: tuple[float, ...]

    @property
    def finite(self) -> tuple[float, ...]:
        """The norms that are numbers."""
        return tuple(v for v in self.norms if math.isfinite(v))

    @property
    def broken(self) -> tuple[int, ...]:
        """The steps, from 0, at which the norm was NaN or infinite."""
        return tuple(n for n, v in enumerate(self.norms) if not math.isfinite(v))

    def quantile(self, q: float) -> float:
        """The norm that a share q of the steps stays below, linear between neighbours."""
        if not 0 <= q <= 1:
            raise FlowError(f"a quantile must lie in [0, 1]; came {q}")
        ordered = sorted(self.finite)
        if not ordered:
            raise FlowError("every gradient norm was NaN or infinite; there are no quantiles")
        spot = q * (len(ordered) - 1)
        below = math.floor(spot)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (spot - below) * (ordered[above] - ordered[below])

    def clipped(self, threshold: float) -> float:
        """The share of steps that clipping by global norm at this threshold would have shortened (Pascanu 2013)."""
        _check(threshold)
        norms = self.finite
        return sum(v > threshold for v in norms) / len(norms) if norms else 0.0

    def kept(self, threshold: float) -> float:
        """The mean factor that the clipped steps would have been multiplied by, threshold / norm; 1 if none were."""
        _check(threshold)
        cut = [threshold / v for v in self.finite if v > threshold]
        return sum(cut) / len(cut) if cut else 1.0

    def reading(self, threshold: float) -> str:
        """What this threshold would have been: one of "never clips", "clips outliers", "often clips", "always clips".

        A threshold that never clips is no protection; one that always does is a learning rate in disguise, for each
        step then has the same length. Outliers: at most one step in ten (as AutoClip's choice of a quantile of the
        history, Seetharaman 2020; the bounds are rules of thumb).
        """
        share = self.clipped(threshold)
        if share == 0:
            return "never clips"
        if share <= 0.1:
            return "clips outliers"
        return "often clips" if share < 0.9 else "always clips"

    def plot(self, ax: Any = None) -> Any:
        """Draws the norms by step, those that are not finite left out with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        at = [n for n, v in enumerate(self.norms) if math.isfinite(v)]
        curves = {"norm": [self.norms[n] for n in at]}
        return drawing.lines(curves, ax, at, xlabel="training step", ylabel="norm of the gradient", log=True)

    def __str__(self) -> str:
        n = len(self.norms)
        lines = [f"Gradient norm over {n} step{'' if n == 1 else 's'}"]
        if self.broken:
            lines.append(f"  NaN or infinite at {len(self.broken)} of them, first at step {self.broken[0]}")
        if not self.finite:
            return "\n".join(lines)
        marks = (0.0, 0.5, 0.9, 0.99, 1.0)
        told = ", ".join(
            f"{name} {self.quantile(q):.3g}"
            for name, q in zip(("least", "median", "90 %", "99 %", "most"), marks, strict=True)
        )
        lines.append(f"  {told}")
        for threshold in self.thresholds():
            lines.append(
                f"  clipped at {threshold:<8.3g} {self.clipped(threshold):6.1%} of the steps, to "
                f"{self.kept(threshold):.2f} of their length on average ({self.reading(threshold)})"
            )
        return "\n".join(lines)

    def thresholds(self) -> tuple[float, ...]:
        """The ones worth trying: those people use (0.25, 1, 5, 15), and the median, 90 % and 99 % of this history."""
        own = {self.quantile(q) for q in (0.5, 0.9, 0.99)}
        return tuple(sorted(v for v in {0.25, 1.0, 5.0, 15.0} | own if v > 0))


def norm_history(norms: Iterable[float]) -> NormHistory:
    """The history of gradient norms, one a training step, as torch.nn.utils.clip_grad_norm_ returns them.

    Raises FlowError for none at all, for what is not a number, and for a norm below 0.
    """
    try:
        values = tuple(float(v) for v in norms)
    except (TypeError, ValueError) as err:
        raise FlowError(f"a gradient norm must be one number a step ({err})") from None
    if not values:
        raise FlowError("no gradient norms: record at least one, before clipping")
    if any(v < 0 for v in values):
        raise FlowError(f"a norm cannot be below 0; came {min(values)}")
    return NormHistory(values)


def _check(threshold: float) -> None:
    if not threshold > 0:
        raise FlowError(f"a clip threshold must be above 0; came {threshold}")
