"""Noise that keeps a generating network stable: what was trained with it goes on when it feeds on its own output."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.live.lab import Setting, network
from throughtime.live.views.chart import Chart, Curve, Slider, View
from throughtime.nn import Recurrent

UNITS, TRAINED, FREE = 24, 120, 120


@torch.no_grad()
def generating(noise: float, weights: float, radius: float, seed: float) -> Chart:
    """A network with a fitted readout, trained on a wave with noise and without, then run on its own output."""
    wave = _wave(torch.arange(TRAINED + FREE, dtype=torch.float64))
    curves, told = [Curve("the wave", range(FREE), wave[TRAINED:].tolist(), thin=True)], []
    for name, size, shaken in (("trained without noise", 0.0, 0.0), ("trained with noise", 10**noise, weights)):
        layer = _network(radius, int(seed))
        g = torch.Generator().manual_seed(int(seed))
        x = wave[:TRAINED, None, None]
        heard = x + size * torch.randn(x.shape, generator=g, dtype=x.dtype)
        states = [_shaken(layer, shaken, g)(heard)[0][40:-1, 0] for _ in range(4 if size or shaken else 1)]
        A = torch.cat(states)
        b = wave[41:TRAINED].repeat(len(states))
        w = torch.linalg.lstsq(A, b[:, None], driver="gelsd").solution[:, 0]
        out = _free(layer, w, x, FREE)
        off = (out - wave[TRAINED:]).square().mean().sqrt().item()
        told.append(f"{name[0].upper()}{name[1:]}: {_went(off)}, {off:.2g} off in the mean over {FREE} steps.")
        curves.append(Curve(name, range(FREE), out.clamp(-3, 3).tolist()))
    return Chart(told, "step on its own", "output", curves, log=False)


def _went(off: float) -> str:
    return "it follows the wave" if off < 0.2 else "it drifts" if off < 0.8 else "it leaves the wave altogether"


def _wave(t: Tensor) -> Tensor:
    return 0.8 * torch.sin(0.25 * t) ** 3


def _network(radius: float, seed: int) -> Recurrent:
    drawn, _ = network(Setting(cell="rnn", units=UNITS, steps=2, radius=radius, input=1, seed=seed))
    layer = Recurrent("rnn", 1, UNITS, dtype=torch.float64)
    for name, p in layer.named_parameters():
        p.copy_(drawn.get_parameter(name)[:, :1] if name.startswith("weight_ih") else drawn.get_parameter(name))
    return layer.eval()


def _shaken(layer: Recurrent, size: float, g: torch.Generator) -> Recurrent:
    """A copy with noise on its recurrent weights."""
    if not size:
        return layer
    copy = Recurrent("rnn", 1, UNITS, dtype=torch.float64).eval()
    copy.load_state_dict(layer.state_dict())
    U = copy.get_parameter("weight_hh_l0")
    U.add_(size * U.std() * torch.randn(U.shape, generator=g, dtype=U.dtype))
    return copy


def _free(layer: Recurrent, w: Tensor, x: Tensor, n: int) -> Tensor:
    y, state = layer(x)
    out = []
    value = y[-1, 0] @ w
    for _ in range(n):
        out.append(value)
        y, state = layer(value.clamp(-10, 10).reshape(1, 1, 1), state)
        value = y[-1, 0] @ w
    return torch.stack(out)


VIEW = View(
    "generating",
    "Noise, and a network that feeds on itself",
    "trained on x_t + noise and U + noise;  then x_{t+1} := w·h_t",
    "Graves 2013; Jim, Giles & Horne 1996; Jaeger 2001",
    "A network whose readout was fitted to tell the next value of a wave goes on alone, its output its next input. "
    "A little noise in training teaches it to come back to the wave (with some draws it comes back anyway); much noise "
    "spoils the wave itself.",
    generating,
    (
        Slider("noise", "Noise on inputs, power of ten", -6, 0, 0.1, -3),
        Slider("weights", "Noise on weights, share", 0, 0.5, 0.01, 0),
        Slider("radius", "Spectral radius", 0.2, 1.5, 0.01, 0.9),
        Slider("seed", "Which network", 0, 20, 1, 0),
    ),
)
