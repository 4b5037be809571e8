"""Derivative clipping and the truncated gradient switched on in a model, and the clip at an output layer."""

import pytest
import torch
from torch import nn

from throughtime import cures
from throughtime import nn as ttnn
from throughtime.errors import ConfigError

F64 = torch.float64


class Model(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def test_every_net_input_is_clipped_on_its_way_back():
    """By hand: an LSTM step by step, the derivative of the net inputs clamped where it stands."""
    model = Model(nn.LSTM(3, 5)).double()
    with torch.no_grad():
        for p in model.rnn.parameters():
            p.mul_(6)
    x, bound = torch.randn(30, 2, 3, dtype=F64), 0.02
    names = [n for n, _ in model.named_parameters()]
    told = cures.clip_derivative(model, bound)
    assert "rnn: derivative of the loss by the net inputs clipped to +-0.02" in str(told)
    (model(x) ** 2).sum().backward()
    assert [n for n, _ in model.named_parameters()] == names  # the model is the same but for the rule
    clipped = 0

    def clamp(g):
        nonlocal clipped
        clipped += int((g.abs() > bound).sum())
        return g.clamp(-bound, bound)

    W, U, b, c_ = [p.detach().clone().requires_grad_() for p in model.rnn.parameters()]
    h = c = torch.zeros(2, 5, dtype=F64)
    loss = 0
    for x_t in x:
        z = x_t @ W.T + h @ U.T + b + c_
        z.register_hook(clamp)
        i, f, g, o = z.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        loss = loss + (model.head(h) ** 2).sum()
    W_, U_, *_ = torch.autograd.grad(loss, [W, U, b, c_])
    assert clipped > 20
    torch.testing.assert_close(model.rnn.weight_ih_l0.grad, W_)
    torch.testing.assert_close(model.rnn.weight_hh_l0.grad, U_)
    cures.clip_derivative(model, None)
    assert model.rnn.clip is None


def test_truncated_gradient_of_an_lstm_1997():
    """No path but the carousel: dL/dx_k of a loss on c_T alone is the same however large U is."""
    layer = ttnn.LSTM1997(3, 5).double()
    assert "carousel" in str(cures.truncate_gradient(layer))
    x = torch.randn(12, 2, 3, dtype=F64)

    def reached():
        seen = x.clone().requires_grad_()
        (torch.autograd.grad(layer.states(seen)["c"][0, -1].sum(), seen)[0]).abs()
        return layer(seen)[1][1].sum(), seen

    c, seen = reached()
    by_hand_c = torch.zeros(2, 5, dtype=F64)
    h = torch.zeros(2, 5, dtype=F64)
    hand = x.clone().requires_grad_()
    for x_t in hand:
        z = x_t @ layer.weight_ih_l0.T + h.detach() @ layer.weight_hh_l0.T + layer.bias_ih_l0 + layer.bias_hh_l0
        i, g, o = z.chunk(3, -1)
        by_hand_c = by_hand_c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * by_hand_c.tanh()
    want = torch.autograd.grad(by_hand_c.sum(), hand)[0]
    torch.testing.assert_close(torch.autograd.grad(c, seen)[0], want)
    cures.truncate_gradient(layer, on=False)
    c, seen = reached()
    assert not torch.allclose(torch.autograd.grad(c, seen)[0], want)


@pytest.mark.parametrize("layer", [lambda: nn.RNN(3, 5), lambda: ttnn.PreActivationRNN(3, 5), lambda: ttnn.RNN(3, 5)])
def test_a_simple_network_has_no_carousel(layer):
    layer = layer()
    kind = type(layer)
    with pytest.raises(ConfigError, match="nothing would flow back through time"):
        cures.truncate_gradient(layer)
    assert type(layer) is kind  # not even converted


def test_a_gru_has_one():
    assert cures.truncate_gradient(nn.GRU(3, 5)).made


def test_loops_are_left_and_named():
    model = nn.ModuleDict({"cell": nn.LSTMCell(3, 5), "rnn": nn.GRU(3, 5)})
    told = cures.clip_derivative(model)
    assert [c.where for c in told.made] == ["rnn"] and [c.where for c in told.left] == ["cell"]
    assert "left as it was: cell" in str(told)
    with pytest.raises(ConfigError, match=r"no torch\.nn\.RNN.*cell: a cell stepped by a loop"):
        cures.clip_derivative(nn.ModuleDict({"cell": nn.LSTMCell(3, 5)}))
    with pytest.raises(ConfigError, match='runs on backend="reference"'):
        cures.clip_derivative(ttnn.Recurrent("lstm", 3, 5, backend="reference"))


def test_clip_at_the_output():
    """dL/dz of the output layer is clamped; W's gradient follows, and what goes on down to the layer."""
    x, head = torch.randn(7, 4, dtype=F64, requires_grad=True), nn.Linear(4, 3).double()
    scale = torch.tensor([1.0, 300.0, -300.0], dtype=F64)
    handle = cures.clip_output(head, 100.0)
    (head(x) * scale).sum().backward()
    d = scale.clamp(-100, 100).expand(7, 3)
    torch.testing.assert_close(x.grad, d @ head.weight.detach())
    torch.testing.assert_close(head.weight.grad, d.T @ x.detach())
    handle.remove()
    y = cures.ClipGradient(100.0)(head(x))
    assert torch.equal(y, head(x))
    torch.testing.assert_close(torch.autograd.grad((y * scale).sum(), x)[0], x.grad)
    assert torch.autograd.gradcheck(
        lambda v: cures.clip_gradient(v, 1e3), (torch.randn(3, dtype=F64, requires_grad=True),)
    )
    with pytest.raises(ConfigError, match="returns tuple, not a tensor"):
        rnn = nn.GRU(2, 3)
        cures.clip_output(rnn)
        rnn(torch.randn(2, 1, 2))
