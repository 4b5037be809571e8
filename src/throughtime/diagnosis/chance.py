"""What chance gives: thresholds from a baseline's draws, and the interval of a horizon from resampled blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from throughtime.flow import Horizon

BLOCKS = 20  # the stretches of a series, or groups of sequences, that are resampled as wholes
ALPHA = 0.01  # the chance of a false alarm over all lags together
RESAMPLED_ALPHA = 0.001  # the same in a resample, for lags at which there seems to be nothing


def student(alpha: float, v: int) -> float:
    """What Student's t with v degrees of freedom exceeds with probability alpha (Abramowitz & Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(1 - alpha)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / v**k for k, term in enumerate(terms))


def upper_chi(null: Tensor, alpha: float) -> Tensor:
    """What one more draw exceeds with probability alpha, by draws null [P, ...] of something like a chi-square.

    The cube root of a chi-square is nearly normal (Wilson & Hilferty 1931): Student's prediction on cube roots.
    """
    n, roots = len(null), null.clamp(min=0) ** (1 / 3)
    t = student(alpha, n - 1)
    return (roots.mean(0) + t * roots.std(0) * (1 + 1 / n) ** 0.5) ** 3


def upper_max(null: Tensor, alpha: float) -> Tensor:
    """What one more draw exceeds with probability alpha, by draws null [P, ...] that are each a maximum over lags.

    A maximum of many is nearly Gumbel's (Gumbel 1958), fitted by mean and deviation. They are known from P draws only,
    so the bound is taken a factor 1 + 4.3 / P farther out: with it the true rate is alpha = 0.01 (simulated, P >= 20).
    """
    far = (-math.log(-math.log(1 - alpha)) - 0.5772156649) * math.sqrt(6) / math.pi
    return null.mean(0) + far * (1 + 4.3 / len(null)) * null.std(0)


def resampling(resamples: int, blocks: int, generator: torch.Generator) -> Tensor:
    """How often each block is taken, [1 + resamples, blocks] float64: once each in row 0, the data as they are; and
    in every other row as many draws with replacement as there are blocks (Carlstein 1986; Efron 1979)."""
    drawn = torch.randint(blocks, (resamples, blocks), generator=generator)
    counts = torch.zeros(resamples, blocks, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones(resamples, blocks, dtype=torch.float64))
    return torch.cat([torch.ones(1, blocks, dtype=torch.float64), counts])


def farthest(beyond: Tensor, lags: Sequence[int]) -> Tensor:
    """The largest lag that is beyond chance, [...] from beyond [..., lags]; -1 where none is."""
    at = torch.tensor(lags).expand(beyond.shape)
    return torch.where(beyond, at, -1).amax(-1)


def resampled_horizons(
    size: Tensor, limit: Tensor, strict: Tensor, lags: Sequence[int], fraction: float = 0.0
) -> Tensor:
    """The horizon of each resample, [R], from the dependence size [1 + R, lags], row 0 that of the data as they are.

    fraction: what is smaller than this share of the largest of its resample does not count.
    A lag at half the threshold `limit` or above is held against it, as in the data. The others are held against
    `strict` [1 + R, lags], from a baseline resampled as well: a sample with repetitions makes more of what chance has
    put there, and the upper end is made of the worst resamples. Simulated on moving averages of noise, the interval
    meant to be of 95 % held the lag at which the mean dependence crosses the threshold in 87 to 96 of 100 series; and
    on exact copies over 25 lags it reached too far out in one of six.
    """
    least = (fraction * size.amax(-1, keepdim=True)).clamp(min=0)
    limit, strict = torch.maximum(limit, least), torch.maximum(strict, least)
    near = size[0] > limit[0] / 2
    return farthest(torch.where(near, size > limit, size > strict)[1:], lags)


def interval(replicates: Tensor, point: int, lags: Sequence[int]) -> tuple[Horizon, Horizon]:
    """The 95 % interval of a horizon from its replicates [R], widened to hold the horizon itself."""
    found = replicates.sort().values
    n = len(found)
    low, high = (int(found[min(n - 1, max(0, round(q * (n - 1))))]) for q in (0.025, 0.975))
    low, high = min(low, point), max(high, point)
    return Horizon(low, low == lags[-1]), Horizon(high, high == lags[-1])


def between(span: tuple[Horizon, Horizon]) -> str:
    """An interval of a horizon in words: "35 to 52", "35 or more", "40", "none"."""
    low, high = span
    if high.steps < 0:
        return "none"
    if low.steps == high.steps:
        return "at least " * low.at_least + str(low.steps)
    ends = f"{low.steps if low.steps >= 0 else 'none'} to {high.steps}"
    return f"{ends} or more" if high.at_least else ends
