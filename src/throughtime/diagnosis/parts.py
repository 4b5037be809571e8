"""The recurrent weights of any model, layer by layer and direction by direction, as the engine's cells name them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from throughtime import cells
from throughtime.cells import Cell
from throughtime.diagnosis.finding import Where
from throughtime.errors import FlowError
from throughtime.nn.layer import StackedLayer
from throughtime.nn.stack import Weights

# What has hooks and weights that are known: torch's layers and cells, and ours.
RECURRENT = (nn.RNNBase, nn.RNNCellBase, StackedLayer)


@dataclass(frozen=True)
class Part:
    """One layer in one direction: its cell, its weights, and the names of its parameters in the module.

    names: by kind ("weight_ih", "weight_hh", "bias_ih", "bias_hh") the parameter's name; also of per-unit weights.
    """

    module: str
    kind: str
    layer: int | None
    reverse: bool
    cell: Cell
    weights: Weights
    parameters: dict[str, Tensor]
    suffix: str

    @property
    def H(self) -> int:
        """The hidden units."""
        return self.weights.weight_ih.shape[0] // len(self.cell.gates)

    def where(self, parameter: str = "") -> Where:
        """This place, with the parameter's name in full."""
        name = f"{parameter}{self.suffix}" if parameter else ""
        return Where(self.module, self.layer, self.reverse, name)

    def block(self, parameter: str, gate: str) -> Tensor | None:
        """The rows of weight_ih, weight_hh, bias_ih or bias_hh of one gate, float64; None where there is none."""
        value = getattr(self.weights, parameter)
        gates = self.cell.recurrent_gates if parameter.endswith("hh") else tuple(self.cell.gates)
        if value is None or gate not in gates:
            return None
        k = gates.index(gate)
        return value.detach()[k * self.H : (k + 1) * self.H].cpu().double()

    def bias(self, gate: str) -> Tensor:
        """What both bias vectors add to one gate's net input, [H] float64: the SUM of the two; 0 without bias."""
        found = [b for b in (self.block("bias_ih", gate), self.block("bias_hh", gate)) if b is not None]
        return sum(found[1:], found[0]) if found else torch.zeros(self.H, dtype=torch.float64)

    @property
    def bound(self) -> float:
        """1/sqrt(H): torch's default draws every parameter from U(-bound, bound)."""
        return 1 / math.sqrt(self.H)


def parts(model: nn.Module) -> list[Part]:
    """Every recurrent layer of the model in every direction; a layer that is held twice is there once.

    Knows torch.nn's RNN, LSTM, GRU and their cells, and the layers of throughtime.nn. Raises FlowError for what is not
    a module.
    """
    if not isinstance(model, nn.Module):
        raise FlowError(f"expected a torch.nn.Module; came {type(model).__name__}")
    found: list[Part] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNCellBase):
            found.append(_part(name, module, _cell_of(module), None, False, ""))
        elif isinstance(module, nn.RNNBase | StackedLayer):
            cell = module.step_cell() if isinstance(module, StackedLayer) else _fused(module)
            for k in range(int(module.num_layers)):  # type: ignore[arg-type]
                for reverse in (False, True) if module.bidirectional else (False,):
                    found.append(_part(name, module, cell, k, reverse, f"_l{k}{'_reverse' * reverse}"))
    return found


def _part(name: str, module: Any, cell: Cell, layer: int | None, reverse: bool, suffix: str) -> Part:
    def get(kind: str) -> Tensor | None:
        return getattr(module, f"{kind}{suffix}", None)

    kinds = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    own = [*cell.units, *(f"weight_{m[2:]}" if m.startswith("W_") else m for m in cell.matrices)]
    held = {kind: value for kind in [*kinds, *own] if isinstance(value := get(kind), Tensor)}
    units = tuple(held[u] for u in cell.units)
    matrices = tuple(held[m] for m in own[len(cell.units) :])
    U, *biases = (held.get(kind) for kind in kinds[1:])
    weights = Weights(held["weight_ih"], U, biases[0], biases[1], units, matrices)
    return Part(name, type(module).__name__, layer, reverse, cell, weights, held, suffix)


def _fused(module: nn.RNNBase) -> Cell:
    if module.mode == "LSTM":
        return cells.ProjectedLSTM() if module.proj_size else cells.LSTM()
    return cells.GRU() if module.mode == "GRU" else cells.Simple(module.mode.removeprefix("RNN_").lower())


def _cell_of(module: nn.RNNCellBase) -> Cell:
    if isinstance(module, nn.LSTMCell):
        return cells.LSTM()
    if isinstance(module, nn.GRUCell):
        return cells.GRU()
    return cells.Simple(getattr(module, "nonlinearity", "tanh"))
