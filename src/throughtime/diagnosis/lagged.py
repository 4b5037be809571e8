"""Pairs of an input and a later target, lag by lag, their baseline, and the covariance of their features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

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

    @abstractmethod
    def count(self, d: int) -> int:
        """How many pairs there are at lag d."""

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

    def count(self, d: int) -> int:
        return len(self.anchors)

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
    """N sequences of T steps, with one label at the end or a target at each step; a symbol below 0 is no target."""

    def __init__(self, x: Tensor, y: Tensor, lags: tuple[int, ...], each: bool, seed: int = 0):
        (self.N, self.T), self.far, self.each = x.shape[:2], lags[-1], each
        self._enough()
        self.steps = torch.tensor([self.T - 1])
        if each:
            there = torch.ones_like(y, dtype=torch.bool) if y.is_floating_point() else y >= 0
            self.steps = there.flatten(2).all(2).all(0).nonzero()[:, 0] if y.dim() > 2 else there.all(0).nonzero()[:, 0]
            y = y.clamp(min=0) if not y.is_floating_point() else y
            if not len(self.steps) or int(self.steps[-1]) < self.far:
                last = int(self.steps[-1]) if len(self.steps) else "none"
                raise DataError(
                    f"a lag of {self.far} needs a step from {self.far} on at which all sequences have a target; the "
                    f"last such step is {last}"
                )
        elif not y.is_floating_point() and bool((y < 0).any()):
            raise DataError("a label is below 0; leave those sequences out")
        self.x, self.y, self.seed = checked("inputs", x), checked("targets", y[:, self.steps] if each else y), seed

    def _enough(self) -> None:
        if self.N < BLOCKS:
            raise DataError(f"at least {BLOCKS} sequences are needed to exchange them; came {self.N}. Join them to one")
        if self.far >= self.T:
            raise DataError(f"sequences of {self.T} steps have no lag of {self.far}; the largest is {self.T - 1}")

    def _of_targets(self) -> Tensor:
        return features(self.y.flatten(0, 1) if self.each else self.y, self.seed)

    def draw(self, shuffles: int, generator: torch.Generator) -> None:
        self.orders = [torch.randperm(self.N, generator=generator) for _ in range(shuffles)]
        phi = features(self.x.flatten(0, 1), self.seed).view(self.N, self.T, -1)
        self.phi, self.psi = phi, self._of_targets().view(self.N, len(self.steps), -1)

    def _chosen(self, d: int) -> Tensor:
        """Which of the steps that have a target are looked back from over d steps: of many, some, spread evenly."""
        there = (self.steps >= d).nonzero()[:, 0]
        keep = min(len(there), max(1, MOST // self.N))
        return there[torch.arange(keep) * len(there) // keep]

    def count(self, d: int) -> int:
        return len(self._chosen(d)) * self.N

    def at(self, d: int) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = self._chosen(d)
        phi, psi = self.phi[:, self.steps[chosen] - d].flatten(0, 1), self.psi[:, chosen]
        yield phi, psi.flatten(0, 1)
        for order in self.orders:
            yield phi, psi[order].flatten(0, 1)


class Whole(Labels):
    """N sequences of T steps, and as the label of each a whole sequence of targets, [N, T'(, K)].

    The features of the label are those of all its targets side by side, so its kernel is the sum of theirs: what any
    one of them says about an input is seen.
    """

    def __init__(self, x: Tensor, y: Tensor, lags: tuple[int, ...], seed: int = 0):
        (self.N, self.T), self.far, self.each = x.shape[:2], lags[-1], False
        self._enough()
        self.steps = torch.tensor([self.T - 1])
        if not y.is_floating_point() and bool((y < 0).any()):
            y = y.where(y >= 0, y.max() + 1)  # no target is a symbol too, for where it stands may depend on the input
        self.x, self.y, self.seed = checked("inputs", x), checked("targets", y), seed

    def _of_targets(self) -> Tensor:
        return features(self.y.flatten(0, 1), self.seed).view(self.N, -1)


class Found(NamedTuple):
    """The dependence by lag, its thresholds by lag, the interval of its horizon, and notes; see `dependence`."""

    size: tuple[float, ...]
    limits: tuple[float, ...]
    interval: tuple[Horizon, Horizon] | None
    notes: tuple[str, ...]


def kernel_dependence(
    pairs: Pairs, lags: tuple[int, ...], shuffles: int, resamples: int, generator: torch.Generator, fraction: float = 0
) -> Found:
    """The dependence of `pairs` by lag; what is less than `fraction` of the largest does not count.

    The threshold is what the largest over the lags of one draw of the baseline exceeds with a probability of 1 %. Where
    far lags have fewer pairs, and so more chance, lags are made comparable before. In each resample the baseline is
    measured on the resampled blocks as well, for a sample with repetitions looks more dependent than it is.
    """
    if shuffles < BLOCKS:
        raise DataError(f"at least {BLOCKS} shuffles are needed for real numbers or sequences; came {shuffles}")
    pairs.draw(shuffles, generator)
    weights = resampling(resamples, BLOCKS, generator)
    size = torch.stack([_covariances(pairs.at(d), weights) for d in lags], -1)  # [1 + shuffles, R, lags]
    chance = size[1:].mean(0)
    scale = spread(size[1:, 0], torch.tensor([pairs.count(d) for d in lags], dtype=torch.float64))
    null = ((size[1:] - chance) / scale).amax(-1)
    beyond = size[0] - chance
    chances = upper_max(null[:, 0], ALPHA) * scale
    limits = chances.clamp(min=fraction * float(beyond[0].max().clamp(min=0)))
    point = int(farthest(beyond[0] > limits, lags))
    strict = upper_max(null, RESAMPLED_ALPHA)[:, None] * scale
    span = interval(resampled_horizons(beyond, chances, strict, lags, fraction), point, lags) if resamples else None
    return Found(tuple(beyond[0].tolist()), tuple(limits.tolist()), span, pairs.notes(chance[0].mean().item()))


def spread(null: Tensor, count: Tensor) -> Tensor:
    """How wide chance spreads at each lag, [lags], relative to the widest, from draws [shuffles, lags].

    One draw's deviation is too uncertain to divide by; so a power of the number of pairs is fitted to all: n^-1 where
    they are independent, n^0 where they repeat one another.
    """
    x = count.log() - count.log().mean()
    if float(x.square().sum()) < 1e-12:
        return torch.ones_like(count)
    y = null.std(0).clamp(min=1e-300).log()
    power = float((x * (y - y.mean())).sum() / x.square().sum())
    return (count / count.min()) ** min(0.0, max(-1.0, power))


def _covariances(sides: Iterator[tuple[Tensor, Tensor]], weights: Tensor) -> Tensor:
    """The normalised squared covariance of each pair of sides, for each row of block weights w [R, G]: [pairs, R].

        || sum_g w_g (P_g - a b^T) / c ||^2,   P_g = sum over block g of phi psi^T,   c = sum_g w_g n_g
        a = sum_g w_g A_g / c,  b likewise: the means of phi and of psi

    Multiplied out, so that the resamples cost G^2 products with the blocks and not R G.
    """
    found, scale = [], torch.zeros(())
    left, right = _Blocks(), _Blocks()
    for k, (phi, psi) in enumerate(sides):
        a, b = left.of(phi), right.of(psi)
        if k == 0:
            scale = _norm(a) * _norm(b)
        P = (a.transpose(1, 2) @ b).double()  # [G, M, K]
        A, B = a.sum(1, dtype=torch.float64), b.sum(1, dtype=torch.float64)
        w = weights / (weights.sum(1, keepdim=True) * a.shape[1])  # of one pair in block g, of all that are drawn
        flat = P.flatten(1)
        squares = ((w @ (flat @ flat.T)) * w).sum(1)
        both = (A @ P) @ B.T  # [G, G, G]: block of the product, of phi, of psi
        mixed = ((w @ both.flatten(1)).view(len(w), len(A), len(B)) * w[:, :, None]).sum(1).mul(w).sum(1)
        means = ((w @ (A @ A.T)) * w).sum(1) * ((w @ (B @ B.T)) * w).sum(1)
        squares = (squares - 2 * mixed + means).clamp(min=0)
        found.append(squares / scale if scale > 1e-20 else torch.zeros_like(squares))
    return torch.stack(found)


class _Blocks:
    """Features in BLOCKS stretches, [G, n, M], less their mean: then little is lost where large numbers are subtracted,
    and float32 is good enough for their products. The same features are cut once."""

    def __init__(self) -> None:
        self._had: tuple[Tensor, Tensor] | None = None

    def of(self, v: Tensor) -> Tensor:
        if self._had is None or self._had[0] is not v:
            n = len(v) // BLOCKS * BLOCKS
            self._had = v, (v[:n] - v[:n].mean(0)).float().view(BLOCKS, n // BLOCKS, -1)
        return self._had[1]


def _norm(v: Tensor) -> Tensor:
    flat = v.flatten(0, 1)
    return (flat.T @ flat / len(flat)).double().norm()
