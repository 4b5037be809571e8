"""Features of real numbers and of symbols whose covariance shows any relation between two of them, linear or not."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import DataError

# Of the Gaussian kernel, in standard deviations: about the median distance (Gretton 2005). A relation finer than that,
# sin(4x), is seen weakly; one half as wide sees it better, and a rare or weak smooth one, as of the adding task, worse.
WIDTH = 1.0
NODES = 12  # frequencies of one dimension: the sum is the kernel, to 1e-6 where the data are
SYMBOLS = 64  # more different symbols than these are coded


def features(v: Tensor, seed: int) -> Tensor:
    """phi(v) [n, M] float64 of n observations, such that phi(v) . phi(v') is a kernel k(v, v').

    Real numbers [n, D]: each dimension by its rank, as a normal score (van der Waerden 1952): so any increasing map of
    a dimension changes nothing, and no outlier rules; then the Gaussian kernel,

        k(v, v') = exp(-||v - v'||^2 / (2 w^2 D)),   w = 1

    by its frequencies: Gauss-Hermite nodes in one dimension, else 16 (D <= 3) or 32 quasi-random ones
    (Rahimi & Recht 2007). Symbols [n]: k(a, b) = 1 if a = b else 0; with more than 64 different ones in random codes.
    """
    if v.dim() == 1:
        return _codes(v, seed)
    z = torch.stack([normal_scores(column) for column in v.double().T], 1)
    w, weight = _frequencies(z.shape[1], seed)
    phase = z @ w.T
    return torch.cat([phase.cos() * weight, phase.sin() * weight], 1)


def normal_scores(v: Tensor) -> Tensor:
    """The standard normal quantile of each value's rank, [n] float64; equal values share their mean rank."""
    values, which, counts = torch.unique(v, return_inverse=True, return_counts=True)
    if len(values) == 1:
        return torch.zeros(len(v), dtype=torch.float64)
    last = counts.cumsum(0).double()
    middle = last - counts / 2
    return (math.sqrt(2) * torch.erfinv(2 * middle / len(v) - 1))[which]


def _frequencies(D: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frequencies [m, D] and the weight of each feature."""
    if D == 1:
        nodes, weights = np.polynomial.hermite_e.hermegauss(2 * NODES)
        half = torch.from_numpy(weights[NODES:])
        return torch.from_numpy(nodes[NODES:])[:, None] / WIDTH, (2 * half / math.sqrt(2 * math.pi)).sqrt()
    m = 16 if D <= 3 else 32
    u = torch.quasirandom.SobolEngine(D, scramble=True, seed=seed).draw(m).double().clamp(1e-6, 1 - 1e-6)
    w = math.sqrt(2) * torch.erfinv(2 * u - 1) / (WIDTH * math.sqrt(D))
    return w, torch.full((m,), m**-0.5, dtype=torch.float64)


def _codes(v: Tensor, seed: int) -> Tensor:
    which = torch.unique(v, return_inverse=True)[1]
    A = int(which.max()) + 1
    if A <= SYMBOLS:
        return torch.eye(A, dtype=torch.float64)[which]
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (A, SYMBOLS), generator=generator).double() * 2 - 1
    return (signs / math.sqrt(SYMBOLS))[which]


def checked(name: str, v: Tensor) -> Tensor:
    """v itself: real numbers [..., D], or symbols; raises DataError where they are NaN, infinite, or all the same."""
    if not v.isfinite().all():
        raise DataError(f"{name} hold NaN or infinite numbers; leave those steps out or fill them")
    observed = v.reshape(-1, v.shape[-1] if v.is_floating_point() else 1)
    if (observed == observed[0]).all():
        raise DataError(f"{name} are the same at every step; nothing can depend on them")
    return v
