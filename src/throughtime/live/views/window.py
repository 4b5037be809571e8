"""Truncated back-propagation: the state goes on, the graph is cut, and what lies before the cut sends nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.cures.tbptt import cut, windows
from throughtime.flow import GradientFlow
from throughtime.flow.measure import gradient_flow
from throughtime.live.lab import Setting, network
from throughtime.live.views.chart import Chart, Choice, Curve, Slider, View

STEPS = 96


@torch.no_grad()
def window(cell: str, length: float, radius: float, carried: str) -> Chart:
    """The lag profile of full back-propagation and of windows, the state carried from one to the next or not."""
    W = int(length)
    layer, x = network(
        Setting(cell=cell, units=12, steps=STEPS, radius=radius, matrix="orthogonal", forget=3, input=0.3)
    )
    g = torch.randn(STEPS, 1, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    full = gradient_flow(layer, x, g)
    whole, state, off = torch.zeros_like(full.maps["z"]), None, 0.0
    shown = layer(x)[0]
    for at, part in windows(x, W):
        maps = gradient_flow(layer, part, g[at], state).maps["z"]
        whole[at, at] = maps
        y, after = layer(part, state)
        off = max(off, float((y - shown[at]).abs().max()))
        state = cut(after) if carried == "yes" else None
    short = GradientFlow({"z": whole}, full.cell)
    a, b = full.profile("z"), _sized(short, full)
    reach = full.horizon("z")
    middle = W // 2
    left = 100 * float(b[middle] / a[middle])
    told = [
        f"In full the gradient reaches {reach}; windows of {W} end at lag {W - 1}. At lag {middle} only losses with as "
        f"many steps before them in their window send anything: {left:.0f} % of the gradient's size there.",
        "The state is carried: what the network computes is the same as without windows."
        if off < 1e-9
        else f"The state begins at 0 in each window: the outputs differ by up to {off:.2g}. That is a usual mistake.",
    ]
    if reach.steps >= W:
        told.append("The window is shorter than the gradient reaches: it, and not the network, is the limit.")
    curves = [
        Curve("full back-propagation", range(STEPS), a.tolist()),
        Curve(f"windows of {W}", range(W), b[:W].tolist()),
    ]
    return Chart(told, "lag, steps", "gradient, relative to lag 0", curves, lowest=-8, places=[(W - 1, "window")])


def _sized(short: GradientFlow, full: GradientFlow) -> Tensor:
    """The profile of what is left, a lag's losses counted whether they send anything or not."""
    sent, kept = full.maps["z"].diagonal(), short.maps["z"]
    return torch.stack([kept.diagonal(-d).sum() / sent[d:].sum() for d in range(STEPS)])


VIEW = View(
    "window",
    "Truncated back-propagation",
    "the state goes on, s_0 := s_T of the window before;  the graph is cut, ∂s_0/∂s_T := 0",
    "Williams & Peng 1990",
    "The gradient by lag, in full and with training cut into windows. A window shorter than the gradient reaches "
    "throws away what the network could have learnt.",
    window,
    (
        Choice("cell", "Cell", {"lstm": "LSTM", "rnn": "rnn (tanh)", "gru": "GRU"}, "lstm"),
        Slider("length", "Window", 2, 96, 1, 16),
        Slider("radius", "Size of U", 0.1, 1.5, 0.01, 0.8),
        Choice("carried", "State", {"yes": "carried on", "no": "begins at 0 each time"}, "yes"),
    ),
)
