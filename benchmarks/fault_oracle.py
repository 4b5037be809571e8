"""Where a pass first leaves float32, forward or backward, by equations written out here in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from benchmarks.fault_kinds import CellLoop, Layer, Model
from torch import Tensor, nn

import throughtime as tt

FUSED = (nn.RNN, nn.LSTM, nn.GRU, tt.nn.RNN, tt.nn.LSTM, tt.nn.GRU)
LIMIT = torch.finfo(torch.float32).max


class Spot(NamedTuple):
    """A layer, whether its backward direction, and a step."""

    layer: int
    reverse: bool
    t: int


class Step(NamedTuple):
    """The numbers of one step in the order in which a forward pass makes them: net inputs, then states."""

    spot: Spot
    net_inputs: list[Tensor]
    states: list[Tensor]


def first_overflow(model: Model, weights: Mapping[str, Tensor], x: Tensor) -> Spot | None:
    """The first net input or state beyond float32; x [T, B, D].

    None where there is none, and for kinds that are not written out here, packed, with dropout or a projection.
    """
    found = _unrolled(model, {n: w.double() for n, w in weights.items()}, x)
    beyond = (s.spot for s in found[0] if any(_beyond(v) for v in (*s.net_inputs, *s.states))) if found else iter(())
    return next(beyond, None)


def first_explosion(model: Model, weights: Mapping[str, Tensor], x: Tensor, target: Tensor) -> Spot | None:
    """The first gradient of a net input or state beyond float32 on the way back from the mean square error.

    From the last layer down, in each direction from its last step back. None as for `first_overflow`, and where float64
    does not hold the gradient either.
    """
    found = _unrolled(model, {n: w.double().requires_grad_() for n, w in weights.items()}, x)
    if found is None:
        return None
    steps, y, w = found
    loss = (y @ w["head.weight"].T + w["head.bias"] - target.double()).square().mean()
    numbers = [v for s in steps for v in (*s.net_inputs, *s.states)]
    sent = dict(zip(numbers, torch.autograd.grad(loss, numbers, allow_unused=True), strict=True))
    if any(g is not None and not bool(g.isfinite().all()) for g in sent.values()):
        return None
    back = sorted(range(len(steps)), key=lambda i: (-steps[i].spot.layer, steps[i].spot.reverse, -i))
    for i in back:
        if any(g is not None and _beyond(g) for g in (sent[v] for v in (*steps[i].states, *steps[i].net_inputs))):
            return steps[i].spot
    return None


def _beyond(v: Tensor) -> bool:
    return bool((~(v.abs() <= LIMIT)).any())


def _unrolled(model: Model, w: dict[str, Tensor], x: Tensor) -> tuple[list[Step], Tensor, dict[str, Tensor]] | None:
    core = model.core
    fused = isinstance(core, Layer) and isinstance(core.layer, FUSED) and not core.packed
    if not fused and not isinstance(core, CellLoop):
        return None
    name, layer = ("layer", core.layer) if fused else ("cell", core.cell)
    if getattr(layer, "dropout", 0) or getattr(layer, "proj_size", 0):
        return None
    below, steps = x.double(), []
    for k in range(layer.num_layers if fused else 1):
        outs = []
        for reverse in (False, True)[: 1 + (fused and layer.bidirectional)]:
            end = f"_l{k}{'_reverse' if reverse else ''}" if fused else ""
            names = [f"core.{name}.{n}{end}" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            made = _direction(layer, [w[n] for n in names], below, (k, reverse))
            steps += made
            outs.append(torch.stack([s.states[0] for s in sorted(made, key=lambda s: s.spot.t)]))
        below = torch.cat(outs, -1)
    return steps, below, w


def _direction(layer: nn.Module, w: list[Tensor], x: Tensor, where: tuple[int, bool]) -> list[Step]:
    W, U, bi, bh = w
    h = c = x.new_zeros(x.shape[1], U.shape[1])
    kind, steps = type(layer).__name__, []
    for t in reversed(range(len(x))) if where[1] else range(len(x)):
        zx, zh = x[t] @ W.T + bi, h @ U.T + bh
        if "LSTM" in kind:
            z = zx + zh
            i, f, g, o = z.chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            numbers, states = [z], [h, c]
        elif "GRU" in kind:
            gates = (zx + zh)[:, : -zx.shape[1] // 3]
            r, u = gates.chunk(2, -1)
            nx, nh = zx[:, -h.shape[1] :], zh[:, -h.shape[1] :]
            n = nx + r.sigmoid() * nh
            h = (1 - u.sigmoid()) * n.tanh() + u.sigmoid() * h
            numbers, states = [gates, nx, nh], [h]
        else:
            z = zx + zh
            h = z.relu() if getattr(layer, "nonlinearity", "tanh") == "relu" else z.tanh()
            numbers, states = [z], [h]
        steps.append(Step(Spot(*where, t), numbers, states))
    return steps
