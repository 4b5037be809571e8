"""What old inputs say together: how much of the targets is explained by the sum of all inputs some steps back."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.diagnosis.chance import ALPHA, BLOCKS, upper_max
from throughtime.diagnosis.dependence import Dependence
from throughtime.diagnosis.kernel import checked, features
from throughtime.diagnosis.lagged import MOST, spread
from throughtime.errors import DataError

LEAST = 0.01  # of the variance: what explains less counts as nothing, however surely it is there
RIDGE = 1e-8  # of the mean variance: the counts of symbols add up to the steps, so one direction is empty


def pooled_dependence(
    inputs: Tensor, targets: Tensor, lags: list[int], *, shuffles: int = 50, seed: int = 0
) -> Dependence:
    """The share of the targets' variance that the inputs d steps back and farther explain together, by lag d.

        s_{t,d} = sum_{k <= t-d} phi(x_k)      R^2 of psi(y_t) on s_{t,d}, less what exchanged sequences give

    phi, psi: the features of `throughtime.diagnosis.kernel`, less their mean over the sequences at each step. Pairs of
    one input and the target miss what lies at another lag in every sequence: a marked number somewhere in the first
    half, say, which is at any one lag in few of them. The sum over all old inputs holds it wherever it was. It does not
    see their order, nor what is in none of its terms alone (a parity).

    inputs:  N sequences of symbols [N, T] or of real numbers [N, T, D], of one length, at least 20.
    targets: one a sequence, [N] or real [N, K]; or one a step, [N, T] (symbols below 0: none) or real [N, T, K].
    The result is held against chance as by `dependence`, and against 1 % of the variance. Raises DataError for too few
    sequences, and for numbers that are NaN or all the same.
    """
    x, y = inputs, targets
    y = y[:, None] if y.is_floating_point() and y.dim() == 1 else y
    each = y.dim() - y.is_floating_point() == 2
    N, T = x.shape[:2]
    if max(BLOCKS, 2) > N:
        raise DataError(f"at least {BLOCKS} sequences are needed to exchange them; came {N}")
    steps = torch.tensor([T - 1])
    if each:
        steps = torch.arange(T) if y.is_floating_point() else (y >= 0).all(0).nonzero()[:, 0]
        y = y[:, steps]
    lags = [d for d in lags if len(steps) and d <= int(steps[-1])]
    if not lags:
        raise DataError("there is no step at which all sequences have a target")
    x, y = checked("inputs", x), checked("targets", y)
    phi = features(x.flatten(0, 1), seed).view(N, T, -1)
    past = (phi - phi.mean(0)).cumsum(1)
    psi = features(y.flatten(0, 1) if each else y, seed).view(N, len(steps), -1)
    psi = psi - psi.mean(0)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(N), *(torch.randperm(N, generator=generator) for _ in range(shuffles))]
    found, counts = [], []
    for d in lags:
        there = (steps >= d).nonzero()[:, 0]
        keep = min(len(there), max(1, MOST // N))
        chosen = there[torch.arange(keep) * len(there) // keep]
        found.append(_explained(past[:, steps[chosen] - d].flatten(0, 1), psi[:, chosen], orders))
        counts.append(float(N * keep))
    size = torch.stack(found, -1)  # [1 + shuffles, lags]
    chance = size[1:].mean(0)
    scale = spread(size[1:], torch.tensor(counts, dtype=torch.float64))
    limits = (upper_max(((size[1:] - chance) / scale).amax(-1), ALPHA) * scale).clamp(min=LEAST)
    beyond = size[0] - chance
    each_limit = tuple(limits.tolist())
    return Dependence(
        tuple(lags), tuple(beyond.tolist()), max(each_limit), "of the variance", None, (),
        each_limit if len(set(each_limit)) > 1 else None,
    )  # fmt: skip


def _explained(past: Tensor, psi: Tensor, orders: list[Tensor]) -> Tensor:
    """R^2 of the targets psi [N, n, K] on past [N * n, M], for each order of the sequences."""
    n, M = past.shape
    gram = past.T @ past / n
    level = gram.diagonal().mean()
    if not level > 0:
        return past.new_zeros(len(orders))
    root = torch.linalg.cholesky(gram + RIDGE * level * torch.eye(M, dtype=gram.dtype))
    whole = psi.square().sum() / n
    values = []
    for order in orders:
        both = past.T @ psi[order].flatten(0, 1) / n
        values.append(torch.linalg.solve_triangular(root, both, upper=False).square().sum() / whole)
    return torch.stack(values)
