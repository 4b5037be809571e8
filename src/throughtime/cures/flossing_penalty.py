"""Gradient flossing: the Lyapunov exponents of a layer as a penalty, differentiable through the QR decompositions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cures.live import LiveRecurrence, LiveStack
from throughtime.errors import ConfigError, FlowError
from throughtime.flow.running import order
from throughtime.flow.tangent import Tangent


def flossing(
    layer: nn.Module,
    x: Tensor,
    k: int,
    state: Any = None,
    *,
    target: float | Sequence[float] | Tensor = 0.0,
    warmup: int = 0,
    every: int = 1,
) -> Tensor:
    """The sum of squares of the first k Lyapunov exponents, to be driven to 0 before or in training (Engelken 2023).

        sum_i (lambda_i - target_i)^2,   over i = 1..k, layers and directions;   lambda_i in nats a step

    At 0 these k directions carry the gradient through time without loss and without growth. `target` other than 0 is
    ours: exponents of -1/n keep a direction for about n steps. Other arguments, cost and errors: `lyapunov_exponents`.
    """
    found = lyapunov_exponents(layer, x, k, state, warmup=warmup, every=every)
    wanted = torch.as_tensor(target, dtype=found.dtype, device=found.device)
    if wanted.dim() > 1 or (wanted.dim() == 1 and wanted.shape[0] != k):
        raise ConfigError(f"target must be one exponent, or {k} of them; came {list(wanted.shape)}")
    return ((found - wanted) ** 2).sum()


def lyapunov_exponents(
    layer: nn.Module, x: Tensor, k: int, state: Any = None, *, warmup: int = 0, every: int = 1
) -> Tensor:
    """The first k Lyapunov exponents of each layer and direction, [layers * dirs, k], with the graph to the weights.

        J_t Q_{t-1} = Q_t R_t,    lambda_i = mean over t and batch of ln R_t[i, i]      (Benettin 1980)

    The same numbers as `throughtime.flow.lyapunov_spectrum` on the same run, in the layer's dtype and not sorted.
    The exact derivative, through every QR, every Jacobian and every state.

    layer: one of torch.nn's RNN, LSTM, GRU or of throughtime.nn.     x, state: as its call takes them, not packed.
    warmup: steps at the start that are run and not counted.     every: steps between two QR decompositions; more is
    cheaper, and loses directions that differ by more than the dtype's digits over that stretch.

    Cost: T steps one by one, each carrying k directions, O(T B k (H^2 + N k)) with N numbers in the state, and all
    of it kept for the backward pass, T B k N numbers and more. Engelken 2023 flosses some hundred times before
    training, and now and then during it, not at every step.

    Raises ConfigError for sizes out of range, for other modules and for dropout that is switched on; FlowError where
    a state is not finite, and where a direction is lost altogether (-inf), which no derivative mends: ask for fewer.
    """
    stack = LiveStack(layer, x, state)
    found = [_exponents(r, k, warmup, every) for directions in stack.recurrences for r in directions]
    return torch.stack(found)


def _exponents(r: LiveRecurrence, k: int, warmup: int, every: int) -> Tensor:
    tangent = Tangent(r)
    steps, B, N = order(r), r.x.shape[1], sum(tangent.sizes)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= N:
        raise ConfigError(f"k, how many exponents, must lie in 1..{N}, the numbers that the state has; came {k!r}")
    if not 0 <= warmup < len(steps):
        raise ConfigError(f"warmup must be at least 0 and less than the {len(steps)} steps; came {warmup}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ConfigError(f"every must be a whole number of at least 1 step between two QR; came {every!r}")
    # The start of lyapunov_spectrum: all N are drawn whatever k is.
    start = torch.randn(N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[:, :k]
    Q = torch.linalg.qr(start).Q.to(r.output).expand(B, N, k)
    total = Q.new_zeros(B, k)
    for n, t in enumerate(steps):
        Q = tangent.carry(t, Q)
        last_of_warmup, last = n + 1 == warmup, n + 1 == len(steps)
        if last_of_warmup or last or (n + 1) % every == 0:
            Q, R = torch.linalg.qr(Q)
            if n >= warmup:
                total = total + R.diagonal(dim1=-2, dim2=-1).abs().log()
    found = (total / (len(steps) - warmup)).mean(0)
    if not bool(found.isfinite().all()):
        n = int(found.isfinite().long().cumprod(0).sum())
        raise FlowError(
            f"only the first {n} of {k} directions survive in {r.cell.name}, layer {r.layer}; the others are lost "
            f"altogether and have no exponent to floss. Ask for k = {max(n, 1)}"
        )
    return found
