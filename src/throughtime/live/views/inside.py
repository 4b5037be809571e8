"""Clipping: inside the recurrence at every step back, or the whole gradient at its end, by norm or by value."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.cures.clip import ClipNorm, Clipper, ClipValue
from throughtime.live.lab import Setting, network
from throughtime.live.views.chart import Chart, Choice, Curve, Slider, View
from throughtime.nn import Recurrent


def inside(radius: float, steps: float, threshold: float, cell: str) -> Chart:
    """||dL/dx_k|| of a loss at the last step as training gets it, with derivatives clipped inside and without."""
    limit = 10**threshold
    layer, x = network(Setting(cell=cell, radius=radius, steps=int(steps), matrix="orthogonal", input=0.3, loss="last"))
    weights = layer.state_dict()
    clipped = Recurrent(layer.cell, x.shape[-1], layer.hidden_size, clip=limit, dtype=torch.float64)
    clipped.load_state_dict(weights)
    plain, gradient = _back(layer, x)
    kept, held = _back(clipped, x)
    turns = {c: _turn(gradient, clipper) for c, clipper in (("norm", ClipNorm(limit)), ("value", ClipValue(limit)))}
    told = [
        f"The gradient of all weights together is {gradient.norm():.3g} in size; with derivatives clipped inside at "
        f"{limit:.3g} it is {held.norm():.3g}, and turned by {_angle(gradient, held):.0f}°.",
        f"Clipped as a whole at {limit:.3g}: by norm it is turned by {turns['norm']:.0f}°, "
        f"by value by {turns['value']:.0f}°.",
    ]
    curves = [Curve("as it is", range(len(plain)), plain), Curve("derivatives clipped inside", range(len(kept)), kept)]
    return Chart(told, "lag, steps", "‖∂L/∂x‖ so many steps back", curves, lowest=-8)


def _back(layer: Recurrent, x: Tensor) -> tuple[list[float], Tensor]:
    """By lag the gradient that reaches the input, and that of all weights as one vector; a training step's own."""
    leaf = x.clone().requires_grad_()
    g = torch.randn(layer.hidden_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.enable_grad():
        loss = layer(leaf)[0][-1, 0] @ g
        found = torch.autograd.grad(loss, [leaf, *(layer.get_parameter(f"weight_{k}_l0") for k in ("ih", "hh"))])
    return found[0][:, 0].norm(dim=-1).flip(0).tolist(), torch.cat([v.flatten() for v in found[1:]])


def _turn(gradient: Tensor, clipper: Clipper) -> float:
    p = torch.zeros_like(gradient).requires_grad_()
    p.grad = gradient.clone()
    clipper([p])
    return _angle(gradient, p.grad)


def _angle(a: Tensor, b: Tensor) -> float:
    cosine = (a @ b / (a.norm() * b.norm())).clamp(-1, 1)
    return float(torch.rad2deg(torch.arccos(cosine)))


VIEW = View(
    "inside",
    "Clipping, inside and outside",
    "∂L/∂z_k ← clip(∂L/∂z_k, −θ, θ) at every step back;  or at the end g ← g · min(1, θ/‖g‖), or clip(g, −θ, θ)",
    "Graves 2013; Pascanu 2013; Mikolov 2012",
    "An exploding gradient on its way back, as it is and with every derivative clipped inside the recurrence. Clipping "
    "by norm shortens the step and keeps its direction; the other two turn it.",
    inside,
    (
        Choice("cell", "Cell", {"rnn-identity": "rnn (linear)", "rnn": "rnn (tanh)", "lstm": "LSTM"}, "rnn-identity"),
        Slider("radius", "Size of U", 0.2, 2, 0.01, 1.15),
        Slider("steps", "Steps T", 5, 120, 1, 60),
        Slider("threshold", "Threshold θ, power of ten", -2, 3, 0.1, 1),
    ),
)
