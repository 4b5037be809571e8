"""The clip advisor: from a history of gradient norms, which threshold to take, and which time steps make the spikes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from throughtime.errors import ConfigError, NoFlowError
from throughtime.flow.capture import Capture
from throughtime.flow.norms import NormHistory, norm_history
from throughtime.plain import Plain

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
FENCE = 3.0  # interquartile ranges of ln ||g|| above the upper quartile: "far out" (Tukey 1977)


@dataclass(frozen=True)
class SpikeSteps(Plain):
    """Which time steps of a sequence made one spike, in one recurrence of the model.

    training_step: the spike's place in the history.       where: the recurrence.
    steps, shares: the time steps k of the past with most of the recurrent weights' gradient, and how much each makes up
                   along it; all steps together are 1.
    loss_steps, loss_shares: the same by the step t whose loss it came from.
    """

    training_step: int
    where: str
    steps: tuple[int, ...]
    shares: tuple[float, ...]
    loss_steps: tuple[int, ...]
    loss_shares: tuple[float, ...]

    def __str__(self) -> str:
        def told(steps: tuple[int, ...], shares: tuple[float, ...]) -> str:
            return ", ".join(f"{t} ({s:.0%})" for t, s in zip(steps, shares, strict=True))

        return (
            f"training step {self.training_step}, {self.where}: from the past steps {told(self.steps, self.shares)}; "
            f"from the losses at {told(self.loss_steps, self.loss_shares)}"
        )


@dataclass(frozen=True)
class ClipAdvice(Plain):
    """What a history of gradient norms says about clipping, as plain data.

    quantiles: (q, the norm that a share q of the steps stays below).
    shares:    (threshold, the share of steps it would have clipped, the mean factor these are shortened by).
    spikes:    training steps whose norm lies far out, the largest first.    fence: where "far out" begins.
    threshold: the advice: the largest norm that is no spike, so that ordinary steps stay as they are; None where no
               norm was finite.
    made_by:   the time steps behind the spikes that were captured.
    """

    history: NormHistory
    quantiles: tuple[tuple[float, float], ...]
    shares: tuple[tuple[float, float, float], ...]
    spikes: tuple[int, ...]
    fence: float
    threshold: float | None
    made_by: tuple[SpikeSteps, ...] = ()

    def plot(self, ax: Any = None) -> Any:
        """Draws the norms by step, and the threshold, with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        ax = self.history.plot(ax)
        if self.threshold is not None:
            ax.axhline(self.threshold, linestyle="--", linewidth=0.8, color="0.4")
        return ax

    def __str__(self) -> str:
        h = self.history
        lines = [f"Clip advice from {len(h.norms)} steps"]
        if h.broken:
            first = h.broken[0]
            lines.append(f"  NaN or infinite at {len(h.broken)} of them, first at step {first}: no threshold helps")
        if self.threshold is None:
            return "\n".join(lines)
        lines.append("  norm: " + ", ".join(f"{100 * q:g} % {v:.3g}" for q, v in self.quantiles))
        for threshold, share, kept in self.shares:
            lines.append(f"  at {threshold:<9.3g} {share:6.1%} clipped, to {kept:.2f} of their length on average")
        if self.spikes:
            n, first = len(self.spikes), self.spikes[0]
            lines.append(f"  {n} spike{'' if n == 1 else 's'} above {self.fence:.3g}, the largest at step {first}")
            lines.append(f"  Advice: clip by global norm at {self.threshold:.3g}; it clips the spikes, nothing else.")
        else:
            lines.append(f"  No spikes: nothing to clip. As a guard: {self.threshold:.3g}, the largest so far.")
        return "\n".join([*lines, *(f"  {m}" for m in self.made_by)])


def advise_clip(
    norms: Iterable[float] | NormHistory,
    thresholds: Iterable[float] | None = None,
    *,
    captured: Mapping[int, Capture] | None = None,
    top: int = 3,
) -> ClipAdvice:
    """Advice on clipping by global norm, from the norms before clipping, one a training step.

    A spike is a norm whose logarithm lies more than 3 interquartile ranges above the upper quartile (Tukey 1977), by
    logarithms for norms are spread by factors. The fence needs some dozen steps to mean anything.

    norms:      as `ClipRecord.norms`, or as clip_grad_norm_ returned them.
    thresholds: those to try; None for the usual (0.25, 1, 5, 15) and those of this history.
    captured:   by training step, a `throughtime.capture` of the forward and backward pass of that step (run it again
                on the batch that made the spike): the time steps behind it are then named, the `top` of them.

    Raises FlowError for no norms and for norms that are none; ConfigError for a captured step that is not there.
    """
    history = norms if isinstance(norms, NormHistory) else norm_history(norms)
    captured = captured or {}
    for step in captured:
        if not 0 <= step < len(history.norms):
            raise ConfigError(f"captured has step {step}; the history has steps 0..{len(history.norms) - 1}")
    made_by = tuple(m for step, c in captured.items() for m in _made_by(step, c, top))
    if not history.finite:
        return ClipAdvice(history, (), (), (), math.inf, None, made_by)
    fence = _fence(history)
    order = sorted(range(len(history.norms)), key=lambda n: -history.norms[n] if _finite(history, n) else math.inf)
    spikes = tuple(n for n in order if _finite(history, n) and history.norms[n] > fence)
    tried = history.thresholds() if thresholds is None else tuple(sorted(thresholds))
    return ClipAdvice(
        history,
        tuple((q, history.quantile(q)) for q in QUANTILES),
        tuple((v, history.clipped(v), history.kept(v)) for v in tried),
        spikes,
        fence,
        max(v for v in history.finite if v <= fence),
        made_by,
    )


def _finite(history: NormHistory, n: int) -> bool:
    return math.isfinite(history.norms[n])


def _fence(history: NormHistory) -> float:
    low, high = history.quantile(0.25), history.quantile(0.75)
    if low <= 0:
        return max(history.quantile(1.0), high)  # norms of 0 have no logarithm: no fence
    height = math.log(high) + FENCE * (math.log(high) - math.log(low)) + 1e-9  # rounding among equal norms is no spike
    return math.exp(height) if height < 709 else math.inf


def _made_by(step: int, captured: Capture, top: int) -> list[SpikeSteps]:
    found = []
    for r in captured.recurrences:
        try:
            shares = r.shares(norms=False).parameters
        except NoFlowError:
            continue  # the loss does not depend on this recurrence: it made no spike
        p = shares.get("weight_hh", next(iter(shares.values())))
        past = _largest(p.by_past_step.at, p.by_past_step.contribution, top)
        loss = _largest(p.by_loss_step.at, p.by_loss_step.contribution, top)
        found.append(SpikeSteps(step, str(r), *past, *loss))
    return found


def _largest(at: torch.Tensor, share: torch.Tensor, top: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    order = share.nan_to_num(0.0).abs().argsort(descending=True)[:top]
    return tuple(int(at[i]) for i in order), tuple(float(share[i]) for i in order)
