"""A layer made ready for a stream says what its own call says, step by step."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parametrizations

from throughtime import cells, nn
from throughtime.nn.stepper import Stepper

LAYERS = {name: (lambda name=name, **k: nn.Recurrent(name, 3, 5, **k)) for name in cells.NAMES}
LAYERS["projected"] = lambda **k: nn.Recurrent(cells.ProjectedLSTM(), 3, 5, proj_size=4, **k)
LAYERS["LSTM"] = lambda **k: nn.LSTM(3, 5, **k)


def assert_same(layer, T=6):
    stepper, x = Stepper.of(layer), torch.randn(T, 1, 3, dtype=next(layer.parameters()).dtype)
    assert stepper is not None and stepper.state is None and stepper.dtype == x.dtype
    for _ in range(2):  # the second time after a reset
        state = None
        for t in range(T):
            y, state = layer(x[t : t + 1], state)
            torch.testing.assert_close(stepper(x[t, 0].clone()), y[0, 0].detach(), rtol=0, atol=1e-6)
            torch.testing.assert_close(stepper.state, state, rtol=0, atol=1e-6)
        stepper.reset()


@pytest.mark.parametrize("name", LAYERS)
def test_every_cell(name):
    assert_same(LAYERS[name]().requires_grad_(False))
    assert_same(LAYERS[name](num_layers=2, bias=False).double().requires_grad_(False))


@pytest.mark.parametrize("name", ["gru", "lstm-peephole", "additive-memory"])
def test_skip_connections(name):
    assert_same(LAYERS[name](num_layers=3, skip=True).requires_grad_(False))


def test_a_state_that_was_read_stays_as_it_was():
    stepper = Stepper.of(nn.GRU(3, 5))
    stepper(torch.randn(3))
    state = stepper.state
    kept = state.clone()
    stepper(torch.randn(3))
    stepper(torch.randn(3))
    assert torch.equal(state, kept) and not torch.equal(stepper.state, kept)


def test_what_only_the_layers_own_call_can_run():
    assert Stepper.of(nn.GRU(3, 5, bidirectional=True)) is None
    assert Stepper.of(nn.GRU(3, 5, backend="torch")) is None
    assert Stepper.of(torch.nn.GRU(3, 5)) is None
    assert Stepper.of(parametrizations.weight_norm(nn.GRU(3, 5), "weight_hh_l0")) is None
