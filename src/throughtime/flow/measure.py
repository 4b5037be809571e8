"""Follows the gradient of every loss step back through one of our layers, exactly, on the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine import torch_backend
from throughtime.engine.rules import with_rule
from throughtime.engine.trace import trace
from throughtime.engine.unroll import operands
from throughtime.errors import FlowError
from throughtime.flow.gradient_flow import GradientFlow
from throughtime.nn.layer import StackedLayer
from throughtime.nn.layout import enter
from throughtime.nn.stack import Weights


def gradient_flow(
    module: StackedLayer,
    x: Tensor,
    loss: Callable[[Tensor], Tensor] | Tensor,
    state: Any = None,
    *,
    layer: int = -1,
    reverse: bool = False,
) -> GradientFlow:
    """The exact gradient through time of one layer of `module`: the size of dL_t/dz_k and dL_t/dh_k for every t, k.

    The loss is taken apart by the step t at which it enters the module's output, g_t = dL/dy_t. What flows back is
    linear in what enters (superposition), so each g_t is sent back alone, all of them side by side:

        delta_{t,t} = (dh_t/dz_t)^T g_t,     delta_{t,k} = (dh_k/dz_k)^T (ds_{k+1}/ds_k)^T ... g_t

    with the whole state s = (h, c, ...). Computed in float64 whatever the module's dtype.

    module: one of `throughtime.nn`, in eval mode if it has dropout.
    x:      its input [T, B, D], or [B, T, D] if batch_first, or [T, D].
    loss:   a function from the output y to the scalar loss, or the gradient dL/dy itself, shaped as y.
    state:  the initial state, as the module's call takes it.
    layer, reverse: which layer (-1: the last) and which direction. In a layer below the last, row t still stands for
            the loss that enters the module's output at step t.

    The module's rule `truncated` is followed; `clip` is not, for a clipped gradient does not add up.
    Raises FlowError for what cannot be measured: other modules, packed input, dropout that is switched on, a loss that
    is not a scalar, that does not depend on y, or that gives NaN.
    """
    _check(module, x, reverse)
    g = _entering(module, x, loss, state)
    g, seq = (v.double() for v in (_time_first(g, module), enter(x, module.batch_first)[0].detach()))
    cell, layers = module.step_cell(), module.layer_weights()
    layer = range(len(layers))[layer] if -len(layers) <= layer < len(layers) else _no_such_layer(layer, layers)
    directions = len(layers[0])

    with torch.no_grad():
        passes = _forward(cell, layers, seq, _states(state, x), module.skip)
        above: Tensor | None = None  # what comes down from the layer above: [loss step, T, B, .]
        sizes = [sum(p.out.shape[-1] for p in passes[k]) for k in range(len(layers))]
        for k in reversed(range(len(layers))):
            start = sum(sizes[:k]) if module.skip else 0
            shown = module.skip or k == len(layers) - 1
            direct = g[..., start : start + sizes[k]] if shown else None
            want_below = k > layer
            below: Tensor | None = None
            for d in range(directions):
                width = passes[k][d].out.shape[-1]
                part = slice(d * width, (d + 1) * width)
                maps, dx = passes[k][d].send_back(
                    None if direct is None else direct[..., part],
                    None if above is None else above[..., part],
                    module.truncated,
                    want_below,
                )
                if k == layer and d == int(reverse):
                    return GradientFlow(maps, cell.name, layer, reverse)
                if dx is not None:
                    below = dx if below is None else below + dx
            if below is not None and module.skip and k > 0:
                below = below[..., seq.shape[-1] :]  # the rest went to the input itself
            above = below
    raise AssertionError("the layer asked for is among the layers")


class _Pass:
    """One layer in one direction, run forward in float64, ready to send gradients back."""

    def __init__(self, cell: Cell, w: Weights, x: Tensor, states: list[Tensor] | None, reverse: bool):
        def double(v: Tensor | None) -> Tensor | None:
            return None if v is None else v.detach().double()

        W = w.weight_ih.detach().double()
        units, matrices = ([v.detach().double() for v in group] for group in (w.units, w.matrices))
        rest = (double(w.weight_hh), double(w.bias_ih), double(w.bias_hh))
        self.cell, self.reverse = cell, reverse
        self.v = operands(cell, x, W, *rest, units, matrices, states)
        self.tape = trace(cell)
        self.sequences, _, self.z = torch_backend.forward(self.tape, *self.v, None, reverse, True)
        self.out = self.sequences[0]

    def send_back(
        self, direct: Tensor | None, above: Tensor | None, truncated: bool, want_dx: bool
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The maps, and dL_t/dx [T, T, B, D] if asked for.

        direct: g [T, B, .], which enters at its own step only; above: what enters at each step of this layer from
        each loss [loss step, T, B, .].
        """
        v, T = self.v, self.out.shape[0]
        tape = with_rule(self.tape, None, truncated)
        lin = torch_backend.linearise(
            tape, self.z, v.U, v.units, v.matrices, v.states, self.sequences, None, self.reverse, truncated, totals=True
        )
        totals = {o.name: o.values[0] for o in lin.tape.outputs if o.kind == "total"}
        maps = {name: self.out.new_zeros(T, T) for name in ("z", *self.cell.states)}
        dx = self.out.new_zeros(T, T, *v.x.shape[1:]) if want_dx else None
        rows: list[int] = [] if above is None else list(range(T))  # the loss steps that are on their way

        def inject(t: int, ds: list[Tensor]) -> list[Tensor]:
            if above is not None:
                ds = [ds[0] + above[:, t], *ds[1:]]
                if direct is not None:
                    ds[0][t] += direct[t]
                return ds
            # Only losses at steps already passed are on their way: a new row joins at each step.
            assert direct is not None
            rows.append(t)
            new = [direct[t][None], *(d.new_zeros(1, *d.shape[1:]) for d in ds[1:])]
            return [torch.cat([d, n]) for d, n in zip(ds, new, strict=True)]

        start = [s.new_zeros(len(rows), *s.shape) for s in v.states]
        for k, dz, _, values in torch_backend.backward_steps(lin, start, inject):
            maps["z"][rows, k] = dz.flatten(1).norm(dim=1)
            for name, number in totals.items():
                value = values[number]
                maps[name][rows, k] = value.expand(len(rows), *value.shape[-2:]).flatten(1).norm(dim=1)
            if dx is not None:
                dx[rows, k] = torch.matmul(dz[..., : v.W.shape[0]], v.W)
        return maps, dx


def _forward(
    cell: Cell, layers: list[list[Weights]], x: Tensor, states: list[Tensor] | None, skip: bool
) -> list[list[_Pass]]:
    passes: list[list[_Pass]] = []
    below, n = x, 0
    for k, directions in enumerate(layers):
        if k:
            below = torch.cat([p.out for p in passes[-1]], -1)
            below = torch.cat([x, below], -1) if skip else below
        passes.append([])
        for reverse, w in enumerate(directions):
            first = None if states is None else [s[n].double() for s in states]
            passes[-1].append(_Pass(cell, w, below, first, bool(reverse)))
            n += 1
    return passes


def _entering(module: StackedLayer, x: Tensor, loss: Callable[[Tensor], Tensor] | Tensor, state: Any) -> Tensor:
    """g = dL/dy, in the layout of y. The module runs as it is, so that the loss sees the y that it knows."""
    with torch.no_grad():
        y = module(x, state)[0]
    if isinstance(loss, Tensor):
        if loss.shape != y.shape:
            raise FlowError(f"the gradient dL/dy must be shaped as y, {tuple(y.shape)}; came {tuple(loss.shape)}")
        g = loss.detach()
    else:
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            value = loss(leaf)
            if not isinstance(value, Tensor) or value.numel() != 1:
                came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise FlowError(f"the loss must be one number, a tensor with one element; came {came}")
            if not value.requires_grad:
                raise FlowError("the loss does not depend on the module's output y; compute it from the y it is given")
            g = torch.autograd.grad(value, leaf, allow_unused=True)[0]
            if g is None:
                raise FlowError("the loss does not depend on the module's output y; compute it from the y it is given")
    if not g.isfinite().all():
        bad = (~_time_first(g, module).isfinite()).flatten(1).any(1).nonzero()[0].item()
        raise FlowError(f"the gradient that enters from the loss is NaN or infinite, first at step {bad}")
    return g


def _time_first(y: Tensor, module: StackedLayer) -> Tensor:
    if y.dim() == 2:
        return y[:, None]
    return y.transpose(0, 1) if module.batch_first else y


def _states(state: Any, x: Tensor) -> list[Tensor] | None:
    if state is None:
        return None
    given = [state] if isinstance(state, Tensor) else list(state)
    return [s.detach() if x.dim() == 3 else s.detach()[:, None] for s in given]


def _check(module: Any, x: Any, reverse: bool) -> None:
    if not isinstance(module, StackedLayer):
        raise FlowError(
            f"expected a layer of throughtime.nn; came {type(module).__name__}. "
            "throughtime.nn.convert(model) turns torch's recurrent layers into ours"
        )
    if not isinstance(x, Tensor):
        raise FlowError(f"expected x as a tensor [T, B, D]; came {type(x).__name__}; pad packed sequences first")
    if module.training and module.dropout > 0:
        raise FlowError(
            "the module is in training mode and its dropout draws anew at each call; call eval() on it first"
        )
    if reverse and len(module.layer_weights()[0]) == 1:
        raise FlowError("the module has no reverse direction; leave out reverse=True")
    if not x.isfinite().all():
        raise FlowError("x holds NaN or infinite numbers; the gradient through them is not defined")


def _no_such_layer(layer: int, layers: list[list[Weights]]) -> int:
    raise FlowError(f"there is no layer {layer}; the module has {len(layers)}, numbered 0..{len(layers) - 1}")
