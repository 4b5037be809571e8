"""The forget gate's bias at the start of training: torch's, the same for all units, and chrono initialisation."""

from __future__ import annotations

import torch

from throughtime.cures.init_gates import chrono_, forget_gate_bias_
from throughtime.flow.gradient_flow import GradientFlow
from throughtime.flow.measure import gradient_flow, recurrences
from throughtime.flow.memory import memory_statistics
from throughtime.live.views.chart import Chart, Curve, Slider, View
from throughtime.nn import LSTM

UNITS, STEPS = 24, 100
NAMES = ("torch's own", "one bias for all", "chrono")


def gates(bias: float, longest: float) -> Chart:
    """Each unit's half-life along the carousel, sorted, for three ways to begin; and how far the gradient reaches."""
    x = torch.randn(STEPS, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = torch.zeros(STEPS, 1, UNITS, dtype=torch.float64)
    g[-1] = torch.randn(UNITS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    curves, reach = [], []
    for name in NAMES:
        layer = _layer()
        if name == "one bias for all":
            forget_gate_bias_(layer, bias)
        elif name == "chrono":
            chrono_(layer, longest, generator=torch.Generator().manual_seed(0))
        lives = memory_statistics(recurrences(layer, x)[0][0]).half_life.sort().values
        flow: GradientFlow = gradient_flow(layer, x, g)
        curves.append(Curve(name, range(1, UNITS + 1), lives.tolist(), dots=True))
        reach.append(f"{name}: {flow.horizon('c')}")
    told = [
        f"The gradient in c reaches, of {STEPS - 1}: {'; '.join(reach)}.",
        "One bias gives all units one time constant; chrono spreads them, from a few steps to the longest looked for.",
    ]
    return Chart(told, "units, from short to long", "half-life of the memory, steps", curves)


def _layer() -> LSTM:
    """As torch draws it, from numbers of its own: the process's random numbers are left as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LSTM(4, UNITS, dtype=torch.float64).eval()


VIEW = View(
    "gates",
    "Gates at the start of training",
    "b_f = 1;  chrono: b_f = ln τ, τ ~ U(1, T_max − 1), b_i = −b_f;  half-life ln ½ / ln f",
    "Jozefowicz 2015; Tallec & Ollivier 2018",
    "Each mark is one unit of an LSTM that has not been trained: after how many steps its memory, and the gradient "
    "along its carousel, is half of what it was.",
    gates,
    (
        Slider("bias", "Forget-gate bias", -2, 6, 0.1, 1),
        Slider("longest", "T_max of chrono, steps", 3, 400, 1, 100),
    ),
)
