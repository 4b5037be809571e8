"""Clip thresholds that follow the norm's own history, beside one that stands still."""

from __future__ import annotations

from collections.abc import Callable

import torch

from throughtime.cures.clip import ClipNorm, Clipper
from throughtime.cures.clip_adaptive import AutoClip, ZClip
from throughtime.live.views.chart import Chart, Choice, Curve, Slider, View

STEPS = 240
RULES: dict[str, Callable[[float], Clipper]] = {
    "fixed": lambda v: ClipNorm(v), "auto": lambda v: AutoClip(90), "z": lambda v: ZClip(),
}  # fmt: skip


def thresholds(rule: str, fixed: float, falls: float, spikes: float) -> Chart:
    """Norms as a training has them, falling and now and then exploding, before and after a clipper."""
    norms = history(falls, int(spikes))
    clipper = RULES[rule](10**fixed)
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    after = []
    for norm in norms:
        p.grad = torch.tensor([norm], dtype=torch.float64)
        clipper([p])
        after.append(float(p.grad.norm()))
    n = sum(b < a for a, b in zip(norms, after, strict=True))
    told = [
        f"{n} of {STEPS} steps are shortened; the longest goes from {max(norms):.3g} to {max(after):.3g}.",
        {"fixed": "A fixed threshold does not notice that the norms fall: later explosions pass below it.",
         "auto": "AutoClip, the 90th percentile of all norms so far: it follows them as they fall, some way behind.",
         "z": "ZClip: what lies some standard deviations above the running mean is clipped, the rest is left."}[rule],
    ]  # fmt: skip
    curves = [Curve("before", range(1, STEPS + 1), norms, thin=True), Curve("after", range(1, STEPS + 1), after)]
    levels = [(10**fixed, "θ")] if rule == "fixed" else []
    return Chart(told, "training step", "norm of the gradient", curves, levels=levels)


def history(falls: float, spikes: int) -> list[float]:
    """Log-normal noise about a falling level, with evenly spread spikes fifty times as high."""
    g = torch.Generator().manual_seed(0)
    level = torch.linspace(1, 1 - falls, STEPS, dtype=torch.float64)
    norms = 10**level * (0.25 * torch.randn(STEPS, generator=g, dtype=torch.float64)).exp()
    for k in range(spikes):
        norms[int((k + 0.5) * STEPS / spikes)] *= 50
    return norms.tolist()


VIEW = View(
    "thresholds",
    "Thresholds that follow the norm",
    "AutoClip: θ_t = percentile_p(‖g_1‖ … ‖g_t‖);  ZClip: z_t = (‖g_t‖ − μ) / σ",
    "Seetharaman 2020; Kumar 2025; Pascanu 2013",
    "The gradient norms of a made-up training, falling, with explosions; and what the clipper leaves of them.",
    thresholds,
    (
        Choice("rule", "Rule", {"auto": "AutoClip", "z": "ZClip", "fixed": "fixed θ"}, "auto"),
        Slider("fixed", "Fixed θ, power of ten", -2, 3, 0.1, 1.5),
        Slider("falls", "The norms fall by powers of ten", 0, 3, 0.1, 2),
        Slider("spikes", "Explosions", 0, 10, 1, 4),
    ),
)
