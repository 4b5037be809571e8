"""The stalled update and the one that is too long: what each lag adds to a step, against the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.flow.measure import recurrences
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.shares import totals
from throughtime.flow.updates import STALLED, TOO_LONG, Update
from throughtime.live.lab import Setting, network
from throughtime.live.views.chart import Chart, Choice, Curve, Slider, View

ROUNDS = 2**-24  # what is smaller than this share of a float32 is rounded away when it is added
CELLS = {"rnn": "rnn (tanh)", "rnn-identity": "rnn (linear)", "rnn-relu": "rnn (ReLU)", "lstm": "LSTM", "gru": "GRU"}


def update(cell: str, radius: float, steps: float, rate: float) -> Chart:
    """a ||G_d|| / ||U|| of a loss at the last step alone: G_d is what lag d adds to the gradient of U."""
    setting = Setting(cell=cell, radius=radius, steps=int(steps), loss="last")
    layer, x = network(setting)
    g = torch.zeros(setting.steps, 1, setting.units, dtype=torch.float64)
    g[-1] = torch.randn(setting.units, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    r = recurrences(layer, x)[0][0]
    U, a = layer.get_parameter("weight_hh_l0").detach(), 10**rate
    parts, whole = by_lag(r, g)
    ratio = (a * parts / U.norm()).tolist()
    taken = Update("U", a * whole, U.norm().item())
    at = [d for d, v in enumerate(ratio) if v >= ROUNDS]
    told = [f"The whole step is {taken.ratio:.2g} of the weight: {_called(taken)}."]
    if not at:
        told.append("Not even the nearest lag moves it in float32.")
    elif at[-1] < setting.steps - 2:
        told.append(f"From lag {at[-1] + 1} on, what a lag adds is rounded away in float32: W − a·g is W.")
    else:
        told.append("Every lag still moves it.")
    told += _overflow(layer, x, g)
    return Chart(
        told, "lag, steps", "a·‖g‖ / ‖U‖, of each lag", [Curve(CELLS[cell], range(len(ratio)), ratio)],
        lowest=-14, levels=[(TOO_LONG, "too long"), (STALLED, "stalls"), (ROUNDS, "rounded away")],
    )  # fmt: skip


def by_lag(r: Recurrence, g: Tensor) -> tuple[Tensor, float]:
    """||delta_{T,k} h_{k-1}^T|| by lag T - k, of one sequence, and the norm of their sum; nothing at k = 0, where the
    state before is 0."""
    h, columns = r.output[:, 0], r.cell.columns
    through = [k for k, c in enumerate(columns) if c.h is not None]  # of a GRU's candidate only the part behind U
    dz = totals(r, g)["z"][:, 0].unflatten(-1, (len(columns), -1))[:, through].flatten(1)
    before = torch.cat([torch.zeros_like(h[:1]), h[:-1]])
    return (dz.norm(dim=-1) * before.norm(dim=-1)).flip(0)[:-1], float((dz.T @ before).norm())


def _called(taken: Update) -> str:
    return {
        "stalled": "it stalls, W − a·g ≈ W",
        "healthy": "a healthy size",
        "too long": "too long, it lands far from where the gradient was taken",
        "not finite": "it is not finite",
    }.get(taken.label, taken.label)


def _overflow(layer: torch.nn.Module, x: Tensor, g: Tensor) -> list[str]:
    """The same in float32, as it would be trained: is the gradient a number at all?"""
    low = layer.float()
    with torch.enable_grad():
        y = low(x.float())[0]
        loss = (y * g.float()).sum()
        if not bool(loss.isfinite()):
            return ["In float32 the state itself is Inf or NaN: training must go back to the last good checkpoint."]
        grads = torch.autograd.grad(loss, list(low.parameters()))
    if all(bool(v.isfinite().all()) for v in grads):
        return []
    return [
        "In float32 the gradient is Inf or NaN: no step can be taken, training goes back to the last good checkpoint."
    ]


VIEW = View(
    "update",
    "The update that stalls",
    "W ← W − a·g,  watched: a·‖g‖ / ‖W‖",
    "the theory of vanishing and exploding; 1e-3 as the size of a healthy step: Karpathy 2015",
    "The loss is at the last step; each point is what the step so many lags before it adds to the update of U, against "
    "the size of U. Below the lowest line float32 rounds it away; above the highest a few steps replace the weight.",
    update,
    (
        Choice("cell", "Cell", CELLS, "rnn"),
        Slider("radius", "Spectral radius", 0, 3, 0.01, 1.0),
        Slider("steps", "Steps T", 5, 160, 1, 60),
        Slider("rate", "Learning rate a, power of ten", -7, 1, 0.1, -2),
    ),
)
