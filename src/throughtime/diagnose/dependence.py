"""What the data ask for: how much a target depends on the input some steps back, by lag, against chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from throughtime.errors import DataError
from throughtime.flow import Horizon


@dataclass(frozen=True)
class Dependence:
    """Mutual information between a target and the input some steps before it, by lag, as plain data.

    lags:      the lags d measured, in steps, ascending.
    bits:      for each lag, I(x_{t-d}; y_t) in bits, less what the same estimate gives on shuffled data.
    threshold: what chance exceeds at any of the lags with a probability of 1 % only, in bits.

    Pairwise: it sees a dependence on one earlier symbol at a time. What only several symbols say together (a parity,
    a syntax) it does not see, so the true horizon can lie farther back, never nearer.
    """

    lags: tuple[int, ...]
    bits: tuple[float, ...]
    threshold: float

    def horizon(self) -> Horizon:
        """The data horizon: the largest lag, in steps, at which the dependence exceeds chance; `at_least` if it is
        the largest lag measured. Horizon(-1, False) if there is no dependence at any lag, not even at lag 0."""
        beyond = [d for d, b in zip(self.lags, self.bits, strict=True) if b > self.threshold]
        return Horizon(beyond[-1], beyond[-1] == self.lags[-1]) if beyond else Horizon(-1, False)


def dependence(
    inputs: Sequence[int] | Tensor,
    targets: Sequence[int] | Tensor,
    lags: Sequence[int],
    *,
    shuffles: int = 50,
    seed: int = 0,
) -> Dependence:
    """Measures, for symbols, how much targets y_t depend on inputs x_{t-d} for each lag d.

        I(x; y) = sum_{a,b} p(a,b) log2( p(a,b) / (p(a) p(b)) )

    Counted from finitely many pairs it comes out too large (Miller 1955). By how much, and how it scatters, is seen on
    `shuffles` random permutations of the inputs. Their mean is taken off; and a lag counts as dependent if it lies so
    far above them that this happens by chance at one of all the lags with a probability of 1 % (Bonferroni). The
    estimate is distributed like a chi-square, whose cube root is nearly normal (Wilson & Hilferty 1931): the bound is
    Student's prediction from the cube roots of the shuffles.

    inputs, targets: sequences of whole numbers >= 0 of one length T; for a language model y_t = x_{t+1}.
    Raises DataError for sequences that do not match, are too short for the lags, or hold other than symbols.
    """
    x, y = (_symbols(name, v) for name, v in (("inputs", inputs), ("targets", targets)))
    if len(x) != len(y):
        raise DataError(f"inputs and targets must have one length; came {len(x)} and {len(y)}")
    lags = tuple(sorted({int(d) for d in lags}))
    if not lags or lags[0] < 0:
        raise DataError(f"lags must be whole numbers >= 0, at least one; came {lags}")
    if len(x) < lags[-1] + 100:
        raise DataError(
            f"{len(x)} steps are too few for a lag of {lags[-1]}; at least 100 pairs are needed at each lag"
        )
    if shuffles < 5:
        raise DataError(f"at least 5 shuffles are needed to know what chance gives; came {shuffles}")
    gen = torch.Generator().manual_seed(seed)
    n = len(x) - lags[-1]  # as few pairs as any lag has: chance is judged where it is largest
    null = torch.tensor([_information(x[torch.randperm(len(x), generator=gen)][:n], y[:n]) for _ in range(shuffles)])
    chance = null.mean().item()
    bits = tuple(_information(x[: len(x) - d], y[d:]) - chance for d in lags)
    return Dependence(lags, bits, _upper(null, 0.01 / len(lags)) - chance)


def _upper(null: Tensor, alpha: float) -> float:
    """What one more draw from the distribution of `null` exceeds with probability alpha."""
    n, roots = len(null), null.clamp(min=0) ** (1 / 3)
    z, v = NormalDist().inv_cdf(1 - alpha), n - 1
    # Student's quantile from the normal one (Abramowitz & Stegun 26.7.5).
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    return (roots.mean() + t * roots.std() * (1 + 1 / n) ** 0.5).item() ** 3


def _symbols(name: str, v: Sequence[int] | Tensor) -> Tensor:
    t = torch.as_tensor(v)
    if t.dim() != 1 or t.is_floating_point() or t.is_complex() or (len(t) and t.min() < 0):
        raise DataError(f"{name} must be a sequence of whole numbers >= 0, one a step; came {t.dtype} {tuple(t.shape)}")
    return torch.unique(t, return_inverse=True)[1]  # only symbols that occur take room


def _information(x: Tensor, y: Tensor) -> float:
    A, B, N = int(x.max()) + 1, int(y.max()) + 1, len(x)
    joint = torch.bincount(x * B + y, minlength=A * B).view(A, B).double()
    rows, columns = joint.sum(1), joint.sum(0)

    def entropy(counts: Tensor) -> Tensor:
        p = counts[counts > 0] / N
        return -(p * p.log2()).sum()

    return (entropy(rows) + entropy(columns) - entropy(joint.flatten())).item()
