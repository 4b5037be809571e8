"""The result of following the gradient through time: the (t,k) map, its profile over lags, horizon and half-life."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.errors import FlowError
from throughtime.flow import drawing, figure
from throughtime.plain import Plain, plain


@plain
class Horizon(NamedTuple):
    """A largest lag, in steps; `at_least` where it is the largest that was measured and the true one may lie beyond."""

    steps: int
    at_least: bool

    def __str__(self) -> str:
        return f"{'at least ' if self.at_least else ''}{self.steps} step{'' if self.steps == 1 else 's'}"


@dataclass(frozen=True)
class GradientFlow(Plain):
    """The gradient through time of one layer and direction, exact, as plain data.

    maps: by name, each [T, T] float64; row t is the step at which a loss enters, column k the step of the past:
        maps["z"][t, k] = ||delta_{t,k}||,   delta_{t,k} = dL_t/dz_k, the net inputs of all gates (Werbos 1990)
        maps["h"][t, k] = ||dL_t/dh_k||      and so for every other state of the cell, "c" for an LSTM
    L_t is the part of the loss that enters the layer's output at step t. The derivative with respect to a state is the
    total one, along all paths, those inside step k included. ||.|| is the Euclidean norm over the batch and all units,
    in the units of the loss per unit of z or of the state. Where the gradient cannot go (k > t, or k < t in a
    reverse direction) the map is 0.

    cell, layer, reverse: which recurrence was measured.
    """

    maps: dict[str, Tensor]
    cell: str
    layer: int = 0
    reverse: bool = False

    @property
    def steps(self) -> int:
        """T, the number of time steps measured."""
        return next(iter(self.maps.values())).shape[0]

    def profile(self, of: str | None = None) -> Tensor:
        """The size of the gradient by lag, relative to lag 0: float64 [n], profile[0] = 1, no unit.

            profile[d] = sum_t map[t, t-d] / sum_t map[t, t],   both sums over the t that have a step t-d

        It is a mean of sizes, not of squares, so that one loss that reaches far does not speak for all of them. Where
        a loss does not reach its own step at all (an output made from the old state), the first lag that it reaches
        takes the place of lag 0, and the profile is 0 before it.

        of: which map; None for the first, "z" of a cell of ours. n is T, or less where no loss enters late enough to
        look back that far. Raises FlowError where no gradient entered at all, where it left the range of float64, and
        for a name that was not measured.
        """
        of = next(iter(self.maps)) if of is None else of
        if of not in self.maps:
            raise FlowError(f"{of!r} was not measured; this flow holds {', '.join(self.maps)}")
        sizes = self.maps[of].flip(0, 1) if self.reverse else self.maps[of]  # in reverse, time the other way round
        back = torch.stack([sizes.diagonal(-d).sum() for d in range(self.steps)])
        if not back.isfinite().all():
            lag = int((~back.isfinite()).nonzero()[0])
            raise FlowError(
                f"the gradient leaves the range of float64 within {lag} steps: it explodes; measure fewer steps"
            )
        if not back.any():
            raise FlowError(f"no gradient with respect to {of!r} at any step: nothing to follow")
        first = int(back.nonzero()[0])
        sent = sizes.diagonal(-first).flip(0).cumsum(0).flip(0)  # by lag, over the losses that look back that far
        sent = torch.cat([sent[:1].expand(first), sent])
        n = int((sent > 0).sum())
        profile = back[:n] / sent[:n]
        profile[first] = 1  # the same sum twice, in two orders, may differ in its last bit
        return profile

    def horizon(self, of: str | None = None, fraction: float = 0.01) -> Horizon:
        """The gradient horizon: the largest lag d, in steps, with profile[d] >= fraction.

        Of the net inputs z it is the largest lag from which the gradient reaches the parameters, whose gradients are
        sums of delta_{t,k} h_{k-1}^T and delta_{t,k} x_k^T, at more than this fraction of its size at lag 0. If that
        is the largest lag measured, `at_least` is True.
        """
        return horizon_of(self.profile(of), fraction)

    def half_life(self, of: str | None = None) -> float:
        """The lag, in steps, at which the profile first falls to 1/2; interpolated on a log scale between two lags.

        For a profile r^d it is ln 2 / -ln r, exactly. math.inf if the profile stays above 1/2 as far as measured.
        Counted from lag 0, where the profile is 0 at first from the lag that takes its place on.
        """
        return half_life_of(self.profile(of))

    def profiles(self) -> dict[str, Tensor]:
        """The profile of every map that has one, by name: where a gradient is, within the range of float64."""
        return {n: self.profile(n) for n, sizes in self.maps.items() if bool(sizes.any() & sizes.isfinite().all())}

    def plot(self, ax: Any = None) -> Any:
        """Draws the profiles over lags with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        return figure.plot(self.profiles(), ax=ax)

    def plot_map(self, of: str | None = None, ax: Any = None) -> Any:
        """Draws one map (None: the first) as an image, on a logarithmic scale; else as `plot`."""
        of = next(iter(self.maps)) if of is None else of
        if of not in self.maps:
            raise FlowError(f"{of!r} was not measured; this flow holds {', '.join(self.maps)}")
        title = f"log10 of the size of the gradient at {of}"
        return drawing.matrix(self.maps[of], ax, xlabel="step of the past k", ylabel="loss step t", title=title)

    def _repr_html_(self) -> str:
        """For notebooks: the profiles as a drawing, and the text; one piece of HTML, no scripts."""
        return f"<div>{figure.svg(self.profiles())}{super()._repr_html_()}</div>"

    def __str__(self) -> str:
        where = f"{self.cell}, layer {self.layer}{', reverse' if self.reverse else ''}"
        lines = [f"Gradient through time over {self.steps} step{'' if self.steps == 1 else 's'} ({where})"]
        for of in self.maps:
            try:
                lines += self._told(of)
            except FlowError as error:
                lines.append(f"  {of}: {error}")
        return "\n".join(lines)

    def _told(self, of: str) -> list[str]:
        profile, half = self.profile(of), self.half_life(of)
        shown = " ".join(f"{profile[d]:.0e}" for d in _ticks(len(profile)))
        half_text = "none in the window" if math.isinf(half) else f"{half:.1f} steps"
        return [
            f"  {of}: horizon {self.horizon(of)} (1 %), half-life {half_text}",
            f"     relative size at lags {', '.join(str(d) for d in _ticks(len(profile)))}: {shown}",
        ]


def horizon_of(profile: Tensor, fraction: float = 0.01) -> Horizon:
    """The horizon of a profile over lags [n] that begins with 1; see `GradientFlow.horizon`."""
    if not 0 < fraction <= 1:
        raise FlowError(f"fraction must lie in (0, 1], a share of the gradient at lag 0; came {fraction}")
    steps = int((profile >= fraction).nonzero().max())
    return Horizon(steps, steps == len(profile) - 1)


def check_dtype(dtype: Any) -> None:
    """Raises FlowError for a dtype in which no gradient is followed."""
    if dtype not in (torch.float64, torch.float32):
        raise FlowError(f"the gradient is followed in torch.float64 or torch.float32; came {dtype!r}")


def half_life_of(profile: Tensor) -> float:
    """The half-life of a profile over lags [n], in steps; see `GradientFlow.half_life`."""
    sizes = profile.tolist()
    first = sizes.index(1.0)
    for d in range(first + 1, len(sizes)):
        if sizes[d] <= 0.5:
            if sizes[d] == 0:
                return float(d - 1)  # the limit of the formula below
            above, below = math.log(sizes[d - 1]), math.log(sizes[d])
            return d - 1 + (above - math.log(0.5)) / (above - below)
    return math.inf


def _ticks(n: int) -> list[int]:
    lags = [0] + [2**i for i in range(20) if 2**i < n - 1]
    return lags + ([n - 1] if n > 1 else [])
