"""Where a forward pass first leaves float32, by the equations written out here in float64, apart from the library."""

from __future__ import annotations

import torch
from benchmarks.fault_kinds import CellLoop, Layer, Model
from torch import Tensor, nn

import throughtime as tt

FUSED = (nn.RNN, nn.LSTM, nn.GRU, tt.nn.RNN, tt.nn.LSTM, tt.nn.GRU)
LIMIT = torch.finfo(torch.float32).max


def first_overflow(model: Model, weights: dict[str, Tensor], x: Tensor) -> tuple[int, bool, int] | None:
    """Layer, direction and step of the first net input or state beyond float32; x [T, B, D].

    None where there is none, and for kinds that are not written out here, packed, with dropout or a projection.
    """
    core = model.core
    fused = isinstance(core, Layer) and isinstance(core.layer, FUSED) and not core.packed
    if not fused and not isinstance(core, CellLoop):
        return None
    name, layer = ("layer", core.layer) if fused else ("cell", core.cell)
    if getattr(layer, "dropout", 0) or getattr(layer, "proj_size", 0):
        return None
    below = x.double()
    for k in range(layer.num_layers if fused else 1):
        outs = []
        for reverse in (False, True)[: 1 + (fused and layer.bidirectional)]:
            end = f"_l{k}{'_reverse' if reverse else ''}" if fused else ""
            names = [f"core.{name}.{n}{end}" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            bad, out = _first_of_direction(layer, [weights[n].double() for n in names], below, reverse)
            if bad is not None:
                return k, reverse, bad
            outs.append(out)
        below = torch.cat(outs, -1)
    return None


def _first_of_direction(layer: nn.Module, w: list[Tensor], x: Tensor, reverse: bool) -> tuple[int | None, Tensor]:
    W, U, bi, bh = w
    h = c = x.new_zeros(x.shape[1], U.shape[1])
    out = [h] * len(x)
    kind = type(layer).__name__
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        zx, zh = x[t] @ W.T + bi, h @ U.T + bh
        if "LSTM" in kind:
            numbers = [zx + zh]
            i, f, g, o = (zx + zh).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        elif "GRU" in kind:
            (xr, xu, xn), (hr, hu, hn) = zx.chunk(3, -1), zh.chunk(3, -1)
            numbers = [xr + hr, xu + hu, xn, hn]
            u = (xu + hu).sigmoid()
            h = (1 - u) * (xn + (xr + hr).sigmoid() * hn).tanh() + u * h
        else:
            numbers = [zx + zh]
            h = (zx + zh).relu() if getattr(layer, "nonlinearity", "tanh") == "relu" else (zx + zh).tanh()
        if any(bool((~(v.abs() <= LIMIT)).any()) for v in (*numbers, h, c)):
            return t, h
        out[t] = h
    return None, torch.stack(out)
