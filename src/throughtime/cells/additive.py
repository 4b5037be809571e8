"""The additive cells: a state that is only ever added to, as it is and behind a tanh."""

from __future__ import annotations

import torch

from throughtime.cells.cell import Cell, Names
from throughtime.cells.simple import activation


class AdditiveState(Cell):
    """Additive state: U = I and f' = 1, so that the gradient neither vanishes nor explodes, at the price of
    no non-linear feedback.

        h_t = h_{t-1} + W g(x_t) + b

    It has no recurrent weights, and dh_t/dh_k = I for every lag.
    """

    gates: Names = ("h",)
    states: Names = ("h",)
    input_only: Names = ("h",)

    def __init__(self, g: str = "tanh"):
        self.activation = g
        self.g = activation(g)

    def input(self, x):
        return self.g(x)

    def step(self, z, s, w):
        return s.h + z.h

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.activation!r})"


class AdditiveStateFeedback(Cell):
    """Additive state with recurrent feedback inside g: what is added depends on what is there.

        z_t = W x_t + b + U h_{t-1}
        h_t = h_{t-1} + g(z_t)

    A matrix V in front of g adds nothing: with h = V a it is the same cell with U V in place of U.
    The Jacobian is I + diag(g'(z_t)) U.
    """

    gates: Names = ("h",)
    states: Names = ("h",)

    def __init__(self, g: str = "tanh"):
        self.activation = g
        self.g = activation(g)

    def step(self, z, s, w):
        return s.h + self.g(z.h)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.activation!r})"


class AdditiveMemory(AdditiveState):
    """Additive memory cell: c grows without bound and h saturates, so that its capacity is limited.

    c_t = c_{t-1} + W g(x_t) + b
    h_t = tanh(c_t)
    """

    gates = ("c",)
    states = ("h", "c")
    input_only = ("c",)

    def step(self, z, s, w):
        c = s.c + z.c
        return torch.tanh(c), c


class AdditiveMemoryFeedback(AdditiveStateFeedback):
    """Additive memory cell with recurrent feedback inside g.

    z_t = W x_t + b + U h_{t-1}
    c_t = c_{t-1} + g(z_t)
    h_t = tanh(c_t)
    """

    gates = ("c",)
    states = ("h", "c")

    def step(self, z, s, w):
        c = s.c + self.g(z.c)
        return torch.tanh(c), c
