"""What far inputs add to near ones: whether a target depends on them beyond what the near ones say already."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from throughtime.diagnosis.chance import BLOCKS, upper_max
from throughtime.diagnosis.horizons import ADDS
from throughtime.diagnosis.kernel import features, normal_scores
from throughtime.diagnosis.sequences import Sequences

DRAWS = 30
ROWS = 4096  # targets that are looked at, at most
NEAR = 8  # near lags that are taken, at most
MOST, FAR = 256, 16  # columns that the near inputs are made to, and the far ones: fewer, so that less is chance
WAVES = 48  # frequencies of the near inputs together
PAIRS = 96  # most frequent pairs of neighbouring symbols, of all that there are


def added(data: Sequences, near: int, far: int, seed: int = 0) -> float | None:
    """The share of the targets' variance that inputs up to `far` steps back explain beyond those up to `near` back.

        R^2 of psi(y_t) on [far, near] less that on near alone;  less what exchanged sequences give

    psi: features that show any relation (`throughtime.diagnosis.kernel`). near: up to 8 inputs from lag 0 to `near`, by
    themselves and together (random Fourier features, Rahimi & Recht 2007; of symbols the frequent pairs of the last
    three), half as many as targets at most. far:
    the input at lag `far`, and the sum of all from near + 1 to far. In a sine, or in any series with a memory of its
    own, the far inputs are dependent on the target and add nothing to the near ones: nothing is lost if the gradient
    does not reach them.

    0 where chance explains it; None where there are too few sequences or targets to tell 2 % from chance.
    """
    x, y = data.x, data.y
    N, T = x.shape[:2]
    if N < BLOCKS or data.form == "handed" or not 0 <= near < far < T:
        return None
    phi = features(x.flatten(0, 1), seed).view(N, T, -1)
    steps = torch.tensor([T - 1])
    if data.form == "each":
        there = torch.ones(T, dtype=torch.bool) if y.is_floating_point() else (y >= 0).all(0)
        steps = (there & (torch.arange(T) >= far)).nonzero()[:, 0]
        if not len(steps):
            return None
        most = max(1, ROWS // N)
        steps = steps[torch.arange(min(len(steps), most)) * len(steps) // min(len(steps), most)]
        y = y[:, steps]
    n = N * len(steps)
    y = y[..., None] if y.is_floating_point() and y.dim() == 1 else y
    psi = features(y.flatten(0, 1) if data.form == "each" else y, seed)
    total = phi.cumsum(1)
    before = torch.where((steps > far)[:, None], total[:, (steps - far - 1).clamp(min=0)], 0.0)
    summed = total[:, steps - near - 1] - before
    beyond = torch.cat([phi[:, steps - far], summed], -1)
    known = _near(x, phi, steps, near, n, seed)
    Y = _rest(psi, known)
    whole = (psi - psi.mean(0)).square().sum()
    if not whole > 0:
        return None
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(N), *(torch.randperm(N, generator=generator) for _ in range(DRAWS))]
    found = torch.stack([_explained(beyond[o].flatten(0, 1), known, Y) for o in orders]) / whole
    share, limit = float(found[0] - found[1:].mean()), float(upper_max(found[1:], 0.01) - found[1:].mean())
    return share if share > limit else 0.0 if limit < 2 * ADDS else None


def _explained(far: Tensor, known: Tensor, Y: Tensor) -> Tensor:
    """How much of Y [n, .] the far inputs [n, .] explain, once what is known is taken out of both."""
    return (_basis(_rest(far, known), min(FAR, max(1, len(Y) // 4))).T @ Y).square().sum()


def _near(x: Tensor, phi: Tensor, steps: Tensor, near: int, n: int, seed: int) -> Tensor:
    """The near inputs, each by its features and all together, as orthonormal columns [n, m], m <= n / 2 and 256."""
    lags = sorted({round(k * near / (NEAR - 1)) for k in range(NEAR)} | set(range(min(near, 1) + 1)))
    each = torch.cat([phi[:, steps - d] for d in lags], -1).flatten(0, 1)
    if x.is_floating_point():
        z = torch.stack([normal_scores(v) for v in x.flatten(0, 1).T], 1).view(*x.shape[:2], -1)
        z = torch.cat([z[:, steps - d] for d in lags], -1).flatten(0, 1)
        generator = torch.Generator().manual_seed(seed)
        waves = z @ torch.randn(z.shape[1], WAVES, generator=generator, dtype=z.dtype) / math.sqrt(z.shape[1])
        each = torch.cat([z, waves.cos(), waves.sin(), each], -1)
    elif near:
        each = torch.cat([each, *(_pairs(x, steps - d) for d in range(min(near, 2)))], -1)
    return _basis(each, min(MOST, max(1, n // 2)))


def _pairs(x: Tensor, steps: Tensor) -> Tensor:
    """Which of the frequent pairs the symbols at `steps` and just before them are, one-hot [N * steps, pairs]."""
    now, before = (torch.unique(x, return_inverse=True)[1][:, t.clamp(min=0)].flatten() for t in (steps, steps - 1))
    pair = now * (len(x.unique())) + before
    values, which, counts = torch.unique(pair, return_inverse=True, return_counts=True)
    frequent = counts.argsort(descending=True, stable=True)[:PAIRS]
    rank = torch.full((len(values),), len(frequent)).scatter_(0, frequent, torch.arange(len(frequent)))
    return torch.nn.functional.one_hot(rank[which], len(frequent) + 1)[:, :-1].double()


def _basis(v: Tensor, most: int) -> Tensor:
    """At most `most` orthonormal columns that hold the most of the centred v [n, M]; none for empty directions."""
    v = v - v.mean(0)
    values, vectors = torch.linalg.eigh(v.T @ v)
    keep = values > 1e-9 * values[-1].clamp(min=1e-30)
    values, vectors = values[keep][-most:], vectors[:, keep][:, -most:]
    return v @ vectors / values.sqrt()


def _rest(v: Tensor, known: Tensor) -> Tensor:
    """What is left of the centred v [n, .] when what is `known` is taken out."""
    v = v - v.mean(0)
    return v - known @ (known.T @ v)
