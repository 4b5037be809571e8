"""One gradient, taken apart in four ways that all add up to it: by lag, by loss, by step of the past, by unit."""

from __future__ import annotations

import torch

from throughtime.flow.measure import recurrences
from throughtime.flow.shares import shares
from throughtime.live.lab import Setting, network
from throughtime.live.views.chart import Chart, Choice, Curve, Slider, View

STEPS = 24
CALLED = {"weight_hh": "U", "weight_ih": "W", "bias_ih": "b"}
BY = {
    "by_lag": "by lag",
    "by_loss_step": "by loss step t",
    "by_past_step": "by step of the past k",
    "by_unit": "by unit",
}


def adding(cell: str, parameter: str, radius: float) -> Chart:
    """The share of each part in the gradient of one parameter, with a loss at every step."""
    setting = Setting(cell=cell, units=10, steps=STEPS, radius=radius, forget=2)
    layer, x = network(setting)
    g = torch.randn(STEPS, 1, setting.units, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = shares(recurrences(layer, x)[0][0], g, norms=False)[parameter]
    curves, sums = [], []
    for name, words in BY.items():
        part = getattr(found, name)
        if part is not None:
            curves.append(Curve(words, part.at.tolist(), part.contribution.tolist()))
            sums.append(f"{words} {float(part.contribution.sum()):.6f}")
    far = float(found.by_lag.contribution[5:].sum())
    told = [
        f"All four add up to the gradient of {CALLED[parameter]}: {', '.join(sums)}.",
        f"From five steps back and farther comes {100 * far:.3g} % of it.",
    ]
    return Chart(told, "lag, step or unit", "share of the gradient", curves, log=False, levels=[(0, "0")])


VIEW = View(
    "adding",
    "The same sum in four ways",
    "∂L/∂U = Σ_t Σ_{k≤t} δ(t,k) h_{k−1}ᵀ,  ∂L/∂W = Σ δ(t,k) x_kᵀ,  ∂L/∂b = Σ δ(t,k)",
    "Werbos 1990",
    "A loss at each of 24 steps. Each line shares out the same gradient: to lags, to losses, to steps of the past, to "
    "units; below 0 a part points against the rest.",
    adding,
    (
        Choice("cell", "Cell", {"rnn": "rnn (tanh)", "lstm": "LSTM", "gru": "GRU"}, "rnn"),
        Choice("parameter", "Parameter", CALLED, "weight_hh"),
        Slider("radius", "Spectral radius", 0, 2, 0.01, 1),
    ),
)
