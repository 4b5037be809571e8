"""The same product over layers instead of time: a stack of layers, and what skip connections change."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime import cells
from throughtime.flow.bound import largest_slope
from throughtime.flow.depth import depth_profile
from throughtime.flow.passed import run
from throughtime.live.views.chart import Chart, Choice, Curve, Slider, View
from throughtime.nn import Recurrent

UNITS, STEPS = 16, 24
CELLS = {"rnn": "rnn (tanh)", "rnn-identity": "rnn (linear)", "rnn-relu": "rnn (ReLU)",
         "rnn-logistic": "rnn (logistic)", "lstm": "LSTM", "gru": "GRU"}  # fmt: skip


@torch.no_grad()
def depth(cell: str, layers: float, size: float, skip: str) -> Chart:
    """||dL_T/dh_T^(l)|| of a loss at the last step: from there a gradient goes down only, through one W a layer."""
    n, made = int(layers), cells.by_name(cell)
    layer = Recurrent(made, UNITS, UNITS, n, skip=skip == "yes", dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    for name, p in layer.named_parameters():
        if not name.startswith("weight"):
            p.zero_()
            continue
        for block in p.split(UNITS):
            for square in block.split(UNITS, 1):  # with skip connections the input comes beside the layer below
                q = torch.linalg.qr(torch.randn(UNITS, UNITS, generator=g, dtype=p.dtype))[0]
                square.copy_(size * q)
    x = 0.3 * torch.randn(STEPS, 1, UNITS, generator=g, dtype=torch.float64)
    stack = run(made, layer.layer_weights(), x, skip=layer.skip)
    out = torch.zeros(STEPS, 1, UNITS * (n if layer.skip else 1), dtype=torch.float64)
    start = torch.randn(UNITS, generator=g, dtype=torch.float64)
    out[-1] = start.repeat(n if layer.skip else 1)
    found = depth_profile(stack, out)
    down, back = (_relative(v) for v in (found.by_step[:, -1].flip(0), found.by_step[-1].flip(0)[: max(n, 12)]))
    curves = [Curve("down the layers", range(n), down), Curve("back in time, the top layer", range(len(back)), back)]
    slope = largest_slope(made)
    if slope is not None:
        curves.append(
            Curve("the bound, σ₁ max|f′| to the n", range(n), [(size * slope) ** k for k in range(n)], thin=True)
        )
    share = down[-1]
    told = [f"In the lowest of {n} layers {share:.2g} of it is left, a factor of {share ** (1 / (n - 1)):.3g} a layer."]
    told.append(
        "The loss sees each layer (skip connections): the lowest gets a part of its own, whatever is lost above."
        if layer.skip else "W takes the place of U, a layer that of a step: it vanishes or explodes by the same rule."
    )  # fmt: skip
    return Chart(told, "layers down, or steps back", "gradient, relative to the top layer", curves, lowest=-12)


def _relative(v: Tensor) -> list[float]:
    return (v / v[0]).tolist()


VIEW = View(
    "depth",
    "The same product over layers",
    "∂L/∂h⁽ˡ⁾ = Π diag(f′) W⁽ⁿ⁾,  n from the top layer down to l",
    "the depth-wise form of Hochreiter 1991; skip connections: Graves 2013",
    "The loss is at the last step of the top layer. One line goes down the layers at that step, the other back in time "
    "in the top layer; W and U are both orthogonal, times the same number.",
    depth,
    (
        Choice("cell", "Cell", CELLS, "rnn"),
        Slider("layers", "Layers", 2, 12, 1, 8),
        Slider("size", "Size of W and U", 0.1, 2, 0.01, 0.8),
        Choice("skip", "Skip connections", {"no": "none", "yes": "input to every layer to output"}, "no"),
    ),
)
