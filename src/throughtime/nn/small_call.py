"""The short way of a layer's call: few steps without gradients, as a network has them that gets a stream of inputs."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine.backends import choose
from throughtime.engine.bound import BoundCell, Watched, watchable
from throughtime.engine.cpu import library, plan
from throughtime.engine.eager import unwatched


class _Bound(NamedTuple):
    """A stack's cells, each bound to its weights, layer by layer, and in each layer the forward direction first."""

    cell: Cell
    isa: int
    weights: Watched
    layers: list[list[BoundCell]]


_bound: WeakKeyDictionary[torch.nn.Module, _Bound] = WeakKeyDictionary()


def small_call(layer: Any, x: Any, state: Any) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """y and the last states of a layer's call; None where the call is not a small one, or where anything about it is
    unusual: then the long way runs it, or says what is wrong with it."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(x) is not Tensor or x.dim() != 3:
        return None
    if layer.training and layer.dropout and layer.num_layers > 1:
        return None
    cell: Cell = layer.step_cell()
    D, H, P, dtype = layer.input_size, layer.hidden_size, layer.proj_size or layer.hidden_size, x.dtype
    dirs = 2 if layer.bidirectional else 1
    B, T = (x.shape[0], x.shape[1]) if layer.batch_first else (x.shape[1], x.shape[0])
    widest = D if layer.num_layers == 1 else D * layer.skip + max(D, P * dirs)
    products = H * (len(cell.gates) * widest + len(cell.recurrent_gates) * P)
    if x.shape[2] != D or not 0 < T * B * products < plan.SMALL or (layer.batch_first and T > 1 and B > 1):
        return None
    rows = layer.num_layers * dirs
    first = _states(state, [(rows, B, P)] + [(rows, B, H)] * (len(cell.states) - 1), dtype)
    if first is None or not (x.is_cpu and x.is_contiguous() and unwatched()) or torch.is_autocast_enabled("cpu"):
        return None
    if choose(layer.backend, "cpu", dtype, dtype)[0] != "cpu":
        return None
    bound = _bind(layer, cell)
    if bound is None or bound.layers[0][0].dtype != dtype:
        return None
    y, last = _run(bound.layers, x.view(T, B, D) if layer.batch_first else x, first, layer.skip)
    return y.view(B, T, -1) if layer.batch_first else y, last


def bound_layers(layer: Any) -> list[list[BoundCell]] | None:
    """The layer's cells, bound to its weights as they are now, layer by layer and the forward direction first; None
    where that is not possible."""
    bound = _bind(layer, layer.step_cell())
    return None if bound is None else bound.layers


def _run(
    layers: list[list[BoundCell]], x: Tensor, first: list[Tensor], skip: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loop of `stack.run_stack` over bound cells."""
    if len(layers) == len(layers[0]) == 1:
        y, finals = layers[0][0](x, first)
        return y, tuple(finals)
    begins = iter(list(zip(*(s.unbind(0) for s in first), strict=True)))
    outputs: list[Tensor] = []
    lasts: list[list[Tensor]] = []
    for directions in layers:
        below = x if not outputs else torch.cat([x, outputs[-1]], -1) if skip else outputs[-1]
        here = []
        for bound in directions:
            y, finals = bound(below, next(begins))
            here.append(y)
            lasts.append(finals)
        outputs.append(here[0] if len(here) == 1 else torch.cat(here, -1))
    return torch.cat(outputs, -1) if skip else outputs[-1], tuple(map(torch.cat, zip(*lasts, strict=True)))


def _states(state: Any, shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> list[Tensor] | None:
    if state is None:
        return [torch.zeros(shape, dtype=dtype) for shape in shapes]
    given = [state] if isinstance(state, Tensor) else [*state] if isinstance(state, tuple | list) else []
    if len(given) != len(shapes):
        return None
    for s, shape in zip(given, shapes, strict=True):
        if type(s) is not Tensor or s.shape != shape or s.dtype != dtype or not (s.is_cpu and s.is_contiguous()):
            return None
    return given


def _bind(layer: Any, cell: Cell) -> _Bound | None:
    """The layer's cells, bound to its weights as they are now; None where that is not possible."""
    bound, sources, isa = _bound.get(layer), layer._parameters.values(), library.load().tt_current()
    if bound is not None and bound.cell is cell and bound.isa == isa and bound.weights.unchanged(sources):
        return bound
    layers = layer.layer_weights()
    flat = [w for weights in layers for d in weights for w in (*d[:4], *d.units, *d.matrices) if w is not None]
    if {id(w) for w in flat} != {id(p) for p in sources} or not watchable(sources):
        return None  # a weight that is worked out from others, for example
    if len({w.dtype for w in flat}) > 1:
        return None
    made = [[BoundCell(cell, *d, reverse=bool(k)) for k, d in enumerate(weights)] for weights in layers]
    bound = _bound[layer] = _Bound(cell, isa, Watched(sources), made)
    return bound
