"""The LSTM family: 1997, with the forget gate, with diagonal peepholes, with a projected state."""

from __future__ import annotations

from torch import sigmoid, tanh
from torch.nn.functional import linear

from throughtime.cells.cell import Cell


class LSTM(Cell):
    """Long short-term memory with input, forget and output gates (Gers 2000); torch's nn.LSTM.

        i_t = sigmoid(z_i)
        f_t = sigmoid(z_f)
        o_t = sigmoid(z_o)
        c_t = f_t * c_{t-1} + i_t * tanh(z_g)
        h_t = o_t * tanh(c_t)

    The carousel path of dc_t/dc_{t-1} is diag(f_t); the rest of the Jacobian runs through h_{t-1} and the gates.
    """

    gates = ("i", "f", "g", "o")
    states = ("h", "c")

    def step(self, z, s, w):
        i, f, o = sigmoid(z.i), sigmoid(z.f), sigmoid(z.o)
        c = f * s.c + i * tanh(z.g)
        return o * tanh(c), c


class LSTM1997(Cell):
    """The first LSTM: input and output gates, no forget gate (Hochreiter & Schmidhuber 1997).

        i_t = sigmoid(z_i)
        o_t = sigmoid(z_o)
        c_t = c_{t-1} + i_t * tanh(z_g)
        h_t = o_t * tanh(c_t)

    dc_t/dc_{t-1} along the carousel is exactly 1: the constant error carousel.
    """

    gates = ("i", "g", "o")
    states = ("h", "c")

    def step(self, z, s, w):
        i, o = sigmoid(z.i), sigmoid(z.o)
        c = s.c + i * tanh(z.g)
        return o * tanh(c), c


class PeepholeLSTM(Cell):
    """LSTM with diagonal peepholes: each gate element sees its own memory cell only (Gers 2002; Graves 2013).

    i_t = sigmoid(z_i + p_i * c_{t-1})
    f_t = sigmoid(z_f + p_f * c_{t-1})
    c_t = f_t * c_{t-1} + i_t * tanh(z_g)
    o_t = sigmoid(z_o + p_o * c_t)
    h_t = o_t * tanh(c_t)
    """

    gates = ("i", "f", "g", "o")
    states = ("h", "c")
    units = ("p_i", "p_f", "p_o")

    def step(self, z, s, w):
        i, f = sigmoid(z.i + w.p_i * s.c), sigmoid(z.f + w.p_f * s.c)
        c = f * s.c + i * tanh(z.g)
        o = sigmoid(z.o + w.p_o * c)
        return o * tanh(c), c


class ProjectedLSTM(LSTM):
    """LSTM whose output is projected to P < H units before it is carried (Sak 2014); nn.LSTM with proj_size.

    i_t = sigmoid(z_i)
    f_t = sigmoid(z_f)
    o_t = sigmoid(z_o)
    c_t = f_t * c_{t-1} + i_t * tanh(z_g)
    h_t = W_hr (o_t * tanh(c_t))
    """

    matrices = ("W_hr",)

    def step(self, z, s, w):
        h, c = super().step(z, s, w)
        return linear(h, w.W_hr), c
