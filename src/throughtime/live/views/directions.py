"""Two directions over one sequence: what a loss sends to the past by one of them, and to the future by the other."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.flow.measure import gradient_flow
from throughtime.live.lab import Setting, network
from throughtime.live.views.chart import Chart, Choice, Curve, Slider, View
from throughtime.nn import Recurrent

STEPS, UNITS = 60, 12
"""The length of the sequence, and the units of each direction."""


def directions(cell: str, read: str, place: float, radius: float) -> Chart:
    """The gradient at every step of the input, by direction, of a loss that reads the outputs at one step or two.

    read: "output", y at the step `place`; "ends", the last state of each direction; "last", y at the last step.
    """
    layer, x = _both(cell, radius)
    at = {"output": (int(place), int(place)), "ends": (STEPS - 1, 0), "last": (STEPS - 1, STEPS - 1)}[read]
    drawn = torch.randn(2 * UNITS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    g = torch.zeros(STEPS, 1, 2 * UNITS, dtype=torch.float64)
    g[at[0], 0, :UNITS], g[at[1], 0, UNITS:] = drawn[:UNITS], drawn[UNITS:]
    # One loss step a direction: the sum over t is its row, and 0 where the direction has not been.
    sizes = [gradient_flow(layer, x, g, reverse=back).maps["z"].sum(0) for back in (False, True)]
    ways = [range(at[0] + 1), range(at[1], STEPS)]
    shares = [sizes[way][at[way]].reciprocal() * sizes[way][steps] for way, steps in enumerate(ways)]
    curves = [
        Curve(name, steps, v.tolist()) for name, steps, v in zip(("forward", "backward"), ways, shares, strict=True)
    ]
    return Chart(
        [*_told(at, _reach(shares[0].flip(0)), _reach(shares[1])), _READ[read]], "step k of the input",
        "gradient, relative to the step of the loss", curves, lowest=-8, levels=[(0.01, "1 %")],
        places=[(t, "loss") for t in dict.fromkeys(at)],
    )  # fmt: skip


_READ = {
    "output": "Neither direction sees the other's steps: what lies on one side comes by one direction alone.",
    "ends": "Each direction has read all of the sequence when its last state is taken: every step is on both ways.",
    "last": "The output at the last step is the first that the backward direction gives: it has read one step only. "
    "That is a usual mistake; its last state stands at step 0.",
}


def _told(at: tuple[int, int], past: int, future: int) -> list[str]:
    def steps(n: int) -> str:
        return f"{n} step{'' if n == 1 else 's'}"

    return [
        f"The forward direction has read {steps(at[0] + 1)}, and 1 % of its gradient or more reaches {steps(past)} "
        f"back; the backward one has read {steps(STEPS - at[1])}, and its gradient reaches {steps(future)} ahead."
    ]


def _reach(by_distance: Tensor) -> int:
    return int((by_distance >= 0.01).nonzero()[-1])


def _both(cell: str, radius: float) -> tuple[Recurrent, Tensor]:
    """A bidirectional layer, each direction a network of the lab with weights of its own, and its input."""
    drawn = [
        network(Setting(cell, UNITS, STEPS, "orthogonal", radius, forget=3, input=0.5, seed=seed)) for seed in (0, 1)
    ]
    x = drawn[0][1]
    layer = Recurrent(drawn[0][0].cell, x.shape[-1], UNITS, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for end, (one, _) in zip(("", "_reverse"), drawn, strict=True):
            for name, p in one.named_parameters():
                layer.get_parameter(name + end).copy_(p)
    return layer.eval(), x


VIEW = View(
    "directions",
    "Two directions over one sequence",
    "→h_t = f(W x_t + U →h_{t−1}),  ←h_t = f(W′ x_t + U′ ←h_{t+1}),  y_t = [→h_t, ←h_t]",
    "Schuster & Paliwal 1997",
    "The gradient at every step of the input. To the left of the loss it comes by the forward direction, to the right "
    "by the backward one, and in each it fades with the distance, as in a network of one direction.",
    directions,
    (
        Choice("cell", "Cell", {"lstm": "LSTM", "rnn": "rnn (tanh)", "gru": "GRU"}, "rnn"),
        Choice(
            "read",
            "The loss reads",
            {"output": "one step", "ends": "both last states", "last": "the last step"},
            "output",
        ),
        Slider("place", "Step of the loss", 0, STEPS - 1, 1, 30),
        Slider("radius", "Size of U", 0.1, 1.2, 0.01, 0.9),
    ),
)
