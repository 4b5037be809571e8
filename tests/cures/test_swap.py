"""Swapping the cell: what the old parameters mean in the new one is carried over, and stays what it was."""

import math

import pytest
import torch
from torch import nn

from throughtime import cells, cures
from throughtime import nn as ttnn
from throughtime.errors import ConfigError

F64 = torch.float64


class Tagger(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1), 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def gate(layer, parameter, name):
    gates = layer.step_cell().gates
    H = layer.hidden_size
    k = gates.index(name)
    return getattr(layer, parameter)[k * H : (k + 1) * H].detach()


def test_a_gru_as_an_lstm_keeps_its_gates():
    """u keeps, 1-u = sigmoid(-v) writes: the LSTM's c_t is the GRU's h_t while the candidates are equal."""
    layer = nn.GRU(3, 5).double()
    old = {k: v.detach().clone() for k, v in layer.named_parameters()}
    cures.swap_cell(layer, "lstm")
    for kind in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        u, n = old[kind][5:10], old[kind][10:15]
        assert torch.equal(gate(layer, kind, "f"), u)
        assert torch.equal(gate(layer, kind, "i"), -u)
        assert torch.equal(gate(layer, kind, "g"), n)
    # One step from a state of 0 has no reset to see: c_1 = (1-u) n is the GRU's h_1.
    gru = nn.GRU(3, 5).double()
    gru.load_state_dict(old)
    with torch.no_grad():
        gru.bias_hh_l0[10:] = 0
        gate(layer, "bias_hh_l0", "g").zero_()
    x = torch.randn(1, 4, 3, dtype=F64)
    torch.testing.assert_close(layer(x)[1][1], gru(x)[1])


def test_a_simple_network_gives_its_candidate_and_opens_what_keeps():
    model = Tagger(nn.RNN(3, 6, 2, bidirectional=True, batch_first=True, dropout=0.2)).double()
    layer, old = model.rnn, {k: v.detach().clone() for k, v in model.rnn.named_parameters()}
    said = cures.swap_cell(model, "lstm", forget_bias=2.0, generator=torch.Generator().manual_seed(0))
    assert model.rnn is layer and isinstance(layer, ttnn.Recurrent) and layer.step_cell().name == cells.LSTM().name
    assert (layer.num_layers, layer.bidirectional, layer.batch_first, layer.dropout) == (2, True, True, 0.2)
    for name, value in old.items():
        assert torch.equal(gate(layer, name, "g"), value)
    for k in ("l0", "l0_reverse", "l1", "l1_reverse"):
        both = gate(layer, f"bias_ih_{k}", "f") + gate(layer, f"bias_hh_{k}", "f")
        assert torch.equal(both, torch.full_like(both, 2.0))
        drawn = gate(layer, f"weight_hh_{k}", "i")
        assert drawn.abs().max() <= 1 / math.sqrt(6) and drawn.unique().numel() == 36
    assert len(said.made) == 4
    assert "rnn, layer 1, reverse: i new; f new, bias 2; g takes h; o new" in str(said)
    model(torch.randn(2, 7, 3, dtype=F64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("start", [nn.LSTM, ttnn.PeepholeLSTM])
def test_to_peepholes_and_back_is_the_same_network(start):
    model = Tagger(start(3, 5)).double()
    x = torch.randn(9, 2, 3, dtype=F64)
    if start is ttnn.PeepholeLSTM:
        with torch.no_grad():
            for name, p in model.rnn.named_parameters():
                if p.dim() == 1 and "bias" not in name:
                    p.zero_()  # without peepholes it is an LSTM
    want = model(x)
    cures.swap_cell(model, "lstm-peephole")
    torch.testing.assert_close(model(x), want)
    cures.swap_cell(model, cells.LSTM())
    torch.testing.assert_close(model(x), want)


def test_peepholes_are_carried_between_equals():
    layer = ttnn.PeepholeLSTM(3, 5)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x = torch.randn(9, 2, 3)
    want = layer(x)[0]
    cures.swap_cell(layer, "lstm-peephole")
    torch.testing.assert_close(layer(x)[0], want)


def test_a_gate_with_one_bias_takes_the_sum_of_two():
    """The candidate of an additive memory sees the input only: what two biases added stays added."""
    layer = nn.RNN(3, 5).double()
    both = (layer.bias_ih_l0 + layer.bias_hh_l0).detach()
    cures.swap_cell(layer, "additive-memory")
    torch.testing.assert_close(layer.bias_ih_l0.detach(), both)


def test_without_biases_they_are_zero_and_frozen_stays_frozen():
    layer = nn.RNN(3, 5, bias=False).requires_grad_(False)
    cures.swap_cell(layer, "gru")
    assert not gate(layer, "bias_ih_l0", "n").any() and not gate(layer, "bias_hh_l0", "n").any()
    assert not any(p.requires_grad for p in layer.parameters())


def test_hooks_and_mode_stay():
    layer = nn.RNN(3, 5).eval()
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    cures.swap_cell(nn.ModuleDict({"a": layer}), "gru")
    layer(torch.randn(4, 2, 3))
    assert seen == [1] and not layer.training


def test_what_is_left_behind_is_said():
    assert "left behind: r" in str(cures.swap_cell(nn.GRU(2, 3), "lstm"))


@pytest.mark.parametrize(
    "model, to, message",
    [
        (nn.Linear(2, 3), "lstm", "no recurrent layer"),
        (nn.LSTMCell(2, 3), "gru", "a loop of yours, which holds its state"),
        (nn.LSTM(2, 4, proj_size=2), "gru", "projects its state"),
        (nn.LSTM(2, 4), 3, "a throughtime.cells.Cell or the name of one; came int"),
        (nn.LSTM(2, 4), cells.ProjectedLSTM(), "matrices of its own"),
    ],
)
def test_refusals_change_nothing(model, to, message):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        cures.swap_cell(model, to)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
