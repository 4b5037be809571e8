"""Variational dropout and zoneout against loops written by hand with the same masks, for every cell and backend."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime
from throughtime import cells, cures
from throughtime import nn as ttnn
from throughtime.cures.step_noise import NoisyLayer
from throughtime.engine.trace import step_of
from throughtime.errors import CellError, ConfigError
from throughtime.flow.capture import capture

F64 = torch.float64
DIRECT = ["rnn", "lstm", "gru", "lstm-peephole", "lstm-1997", "additive-state-feedback"]


class Leaky(cells.Cell):
    """A user's own cell."""

    gates = ("a", "k")
    states = ("h", "m")
    units = ("p",)

    def step(self, z, s, w):
        k = torch.sigmoid(z.k + w.p * s.m)
        m = k * s.m + (1 - k) * torch.tanh(z.a)
        return torch.tanh(m) + 0.1 * s.h, m


@pytest.fixture
def masks(monkeypatch):
    """Every mask that is drawn, in order."""
    drawn = []
    draw = NoisyLayer.mask

    def recorded(self, like, shape, p):
        drawn.append(draw(self, like, shape, p))
        return drawn[-1]

    monkeypatch.setattr(NoisyLayer, "mask", recorded)
    return drawn


def by_hand(layer, x, m_h=None, keep=None, state=None):
    """One layer of ours, step by step, with a mask on h before U, and masks [T, B, H] of the states that are kept."""
    cell, (((w,)),) = layer.step_cell(), layer.layer_weights()
    B, H = x.shape[1], layer.hidden_size
    states = list(state or [torch.zeros(B, H, dtype=x.dtype) for _ in cell.states])
    gates, ys = list(cell.gates), []
    for t, x_t in enumerate(x):
        h = states[0] if m_h is None else m_h * states[0]
        zx = (cell.input(x_t) @ w.weight_ih.T + w.bias_ih).chunk(len(gates), -1)
        zh = (h @ w.weight_hh.T + w.bias_hh).chunk(len(cell.recurrent_gates), -1)
        from_h = dict(zip(cell.recurrent_gates, zh, strict=True))
        z = []
        for c in cell.columns:
            gate = c.name.removesuffix("_h") if c.x is None else c.name.removesuffix("_x")
            if c.x is None:
                z.append(from_h[gate])
            elif c.h is None:
                z.append(zx[c.x])
            else:
                z.append(zx[c.x] + from_h[gate])
        new = step_of(cell, [*z, *states, *w.units])
        if keep is not None:
            new = [k[t] * o + (1 - k[t]) * n for k, o, n in zip(keep, states, new, strict=True)]
        states = list(new)
        ys.append(states[0])
    return torch.stack(ys), states


def same(layer, got, want):
    """The same numbers, and the same gradients of a loss on them, in every parameter."""
    params = list(layer.parameters())
    grads = []
    for y, states in (got, want):
        torch.testing.assert_close(y, want[0])
        loss = (y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum() + sum((s**2).sum() for s in states)
        grads.append(torch.autograd.grad(loss, params))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def finals(state):
    return [s[0] for s in ((state,) if isinstance(state, torch.Tensor) else state)]


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("kind", [*DIRECT, "own"])
def test_variational_dropout_by_hand(kind, backend, masks):
    layer = ttnn.Recurrent(Leaky() if kind == "own" else kind, 3, 7, backend=backend).double()
    x = torch.randn(11, 4, 3, dtype=F64)
    y, state = cures.VariationalDropout(layer, inputs=0.3, hidden=0.4)(x)
    m_x, m_h = masks
    assert m_x.shape == (4, 3) and m_h.shape == (4, 7)
    want = by_hand(layer, x * m_x / 0.7, m_h / 0.6)
    same(layer, (y, finals(state)), want)


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("kind", [*DIRECT, "own", "preactivation", "gru-reset-before"])
def test_zoneout_by_hand(kind, backend, masks):
    layer = ttnn.Recurrent(Leaky() if kind == "own" else kind, 3, 7, backend=backend).double()
    names = layer.cell.states
    x = torch.randn(11, 4, 3, dtype=F64)
    drop = cures.Zoneout(layer, **dict(zip(names, (0.3, 0.6), strict=False)))
    y, state = drop(x)
    assert [m.shape for m in masks] == [(11, 4, 7)] * len(names)
    if kind in ("preactivation", "gru-reset-before"):  # the product stands inside: the reference loop is the hand
        return same_by_reference(drop, layer, x, masks, (y, finals(state)))
    same(layer, (y, finals(state)), by_hand(layer, x, keep=list(masks)))


def same_by_reference(drop, layer, x, masks, got):
    states, ys = [torch.zeros(4, 7, dtype=F64)], []
    for t in range(11):
        one, _ = layer(x[t : t + 1], states[0][None])
        states = [masks[0][t] * states[0] + (1 - masks[0][t]) * one[0]]
        ys.append(states[0])
    same(layer, got, (torch.stack(ys), states))


def test_zoneout_in_eval_mode_is_the_mean():
    layer = nn.LSTM(3, 5).double()
    drop = cures.Zoneout(layer, h=0.2, c=0.5).eval()
    x = torch.randn(9, 2, 3, dtype=F64)
    keep = [torch.full((9, 2, 5), p, dtype=F64) for p in (0.2, 0.5)]
    y, state = drop(x)
    same(layer, (y, finals(state)), by_hand(layer, x, keep=keep))


def test_moments_of_the_masks(masks):
    drop = cures.Zoneout(nn.GRU(2, 50), torch.Generator().manual_seed(0), h=0.3)
    drop(torch.zeros(40, 20, 2))
    n = masks[0].numel()
    assert set(masks[0].unique().tolist()) == {0.0, 1.0}
    assert abs(masks[0].mean().item() - 0.3) < 4.5 * math.sqrt(0.21 / n)
    both = (masks[0][1:] * masks[0][:-1]).mean().item()  # drawn anew at each step
    assert abs(both - 0.09) < 4.5 * math.sqrt(0.09 * 0.91 / n)
    masks.clear()
    cures.VariationalDropout(nn.GRU(2, 500), 0.0, 0.25, torch.Generator().manual_seed(0))(torch.zeros(3, 20, 2))
    assert abs(masks[0].mean().item() - 0.75) < 4.5 * math.sqrt(0.75 * 0.25 / 10_000)
    drop = cures.LockedDropout(0.4, generator=torch.Generator().manual_seed(0))
    y = drop(torch.ones(6, 100, 100))
    assert torch.equal(y, y[:1].expand_as(y))
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1 / 0.6]))
    assert abs(y[0].mean().item() - 1) < 4.5 * math.sqrt(0.4 / 0.6 / 10_000)


@pytest.mark.parametrize("make", [lambda m: cures.VariationalDropout(m, 0.0, 0.0), lambda m: cures.Zoneout(m, h=0.0)])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_without_probability_it_is_the_layer(make, kind):
    layer = kind(3, 5, 2, bidirectional=True, batch_first=True)
    x = torch.randn(2, 6, 3)
    want = layer(x)
    drop = make(layer)
    got = drop(x)
    torch.testing.assert_close(got, want)
    assert [n.removeprefix("layer.") for n, _ in drop.named_parameters()] == [n for n, _ in layer.named_parameters()]


@pytest.mark.parametrize("make", [lambda m: cures.VariationalDropout(m, 0.2, 0.3), lambda m: cures.Zoneout(m, h=0.3)])
@pytest.mark.parametrize("packed", [False, True])
def test_layers_and_directions_keep_the_layers_form(make, packed):
    layer = nn.GRU(3, 5, 2, bidirectional=True, dropout=0.1)
    drop = make(layer)
    x = torch.randn(6, 3, 3)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([2, 6, 4]), enforce_sorted=False)
    y, h = drop(x)
    y0, h0 = layer(x)
    if packed:
        y, lengths = pad_packed_sequence(y)
        y0, _ = pad_packed_sequence(y0)
        assert not y[2:, 0].any() and lengths.tolist() == [2, 6, 4]
        torch.testing.assert_close(h[2, 0], y[1, 0, :5])  # the last layer's state is its output at the last step
    assert y.shape == y0.shape and h.shape == h0.shape and not torch.equal(y, y0)
    one, state = make(nn.LSTM(3, 4))(torch.randn(6, 3), (torch.zeros(1, 4), torch.zeros(1, 4)))
    assert one.shape == (6, 4) and state[1].shape == (1, 4)


def test_a_carried_state_goes_on():
    """Two halves with the state between, with zoneout's masks the same: one whole."""
    drop = cures.Zoneout(nn.LSTM(3, 5), c=0.4).eval()
    x = torch.randn(8, 2, 3)
    whole, last = drop(x)
    first, state = drop(x[:5])
    second, end = drop(x[5:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(end, last)


def test_the_layers_rules_are_kept():
    layer = ttnn.LSTM(3, 5, clip=1e-9)
    drop = cures.VariationalDropout(layer, 0.0, 0.2)
    drop(torch.randn(6, 2, 3))[0].sum().backward()
    assert layer.weight_hh_l0.grad.abs().max() < 1e-6


def test_a_step_of_a_loop_by_hand():
    new, old = torch.randn(100, 50), torch.randn(100, 50)
    kept = cures.zoneout(new, old, 0.3, True, torch.Generator().manual_seed(0))
    assert ((kept == new) | (kept == old)).all()
    assert abs((kept == old).double().mean().item() - 0.3) < 4.5 * math.sqrt(0.21 / 5000)
    torch.testing.assert_close(cures.zoneout(new, old, 0.3, False), 0.3 * old + 0.7 * new)
    assert cures.zoneout(new, old, 0.0) is new


def test_locked_dropout_on_packed_sequences():
    x = pack_padded_sequence(torch.ones(5, 3, 200), torch.tensor([5, 4, 2]))
    y, _ = pad_packed_sequence(cures.LockedDropout(0.5)(x))
    for b, n in enumerate((5, 4, 2)):
        assert torch.equal(y[:n, b], y[:1, b].expand(n, 200))
    assert not torch.equal(y[0, 0], y[0, 1])


def test_capture_sees_it_in_eval_mode_or_says_that_it_does_not():
    drop = cures.VariationalDropout(nn.GRU(3, 4), 0.2, 0.2).eval()
    with capture(drop) as captured:
        drop(torch.randn(5, 2, 3))[0].sum().backward()
    assert captured.recurrences[0].name == "layer"
    drop.train()
    with capture(drop) as captured:
        drop(torch.randn(5, 2, 3))[0].sum().backward()
    assert not captured.recurrences
    with pytest.raises(throughtime.ThroughtimeError):
        captured.flow()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: cures.VariationalDropout(nn.LSTMCell(2, 3)), "is one step, in a loop of yours"),
        (lambda: cures.Zoneout(nn.Linear(2, 3), h=0.1), "expected a recurrent layer"),
        (lambda: cures.Zoneout(nn.LSTM(2, 3)), r"name states of LSTM\(\) \(h, c\)"),
        (lambda: cures.Zoneout(nn.GRU(2, 3), c=0.1), r"came \['c'\]"),
        (lambda: cures.Zoneout(nn.GRU(2, 3), h=1.0), r"in \[0, 1\); came 1.0"),
        (lambda: cures.Zoneout(nn.LSTM(2, 4, proj_size=2), c=0.1), "projects its output"),
        (lambda: cures.VariationalDropout(nn.LSTM(2, 4, proj_size=2)), "inside the step"),
        (lambda: cures.VariationalDropout(ttnn.GRUResetBefore(2, 3)), "inside the step"),
        (lambda: cures.VariationalDropout(ttnn.AdditiveState(2, 3)), "no recurrent weights"),
        (lambda: cures.VariationalDropout(nn.GRU(2, 3), inputs=-0.1), "inputs must be a probability"),
        (lambda: cures.LockedDropout(1.0), "p must be a probability"),
    ],
)
def test_refusals(make, message):
    with pytest.raises((ConfigError, CellError), match=message):
        make()
