"""One memory cell whose gates are set by hand, and the cliff in the loss of a single unit: two pictures for the lab."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from throughtime.cells import LSTM
from throughtime.errors import ConfigError
from throughtime.flow.gates import REGIMES

STEPS = 50  # of the single unit
GOAL = 0.7  # where it is to be after them


def memory_cell(gates: Sequence[tuple[float, float, float]], inputs: Sequence[float]) -> dict[str, Any]:
    """An LSTM's memory cell with its gates held at given values: what it holds and what it shows, step by step.

        c_t = f_t * c_{t-1} + i_t * g_t,    h_t = o_t * tanh(c_t)

    gates: (i, f, o) of each step, each in 0..1.    inputs: g_t of each step, in -1..1.
    Gives c, h, the regime's name at each step (Gers 2000), and kept[t] = dc_t/dc_0 = f_t * ... * f_1, the part of c_0
    that is left, and of the gradient that comes back to it along the carousel. Raises ConfigError for values outside.
    """
    if not gates or len(gates) != len(inputs):
        raise ConfigError(f"gates and inputs must be as many, at least one; came {len(gates)} and {len(inputs)}")
    if not all(0 <= v <= 1 for three in gates for v in three) or not all(-1 <= v <= 1 for v in inputs):
        raise ConfigError("gates must lie in 0..1 and inputs in -1..1")
    cell, kept = LSTM(), 1.0
    s = SimpleNamespace(h=torch.zeros(1, 1, dtype=torch.float64), c=torch.zeros(1, 1, dtype=torch.float64))
    found: dict[str, Any] = {"c": [], "h": [], "regime": [], "kept": []}
    for (i, f, o), g in zip(gates, inputs, strict=True):
        net = {"i": _logit(i), "f": _logit(f), "o": _logit(o), "g": torch.tensor(g, dtype=torch.float64).atanh()}
        s.h, s.c = cell.step(SimpleNamespace(**{k: v.reshape(1, 1) for k, v in net.items()}), s, SimpleNamespace())
        kept *= f if found["c"] else 1.0
        found["c"].append(s.c.item())
        found["h"].append(s.h.item())
        found["regime"].append(REGIMES[int(i > 0.5), int(f > 0.5), int(o > 0.5)])
        found["kept"].append(kept)
    return found


def _logit(p: float) -> Tensor:
    return torch.tensor(p, dtype=torch.float64).logit()


def loss_of_one_unit(w: Tensor, b: Tensor) -> Tensor:
    """(h_50 - 0.7)^2 for h_t = sigmoid(w h_{t-1} + b), h_0 = 0.5: the cliff of Pascanu 2013, figure 6."""
    h = torch.full_like(w, 0.5)
    for _ in range(STEPS):
        h = torch.sigmoid(w * h + b)
    return (h - GOAL).square()


def cliff(query: Mapping[str, str], size: int = 60) -> dict[str, Any]:
    """The loss of one unit over its weight and bias, and the way of gradient descent over it, with a clip and without.

    query: w, b (the start), lr, clip (the longest step's gradient norm) and steps, as words.
    Raises ConfigError for what is not a number within its limits.
    """
    limits = {"w": (3.0, 8.0), "b": (-4.0, 0.0), "lr": (1e-4, 10.0), "clip": (1e-3, 100.0), "steps": (1.0, 200.0)}
    v = {"w": 6.0, "b": -2.2, "lr": 2.0, "clip": 0.1, "steps": 40.0}  # without the clip, one step is too long
    for name, word in query.items():
        if name not in limits:
            raise ConfigError(f"there is no setting {name!r}; there are {', '.join(limits)}")
        try:
            v[name] = float(word)
        except ValueError:
            raise ConfigError(f"{name} must be a number; came {word!r}") from None
        low, high = limits[name]
        if not low <= v[name] <= high:
            raise ConfigError(f"{name} must lie in {low:g}..{high:g}; came {word}")
    plain, clipped = _descent(v, math.inf), _descent(v, v["clip"])
    return {**_surface(limits["w"], limits["b"], size), "plain": plain, "clipped": clipped}


@lru_cache(maxsize=4)
def _surface(w: tuple[float, float], b: tuple[float, float], size: int) -> dict[str, Any]:
    across, down = (torch.linspace(*span, size, dtype=torch.float64) for span in (w, b))
    rows, columns = torch.meshgrid(down, across, indexing="ij")
    return {"w": across.tolist(), "b": down.tolist(), "loss": loss_of_one_unit(columns, rows).tolist()}


def _descent(v: Mapping[str, float], clip: float) -> list[dict[str, float]]:
    """(w, b, loss, gradient norm) after each step; both ways go on from where they land."""
    at = torch.tensor([v["w"], v["b"]], dtype=torch.float64)
    way = []
    for _ in range(int(v["steps"]) + 1):
        leaf = at.clone().requires_grad_()
        with torch.enable_grad():
            loss = loss_of_one_unit(leaf[0], leaf[1])
            gradient = torch.autograd.grad(loss, leaf)[0]
        norm = gradient.norm().item()
        way.append({"w": at[0].item(), "b": at[1].item(), "loss": loss.item(), "norm": norm})
        at = at - v["lr"] * gradient * min(1.0, clip / norm if norm > 0 else 1.0)
    return way
