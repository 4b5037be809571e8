"""The three horizons side by side: what the data ask for, what the gradient reaches, what the model uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from throughtime.diagnosis.chance import between, interval, resampling
from throughtime.diagnosis.dependence import Dependence
from throughtime.diagnosis.finding import Finding, Where
from throughtime.diagnosis.use import Use
from throughtime.errors import FlowError
from throughtime.flow import GradientFlow, Horizon, drawing
from throughtime.plain import Plain

Interval = tuple[Horizon, Horizon]
ADDS = 0.01  # of the targets' variance: what adds less counts as nothing

# What each case means, and what to do.
_CASES: dict[str, tuple[str, str, str]] = {
    "unknown": ("note", "Without the data horizon it cannot be said whether that is far enough.", "measure it"),
    "no dependency": ("note", "There is nothing to remember, as far as single inputs show.", "no memory is needed"),
    "no memory": ("note", "The current input is all that the target depends on.", "a network without memory will do"),
    "window": (
        "warning",
        "Training is cut shorter than the dependency in the data: no gradient tells of it, whatever the weights.",
        "a longer window of truncated BPTT, or a state that is carried on",
    ),
    "vanishes": (
        "warning",
        "The gradient vanishes before the dependency in the data: the network cannot learn it as it is.",
        "cure the network: a gated cell, a larger forget-gate bias, an orthogonal U, skip connections",
    ),
    "nearer": (
        "note",
        "What lies farther back than the gradient reaches adds nothing to what nearer inputs say: it does little harm.",
        "",
    ),
    "unclear": (
        "note",
        "The gradient seems to fall short of the dependency in the data, but by less than the intervals can tell.",
        "measure on more data",
    ),
    "reaches": ("note", "The gradient reaches as far as the data ask; whether it is used was not measured.", ""),
    "unused": (
        "warning",
        "The gradient arrives, but the model does not use what lies that far back.",
        "train longer, or give it more units; unless nearer inputs say the same, which pairs cannot show",
    ),
    "healthy": ("note", "The gradient reaches as far as the data ask, and the model uses it.", ""),
}
_NEARER_USE = "What lies farther back than the model uses adds nothing to what nearer inputs say: nothing is lost."


@dataclass(frozen=True)
class Horizons(Plain):
    """The three horizons with their 95 % intervals, as plain data; None for what was not measured.

    data:     how far back the target depends on the input (`Dependence.horizon`).
    gradient: how far back the gradient reaches the parameters (`GradientFlow.horizon`).
    use:      how far back the model uses its input (`Use.horizon`).
    window:   T, the steps of truncated BPTT, if training has one: no gradient goes farther back than T - 1.
    added:    the share of the targets' variance that inputs farther back than the gradient reaches, or where it
              reaches far enough than the model uses, add to nearer ones (`throughtime.diagnosis.added`); below 1 %
              nothing is lost there.

    A horizon that is the largest measured ("at least") is taken as reaching that far. Where two intervals overlap,
    the two are not told apart.
    """

    data: Horizon | None = None
    gradient: Horizon | None = None
    use: Horizon | None = None
    data_interval: Interval | None = None
    gradient_interval: Interval | None = None
    use_interval: Interval | None = None
    window: int | None = None
    added: float | None = None

    @property
    def asked(self) -> Horizon | None:
        """What the gradient must reach: the data horizon; or the use horizon where that surely lies farther back, for
        what a model uses is in the data, seen in single inputs or not."""
        if self.data is None or self.use is None:
            return self.data
        high = (self.data_interval or (self.data, self.data))[1]
        return self.use if not self.data.at_least and self._use_from > high.steps else self.data

    @property
    def _use_from(self) -> int:
        assert self.use is not None
        return (self.use_interval or (self.use, self.use))[0].steps

    @property
    def case(self) -> str:
        """Which case it is: "no dependency", "no memory", "window", "vanishes", "unclear", "nearer", "reaches",
        "unused", "healthy", or "unknown" without a data horizon."""
        asked = self.asked
        if asked is None:
            return "unknown"
        if asked.steps <= 0:
            return "no dependency" if asked.steps < 0 else "no memory"
        spread = self.data_interval if asked is self.data else self.use_interval
        data = spread or (asked, asked)
        reach = math.inf if self.window is None else self.window - 1
        if self.falls_short:
            assert self.gradient is not None
            high = (self.gradient_interval or (self.gradient, self.gradient))[1]
            if asked is self.data and self.added is not None and self.added < ADDS:
                return "nearer"
            surely = not high.at_least and high.steps < min(data[0].steps, reach)
            return "vanishes" if surely else "unclear"
        if data[0].steps > reach:
            return "window"
        if self.use is None:
            return "reaches" if self.gradient is not None else "unknown"
        high = (self.use_interval or (self.use, self.use))[1]
        if high.at_least or high.steps >= data[0].steps:
            return "healthy"
        return "nearer" if asked is self.data and self.added is not None and self.added < ADDS else "unused"

    @property
    def falls_short(self) -> bool:
        """Whether the gradient ends before what the data ask for and training looks back to."""
        asked = self.asked
        if asked is None or self.gradient is None:
            return False
        return self.gradient.steps < min(asked.steps, math.inf if self.window is None else self.window - 1)

    @property
    def means(self) -> str:
        """What the case means, in one plain sentence."""
        return _CASES[self.case][1] if self.case != "nearer" or self.falls_short else _NEARER_USE

    def sentence(self) -> str:
        """All three in one plain sentence, and what follows in a second."""
        told = []
        if self.data is not None:
            asks = "the data hold no dependency" if self.data.steps < 0 else f"the data reach back {self.data}"
            told.append(asks + _range(self.data_interval))
        if self.window is not None:
            told.append(f"training looks back {Horizon(self.window - 1, False)}")
        if self.gradient is not None:
            told.append(f"the gradient reaches {self.gradient}{_range(self.gradient_interval)}")
        if self.use is not None:
            uses = "the model uses no input" if self.use.steps < 0 else f"the model uses {self.use}"
            told.append(uses + _range(self.use_interval))
        text = ", ".join(told) or "no horizon was measured"
        return f"{text[0].upper()}{text[1:]}. {self.means}"

    def plot(self, ax: Any = None) -> Any:
        """Draws the horizons that were measured as bars over lags, with their intervals; gives the axes.

        An arrow at its end says "at least". ax: where to draw; None for a new figure. Raises ThroughtimeError where
        matplotlib is missing.
        """
        ax = drawing.axes(ax)
        for name in ("use", "gradient", "data"):  # the first one lowest
            at, span = getattr(self, name), getattr(self, f"{name}_interval")
            if at is None:
                continue
            ax.barh(name, max(at.steps, 0), height=0.5)
            if at.at_least:
                ax.plot([at.steps], [name], marker=">", color="0.2")
            if span is not None:
                ax.plot([max(v.steps, 0) for v in span], [name, name], color="0.2")
        if self.window is not None:
            ax.axvline(self.window - 1, linestyle="--", linewidth=0.8, color="0.4", label="window")
        ax.set_xlabel("lag (steps)")
        return ax

    def finding(self, where: Where | None = None) -> Finding:
        """The same as one finding, to stand among others."""
        severity, means, do = _CASES[self.case][0], self.means, _CASES[self.case][2]
        first = self.sentence().removesuffix(" " + means)
        number = None if self.gradient is None else float(self.gradient.steps)
        return Finding(severity, f"horizons: {self.case}", where or Where(), first, means, do, number, "steps")

    def __str__(self) -> str:
        return self.sentence()


def three_horizons(
    data: Dependence | None = None,
    flows: Sequence[GradientFlow] | GradientFlow | None = None,
    use: Use | None = None,
    *,
    window: int | None = None,
    of: str = "z",
    fraction: float = 0.01,
) -> Horizons:
    """Puts three measurements side by side as `Horizons`, each with its interval.

    flows: one gradient flow or several of the same recurrence, of different batches; an interval needs 5 or more.
    of, fraction: as in `GradientFlow.horizon`.
    """
    several = [] if flows is None else [flows] if isinstance(flows, GradientFlow) else list(flows)
    gradient = None
    spread = None
    if several:
        gradient = together(several).horizon(of, fraction)
        spread = gradient_interval(several, of, fraction) if len(several) >= 5 else None
    return Horizons(
        None if data is None else data.horizon(),
        gradient,
        None if use is None else use.horizon(),
        None if data is None else data.interval,
        spread,
        None if use is None else use.interval,
        window,
    )


def together(flows: Sequence[GradientFlow]) -> GradientFlow:
    """Several flows of one recurrence over different batches as one: the root of the mean of the squared maps."""
    return _weighted(flows, torch.ones(len(flows), dtype=torch.float64))


def gradient_interval(
    flows: Sequence[GradientFlow], of: str = "z", fraction: float = 0.01, *, resamples: int = 200, seed: int = 0
) -> Interval:
    """The 95 % interval of a gradient horizon, by resampling flows of different batches (Efron 1979).

    Raises FlowError for fewer than 5, and for flows of different recurrences or lengths.
    """
    if len(flows) < 5:
        raise FlowError(f"an interval needs the flows of at least 5 batches; came {len(flows)}")
    point = together(flows).horizon(of, fraction)
    weights = resampling(resamples, len(flows), torch.Generator().manual_seed(seed))[1:]
    found = torch.tensor([_weighted(flows, w, of).horizon(of, fraction).steps for w in weights])
    return interval(found, point.steps, range(flows[0].steps))


def _weighted(flows: Sequence[GradientFlow], weights: torch.Tensor, of: str | None = None) -> GradientFlow:
    first = flows[0]
    for flow in flows:
        if (flow.cell, flow.layer, flow.reverse, flow.steps) != (first.cell, first.layer, first.reverse, first.steps):
            raise FlowError("the flows must be of one recurrence over batches of one length")
    maps = {}
    for name in first.maps if of is None else [of]:
        if any(name not in flow.maps for flow in flows):
            raise FlowError(f"{name!r} was not measured in all of the flows; they hold {', '.join(first.maps)}")
        squares = sum(w * flow.maps[name].square() for w, flow in zip(weights.tolist(), flows, strict=True))
        maps[name] = (squares / weights.sum()).sqrt()
    return GradientFlow(maps, first.cell, first.layer, first.reverse)


def _range(span: Interval | None) -> str:
    return "" if span is None else f" (95 %: {between(span)})"
