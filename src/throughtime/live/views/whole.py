"""The state is all that is carried: an LSTM's gradient along every path, along the carousel, and with c held still."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from throughtime.flow.gradient_flow import half_life_of, horizon_of
from throughtime.flow.measure import recurrences
from throughtime.flow.recurrence import Recurrence
from throughtime.flow.shares import totals
from throughtime.flow.tangent import Tangent
from throughtime.live.lab import Setting, network
from throughtime.live.views.chart import Chart, Curve, Slider, View


@torch.no_grad()
def whole(forget: float, radius: float, length: float) -> Chart:
    """Of a loss at the last step: the gradient at c_k along all paths, along diag(f) alone, and at h_k with c fixed."""
    setting = Setting(cell="lstm", units=16, steps=int(length), forget=forget, radius=radius)
    layer, x = network(setting)
    g = torch.zeros(setting.steps, 1, setting.units, dtype=torch.float64)
    g[-1] = torch.randn(setting.units, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    r = recurrences(layer, x)[0][0]
    full = totals(r, g)["c"][:, 0].norm(dim=-1).flip(0)
    carousel = totals(replace(r, truncated=True), g)["c"][:, 0].norm(dim=-1).flip(0)
    alone = h_alone(r, g[-1, 0])
    profiles = {"the whole state (h, c)": full / full[0], "the carousel alone, diag(f)": carousel / full[0],
                "h alone, c held constant": alone / alone[0]}  # fmt: skip
    lives = [half_life_of(p / p[0]) for p in profiles.values()]
    life = [f"more than the {len(full)} steps shown" if math.isinf(v) else f"{v:.3g} steps" for v in lives]
    told = [
        f"Half of the gradient is left after {life[0]}; along the carousel alone after {life[1]}. "
        f"With c held constant it would seem to be {life[2]}: a wrong answer, not a rough one.",
        f"At 1 % the whole state reaches {horizon_of(profiles['the whole state (h, c)'])}.",
    ]
    curves = [Curve(name, range(len(p)), p.tolist()) for name, p in profiles.items()]
    return Chart(told, "lag, steps", "gradient, relative to lag 0", curves, lowest=-12, levels=[(0.5, "half")])


def h_alone(r: Recurrence, g: Tensor) -> Tensor:
    """||g dh_T/dh_{T-1} ... dh_{k+1}/dh_k|| by lag, from the h, h block of each Jacobian: what is wrong to do."""
    tangent, H, v, found = Tangent(r), r.output.shape[-1], g, [g.norm()]
    moved = torch.eye(2 * H, H, dtype=g.dtype)[None]  # h alone is changed before the step
    for t in range(len(r.output) - 1, 0, -1):
        v = v @ tangent.carry(t, moved)[0, :H]
        found.append(v.norm())
    return torch.stack(found)


VIEW = View(
    "whole",
    "The state is all that is carried",
    "s = (h, c):  ∂s_t/∂s_{t−1} is 2H × 2H;  along the carousel ∂c_t/∂c_{t−1} = diag(f_t)",
    "Werbos 1990; Hochreiter & Schmidhuber 1997; Gers 2000",
    "The gradient of a loss at the last step, so many steps back in an LSTM: along all paths, along its carousel "
    "alone, and as it would come out if c were taken for a constant.",
    whole,
    (
        Slider("forget", "Forget-gate bias", -3, 8, 0.1, 4),
        Slider("radius", "Spectral radius", 0, 2, 0.01, 0.5),
        Slider("length", "Steps T", 5, 160, 1, 100),
    ),
)
