"""What a vanished gradient alone does not tell: one network, one gradient, two tasks, and the three horizons."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from throughtime.diagnosis.dependence import Dependence, dependence
from throughtime.diagnosis.horizons import Horizons
from throughtime.diagnosis.use import use_horizon
from throughtime.flow import GradientFlow
from throughtime.flow.measure import gradient_flow, recurrences
from throughtime.live.lab import Setting, network
from throughtime.live.views.chart import Chart, Choice, Curve, Slider, View
from throughtime.nn import Recurrent

SYMBOLS, LAGS, STEPS, SEQUENCES = 1200, 31, 60, 20
"""The length of the text, the lags that are looked at, and the windows of it that the network reads."""


def telling(lag: float, cell: str, radius: float, readout: str) -> Chart:
    """The gradient, data and use horizons of one network on two tasks: y_t = x_{t-lag}, and y_t = x_t."""
    d = int(lag)
    inputs = (2.0 * _text()[: STEPS * SEQUENCES].view(SEQUENCES, STEPS).T - 1).double()[..., None]  # [T, B, 1]
    layer, last = _reader(cell, radius)
    with torch.no_grad():
        h = recurrences(layer, inputs)[0][0].output
    told, curves = [], []
    for name, far in (("task A", d), ("task B", 0)):
        asked = _asked(far)
        y = inputs[..., 0].roll(far, 0)
        y[:far] = 0
        w = _fitted(h[far:], y[far:]) if readout == "fitted" else torch.full((h.shape[-1],), 0.1).double()
        flow = _flow(layer, inputs, h, w, y)

        def losses(v: Tensor, w: Tensor = w, y: Tensor = y) -> Tensor:
            return (last(v) @ w - y[-1]).square()

        used = use_horizon(losses, inputs, range(LAGS), resamples=0, fraction=0.01)
        at = Horizons(asked.horizon(), flow.horizon("z"), used.horizon())
        what = f"y(t) = x(t−{far})" if far else "y(t) = x(t)"
        told.append(f"{name[0].upper()}{name[1:]}, {what}: {at.sentence()}")
        curves.append(Curve(f"gradient, {name}", range(LAGS), flow.profile("z")[:LAGS].tolist()))
        curves.append(_asks(name, asked))
    return Chart(
        told, "lag, steps", "gradient relative to lag 0; dependence of y on x, bits", curves, lowest=-8,
        levels=[(0.01, "1 %")],
    )  # fmt: skip


@lru_cache(maxsize=1)
def _text() -> Tensor:
    return torch.randint(0, 2, (SYMBOLS,), generator=torch.Generator().manual_seed(5))


@lru_cache(maxsize=LAGS)  # the text is always the same, and so is what it asks for
def _asked(far: int) -> Dependence:
    return dependence(_text(), _text().roll(far), range(LAGS), shuffles=20, resamples=0)


@lru_cache(maxsize=4)  # another task or readout leaves the network as it is
def _reader(cell: str, radius: float) -> tuple[Recurrent, Callable[[Tensor], Tensor]]:
    layer = _network(cell, radius)
    return layer, _last_states(layer)


def _asks(name: str, asked: Dependence) -> Curve:
    shown = [(d, v) for d, v, more in zip(asked.lags, asked.size, asked.beyond(), strict=True) if more]
    return Curve(f"data, {name}", [d for d, _ in shown], [v for _, v in shown], dots=True)


def _network(cell: str, radius: float) -> Recurrent:
    setting = Setting(cell=cell, units=16, steps=STEPS, radius=radius, matrix="orthogonal", input=0.5, forget=2)
    drawn, _ = network(setting)
    layer = Recurrent(drawn.cell, 1, 16, dtype=torch.float64)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.copy_(drawn.get_parameter(name)[:, :1] if name.startswith("weight_ih") else drawn.get_parameter(name))
    return layer.eval()


def _fitted(h: Tensor, y: Tensor) -> Tensor:
    """The readout that training would end at: least squares of y on the states (with a little weight decay)."""
    A, b = h.flatten(0, 1), y.flatten()
    return torch.linalg.solve(A.T @ A + 1e-3 * torch.eye(A.shape[1]).to(A), A.T @ b)


def _flow(layer: Recurrent, inputs: Tensor, h: Tensor, w: Tensor, y: Tensor) -> GradientFlow:
    error = h @ w - y  # of L_t = (w h_t - y_t)^2 / 2
    return gradient_flow(layer, inputs, error[..., None] * w)


def _last_states(layer: Recurrent) -> Callable[[Tensor], Tensor]:
    """h_T of inputs, each only once: both tasks ask for the same."""
    known: dict[bytes, Tensor] = {}

    def last(x: Tensor) -> Tensor:
        key = x.numpy().tobytes()
        if key not in known:
            known[key] = layer(x)[0][-1]
        return known[key]

    return last


VIEW = View(
    "telling",
    "What a vanished gradient alone does not tell",
    "gradient < data: cure the network;  gradient ≥ data > use: it arrives, unused;  data small: nothing to remember",
    "the three horizons; use: Khandelwal 2018",
    "One network reads the same text for two tasks. Its gradient fades alike in both; the dots say at which lag the "
    "data hold a dependency. Only with them is a short gradient a fault, or none.",
    telling,
    (
        Slider("lag", "Lag of task A", 1, 28, 1, 20),
        Choice("cell", "Cell", {"rnn": "rnn (tanh)", "lstm": "LSTM", "rnn-identity": "rnn (linear)"}, "rnn"),
        Slider("radius", "Size of U", 0.1, 1.2, 0.01, 0.7),
        Choice("readout", "Readout", {"fitted": "fitted to the task", "drawn": "not trained yet"}, "fitted"),
    ),
)
