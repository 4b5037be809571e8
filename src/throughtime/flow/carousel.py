"""The gradient of a memory taken apart: what comes back along the carousel, and what through the outputs and gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime.engine import torch_backend
from throughtime.flow import drawing
from throughtime.flow.anatomy import carousel_factor
from throughtime.flow.memory import memory_of
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.running import check_finite, step_at_lag, valid, where
from throughtime.plain import Plain


@dataclass(frozen=True)
class CarouselPath(Plain):
    """dm_e/dm_{e-d} of a memory m (c of an LSTM) by lag d, e the last step of each sample, in two parts.

        whole    = the block of m by m of J_e ... J_{e-d+1}, along all paths, the other states included
        carousel = prod diag(F_t),   m_t = F_t * m_{t-1} + ...   the path that stays inside the memory
        rest     = whole - carousel                              through h, the gates, the cell input

    Each [T + 1], lags 0..T: ||.||_F / sqrt(H), root mean square over the samples that have this lag: the factor by
    which a random change of the memory is stretched. 1 at lag 0. No unit. The two parts may cancel: whole can be
    smaller than either.
    """

    state: str
    whole: Tensor
    carousel: Tensor
    rest: Tensor
    cell: str
    layer: int = 0
    reverse: bool = False

    def plot(self, ax: Any = None) -> Any:
        """Draws the two parts and the whole by lag with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        curves = {"whole": self.whole, "carousel": self.carousel, "rest": self.rest}
        label = f"d{self.state}_t / d{self.state}_(t-d), root mean square"
        return drawing.lines(curves, ax, xlabel="lag d (steps)", ylabel=label, log=True)

    def __str__(self) -> str:
        n = len(self.whole) - 1
        lines = [
            f"d{self.state}_t/d{self.state}_(t-d) ({where(self.cell, self.layer, self.reverse)}), from the last step, "
            "root mean square",
            f"  {'lag':>6} {'whole':>9} {'carousel':>9} {'the rest':>9}",
        ]
        for d in sorted({0, *(2**i for i in range(20) if 2**i < n), n}):
            lines.append(f"  {d:>6} {self.whole[d]:9.2e} {self.carousel[d]:9.2e} {self.rest[d]:9.2e}")
        return "\n".join(lines)


@torch.no_grad()
def carousel_path(recurrence: Recurrence, state: str | None = None) -> CarouselPath:
    """Measures how much of the gradient of a memory comes back along the carousel (Hochreiter & Schmidhuber 1997).

    Exact: the identity, one row a unit, is sent back from the last step on the engine. With the recurrence's rule
    `truncated` that is the derivative that training follows: nothing but the carousel. In padding nothing changes.
    state: which memory; None for the cell's last one. Raises FlowError for a cell without a memory, and where a state
    is NaN or infinite.
    """
    check_finite(recurrence)
    state = memory_of(recurrence, state)
    number = list(recurrence.cell.states).index(state)
    v, (T, B) = recurrence.operands, recurrence.x.shape[:2]
    H = v.states[number].shape[-1]
    eye = torch.eye(H, dtype=v.b.dtype, device=v.b.device)
    start = [s.new_zeros(H, *s.shape) for s in v.states]
    start[number] = eye[:, None].expand(H, B, H)

    F = torch.where(valid(recurrence)[..., None], carousel_factor(recurrence, state), 1.0)
    along = torch.ones_like(F[0])  # the diagonal of the carousel's product, [B, H]
    parts = F.new_zeros(3, T, B)  # squares of the whole, the carousel, the rest, by the step that was gone through last
    for t, _, ds, _ in torch_backend.backward_steps(recurrence.linearised(), start, lambda t, ds: ds):
        along = along * F[t]
        rest = ds[number] - along * eye[:, None]
        for part, value in zip(
            parts, (ds[number].square().sum((0, 2)), along.square().sum(1), rest.square().sum((0, 2))), strict=True
        ):
            part[t] = value
    at, there = step_at_lag(recurrence)  # at[d]: the step gone through at lag d + 1
    by_lag = parts.gather(1, at.expand(3, T, B)) * there / H
    sizes = (by_lag.sum(-1) / there.sum(-1)).sqrt()
    start_sizes = sizes.new_tensor([[1.0], [1.0], [0.0]])
    whole, carousel, rest = torch.cat([start_sizes, sizes], 1)
    keep = ~whole.isnan()  # lags that no sample has
    return CarouselPath(
        state, whole[keep], carousel[keep], rest[keep], recurrence.cell.name, recurrence.layer, recurrence.reverse
    )
