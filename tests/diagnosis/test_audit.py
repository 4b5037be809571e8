"""The audit without data: each fault planted and found, and healthy models without a finding above a note."""

import math

import pytest
import torch
from torch import nn

import throughtime.nn as ttnn
from throughtime.cells import Cell
from throughtime.diagnosis import Finding, Where, audit, describe
from throughtime.diagnosis.audit_gates import half_life
from throughtime.diagnosis.audit_recurrent import radius, sigma_1
from throughtime.errors import ConfigError, FlowError

HEALTHY = {
    "RNN": lambda: nn.RNN(8, 32, 2, bidirectional=True),
    "LSTM": lambda: nn.LSTM(8, 16, 2, bidirectional=True, dropout=0.2),
    "LSTM, projected": lambda: nn.LSTM(8, 16, proj_size=4),
    "LSTM, no bias": lambda: nn.LSTM(8, 16, bias=False),
    "GRU": lambda: nn.GRU(8, 32, 2),
    "LSTMCell": lambda: nn.LSTMCell(4, 12),
    "GRUCell": lambda: nn.GRUCell(4, 12),
    "RNNCell": lambda: nn.RNNCell(4, 24),
    "ours: LSTM": lambda: ttnn.LSTM(8, 16),
    "ours: GRU before": lambda: ttnn.GRUResetBefore(4, 24, bidirectional=True),
    "ours: tuned": lambda: ttnn.TunedRNN(8, 16),
    "ours: 1997": lambda: ttnn.LSTM1997(8, 16),
    "ours: peepholes": lambda: ttnn.PeepholeLSTM(8, 16),
    "ours: additive": lambda: ttnn.AdditiveMemory(8, 16),
    "ours: feedback": lambda: ttnn.AdditiveState(8, 16, feedback=True),
    "ours: pre-activation": lambda: ttnn.PreActivationRNN(8, 16),
    "in a model": lambda: nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 8)),
    "orthogonal": lambda: with_U(nn.RNN(8, 16), nn.init.orthogonal_),
    "forget bias 1": lambda: forget(nn.LSTM(8, 16, 2, bidirectional=True), 1.0),
}


def with_U(net, change):
    for name, p in net.named_parameters():
        if "weight_hh" in name:
            change(p.data)
    return net


def forget(net, value, block=1, only=""):
    """The forget bias set to `value` in bias_ih and to 0 in bias_hh, wherever `only` is part of the name."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.startswith("bias") and only in name:
                p.view(4, -1)[block] = value if "bias_ih" in name else 0.0
    return net


def above_notes(findings):
    return [f for f in findings if f.severity != "note"]


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_models_have_notes_only(name):
    wrong = 0
    for seed in range(20):
        torch.manual_seed(seed)
        findings = audit(HEALTHY[name]())
        assert findings
        wrong += bool(above_notes(findings))
    assert wrong == 0


def the(findings, code):
    found = [f for f in findings if f.code == code]
    assert found, describe(findings)
    return found[0]


def test_forget_bias_is_the_sum_of_both():
    net = nn.LSTM(4, 8, 2, bidirectional=True)
    with torch.no_grad():
        net.bias_ih_l1_reverse.view(4, 8)[1] = 2.0
        net.bias_hh_l1_reverse.view(4, 8)[1] = 1.5
    found = next(f for f in audit(net) if f.code == "forget-bias" and f.where.layer == 1 and f.where.reverse)
    f = 1 / (1 + math.exp(-3.5))
    assert found.number == pytest.approx(math.log(2) / -math.log(f))
    assert "bias_ih 2.00 + bias_hh 1.50" in found.what
    assert str(found.where) == "the model itself, layer 1, reverse, bias_hh_l1_reverse"


def test_half_life():
    b = torch.tensor([0.0, 5.0], dtype=torch.float64)
    assert half_life(b).tolist() == pytest.approx([1.0, math.log(2) / math.log1p(math.exp(-5))])


def test_what_is_too_short_for_a_lag():
    short = above_notes(audit(nn.LSTM(4, 16), lag=100))
    assert [f.code for f in short] == ["forget-bias"]
    assert not above_notes(audit(forget(nn.LSTM(4, 16), 5.0), lag=100))
    assert [f.code for f in above_notes(audit(nn.RNN(4, 32), lag=100))] == ["recurrent-weights"]
    assert not above_notes(audit(with_U(nn.RNN(4, 32), nn.init.orthogonal_), lag=100))
    assert "stability" in {f.code for f in above_notes(audit(nn.GRU(4, 32), lag=100))}


def test_forget_bias_in_some_layers_only():
    for only in ("l0", "reverse"):
        found = above_notes(audit(forget(nn.LSTM(4, 16, 2, bidirectional=True), 2.0, only=only)))
        assert {f.code for f in found} == {"bias-not-everywhere"}
        assert len(found) == 2
        assert all(f.where.layer == 1 if only == "l0" else not f.where.reverse for f in found)


def test_forget_bias_in_the_wrong_block():
    found = above_notes(audit(forget(nn.LSTM(4, 16), 1.0, block=2)))  # as if the order were i, g, f, o
    assert [f.code for f in found] == ["bias-of-wrong-gate"]
    assert "i, f, g, o" in found[0].means


def test_closed_and_stuck_memory():
    assert the(above_notes(audit(forget(nn.LSTM(4, 16), -5.0))), "forget-bias").number < 0.2
    assert "stuck open" in the(above_notes(audit(forget(nn.LSTM(4, 16), 15.0))), "forget-bias").means


class Leaky(Cell):
    gates = ("a", "k")
    states = ("h",)

    def step(self, z, s, w):
        keep = torch.sigmoid(z.k)
        return keep * s.h + (1 - keep) * torch.tanh(z.a)


def test_a_users_own_cell():
    net = ttnn.Recurrent(Leaky(), 4, 8)
    with torch.no_grad():
        net.bias_ih_l0.view(2, 8)[1] = 3.0
        net.bias_hh_l0.zero_()
    assert the(audit(net), "k-bias").number == pytest.approx(math.log(2) / math.log1p(math.exp(-3.0)), rel=1e-6)


def test_spectral_radius_and_sigma_1_side_by_side():
    """torch's default: sigma_1 1.155 "may explode", spectral radius 0.577 "contracts": a note that says both."""
    torch.manual_seed(1)
    net = nn.RNN(4, 300)
    found = the(audit(net), "recurrent-weights")
    assert found.severity == "note"
    assert found.number == pytest.approx(0.577, abs=0.06)
    assert "sigma_1 1.1" in found.what
    assert "Neither number alone decides" in found.means
    U = net.weight_hh_l0.detach().double()
    assert radius(U) == pytest.approx(found.number)
    assert sigma_1(U) == pytest.approx(torch.linalg.svdvals(U)[0].item())


def test_what_must_vanish():
    found = the(above_notes(audit(with_U(nn.RNN(4, 32), lambda U: U.mul_(0.2)))), "recurrent-weights")
    assert "must vanish" in found.means
    logistic = ttnn.Recurrent("rnn", 4, 32)
    logistic.cell = ttnn.PreActivationRNN(4, 32, activation="logistic").cell
    assert "must vanish" in the(above_notes(audit(logistic)), "recurrent-weights").means


@pytest.mark.parametrize(("kind", "factor"), [("relu", 3.0), ("tanh", 6.0)])
def test_what_may_explode(kind, factor):
    found = above_notes(audit(with_U(nn.RNN(4, 32, nonlinearity=kind), lambda U: U.mul_(factor))))
    assert [f.code for f in found] == ["recurrent-weights"]
    assert "explode" in found[0].means


def test_gru_stability_is_that_of_its_jacobian():
    """Without biases J = I/2 + U_n/4 at rest."""
    net = nn.GRU(4, 16, bias=False)
    U = net.weight_hh_l0.detach().double()[32:]
    want = radius(torch.eye(16, dtype=torch.float64) / 2 + U / 4)
    assert the(audit(net), "stability").number == pytest.approx(want, rel=1e-9)
    with torch.no_grad():
        net.weight_hh_l0[32:].mul_(8)
    found = the(above_notes(audit(net)), "stability")
    assert found.number > 1
    cell = nn.GRUCell(4, 6)
    h = torch.zeros(1, 6, requires_grad=True)
    J = torch.autograd.functional.jacobian(lambda h: cell(torch.zeros(1, 4), h)[0], h)[:, 0].double()
    assert the(audit(cell), "stability").number == pytest.approx(radius(J), rel=1e-5)


def test_broken_parameters():
    net = nn.LSTM(4, 8, 2)
    with torch.no_grad():
        net.weight_hh_l1[3, 2] = torch.nan
        net.bias_ih_l0[1] = torch.inf
    errors = [f for f in audit(net) if f.severity == "error"]
    assert [(f.code, f.where.parameter, f.number) for f in errors] == [
        ("not-finite", "bias_ih_l0", 1),
        ("not-finite", "weight_hh_l1", 1),
    ]


def test_zero_dead_and_alike():
    assert the(audit(with_U(nn.GRU(4, 8), torch.Tensor.zero_)), "all-zero").severity == "error"
    net = nn.RNN(4, 8)
    with torch.no_grad():
        net.weight_ih_l0[5] = 0
    assert "first is unit 5" in the(above_notes(audit(net)), "dead-units").what
    for p in net.parameters():
        nn.init.constant_(p, 0.1)
    assert the(audit(net), "units-alike").severity == "error"
    assert not above_notes(audit(nn.RNN(4, 1)))  # one unit is not alike


def test_initialisation():
    assert "as torch draws it" in the(audit(nn.LSTM(8, 32)), "initialisation").what
    found = the(audit(with_U(nn.LSTM(8, 32), lambda U: nn.init.normal_(U, 0, 1))), "initialisation")
    assert "not as torch draws it" in found.what
    assert found.number == pytest.approx(math.sqrt(3 * 32), rel=0.1)
    net = nn.LSTM(100, 32)
    nn.init.normal_(net.weight_ih_l0, 0, 5)
    assert the(above_notes(audit(net)), "large-input-weights").number == pytest.approx(50, rel=0.1)


@pytest.mark.filterwarnings("ignore:dropout")
def test_dropout_of_one_layer():
    for net in (nn.LSTM(4, 8, dropout=0.3), ttnn.PeepholeLSTM(4, 8, dropout=0.3)):
        assert the(above_notes(audit(nn.Sequential(net))), "dropout-of-one-layer").number == pytest.approx(0.3)


def test_shared_layer_is_told_once():
    net = nn.LSTM(4, 4)
    assert len(audit(nn.Sequential(net, net))) == len(audit(net))


def test_order_print_and_refusals():
    net = with_U(nn.RNN(4, 8, 2), torch.Tensor.zero_)
    nn.init.normal_(net.weight_hh_l0, 0, 0.1)
    findings = audit(net, lag=20)
    ranks = [["error", "warning", "note"].index(f.severity) for f in findings]
    assert ranks == [0, 1, 2]
    text = describe(findings)
    assert text.startswith(
        "1 error, 1 warning, 1 note\nerror    the model itself, layer 1, weight_hh_l1: all of it is 0\n"
    )
    assert "Do: initialise it" in text
    assert describe([]) == "Nothing found."
    assert the(audit(nn.Linear(3, 3)), "no-recurrence").severity == "warning"
    with pytest.raises(FlowError, match="Module"):
        audit("model")
    with pytest.raises(FlowError, match="lag must be"):
        audit(net, lag=0)
    with pytest.raises(ConfigError, match="severity"):
        Finding("bad", "x", Where(), "", "")
