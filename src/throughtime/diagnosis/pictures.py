"""What a page draws of one recurrence, kept small: a map, shares of the gradient by lag, eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.diagnosis.following import first_sequences
from throughtime.flow import Captured, GradientFlow, Recurrence, drawing
from throughtime.flow.capture_runs import LayerRun
from throughtime.flow.sent import Sent
from throughtime.flow.tangent import Tangent
from throughtime.plain import Plain

WORK = 2e9  # multiplications for the pictures of one stack: about a second on one core
ROOM = 8e6  # numbers that are held at once
SIDE, LEAST = 96, 8  # loss steps in a map at most, and at least: fewer are no picture
MOST = 8  # recurrences of a model that are drawn
LARGEST_U, LARGEST_J = 512, 256  # of a matrix whose eigenvalues are computed


@dataclass(frozen=True)
class Pictures(Plain):
    """What is drawn of one recurrence, of the first sequence of the batch, as plain data.

    maps:   by name as in `GradientFlow`, each [n, n] float32: row i and column i are step `first + i * stride`. Empty
            where the loss enters at one step only, for then the profile says it all.
    shares: by parameter the share of its gradient that comes from each lag, [T] float32 (`Parts.contribution`), of the
            losses at the map's steps.
    last:   the map of the state that is shown over the last n steps, each of them, [n, n] float32: what the text view
            shades. None where it was not asked for.
    eigenvalues: [N, 2] float32, real and imaginary: "U", of the first recurrent gate's matrix, and "J", of the state
            Jacobian in the middle; without those of very large matrices.
    """

    maps: dict[str, Tensor] = field(default_factory=dict)
    first: int = 0
    stride: int = 1
    shares: dict[str, Tensor] = field(default_factory=dict)
    eigenvalues: dict[str, Tensor] = field(default_factory=dict)
    last: Tensor | None = None

    def plot(self, ax: Any = None) -> Any:
        """Draws the first map with matplotlib, or without one the shares by lag; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        for name, sizes in self.maps.items():
            what = f"log10 of the gradient of {name}"
            of = f"first {self.first}, one of {self.stride}"
            return drawing.matrix(sizes, ax, xlabel=f"step of the past ({of})", ylabel="step of the loss", title=what)
        return drawing.lines(self.shares, ax, xlabel="lag (steps)", ylabel="share of the gradient")


class _Followed(NamedTuple):
    grid: range
    sent: list[list[Sent]]
    last: list[list[Sent]]
    stack: list[list[Recurrence]]


class Draughtsman:
    """Makes the pictures of recurrences; the layers of one stack are followed once, together.

    text: whether the map over the last steps is made as well.
    """

    def __init__(self, work: float = WORK, text: bool = False):
        self.work, self.text, self.drawn = work, text, 0
        self._stacks: dict[int, tuple[LayerRun, _Followed]] = {}

    @torch.no_grad()
    def draw(self, captured: Captured, flow: GradientFlow, exact: bool) -> Pictures | None:
        """The pictures of one recurrence; None where nothing can be drawn within the work and the room.

        flow: what was followed of it already: all that is drawn of a loop of the user's own, if `exact`.
        """
        self.drawn += 1
        if self.drawn > MOST:
            return None
        run = captured._run
        if not isinstance(run, LayerRun):
            return _thinned(flow) if exact else None
        if id(run) not in self._stacks:
            self._stacks[id(run)] = run, self._follow(run)
        grid, sent, last, stack = self._stacks[id(run)][1]
        recurrence = stack[captured.layer][int(captured.reverse)]
        eigenvalues = _eigenvalues(recurrence)
        if not sent:
            return Pictures(eigenvalues=eigenvalues) if eigenvalues else None
        here = sent[captured.layer][int(captured.reverse)]
        maps = _grid(here.maps(), grid) if len(here.rows) > 1 else {}
        text = None
        if last:
            text = last[captured.layer][int(captured.reverse)].maps()[recurrence.cell.states[0]].cpu()
            n = min(len(text), len(grid))
            text = text[-n:, -n:].float()
        return Pictures(maps, grid.start, grid.step, _shares(recurrence, here), eigenvalues, text)

    def _follow(self, run: LayerRun) -> _Followed:
        """The first sequence, from steps spread evenly up to the last; nothing where too few can be followed."""
        passed, outside = first_sequences(run.passed, run.outside, 1)
        T = passed.recurrences[0][0].x.shape[0]
        weights = sum(w.numel() for d in passed.recurrences for r in d for w in r.weights[:2] if w is not None)
        wide = max(sum(v.shape[-1] for v in r.net_inputs.values()) for d in passed.recurrences for r in d)
        n = int(min(T, SIDE, self.work / max(1.0, T / 2 * weights), ROOM / (T * wide)))
        if n < min(LEAST, T):
            return _Followed(range(0), [], [], passed.recurrences)
        grid = _steps(T, n)
        enters = torch.zeros(T, dtype=torch.bool)
        for v in (v for layer in outside for d in layer for v in d if v is not None):
            enters |= (v != 0).flatten(1).any(1).cpu()
        rows = [t for t in grid if enters[t]]
        sent = passed.sent(outside, 0, rows, values=True) if rows else []
        last = passed.sent(outside, 0, list(range(T - len(grid), T))) if self.text else []
        return _Followed(grid, sent, last, passed.recurrences)


def _steps(T: int, n: int) -> range:
    """About n of T steps, evenly, the last among them."""
    stride = -(-T // n)
    return range((T - 1) % stride, T, stride)


def _grid(maps: dict[str, Tensor], grid: range) -> dict[str, Tensor]:
    at = torch.tensor(list(grid))
    return {name: m.cpu()[at][:, at].float() for name, m in maps.items() if bool(m.any())}


def _thinned(flow: GradientFlow) -> Pictures | None:
    grid = _steps(flow.steps, min(SIDE, flow.steps))
    maps = _grid(flow.maps, grid)
    seen = next(iter(maps.values()), None)
    return None if seen is None or int(seen.any(1).sum()) < 2 else Pictures(maps, grid.start, grid.step)


def _shares(r: Recurrence, sent: Sent) -> dict[str, Tensor]:
    """By lag <G_d, G> / ||G||^2 of one sequence's G = sum of delta_{t,k} v_k^T (Werbos 1990), v of x, h_{k-1}, 1."""
    if sent.values is None:
        return {}
    cell, dz = r.cell, sent.values["z"][:, :, 0]  # [rows, T, columns * H]
    H = dz.shape[-1] // len(cell.columns)
    h = r.sequences[0][:, 0]
    first = r.operands.states[0][:1]
    before = torch.cat([h[1:], first]) if r.reverse else torch.cat([first, h[:-1]])
    from_x = len(cell.gates) * H
    factors: dict[str, tuple[Tensor, Tensor]] = {"weight_ih": (dz[..., :from_x], r.operands.x[:, 0])}
    column = {c.name: i for i, c in enumerate(cell.columns)}
    gates = cell.recurrent_gates
    if gates and not cell.inside:
        at = [column[f"{gate}_h" if gate in cell.apart else gate] for gate in gates]
        factors["weight_hh"] = torch.cat([dz[..., i * H : (i + 1) * H] for i in at], -1), before
    if r.weights.bias_ih is not None:
        factors["bias_ih"] = dz[..., :from_x], dz.new_ones(dz.shape[1], 1)
    T = dz.shape[1]
    lag = (torch.tensor(sent.rows)[:, None] - torch.arange(T)).abs().to(dz.device)
    found = {}
    for name, (left, right) in factors.items():
        right = right.nan_to_num()  # padding may hold anything, and nothing comes back to it
        G = torch.einsum("rkm,kn->mn", left, right)
        size = G.square().sum()
        if size > 0:
            parts = torch.einsum("rkm,km->rk", left, right @ G.T) / size
            found[name] = parts.new_zeros(T).index_add_(0, lag.flatten(), parts.flatten()).float().cpu()
    return found


def _eigenvalues(r: Recurrence) -> dict[str, Tensor]:
    found = {}
    U = r.weights.weight_hh
    if U is not None and 0 < U.shape[1] <= LARGEST_U and bool(U.isfinite().all()):
        found["U"] = _complex(U.detach().double()[: U.shape[1]])
    if sum(s.shape[-1] for s in r.sequences) <= LARGEST_J:
        J = Tangent(r).jacobian(len(r.output) // 2)[0]
        if bool(J.isfinite().all()):
            found["J"] = _complex(J)
    return found


def _complex(matrix: Tensor) -> Tensor:
    return torch.view_as_real(torch.linalg.eigvals(matrix)).float().cpu()


def norm_points(norms: Sequence[float], most: int = 2000) -> Tensor:
    """(step, norm) of a history, [n, 2] float64, of each stretch the largest: a spike is what is looked for."""
    run = max(1, -(-len(norms) // most))
    parts = [list(enumerate(norms))[i : i + run] for i in range(0, len(norms), run)]
    kept: list[Any] = [max(part, key=lambda p: float("inf") if p[1] != p[1] else p[1]) for part in parts]
    return torch.tensor(kept, dtype=torch.float64).reshape(-1, 2)
