"""Lyapunov exponents by QR: how fast small changes of the whole state grow or fade, in every direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import FlowError
from throughtime.flow import drawing
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.running import order, valid, where
from throughtime.flow.tangent import Tangent
from throughtime.plain import Plain


@dataclass(frozen=True)
class LyapunovSpectrum(Plain):
    """The first k Lyapunov exponents, in nats a step, the largest first, as plain data.

        lambda_i = lim 1/T sum_t ln R_t[i, i],     J_t Q_{t-1} = Q_t R_t

    samples: of each sample of the batch, [B, k] float64; the batch is averaged, for all samples share the weights.
    steps:   how many steps were summed (of the longest sample), after `warmup` steps for the directions to settle.
    states:  the N numbers of the state, all that is carried: k <= N.

    Positive: small changes grow (gradients explode, the network is chaotic). Negative: they fade, and with them the
    gradient, by exp(lambda_1) a step. A direction that is lost altogether has -inf.
    """

    samples: Tensor
    steps: int
    warmup: int
    states: int
    name: str = ""

    @property
    def exponents(self) -> Tensor:
        """The mean over the batch, [k], nats a step."""
        return self.samples.mean(0)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean over the batch, [k], nats a step; NaN for a batch of one, and for exponents of -inf."""
        B = self.samples.shape[0]
        if B == 1:
            return torch.full_like(self.samples[0], torch.nan)
        return self.samples.std(0) / math.sqrt(B)

    @property
    def memory(self) -> float:
        """-1 / lambda_1, in steps: a small change of the state falls to 1/e within it, if lambda_1 < 0; else inf."""
        largest = self.exponents[0].item()
        return math.inf if largest >= 0 else -1 / largest

    def plot(self, ax: Any = None) -> Any:
        """Draws the exponents, with a band of two standard errors with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        mean, error = self.exponents, self.standard_error.nan_to_num(0.0)
        at = range(1, len(mean) + 1)
        ax = drawing.lines({"exponents": mean}, ax, list(at), xlabel="number", ylabel="Lyapunov exponent, nats a step")
        ax.fill_between(at, (mean - 2 * error).tolist(), (mean + 2 * error).tolist(), alpha=0.2)
        ax.axhline(0, linestyle="--", linewidth=0.8, color="0.4")
        return ax

    def __str__(self) -> str:
        mean, error = self.exponents.tolist(), self.standard_error.tolist()
        B, k = self.samples.shape
        lines = [
            f"Lyapunov spectrum{f' ({self.name})' if self.name else ''}: {k} of {self.states} exponents, nats a step, "
            f"over {self.steps} steps after {self.warmup}, {B} sample{'' if B == 1 else 's'}"
        ]
        for i in sorted({0, 1, 2, k // 4, k // 2, 3 * k // 4, k - 1} & set(range(k))):
            shown = "" if math.isnan(error[i]) else f" +- {error[i]:.1g}"
            lines.append(f"  lambda_{i + 1} = {mean[i]:.4f}{shown}")
        margin = 0.0 if math.isnan(error[0]) else 2 * error[0]
        if mean[0] + margin < 0:
            lines.append(
                f"  It contracts: a change of the state falls to 1/e in {self.memory:.1f} steps, the gradient with it."
            )
        elif mean[0] - margin > 0:
            grow = int((self.exponents > 0).sum())
            lines.append(f"  Small changes grow in {grow} direction{'' if grow == 1 else 's'}: gradients explode.")
        else:
            lines.append("  The largest exponent cannot be told from 0: changes of the state neither fade nor grow.")
        return "\n".join(lines)


def lyapunov_spectrum(recurrence: Recurrence, k: int | None = None, *, warmup: int | None = None) -> LyapunovSpectrum:
    """The first k Lyapunov exponents of a recurrence on the inputs that it ran over (Benettin 1980; Engelken 2023).

    k orthonormal directions of the whole state s = (h, c, ...) are carried from step to step and made orthonormal
    again by QR at each: sums of ln |R_ii| over the steps, and then the mean over the batch.

    k:      how many, the largest; None for all N (H, or 2H for an LSTM). Cost grows with k^2.
    warmup: steps at the start that are run and not counted; None for a quarter of the shortest sequence.
            What the directions still had to turn then is an error, divided by the steps.
    The directions start at random (seeded, so the result is reproducible). With the recurrence's rule `truncated` it is
    the derivative that training follows (see `Tangent`). Raises FlowError for k or warmup out of range, and where a
    state is NaN or infinite.
    """
    tangent = Tangent(recurrence)
    name = where(recurrence.cell.name, recurrence.layer, recurrence.reverse)
    keep = valid(recurrence)
    steps = order(recurrence)
    if warmup is None:
        warmup = int(keep.sum(0).min()) // 4
    return _accumulate(lambda n, Q: tangent.carry(steps[n], Q), keep[steps], sum(tangent.sizes), k, warmup, name)


def lyapunov_of_product(
    matrices: Tensor | Sequence[Tensor], k: int | None = None, *, warmup: int = 0
) -> LyapunovSpectrum:
    """The first k Lyapunov exponents of a product M_T ... M_2 M_1 of given matrices, by the same QR.

    matrices: [T, N, N] or, for a batch of products, [T, B, N, N], in the order in which they act.
    Raises FlowError for other shapes, for numbers that are not finite, and for k or warmup out of range.
    """
    M = matrices if isinstance(matrices, Tensor) else torch.stack(list(matrices))
    M = M.detach().double()
    M = M[:, None] if M.dim() == 3 else M
    if M.dim() != 4 or M.shape[-1] != M.shape[-2] or not M.numel():
        raise FlowError(f"matrices must be [T, N, N] or [T, B, N, N]; came {tuple(M.shape)}")
    if not M.isfinite().all():
        raise FlowError("the matrices hold NaN or infinite numbers; the exponents of their product are not defined")
    keep = torch.ones(M.shape[:2], dtype=torch.bool, device=M.device)
    return _accumulate(lambda n, Q: M[n] @ Q, keep, M.shape[-1], k, warmup, "")


@torch.no_grad()
def _accumulate(
    carry: Callable[[int, Tensor], Tensor], keep: Tensor, N: int, k: int | None, warmup: int, name: str
) -> LyapunovSpectrum:
    """keep [T, B]: which steps count, in the order of the run; the others are the identity."""
    T, B = keep.shape
    k = N if k is None else k
    if not 1 <= k <= N:
        raise FlowError(f"k must lie in 1..{N}, the numbers that the state has; came {k}")
    shortest = int(keep.sum(0).min())
    if not 0 <= warmup < shortest:
        raise FlowError(
            f"warmup must be at least 0 and less than the steps of the shortest sequence, {shortest}; came {warmup}"
        )
    gen = torch.Generator().manual_seed(0)
    # Not the axes: in a cell whose states hardly mix these would stay in one of them.
    # All N are drawn whatever k is, so that the first k are the same ones.
    start = torch.randn(N, N, generator=gen, dtype=torch.float64)[:, :k]
    Q = torch.linalg.qr(start).Q.to(keep.device).expand(B, N, k)
    total, counted = Q.new_zeros(B, k), Q.new_zeros(B, 1)
    ran = keep.long().cumsum(0)
    for n in range(T):
        Q, R = torch.linalg.qr(carry(n, Q))
        counts = (keep[n] & (ran[n] > warmup))[:, None]
        total += torch.where(counts, R.diagonal(dim1=-2, dim2=-1).abs().log(), 0.0)
        counted += counts
    samples = total / counted
    # QR orders the directions as T grows; over a finite stretch two close ones may still stand the other way round.
    # By their means: to sort each sample alone would push the exponents apart.
    return LyapunovSpectrum(samples[:, samples.mean(0).argsort(descending=True)], int(counted.max()), warmup, N, name)
