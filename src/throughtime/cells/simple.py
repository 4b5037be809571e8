"""The simple (Elman) network, and the same network with the pre-activation as its state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear

from throughtime.cells.cell import Cell
from throughtime.errors import CellError


def identity(v: torch.Tensor) -> torch.Tensor:
    """f(z) = z: the linear network."""
    return v


ACTIVATIONS: dict[str, Callable] = {
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": identity,
}


def activation(name: str) -> Callable:
    """The element-wise function f of that name: logistic, tanh, relu or identity."""
    if name not in ACTIVATIONS:
        raise CellError(f"unknown activation {name!r}; it must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Simple(Cell):
    """Simple recurrent network (Elman 1990).

        z_t = W x_t + b + U h_{t-1}
        h_t = f(z_t)

    Its state Jacobian is diag(f'(z_t)) U: the gradient vanishes or explodes (Hochreiter 1991; Bengio 1994).
    With f = ReLU and U = I it is the tuned network of Le 2015, see `throughtime.nn.TunedRNN`.
    """

    gates = ("h",)
    states = ("h",)

    def __init__(self, activation_name: str = "tanh"):
        self.activation = activation_name
        self.f = activation(activation_name)

    def step(self, z, s, w):
        return self.f(z.h)

    @property
    def name(self) -> str:
        return f"Simple ({self.activation})"

    def __repr__(self) -> str:
        return f"Simple({self.activation!r})"


class PreActivation(Cell):
    """The simple network with its net input as the state (Pascanu 2013).

        s_t = W x_t + b + U f(s_{t-1})

    The same network as `Simple` seen in the other convention: h_t = f(s_t). Its Jacobian is U diag(f'(s_{t-1})).
    """

    gates = ("s",)
    states = ("s",)
    inside = ("s",)

    def __init__(self, activation_name: str = "tanh"):
        self.activation = activation_name
        self.f = activation(activation_name)

    def step(self, z, s, w):
        return z.s + linear(self.f(s.s), w.U_s)

    @property
    def name(self) -> str:
        return f"PreActivation ({self.activation})"

    def __repr__(self) -> str:
        return f"PreActivation({self.activation!r})"
