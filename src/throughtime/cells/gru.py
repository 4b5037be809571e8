"""The gated recurrent unit, with the reset gate after the recurrent product and before it."""

from __future__ import annotations

from torch import sigmoid, tanh
from torch.nn.functional import linear

from throughtime.cells.cell import Cell


class GRU(Cell):
    """Gated recurrent unit with the reset after the product (Cho 2014, in the form of cuDNN); torch's nn.GRU.

    r_t = sigmoid(z_r)
    u_t = sigmoid(z_u)
    n_t = tanh(W_n x_t + b_n + r_t * (U_n h_{t-1} + b_hn))
    h_t = (1 - u_t) * n_t + u_t * h_{t-1}
    """

    gates = ("r", "u", "n")
    states = ("h",)
    apart = ("n",)

    def step(self, z, s, w):
        r, u = sigmoid(z.r), sigmoid(z.u)
        n = tanh(z.n_x + r * z.n_h)
        return (1 - u) * n + u * s.h


class GRUResetBefore(Cell):
    """Gated recurrent unit with the reset before the product (Cho 2014, as first published).

    r_t = sigmoid(z_r)
    u_t = sigmoid(z_u)
    n_t = tanh(W_n x_t + b_n + U_n (r_t * h_{t-1}))
    h_t = (1 - u_t) * n_t + u_t * h_{t-1}
    """

    gates = ("r", "u", "n")
    states = ("h",)
    inside = ("n",)

    def step(self, z, s, w):
        r, u = sigmoid(z.r), sigmoid(z.u)
        n = tanh(z.n + linear(r * s.h, w.U_n))
        return (1 - u) * n + u * s.h
