"""The size of the gradient by lag from a few loss steps and sequences: an estimate, with its error, for little time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from throughtime.errors import FlowError, NoFlowError
from throughtime.flow import drawing, figure
from throughtime.flow.capture import Captured
from throughtime.flow.capture_runs import StepRun
from throughtime.flow.capture_sample import batch_of, sample
from throughtime.flow.entering import Entering, loss_steps
from throughtime.flow.gradient_flow import Horizon, half_life_of, horizon_of
from throughtime.flow.running import where
from throughtime.plain import Plain

FEW: Final = "few"


@dataclass(frozen=True)
class LagProfile(Plain):
    """The profile of `GradientFlow` estimated from some loss steps, the anchors, and some sequences, as plain data.

    sizes:   by name, the size of the gradient at each lag relative to lag 0, float64 [n], no unit.
    errors:  by name, the standard error of each, [n]. NaN where only one anchor looks back so far: nobody knows.
    anchors: the loss steps that were followed.     loss_steps: how many there are.
    samples: how many sequences were followed.      batch: how many there are; 0 where that is not known.
    """

    sizes: dict[str, Tensor]
    errors: dict[str, Tensor]
    anchors: tuple[int, ...]
    loss_steps: int
    samples: int
    batch: int
    cell: str
    layer: int = 0
    reverse: bool = False

    @property
    def estimated(self) -> str | None:
        """From what it was estimated ("8 of 256 loss steps and 4 of 32 sequences"); None if it is exact."""
        told = [f"{len(self.anchors)} of {self.loss_steps} loss steps"] * (len(self.anchors) < self.loss_steps)
        told += [f"{self.samples} of {self.batch} sequences"] * (self.samples < self.batch)
        return " and ".join(told) or None

    def profile(self, of: str | None = None) -> Tensor:
        """The estimate, [n]; of: which map, None for the first. Raises FlowError for a name that is not held."""
        of = next(iter(self.sizes)) if of is None else of
        if of not in self.sizes:
            raise FlowError(f"{of!r} was not measured; this profile holds {', '.join(self.sizes)}")
        return self.sizes[of]

    def horizon(self, of: str | None = None, fraction: float = 0.01) -> Horizon:
        """The gradient horizon as estimated; see `GradientFlow.horizon`."""
        return horizon_of(self.profile(of), fraction)

    def interval(self, of: str | None = None, fraction: float = 0.01) -> tuple[Horizon, Horizon]:
        """The horizons of the estimate less and plus two standard errors, unknown ones taken as none."""
        profile = self.profile(of)
        error = self.errors[next(iter(self.sizes)) if of is None else of].nan_to_num(0.0)
        return horizon_of(profile - 2 * error, fraction), horizon_of(profile + 2 * error, fraction)

    def half_life(self, of: str | None = None) -> float:
        """The half-life as estimated, in steps; see `GradientFlow.half_life`."""
        return half_life_of(self.profile(of))

    def plot(self, ax: Any = None) -> Any:
        """Draws the profiles, each in a band of two standard errors, with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        ax = figure.plot(self.sizes, ax=ax)
        for name, profile in self.sizes.items():
            error = 2 * self.errors[name].nan_to_num(0.0)
            low, high = ((profile + s * error).clamp(min=drawing.SMALLEST).tolist() for s in (-1, 1))
            ax.fill_between(range(len(profile)), low, high, alpha=0.2)
        return ax

    def _repr_html_(self) -> str:
        """For notebooks: the profiles as a drawing, and the text; one piece of HTML, no scripts."""
        return f"<div>{figure.svg(self.sizes)}{super()._repr_html_()}</div>"

    def __str__(self) -> str:
        kind = f"estimated from {self.estimated}" if self.estimated else "exact"
        lines = [f"Gradient by lag ({where(self.cell, self.layer, self.reverse)}; {kind})"]
        for of in self.sizes:
            low, high = (h.steps for h in self.interval(of))
            spread = "" if low == high else f", {low} to {high} within two errors"
            lines.append(f"  {of}: horizon {self.horizon(of)} (1 %){spread}")
        return "\n".join(lines)


def lag_profile(
    captured: Captured,
    *,
    anchors: int = 8,
    samples: int | Literal["few"] | None = FEW,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LagProfile:
    """Estimates the profile over lags of a captured recurrence; it may cost less than the training step it is from.

    The loss steps are cut into anchors / 2 stretches of equal length, and two anchors are drawn from each. With the
    sizes s_t(d) = ||dL_t/dz_{t-d}|| of the anchors that look back so far, each weighted by what it stands for,

        profile[d] = sum_t w_t s_t(d) / sum_t w_t s_t(0)

    which is a combined ratio estimate; its variance is that of the residuals within the stretches (Cochran 1977,
    ch. 6), and what the sequences add is known from leaving each out in turn (the jackknife, Efron 1982).

    anchors: loss steps to follow, at least 2; all of them if there are no more.
    samples: sequences of the batch to follow, at least 2; None for all; "few" for 4, or half of the batch where that is
             less, so that it stays cheaper than the training step. The whole batch of a module of the user's own.
    dtype:   in what it is computed; float32 takes about half the time of float64.

    Raises FlowError for what cannot be followed, as `Captured.flow` does.
    """
    for what, n in (("anchors", anchors), ("samples", None if samples == FEW else samples)):
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 2):
            raise FlowError(f"{what} must be a whole number of at least 2, for one alone has no error bar; came {n!r}")
    generator = torch.Generator().manual_seed(seed)
    batch, index = batch_of([captured]), None
    count = max(2, min(4, (batch or 0) // 2)) if isinstance(samples, str) else samples
    if batch is not None and count is not None and count < batch:
        index = torch.randperm(batch, generator=generator)[:count].sort().values
    run: Any = sample([captured], index, dtype, True)[0]._run
    try:
        run.check()
    except NoFlowError as error:
        if index is None:
            raise
        raise NoFlowError(f"{run.title}: no gradient enters the {count} sequences that were drawn") from error
    if isinstance(run, StepRun):
        steps = loss_steps(run.entering, len(run.calls))
    else:
        given = [v for layer in run.outside for direction in layer for v in direction]
        steps = loss_steps(Entering(given), run.passed.recurrences[0][0].x.shape[0])
    groups = _draw(steps, anchors, generator)
    rows = sorted(t for _, group in groups for t in group)
    if isinstance(run, StepRun):
        name, maps = run.recurrence.kind, run.recurrence.send_back(run.entering.at(rows))
        sizes = {n: m[rows][None] for n, m in maps.items()}
    else:
        name = run.calls[0].cell.name
        sizes = run.passed.sent(run.outside, captured.layer, rows, by_sample=True)[0][int(captured.reverse)].sizes
    of = batch or 1
    found = {n: _estimate(v, rows, groups, captured.reverse, of) for n, v in sizes.items() if bool(v.any())}
    if not found:
        raise NoFlowError(f"{run.title}: the anchors send no gradient to this layer and direction")
    profiles, errors = ({n: v[i] for n, v in found.items()} for i in (0, 1))
    drawn = of if index is None else len(index)
    return LagProfile(profiles, errors, tuple(rows), len(steps), drawn, of, name, captured.layer, captured.reverse)


def _draw(steps: list[int], n: int, generator: torch.Generator) -> list[tuple[int, list[int]]]:
    """Stretches of the loss steps: how many each has, and those that are drawn from it, two and in some three."""
    if n >= len(steps):
        return [(len(steps), steps)]
    groups, N = n // 2, len(steps)
    drawn = []
    for k in range(groups):
        part = steps[k * N // groups : (k + 1) * N // groups]
        count = min(len(part), (k + 1) * n // groups - k * n // groups)
        order = torch.randperm(len(part), generator=generator)[:count].tolist()
        drawn.append((len(part), sorted(part[i] for i in order)))
    return drawn


def _estimate(
    sizes: Tensor, rows: list[int], groups: list[tuple[int, list[int]]], reverse: bool, batch: int
) -> tuple[Tensor, Tensor]:
    """The profile [n] and its standard error [n], from the sizes [B, rows, T] of each sequence by itself."""
    sizes = sizes.cpu()
    B, R, T = sizes.shape
    t, lags = torch.tensor(rows)[:, None], torch.arange(T)
    past = t + lags if reverse else t - lags
    there = (past >= 0) & (past < T)
    by_lag = torch.where(there, sizes.gather(2, past.clamp(0, T - 1).expand(B, R, T)), 0.0)  # [B, rows, lags]
    scale = by_lag.max()
    if not bool(scale.isfinite()):
        raise FlowError("the gradient leaves the range of float64: it explodes; measure fewer steps")
    squares = (by_lag / scale).square()
    first = int(squares.sum((0, 1)).nonzero()[0])
    weight = torch.zeros(R, 1, dtype=torch.float64)
    for n, group in groups:
        weight[[rows.index(a) for a in group]] = n / len(group)

    def parts(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = v.sqrt()
        x = torch.where(there, y[:, first : first + 1], 0.0)
        return y, x, (weight * y).sum(0) / (weight * x).sum(0)

    whole = squares.sum(0)
    y, x, profile = parts(whole)
    residual = y - profile.nan_to_num(0.0) * x
    variance = torch.zeros(T, dtype=torch.float64)
    for n, group in groups:
        if 1 < len(group) < n:
            own = residual[[rows.index(a) for a in group]]
            variance += n**2 * (1 - len(group) / n) / len(group) * own.var(0)
    variance /= (weight * x).sum(0).square()
    if 1 < B < batch:
        without = torch.stack([parts(whole - squares[b])[2] for b in range(B)])
        variance += (1 - B / batch) * (B - 1) * without.var(0, correction=0)
    alone = (there & (x > 0)).sum(0) < min(2, sum(n for n, _ in groups))
    error = torch.where(alone & (len(rows) < sum(n for n, _ in groups)), torch.nan, variance.sqrt())
    profile[:first], error[: first + 1], profile[first] = 0.0, 0.0, 1.0
    n = int((x.sum(0) > 0).sum())
    return profile[:n], error[:n]
