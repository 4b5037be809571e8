"""Mutual information between symbols, counted: on the data as they are and on resampled blocks of them at once."""

from __future__ import annotations

import torch
from torch import Tensor


def information(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """I(x; y) in bits for each row of `weights` [R, G]: [R] float64.

        I(x; y) = sum_{a,b} p(a,b) log2( p(a,b) / (p(a) p(b)) )

    x, y: symbols 0, 1, ... [n], in the order of time. Row r counts block g, the g-th of G equal stretches of the
    pairs, weights[r, g] times.
    """
    A, B, G, n = int(x.max()) + 1, int(y.max()) + 1, weights.shape[1], len(x)
    block = torch.arange(n) * G // n
    pairs = x * B + y
    occur = torch.bincount(pairs, minlength=A * B) > 0  # few of all possible pairs: only they take room
    number = occur.cumsum(0) - 1
    joint = weights @ _counts(block, number[pairs], G, int(occur.sum()))
    rows, columns = weights @ _counts(block, x, G, A), weights @ _counts(block, y, G, B)
    return _entropy(rows) + _entropy(columns) - _entropy(joint)


def _counts(block: Tensor, symbol: Tensor, G: int, K: int) -> Tensor:
    return torch.bincount(block * K + symbol, minlength=G * K).view(G, K).double()


def _entropy(counts: Tensor) -> Tensor:
    """Along the last dimension, in bits; 0 log 0 = 0."""
    p = counts / counts.sum(-1, keepdim=True)
    return -torch.special.xlogy(p, p).sum(-1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
