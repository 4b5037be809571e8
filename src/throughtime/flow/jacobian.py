"""The state Jacobian in full, over all that is carried from step to step, its products, and the bound beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import FlowError
from throughtime.flow import drawing
from throughtime.flow.bound import RecurrentMatrix, largest_slope, recurrent_matrices
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.running import step_at_lag, where
from throughtime.flow.tangent import Tangent
from throughtime.plain import Plain

ROOM = 2 * 2**30  # bytes that the Jacobians of one result may take


@dataclass(frozen=True)
class JacobianResult(Plain):
    """The Jacobians of one recurrence over one batch, exact, float64, as plain data.

        steps[t, b] = J_t = ds_t/ds_{t-1},     s = (h, c, ...), N numbers     (s_{t+1} in a reverse direction)
        ds_t/ds_k   = J_t J_{t-1} ... J_{k+1}

    The state is ALL that is carried: with c held constant an LSTM seems to forget at once. Row = a component of the
    new state, column = one of the old, the states one after the other. In padding J is the identity.

    steps:    [T, B, N, N].              states, sizes: the names of the states, and how many of the N are whose.
    matrices: spectral radius and sigma_1 of the recurrent weights, gate by gate.
    slope:    g_f of a simple cell (Pascanu 2013); None for others.
    lags, decay: sigma_1 of ds_e/ds_{e-d} for some lags d, 0 to the longest sample, e the last step of each sample:
              [len(lags), B]; NaN where a sample is shorter than that.
    """

    steps: Tensor
    states: tuple[str, ...]
    sizes: tuple[int, ...]
    matrices: tuple[RecurrentMatrix, ...]
    slope: float | None
    lags: tuple[int, ...]
    decay: Tensor
    cell: str
    layer: int = 0
    reverse: bool = False

    def block(self, of: str, by: str) -> Tensor:
        """d(of)_t / d(by)_{t-1}: one state by another, [T, B, H_of, H_by]."""
        return self.steps[..., self._part(of), self._part(by)]

    def product(self, t: int, k: int, of: str | None = None, by: str | None = None) -> Tensor:
        """ds_t/ds_k, [B, N, N], or its block of one state by another; k = -1 is the initial state (T if reverse).

        Raises FlowError for steps that are not there or not in the order in which the recurrence ran.
        """
        T, B, N, _ = self.steps.shape
        first = T if self.reverse else -1
        if not 0 <= t < T or not (t <= k <= T if self.reverse else -1 <= k <= t):
            raise FlowError(
                f"ds_{t}/ds_{k}: the steps are 0..{T - 1}, {first} the initial state, and k must "
                f"{'follow' if self.reverse else 'precede'} t, as the recurrence ran"
            )
        product = torch.eye(N, dtype=self.steps.dtype, device=self.steps.device).expand(B, N, N)
        for i in range(t, k) if self.reverse else range(t, k, -1):
            product = product @ self.steps[i]
        rows = slice(None) if of is None else self._part(of)
        columns = slice(None) if by is None else self._part(by)
        return product[:, rows, columns]

    def singular_values(self, t: int, k: int, of: str | None = None, by: str | None = None) -> Tensor:
        """The singular values of ds_t/ds_k (or of a block), [B, n], the largest first.

        Those below about 1e-16 of the largest are rounding; the Lyapunov spectrum has them to full precision.
        """
        product = self.product(t, k, of, by)
        if not product.isfinite().all():
            raise FlowError(f"ds_{t}/ds_{k} has grown beyond the largest float64; take fewer steps")
        return torch.linalg.svdvals(product)

    def bound(self) -> Tensor | None:
        """(g_u g_f)^d for each of `lags`, with g_u = sigma_1(U): no product is larger; None where it does not hold.

        Only for simple cells, whose Jacobian is diag(f') U (Hochreiter 1991; Pascanu 2013). Below 1 the gradient must
        vanish; above 1 it may explode, and need not.
        """
        if self.slope is None or len(self.matrices) != 1:
            return None
        base = torch.tensor(self.matrices[0].sigma_1 * self.slope, dtype=torch.float64)
        return base ** torch.tensor(self.lags, dtype=torch.float64)

    def rate(self) -> float:
        """The measured factor per step: decay^(1/d) at the largest lag, the geometric mean over the samples.

        0 if the product is exactly 0 there, inf if it left the range of float64.
        """
        d, last = self.lags[-1], self.decay[-1]
        return (last[~last.isnan()].log().mean() / max(d, 1)).exp().item()

    def _part(self, name: str) -> slice:
        if name not in self.states:
            raise FlowError(f"{name!r} is not a state of {self.cell}; its states are {', '.join(self.states)}")
        k = self.states.index(name)
        start = sum(self.sizes[:k])
        return slice(start, start + self.sizes[k])

    def plot(self, ax: Any = None) -> Any:
        """Draws sigma_1 of the products by lag, and the bound if there is one, with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        curves = {"measured, median": self.decay.nanmedian(1).values}
        bound = self.bound()
        if bound is not None:
            curves["bound"] = bound
        label = "sigma_1 of ds_t / ds_(t-d)"
        return drawing.lines(curves, ax, self.lags, xlabel="lag d (steps)", ylabel=label, log=True)

    def __str__(self) -> str:
        T, B, _, _ = self.steps.shape
        parts = ", ".join(f"{s} {n}" for s, n in zip(self.states, self.sizes, strict=True))
        lines = [f"State Jacobian over {T} steps, {B} samples ({where(self.cell, self.layer, self.reverse)}): {parts}"]
        lines += [f"  {m}" for m in self.matrices]
        bound = self.bound()
        lines.append("  sigma_1 of the product over d steps, median over samples (largest):")
        for n, d in enumerate(self.lags):
            row = self.decay[n][~self.decay[n].isnan()]
            line = f"    d = {d:<5} {row.median():8.1e} ({row.max():.1e})"
            lines.append(line if bound is None else f"{line}   bound {bound[n]:.1e}")
        lines.append(f"  {self._reading()}")
        return "\n".join(lines)

    def _reading(self) -> str:
        rate = self.rate()
        if math.isclose(rate, 1, abs_tol=0.005):
            moved = "the products neither fall nor grow"
        else:
            moved = f"the products {'fall' if rate < 1 else 'grow'}, by a factor of {rate:.3f} a step"
        text = f"Measured over {self.lags[-1]} steps: {moved}."
        largest = max((m.sigma_1 for m in self.matrices), default=0.0) * (self.slope or 1.0)
        if self.slope is not None and rate < 0.995 and largest > 1:
            text += " The bound alone would say that they may explode; it is an upper limit, not what happens."
        return text


def state_jacobian(recurrence: Recurrence, *, samples: int | None = None) -> JacobianResult:
    """Measures the Jacobian of the whole state at every step of a recurrence as it ran.

    samples: how many of the batch to measure, the first ones; None for all. Takes T * B * N^2 * 8 bytes.
    With the recurrence's rule `truncated` it is the derivative that training follows (see `Tangent`).
    Raises FlowError where a state is NaN or infinite, and where the result would take more than 2 GiB.
    """
    if samples is not None:
        recurrence = first_samples(recurrence, samples)
    T, B = recurrence.x.shape[:2]
    N = sum(s.shape[-1] for s in recurrence.operands.states)
    size = T * B * N * N * 8
    if size > ROOM:
        raise FlowError(
            f"the Jacobians of {T} steps and {B} samples, [{N}, {N}] each, would take {size / 2**30:.1f} GiB; "
            "ask for fewer samples=, or run fewer steps. lyapunov_spectrum and carousel_path do not store them"
        )
    tangent = Tangent(recurrence)
    steps = torch.stack([tangent.jacobian(t) for t in range(T)])
    longest = T if recurrence.lengths is None else int(recurrence.lengths.max())
    lags = tuple(sorted({0, *(2**i for i in range(20) if 2**i < longest), longest}))
    return JacobianResult(
        steps, tuple(recurrence.cell.states), tangent.sizes, recurrent_matrices(recurrence),
        largest_slope(recurrence.cell), lags, _decay(steps, recurrence, lags), recurrence.cell.name, recurrence.layer,
        recurrence.reverse,
    )  # fmt: skip


def first_samples(recurrence: Recurrence, samples: int) -> Recurrence:
    """The same recurrence over the first samples of its batch only."""
    B = recurrence.x.shape[1]
    if not 1 <= samples <= B:
        raise FlowError(f"samples must lie in 1..{B}, the size of the batch; came {samples}")
    r = recurrence
    return replace(
        r,
        x=r.x[:, :samples],
        states=None if r.states is None else [s[:samples] for s in r.states],
        lengths=None if r.lengths is None else r.lengths[:samples],
    )


def _decay(steps: Tensor, recurrence: Recurrence, lags: tuple[int, ...]) -> Tensor:
    """sigma_1 of the products that end at each sample's last step, [len(lags), B]. The product is kept near 1 and its
    size apart, as a logarithm, so that nothing overflows on the way."""
    T, B, N, _ = steps.shape
    at, there = step_at_lag(recurrence)
    samples = torch.arange(B, device=steps.device)
    product = torch.eye(N, dtype=steps.dtype, device=steps.device).repeat(B, 1, 1)
    size = steps.new_zeros(B)  # of the product, as a logarithm
    found = []
    for d in range(T + 1):
        if d:
            product = product @ steps[at[d - 1], samples]
            scale = product.abs().amax((1, 2))
            size = torch.where(there[d - 1], size + scale.log(), torch.nan)
            product = product / torch.where(scale > 0, scale, 1.0)[:, None, None]
        if d in lags:
            found.append((torch.linalg.matrix_norm(product, 2).log() + size).exp())
    return torch.stack(found)
