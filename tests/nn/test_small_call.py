"""The short way of a small call without gradients: it gives what the long way gives, and notices every change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.utils import parametrizations

from throughtime import cells, nn
from throughtime.engine.backends import VARIABLE
from throughtime.errors import ShapeError
from throughtime.nn import small_call as short

MAKE = {name: (lambda name=name, **k: nn.Recurrent(name, 3, 6, **k)) for name in cells.NAMES}
MAKE["projected"] = lambda **k: nn.Recurrent(cells.ProjectedLSTM(), 3, 6, proj_size=4, **k)
MAKE["LSTM"] = lambda **k: nn.LSTM(3, 6, **k)
MAKE["LSTM, projected"] = lambda **k: nn.LSTM(3, 6, proj_size=4, **k)
MAKE["GRU"] = lambda **k: nn.GRU(3, 6, **k)
MAKE["RNN"] = lambda **k: nn.RNN(3, 6, **k)


@pytest.fixture
def taken(monkeypatch):
    """How often the short way was taken, call by call."""
    calls: list[bool] = []

    def watched(*args):
        out = short.small_call(*args)
        calls.append(out is not None)
        return out

    monkeypatch.setattr("throughtime.nn.layer.small_call", watched)
    return calls


def both_ways(layer, *args):
    """What a call gives without gradients, and with them: y, then the states."""
    with torch.no_grad():
        ours = layer(*args)
    return [[y, *(s if isinstance(s, tuple) else (s,))] for y, s in (ours, layer(*args))]


def assert_same(layer, *args, atol=1e-6):
    for a, b in zip(*both_ways(layer, *args), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=atol)


@pytest.mark.parametrize("name", MAKE)
def test_every_layer(name, taken):
    torch.manual_seed(0)
    for dtype, atol in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        for options in ({}, {"bias": False}):
            layer = MAKE[name](**options).to(dtype)
            for T, B in ((1, 1), (1, 3), (4, 1), (5, 2)):
                x = torch.randn(T, B, 3, dtype=dtype)
                assert_same(layer, x, atol=atol)
                _, state = layer(torch.randn(2, B, 3, dtype=dtype))
                state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
                assert_same(layer, x, state, atol=atol)
    assert taken.count(True) == len(taken) * 2 // 5  # those without gradients; the state comes from one with


STACKS = {
    "layers": {"num_layers": 3},
    "directions": {"bidirectional": True},
    "both": {"num_layers": 2, "bidirectional": True},
    "skip": {"num_layers": 3, "skip": True},
    "skip, both": {"num_layers": 2, "bidirectional": True, "skip": True},
}


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("name", ["rnn", "gru", "lstm-peephole", "projected"])
def test_stacks(name, options, taken):
    torch.manual_seed(0)
    layer = MAKE[name](**options).double()
    for T, B in ((1, 1), (1, 3), (5, 2)):
        x = torch.randn(T, B, 3, dtype=torch.float64)
        assert_same(layer, x, atol=1e-13)
        _, state = layer(torch.randn(2, B, 3, dtype=torch.float64))
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        assert_same(layer, x, state, atol=1e-13)
    assert taken[::5] == taken[3::5] == [True] * 3


def test_dropout_of_a_stack_acts_in_training_only(taken):
    layer, x = nn.LSTM(3, 6, 2, dropout=0.5), torch.randn(1, 1, 3)
    with torch.no_grad():
        layer(x)
    layer.eval()
    assert_same(layer, x)
    assert taken == [False, True, False]


def test_a_stream_is_the_sequence(taken):
    layer, x = nn.LSTM(3, 6), torch.randn(20, 1, 3)
    with torch.no_grad():
        state, ys = None, []
        for x_t in x:
            y, state = layer(x_t[None], state)
            ys.append(y)
    torch.testing.assert_close(torch.cat(ys), layer(x)[0].detach(), rtol=0, atol=1e-6)
    assert taken == [True] * 20 + [False]


def test_batch_first(taken):
    layer = nn.GRU(3, 6, batch_first=True)
    assert_same(layer, torch.randn(4, 1, 3), torch.randn(1, 4, 6))
    assert_same(layer, torch.randn(1, 4, 3))
    assert_same(layer, torch.randn(4, 5, 3))  # in another order than the kernels want it
    assert taken == [True, False, True, False, False, False]


def writes():
    def behind_torchs_back(w):
        w.data.numpy()[1, 1] += 1

    def in_place(w):
        with torch.no_grad():
            w[1, 1] += 1

    def other_memory(w):
        w.data = w.data + 1

    return [behind_torchs_back, in_place, other_memory]


@pytest.mark.parametrize("write", writes(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
def test_a_change_of_a_weight_is_seen(name, write, taken):
    layer, x = nn.LSTM(3, 6), torch.randn(2, 1, 3)
    assert_same(layer, x)
    with torch.no_grad():
        before = layer(x)[0]
        write(getattr(layer, name))
        assert not torch.equal(layer(x)[0], before)
    assert_same(layer, x)
    assert taken == [True, False, True, True, True, False]


def test_a_new_weight_a_copy_and_another_cell(taken):
    layer, x = nn.Recurrent("rnn", 3, 6), torch.randn(2, 1, 3)
    assert_same(layer, x)
    assert_same(copy.deepcopy(layer), x)
    layer.weight_hh_l0 = torch.nn.Parameter(torch.eye(6))
    assert_same(layer, x)
    layer.cell = cells.Simple("relu")
    assert_same(layer, x)
    assert_same(layer.double(), x.double())
    with torch.no_grad():
        other = {k: torch.randn_like(v) for k, v in layer.named_parameters()}
        got = torch.func.functional_call(layer, other, (x.double(),))[0]
    want = torch.func.functional_call(layer, other, (x.double(),))[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)
    assert taken[::2] == [True] * 6


def test_a_weight_that_is_worked_out_takes_the_long_way(taken):
    layer, x = nn.RNN(3, 6), torch.randn(2, 1, 3)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    assert_same(layer, x)
    assert taken == [False, False]


def test_what_is_not_small_or_not_plain_takes_the_long_way(taken, monkeypatch):
    layer = nn.GRU(3, 6)
    x = torch.randn(2, 1, 3)
    with torch.no_grad():
        nn.GRU(3, 6, 2, dropout=0.5)(x)
        layer(x[:, 0])
        layer(torch.randn(9000, 1, 3))
        nn.GRU(3, 6, backend="torch")(x)
        layer(torch.randn(2, 1, 6)[..., ::2])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x)[0].dtype == torch.bfloat16
        monkeypatch.setenv(VARIABLE, "torch")
        layer(x)
    assert taken == [False] * 7


def test_errors_are_those_of_the_long_way():
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="Expected 3, got 4"):
            nn.LSTM(3, 6)(torch.randn(1, 1, 4))
        with pytest.raises(ShapeError, match="state h must be"):
            nn.Recurrent("gru", 3, 6)(torch.randn(1, 1, 3), torch.zeros(1, 2, 6))
        with pytest.raises(ValueError, match="does not match weight dtype"):
            nn.LSTM(3, 6)(torch.randn(1, 1, 3).double())


def test_states_that_came_in_are_left_as_they_are():
    layer, state = nn.LSTM(3, 6), (torch.randn(1, 1, 6), torch.randn(1, 1, 6))
    before = [s.clone() for s in state]
    with torch.no_grad():
        _, last = layer(torch.randn(1, 1, 3), state)
        layer(torch.randn(1, 1, 3), last)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))
