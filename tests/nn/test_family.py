"""The family: each name is Recurrent with its cell, and the tuned network starts tuned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import throughtime.nn as tn
from throughtime import cells

FAMILY = [
    (tn.PeepholeLSTM, {}, cells.PeepholeLSTM()),
    (tn.LSTM1997, {}, cells.LSTM1997()),
    (tn.GRUResetBefore, {}, cells.GRUResetBefore()),
    (tn.PreActivationRNN, {}, cells.PreActivation("tanh")),
    (tn.PreActivationRNN, {"activation": "relu"}, cells.PreActivation("relu")),
    (tn.AdditiveState, {}, cells.AdditiveState()),
    (tn.AdditiveState, {"feedback": True, "g": "relu"}, cells.AdditiveStateFeedback("relu")),
    (tn.AdditiveMemory, {}, cells.AdditiveMemory()),
    (tn.AdditiveMemory, {"feedback": True}, cells.AdditiveMemoryFeedback()),
]


@pytest.mark.parametrize("make, options, cell", FAMILY, ids=lambda v: getattr(v, "__name__", repr(v)))
def test_is_recurrent_with_its_cell(make, options, cell):
    torch.manual_seed(0)
    a = make(3, 4, 2, True, True, bidirectional=True, skip=True, **options)
    torch.manual_seed(0)
    b = tn.Recurrent(cell, 3, 4, 2, True, True, bidirectional=True, skip=True)
    assert type(a.cell) is type(cell) and repr(a.cell) == repr(cell)
    assert a.batch_first and not hasattr(nn, make.__name__)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(a(x), b(x), rtol=0, atol=0)
    assert make.__name__ in repr(a)


def test_options_reach_recurrent():
    assert repr(tn.PeepholeLSTM(3, 4, clip=10.0)) == "PeepholeLSTM(3, 4, clip=10.0)"
    assert tn.LSTM1997(3, 4, truncated=True).truncated
    assert tn.TunedRNN(3, 4, dtype=torch.float64).weight_ih_l0.dtype is torch.float64


@pytest.mark.parametrize("orthogonal", [False, True])
def test_tuned_rnn_starts_tuned(orthogonal):
    torch.manual_seed(0)
    layer = tn.TunedRNN(30, 40, 2, bidirectional=True, orthogonal=orthogonal, dtype=torch.float64)
    eye = torch.eye(40, dtype=torch.float64)
    for name, p in layer.named_parameters():
        if name.startswith("bias"):
            assert not p.any()
        elif name.startswith("weight_ih"):
            assert 0.0009 < p.std() < 0.0011
        else:
            torch.testing.assert_close(p @ p.T, eye)
            assert p.equal(eye) is not orthogonal


def test_tuned_rnn_keeps_its_gradient():
    """With U = I and f' = 1 the gradient neither vanishes nor explodes over 200 steps."""
    torch.manual_seed(0)
    layer = tn.TunedRNN(4, 8, dtype=torch.float64)
    x = torch.zeros(200, 1, 4, dtype=torch.float64)
    h0 = torch.rand(1, 1, 8, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(layer(x, h0)[0][-1].sum(), h0)
    torch.testing.assert_close(g, torch.ones_like(g))
