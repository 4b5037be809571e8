"""Copies of the weights that a recurrent module ran with, read without a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from throughtime.flow.randomness import drawing_from, random_state
from throughtime.nn.layer import StackedLayer
from throughtime.nn.stack import Weights

FUSED: tuple[type[nn.Module], ...] = (nn.RNN, nn.LSTM, nn.GRU)
CELLS: tuple[type[nn.Module], ...] = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)


class Snapshots:
    """Copies of weights as they were at a call; one copy for as long as they do not change."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[_Signs, list[list[Weights]]]] = {}
        self._all: dict[int, tuple[_Signs, dict[str, Tensor]]] = {}

    def layers(self, module: nn.Module) -> list[list[Weights]]:
        """The weights of a layer or a cell, layer by layer, direction by direction."""
        weights = _weights(module)
        signs = _signs(v for directions in weights for w in directions for v in _tensors(w))
        had = self._layers.get(id(module))
        if had is None or not _same(had[0], signs):
            had = (signs, [[_copied(w) for w in directions] for directions in weights])
            self._layers[id(module)] = had
        return had[1]

    def whole(self, module: nn.Module) -> dict[str, Tensor]:
        """Every parameter and buffer of a module by name."""
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        signs = _signs(v for _, v in module.named_parameters())
        had = self._all.get(id(module))
        if had is None or not _same(had[0], signs):
            had = (signs, {n: v.detach().clone() for n, v in named.items()})
            self._all[id(module)] = had
        return had[1]


_Signs = list[tuple[Tensor, int]]


def _signs(tensors: Iterable[Tensor]) -> _Signs:
    return [(v, v._version) for v in tensors]


def _same(a: _Signs, b: _Signs) -> bool:
    return len(a) == len(b) and all(v is w and m == n for (v, m), (w, n) in zip(a, b, strict=True))


def _tensors(w: Weights) -> list[Tensor]:
    return [v for v in (w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh, *w.units, *w.matrices) if v is not None]


def _copied(w: Weights) -> Weights:
    def copy(v: Tensor | None) -> Tensor | None:
        return None if v is None else v.detach().clone()

    weight_ih, weight_hh, bias_ih, bias_hh = (copy(v) for v in w[:4])
    assert weight_ih is not None
    return Weights(
        weight_ih, weight_hh, bias_ih, bias_hh,
        tuple(v.detach().clone() for v in w.units), tuple(v.detach().clone() for v in w.matrices),
    )  # fmt: skip


def _weights(module: Any) -> list[list[Weights]]:
    if isinstance(module, StackedLayer):
        with _reading(module):
            return module.layer_weights()
    if isinstance(module, CELLS):
        cell: Any = module
        return [[Weights(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, (), ())]]
    # torch's layers keep the very tensors that they ran with, whatever computes them.
    used: dict[str, Any] = dict(zip(module._flat_weights_names, module._flat_weights, strict=True))
    layers = []
    for k in range(module.num_layers):
        directions = []
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            w: list[Any] = [used.get(f"{n}_l{k}{suffix}") for n in names]
            directions.append(Weights(w[0], w[1], w[2], w[3], (), () if w[4] is None else (w[4],)))
        layers.append(directions)
    return layers


@contextmanager
def _reading(module: nn.Module) -> Iterator[None]:
    """Within it a parametrised weight comes out as the call that follows will compute it: what reading changes
    (the buffers of a spectral norm, random numbers) is put back."""
    if not parametrize.is_parametrized(module):
        yield
        return
    if getattr(parametrize, "_cache_enabled", 0):
        with torch.enable_grad():  # inside parametrize.cached() what is read here is what the call will find
            yield
        return
    had = [(m, dict(m._buffers)) for m in module.parametrizations.modules()]  # type: ignore[union-attr]
    device = next(module.parameters()).device
    try:
        with drawing_from(random_state(device)):
            for m, buffers in had:
                m._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
            yield
    finally:
        for m, buffers in had:
            m._buffers.update(buffers)
