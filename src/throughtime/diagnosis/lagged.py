"""Pairs of an input and a later target, lag by lag, their baseline, and the covariance of their features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from throughtime.diagnosis.chance import (
    ALPHA,
    BLOCKS,
    RESAMPLED_ALPHA,
    farthest,
    interval,
    resampled_horizons,
    resampling,
    upper_max,
)
from throughtime.diagnosis.kernel import checked, features
from throughtime.errors import DataError
from throughtime.flow import Horizon

MOST = 8192  # pairs
SLOW = 0.1  # a baseline this high holds about ten independent stretches, or fewer


class Pairs(ABC):
    """The pairs (x_{t-d}, y_t) of some data: as they are, and as chance would put them together."""

    @abstractmethod
    def draw(self, shuffles: int, generator: torch.Generator) -> None:
        """Draws the baseline: how the inputs are put to other targets, the same way at every lag."""

    @abstractmethod
    def at(self, d: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features of both sides of the pairs at lag d, [n, M] and [n, K]: first as they are, then by chance."""

    def notes(self, chance: float) -> tuple[str, ...]:
        """What should be known before the result is believed; `chance`: the mean over the baseline."""
        return ()


class Series(Pairs):
    """One series of T steps."""

    def __init__(self, x: Tensor, y: Tensor, lags: tuple[int, ...], baseline: str = "shift", seed: int = 0):
        self.far, self.T, self.baseline = lags[-1], len(x), baseline
        self.x, self.y, self.seed = x, y, seed

    def shifts(self, shuffles: int, generator: torch.Generator) -> Tensor:
        """Distances [shuffles] by which the inputs are moved: far from every lag, and spread over what is left."""
        guard = max(self.far, self.T // 10)
        low, high = self.far + guard, self.T - guard - self.far
        if high - low < shuffles:
            raise DataError(
                f"{self.T} steps are too few to shift the inputs out of reach of a lag of {self.far}; at least "
                f'{max(5 * self.far + shuffles, 100)} are needed. With baseline="shuffle" fewer will do, if the inputs '
                "or the targets have no memory of their own"
            )
        room = (high - low) / shuffles
        return (low + room * (torch.arange(shuffles) + torch.rand(shuffles, generator=generator))).long()

    def draw(self, shuffles: int, generator: torch.Generator) -> None:
        if self.baseline == "shift":
            moved = self.shifts(shuffles, generator)
            self.sources = [(torch.arange(self.T) - s) % self.T for s in moved]
        else:
            self.sources = [torch.randperm(self.T, generator=generator) for _ in range(shuffles)]
        self.phi = features(checked("inputs", self.x), self.seed)
        self.psi = features(checked("targets", self.y), self.seed)
        n = min(self.T - self.far, MOST)
        self.anchors = self.far + torch.arange(n) * (self.T - self.far) // n

    def at(self, d: int) -> Iterator[tuple[Tensor, Tensor]]:
        back, psi = self.anchors - d, self.psi[self.anchors]
        yield self.phi[back], psi
        for source in self.sources:
            yield self.phi[source[back]], psi

    def notes(self, chance: float) -> tuple[str, ...]:
        if self.baseline == "shuffle" or chance < SLOW:
            return ()
        return (
            f"Inputs shifted far away look as dependent as {chance:.2f} of 1: the series is periodic, or so slow that "
            "it holds few independent stretches. One series cannot tell then; give several sequences [N, T, D].",
        )


class Labels(Pairs):
    """N sequences of T steps, with one label at the end or a target at each step."""

    def __init__(self, x: Tensor, y: Tensor, lags: tuple[int, ...], each: bool, seed: int = 0):
        (self.N, self.T), self.far, self.each = x.shape[:2], lags[-1], each
        if self.N < BLOCKS:
            raise DataError(f"at least {BLOCKS} sequences are needed to exchange them; came {self.N}. Join them to one")
        if self.far >= self.T:
            raise DataError(f"sequences of {self.T} steps have no lag of {self.far}; the largest is {self.T - 1}")
        self.x, self.y, self.seed = checked("inputs", x), checked("targets", y), seed

    def draw(self, shuffles: int, generator: torch.Generator) -> None:
        steps = self.T - self.far if self.each else 1
        self.orders = [torch.randperm(self.N, generator=generator) for _ in range(shuffles)]
        keep = min(steps, max(1, MOST // self.N))
        # Steps in all sequences that targets are taken from, and with a label at the end the last one.
        self.steps = self.far + torch.arange(keep) * steps // keep if self.each else torch.tensor([self.T - 1])

        def flat(v: Tensor, each: bool) -> Tensor:
            return features(v.flatten(0, 1), self.seed).view(self.N, self.T, -1) if each else features(v, self.seed)

        self.phi = flat(self.x, True)
        self.psi = flat(self.y, True)[:, self.steps] if self.each else flat(self.y, False)[:, None]

    def at(self, d: int) -> Iterator[tuple[Tensor, Tensor]]:
        phi = self.phi[:, self.steps - d].flatten(0, 1)
        yield phi, self.psi.flatten(0, 1)
        for order in self.orders:
            yield phi, self.psi[order].flatten(0, 1)


def kernel_dependence(
    pairs: Pairs,
    lags: tuple[int, ...],
    shuffles: int,
    resamples: int,
    generator: torch.Generator,
) -> tuple[tuple[float, ...], float, tuple[Horizon, Horizon] | None, tuple[str, ...]]:
    """The dependence of `pairs` by lag, its threshold, the interval of its horizon, and notes; see `dependence`.

    The threshold is what the largest over the lags of one draw of the baseline exceeds with a probability of 1 %. In
    each resample the baseline is measured on the resampled blocks as well, for a sample with repetitions looks more
    dependent than it is.
    """
    if shuffles < BLOCKS:
        raise DataError(f"at least {BLOCKS} shuffles are needed for real numbers or sequences; came {shuffles}")
    pairs.draw(shuffles, generator)
    weights = resampling(resamples, BLOCKS, generator)
    size = torch.stack([_covariances(pairs.at(d), weights) for d in lags], -1)  # [1 + shuffles, R, lags]
    chance = size[1:].mean(0)
    null = (size[1:] - chance).amax(-1)
    beyond = size[0] - chance
    limit = upper_max(null[:, 0], ALPHA)
    point = int(farthest(beyond[0] > limit, lags))
    strict = upper_max(null, RESAMPLED_ALPHA)
    span = interval(resampled_horizons(beyond, limit, strict, lags), point, lags) if resamples else None
    return tuple(beyond[0].tolist()), limit.item(), span, pairs.notes(chance[0].mean().item())


def _covariances(sides: Iterator[tuple[Tensor, Tensor]], weights: Tensor) -> Tensor:
    """The normalised covariance of each pair of sides, for each row of block weights: [pairs, R]."""
    found, scale = [], torch.zeros(())
    for k, (phi, psi) in enumerate(sides):
        n = len(phi) // BLOCKS * BLOCKS
        # Centred as a whole first: then little is lost in the difference of large numbers below.
        a, b = ((v[:n] - v[:n].mean(0)).view(BLOCKS, n // BLOCKS, -1) for v in (phi, psi))
        if k == 0:
            scale = _norm(a) * _norm(b)
        product = (a.transpose(1, 2) @ b).flatten(1)
        count = weights.sum(1, keepdim=True) * (n // BLOCKS)
        mean_a, mean_b = weights @ a.sum(1) / count, weights @ b.sum(1) / count
        cross = weights @ product / count - (mean_a[:, :, None] * mean_b[:, None]).flatten(1)
        squares = cross.square().sum(1)
        found.append(squares / scale if scale > 1e-20 else torch.zeros_like(squares))
    return torch.stack(found)


def _norm(v: Tensor) -> Tensor:
    flat = v.flatten(0, 1)
    return (flat.T @ flat / len(flat)).norm()
