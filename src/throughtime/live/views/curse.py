"""The curse of memory: the longer a state is kept, the more it changes with its parameter, and nothing vanishes."""

from __future__ import annotations

import math

import torch

from throughtime import cells
from throughtime.flow.measure import recurrences
from throughtime.flow.shares import totals
from throughtime.live.views.chart import Chart, Curve, Slider, View
from throughtime.nn import Recurrent

UNITS, SEQUENCES = 12, 96
SHORTEST, LONGEST = 1.0, 100.0  # 1 / (1 - a), of the units


def curse(decay: float, steps: float, seed: float) -> Chart:
    """E (dh_T/da)^2 of h' = a h + x on white noise: measured on the engine, and in closed form."""
    T, chosen = int(steps), 1 - 10**-decay
    spans = torch.logspace(math.log10(SHORTEST), math.log10(LONGEST), UNITS, dtype=torch.float64)
    a = torch.cat([1 - 1 / spans, torch.tensor([chosen], dtype=torch.float64)])
    h2, s2 = measured(a, T, int(seed))
    memory = (1 / (1 - a)).tolist()
    fine = torch.logspace(math.log10(SHORTEST), math.log10(LONGEST), 60, dtype=torch.float64)
    exact = closed_form(1 - 1 / fine)
    half = math.log(0.5) / math.log(chosen) if chosen > 0 else 0.0
    told = [
        f"a = {chosen:.4g} keeps half for {half:.3g} steps. A unit of h moves it by √E(∂h/∂a)² = "
        f"{math.sqrt(s2[-1]):.3g} (closed form {math.sqrt(closed_form(a[-1:])[0]):.3g}); h itself is "
        f"{math.sqrt(h2[-1]):.3g} in size.",
        "No gradient vanishes here, and still a small step of a moves h far: a long memory wants small steps.",
    ]
    if 1 / (1 - chosen) > T / 3:
        told.append("The sequence is too short for this memory to fill: the measured point lies below the line.")
    return Chart(
        told, "memory 1/(1−a), steps", "E(∂h/∂a)²",
        [Curve("(1+a²)/(1−a²)³", fine.tolist(), exact), Curve("measured", memory, s2, dots=True),
         Curve("E h², the state", fine.tolist(), (1 / (1 - (1 - 1 / fine) ** 2)).tolist(), thin=True)],
        places=[(1 / (1 - chosen), "chosen")],
    )  # fmt: skip


def measured(a: torch.Tensor, T: int, seed: int) -> tuple[list[float], list[float]]:
    """Means over sequences of h_T^2 and (dh_T/da)^2, each unit a recurrence of its own: U is diagonal."""
    n = len(a)
    layer = Recurrent(cells.by_name("rnn-identity"), 1, n, dtype=torch.float64)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.copy_(a.diag() if name.startswith("weight_hh") else torch.full_like(p, float("weight_ih" in name)))
    x = torch.randn(T, SEQUENCES, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        r = recurrences(layer, x)[0][0]
        g = torch.zeros(T, SEQUENCES, n, dtype=torch.float64)
        g[-1] = 1
        delta = totals(r, g)["z"]  # of each unit and sequence: dh_T/dz_k
        h = r.output
        sensitivity = (delta[1:] * h[:-1]).sum(0)  # sum over k of dh_T/dz_k h_{k-1}
    return h[-1].square().mean(0).tolist(), sensitivity.square().mean(0).tolist()


def closed_form(a: torch.Tensor) -> list[float]:
    """(1 + a^2) / (1 - a^2)^3 (Zucchet & Orvieto 2024)."""
    return ((1 + a**2) / (1 - a**2) ** 3).tolist()


VIEW = View(
    "curse",
    "The curse of memory",
    "h_t = a h_{t−1} + x_t on white noise:  E(∂h/∂a)² = (1 + a²) / (1 − a²)³",
    "Zucchet & Orvieto 2024",
    f"Each dot is one unit with its own a, over {SEQUENCES} sequences of noise: how much its state changes with a, "
    "squared. To the right the memory is longer; the line is the closed form, the thin one the size of the state.",
    curse,
    (
        Slider("decay", "a = 1 − 10 to the power of −", 0, 2, 0.05, 1.0),
        Slider("steps", "Steps T", 20, 400, 10, 300),
        Slider("seed", "Which noise", 0, 99, 1, 0),
    ),
)
