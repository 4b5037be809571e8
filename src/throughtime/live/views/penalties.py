"""Penalties that keep the gradient alive: some steps down Omega, or down the squared Lyapunov exponents."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.cures.flossing_penalty import flossing
from throughtime.cures.omega_penalty import omega
from throughtime.flow.lyapunov import lyapunov_spectrum
from throughtime.flow.measure import gradient_flow, recurrences
from throughtime.live.views.chart import Chart, Choice, Curve, Slider, View
from throughtime.nn import RNN

UNITS, STEPS, SHOWN = 8, 6, 40
"""The network, the steps that a penalty is taken over, and the steps that are shown."""


def penalties(penalty: str, taken: float, radius: float, rate: float) -> Chart:
    """The lag profile of a simple network before and after steps of plain descent on the penalty alone."""
    layer, x = _layer(radius), torch.randn(SHOWN, 1, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x *= 0.3
    g = torch.zeros(SHOWN, 1, UNITS, dtype=torch.float64)
    g[-1] = torch.randn(UNITS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    curves, told = [], []
    before, exponent = _seen(layer, x, g)
    curves.append(Curve("before", range(SHOWN), before))
    values = _descend(layer, x[:STEPS], g[-STEPS:], penalty, int(taken), 10**rate)
    after, now = _seen(layer, x, g)
    curves.append(Curve(f"after {int(taken)} steps", range(SHOWN), after))
    told.append(
        f"The penalty went from {values[0]:.3g} to {values[-1]:.3g}, the largest Lyapunov exponent from "
        f"{exponent:.3g} to {now:.3g} nats a step; at lag {SHOWN - 1} "
        f"the gradient from {before[-1]:.2g} to {after[-1]:.2g}."
    )
    return Chart(told, "lag, steps", "gradient, relative to lag 0", curves, lowest=-12, levels=[(0.01, "1 %")])


def _layer(radius: float) -> RNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = RNN(4, UNITS, dtype=torch.float64)
    with torch.no_grad():
        U = layer.get_parameter("weight_hh_l0")
        U.mul_(radius / torch.linalg.eigvals(U).abs().max())
    return layer


def _descend(layer: RNN, x: Tensor, g: Tensor, penalty: str, steps: int, rate: float) -> list[float]:
    """Plain gradient descent, the norm of a step clipped at 1."""
    values, U = [], layer.get_parameter("weight_hh_l0")
    with torch.enable_grad():
        for n in range(steps + 1):
            value = flossing(layer, x, 2) if penalty == "flossing" else omega(layer, x, g)
            values.append(value.item())
            if n < steps:
                (d,) = torch.autograd.grad(value, U)
                U.data -= rate * d / max(1.0, float(d.norm()))
    return values


@torch.no_grad()
def _seen(layer: RNN, x: Tensor, g: Tensor) -> tuple[list[float], float]:
    exponents = lyapunov_spectrum(recurrences(layer, x)[0][0], 1).exponents
    return gradient_flow(layer, x, g).profile("z").tolist(), float(exponents[0])


VIEW = View(
    "penalties",
    "Penalties on what vanishes",
    "Ω = Σ_t (‖e_t ∂s_t/∂s_{t−1}‖ / ‖e_t‖ − 1)²;  flossing: Σ_i λ_i²",
    "Pascanu 2013; Engelken 2023",
    f"A simple network, before and after some steps down the penalty alone, taken over {STEPS} steps of its input: the "
    "gradient fades less, although no task was learnt.",
    penalties,
    (
        Choice("penalty", "Penalty", {"flossing": "gradient flossing", "omega": "Omega"}, "flossing"),
        Slider("taken", "Steps of descent", 0, 4, 1, 3),
        Slider("radius", "Spectral radius at the start", 0.1, 2, 0.01, 0.5),
        Slider("rate", "Learning rate, power of ten", -3, 0, 0.1, -0.5),
    ),
)
