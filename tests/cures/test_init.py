"""Initialisers: what U and the biases are afterwards, what they mean for the gradient, and where they do not fit."""

import math

import pytest
import torch
from torch import nn

from throughtime import cures, flow
from throughtime import nn as ttnn
from throughtime.errors import ConfigError
from throughtime.flow.measure import recurrences

F64 = torch.float64


def blocks(p, gates):
    return p.detach().double().chunk(gates)


@pytest.mark.parametrize(
    "layer, gates",
    [
        (lambda: nn.RNN(3, 6, 2, bidirectional=True), 1),
        (lambda: nn.LSTM(3, 6, 2, bidirectional=True), 4),
        (lambda: nn.GRUCell(3, 6), 3),
        (lambda: ttnn.PeepholeLSTM(3, 6), 4),
        (lambda: nn.LSTM(3, 6, proj_size=4), 4),
    ],
)
def test_every_block_of_every_layer_and_direction_is_orthogonal(layer, gates):
    layer = layer()
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    told = cures.orthogonal_(layer, 1.5, generator=torch.Generator().manual_seed(1))
    hh = [n for n, _ in layer.named_parameters() if n.startswith("weight_hh")]
    for name in hh:
        for U in blocks(getattr(layer, name), gates):
            torch.testing.assert_close(U.T @ U, 2.25 * torch.eye(U.shape[1], dtype=F64), atol=1e-5, rtol=0)
    assert len(told.made) == len(hh) * gates
    assert all(torch.equal(p, before[n]) for n, p in layer.named_parameters() if n not in hh)


def test_orthogonal_keeps_the_gradient_of_a_linear_network():
    layer = ttnn.Recurrent("rnn-identity", 2, 8).double()
    cures.orthogonal_(layer)
    ((r,),) = recurrences(layer, torch.randn(200, 1, 2, dtype=F64))
    torch.testing.assert_close(flow.lyapunov_spectrum(r).exponents, torch.zeros(8, dtype=F64), atol=1e-6, rtol=0)


def test_the_same_generator_draws_the_same():
    a, b = nn.LSTM(2, 5), nn.LSTM(2, 5)
    for layer in (a, b):
        g = torch.Generator().manual_seed(3)
        cures.orthogonal_(layer, gates=("f",), generator=g)
        cures.chrono_(layer, 30, generator=g)
    assert torch.equal(a.bias_ih_l0[5:10], b.bias_ih_l0[5:10])
    assert torch.equal(a.weight_hh_l0[5:10], b.weight_hh_l0[5:10])
    assert not torch.equal(a.weight_hh_l0[:5], b.weight_hh_l0[:5])  # not among the gates that were named


def test_irnn():
    """Le 2015: with ReLU and positive states h stays as it is without input."""
    layer = nn.RNN(3, 50, 2, nonlinearity="relu", bidirectional=True)
    told = cures.identity_(layer, generator=torch.Generator().manual_seed(0))
    for name, p in layer.named_parameters():
        if name.startswith("weight_hh"):
            assert torch.equal(p.detach(), torch.eye(50))
        elif name.startswith("bias"):
            assert not p.any()
    assert layer.weight_ih_l1.std().item() == pytest.approx(0.001, rel=0.05)
    h = torch.rand(4, 1, 50)
    assert torch.equal(layer(torch.zeros(100, 1, 3), h)[1][0], h[0])
    assert len(told.made) == 4 * 4
    cures.identity_(layer, 0.5, input_std=None)
    assert torch.equal(layer.weight_hh_l0.detach(), 0.5 * torch.eye(50))


@pytest.mark.parametrize("radius", [0.5, 0.95, 1.3])
def test_spectral_radius_is_the_wanted_one(radius):
    model = nn.ModuleList([nn.GRU(3, 7, 2), nn.RNNCell(3, 9)])
    cures.spectral_radius_(model, radius)
    for name, p in model.named_parameters():
        if "weight_hh" in name:
            for U in blocks(p, p.shape[0] // p.shape[1]):
                assert torch.linalg.eigvals(U).abs().max().item() == pytest.approx(radius, rel=1e-5)


@pytest.mark.parametrize(
    "layer, gate",
    [
        (lambda: nn.LSTM(3, 4, 2, bidirectional=True), 1),
        (lambda: ttnn.PeepholeLSTM(3, 4, 2), 1),
        (lambda: nn.LSTMCell(3, 4), 1),
        (lambda: nn.GRU(3, 4, 2), 1),
    ],
)
def test_forget_gate_bias_is_the_sum_of_two(layer, gate):
    layer = layer()
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    told = cures.forget_gate_bias_(layer, 1.0)
    rows = slice(4 * gate, 4 * gate + 4)
    pairs = [n for n, _ in layer.named_parameters() if n.startswith("bias_ih")]
    for ih in pairs:
        total = getattr(layer, ih) + getattr(layer, ih.replace("ih", "hh"))
        assert torch.equal(total[rows].detach(), torch.ones(4))
    for n, p in layer.named_parameters():
        changed = p.detach() != before[n]
        assert not changed[: rows.start].any() and not changed[rows.stop :].any()
        assert n.startswith("bias") or not changed.any()
    assert len(told.made) == len(pairs)


def measured_half_life(f):
    """Steps in which an idle LSTM's memory falls to one half, from its Jacobian."""
    layer = nn.LSTM(1, 1).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
    cures.forget_gate_bias_(layer, f)
    ((r,),) = recurrences(ttnn.convert(layer), torch.zeros(3, 1, 1, dtype=F64))
    kept = flow.state_jacobian(r).block("c", "c")[1].item()
    return math.log(0.5) / math.log(kept)


@pytest.mark.parametrize("value", [-2.0, 0.0, 1.0, 5.0])
def test_the_half_life_that_is_told(value):
    assert cures.half_life(value) == pytest.approx(measured_half_life(value), rel=1e-9)
    assert cures.half_life(800.0) == math.inf and cures.half_life(-800.0) == pytest.approx(math.log(2) / 800)


def test_chrono_gives_the_stated_half_lives():
    """tau ~ U(1, T-1), f = tau/(1+tau): quantiles of the drawn memories against those of the law, and measured."""
    T, H = 100, 4000
    layer = nn.LSTM(1, H)
    cures.chrono_(layer, T, generator=torch.Generator().manual_seed(0))
    total = (layer.bias_ih_l0 + layer.bias_hh_l0).detach().double()
    b_i, b_f = total[:H], total[H : 2 * H]
    assert torch.equal(b_i, -b_f)
    tau = b_f.exp()
    assert tau.min() >= 1 and tau.max() <= T - 1
    # 4.5 standard errors of a mean and of a share.
    assert abs(tau.mean().item() - T / 2) < 4.5 * (T - 2) / math.sqrt(12 * H)
    assert abs((tau < 25.5).double().mean().item() - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / H)
    small = nn.LSTM(1, 5).double()
    with torch.no_grad():
        for p in small.parameters():
            p.zero_()
    told = cures.chrono_(small, T)
    ((r,),) = recurrences(ttnn.convert(small), torch.zeros(3, 1, 1, dtype=F64))
    kept = flow.state_jacobian(r).block("c", "c")[1, 0].diagonal()
    tau = small.bias_ih_l0[5:10].detach().exp()
    torch.testing.assert_close(kept, tau / (1 + tau))
    half = math.log(2) / (1 + 1 / tau).log()
    torch.testing.assert_close(math.log(0.5) / kept.log(), half)
    assert f"half-lives {half.min():.3g} to {half.max():.3g} steps" in str(told)
    assert (half < T * math.log(2)).all()


def test_chrono_of_a_gru_keeps_with_u():
    layer = nn.GRU(1, 6, 2, bidirectional=True).double()
    cures.chrono_(layer, 40)
    for name in ("l0", "l0_reverse", "l1", "l1_reverse"):
        u = (getattr(layer, f"bias_ih_{name}") + getattr(layer, f"bias_hh_{name}"))[6:12]
        assert (u >= 0).all() and (u <= math.log(39)).all()
    with torch.no_grad():  # torch's z multiplies h_{t-1}
        for p in layer.parameters():
            if p.dim() == 2:
                p.zero_()
    one = nn.GRUCell(1, 6).double()
    one.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items() if k.endswith("_l0")})
    h = torch.randn(1, 6, dtype=F64)
    kept = (one(torch.zeros(1, 1, dtype=F64), h + 1e-6) - one(torch.zeros(1, 1, dtype=F64), h))[0] / 1e-6
    u = (layer.bias_ih_l0 + layer.bias_hh_l0)[6:12].detach().exp()
    assert (kept - u / (1 + u)).abs().max() < 0.2  # the rest runs through the candidate's own bias


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda: cures.identity_(nn.LSTM(2, 3)), "is not a simple network"),
        (lambda: cures.forget_gate_bias_(nn.RNN(2, 3)), "has no gate that keeps its memory"),
        (lambda: cures.forget_gate_bias_(ttnn.LSTM1997(2, 3)), "has no gate"),
        (lambda: cures.forget_gate_bias_(nn.LSTM(2, 3, bias=False)), "bias=False"),
        (lambda: cures.forget_gate_bias_(nn.LSTM(2, 3), math.nan), "finite"),
        (lambda: cures.forget_gate_bias_(nn.LSTM(2, 3), "1"), "must be a finite number; came '1'"),
        (lambda: cures.chrono_(nn.LSTM(2, 3), None), "longest must be above 2.*came None"),
        (lambda: cures.chrono_(nn.RNN(2, 3), 30), "has no gates that chrono"),
        (lambda: cures.chrono_(nn.LSTM(2, 3), 2), "longest must be above 2"),
        (lambda: cures.spectral_radius_(nn.LSTM(2, 4, proj_size=2)), "which has no eigenvalues"),
        (lambda: cures.orthogonal_(ttnn.AdditiveState(2, 3)), "has no recurrent weights"),
        (lambda: cures.orthogonal_(nn.GRU(2, 3), gates=("f",)), "no recurrent weights for f; its gates are r, u, n"),
        (lambda: cures.orthogonal_(nn.Linear(2, 3)), "no recurrent layer"),
        (
            lambda: cures.orthogonal_(nn.utils.parametrizations.weight_norm(nn.RNN(2, 3), "weight_hh_l0")),
            "computed from",
        ),
    ],
)
def test_refusals(act, message):
    with pytest.raises(ConfigError, match=message):
        act()


def test_a_refusal_changes_nothing():
    model = nn.ModuleList([nn.RNN(2, 4), nn.LSTM(2, 4)])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for act in (cures.identity_, cures.forget_gate_bias_):
        with pytest.raises(ConfigError, match="Nothing was changed"):
            act(model)
    with torch.no_grad():
        model[1].weight_hh_l0[:4].zero_()
    before["1.weight_hh_l0"][:4] = 0
    with pytest.raises(ConfigError, match="cannot be scaled"):
        cures.spectral_radius_(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
