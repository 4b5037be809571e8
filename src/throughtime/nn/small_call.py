"""The short way of a layer's call: few steps of one layer without gradients, as a stream of inputs has them."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.engine.backends import choose
from throughtime.engine.bound import BoundCell, bindable
from throughtime.engine.cpu import plan
from throughtime.engine.eager import unwatched

_bound: WeakKeyDictionary[torch.nn.Module, BoundCell] = WeakKeyDictionary()


def small_call(layer: Any, x: Any, state: Any) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """y and the last states of a layer's call; None where the call is not a small one, or where anything about it is
    unusual: then the long way runs it, or says what is wrong with it."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(x) is not Tensor or x.dim() != 3:
        return None
    if layer.num_layers > 1 or layer.bidirectional:
        return None
    cell: Cell = layer.step_cell()
    D, H, P, dtype = layer.input_size, layer.hidden_size, layer.proj_size or layer.hidden_size, x.dtype
    B, T = (x.shape[0], x.shape[1]) if layer.batch_first else (x.shape[1], x.shape[0])
    products = H * (len(cell.gates) * D + len(cell.recurrent_gates) * P)
    if x.shape[2] != D or not 0 < T * B * products < plan.SMALL or (layer.batch_first and T > 1 and B > 1):
        return None
    first = _states(state, [(1, B, P)] + [(1, B, H)] * (len(cell.states) - 1), dtype)
    if first is None or not (x.is_cpu and x.is_contiguous() and unwatched()) or torch.is_autocast_enabled("cpu"):
        return None
    if choose(layer.backend, "cpu", dtype, dtype)[0] != "cpu":
        return None
    bound = _bind(layer, cell)
    if bound is None or bound.dtype != dtype:
        return None
    y, last = bound(x.view(T, B, D) if layer.batch_first else x, first)
    return y.view(B, T, P) if layer.batch_first else y, tuple(last)


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


def _bind(layer: Any, cell: Cell) -> BoundCell | None:
    """The layer's cell, bound to its weights as they are now; None where that is not possible."""
    bound, sources = _bound.get(layer), layer._parameters.values()
    if bound is not None and bound.holds(cell, sources):
        return bound
    weights = layer.layer_weights()[0][0]
    flat = [w for w in (*weights[:4], *weights.units, *weights.matrices) if w is not None]
    if {id(w) for w in flat} != {id(p) for p in sources} or not bindable(sources):
        return None  # a weight that is worked out from others, for example
    bound = _bound[layer] = BoundCell(cell, sources, *weights)
    return bound
