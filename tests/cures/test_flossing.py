"""Flossing: the exponents are those of the measurement, their derivative is exact, and they go to 0."""

import pytest
import torch
from torch import nn

from throughtime import cures, flow
from throughtime import nn as ttnn
from throughtime.errors import ConfigError, FlowError, ShapeError
from throughtime.flow.measure import recurrences

F64 = torch.float64


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "preactivation"])
def test_the_exponents_of_the_measurement(kind):
    layer = ttnn.Recurrent(kind, 3, 6).double()
    x = torch.randn(30, 3, 3, dtype=F64)
    ((r,),) = recurrences(layer, x)
    want = flow.lyapunov_spectrum(r, 4, warmup=5).exponents
    (found,) = cures.lyapunov_exponents(layer, x, 4, warmup=5)
    torch.testing.assert_close(found.sort(descending=True).values, want, rtol=1e-9, atol=1e-12)
    (rarely,) = cures.lyapunov_exponents(layer, x, 4, warmup=5, every=3)
    torch.testing.assert_close(rarely, found, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(cures.flossing(layer, x, 4, warmup=5), (want**2).sum())


def test_one_row_for_each_layer_and_direction():
    layer = nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True).double()
    x = torch.randn(2, 9, 3, dtype=F64)
    found = cures.lyapunov_exponents(layer, x, 2)
    assert found.shape == (4, 2)
    stack = recurrences(ttnn.convert(layer), x.transpose(0, 1))
    for row, r in zip(found, [r for directions in stack for r in directions], strict=True):
        want = flow.lyapunov_spectrum(r, 2, warmup=0).exponents
        torch.testing.assert_close(row.sort(descending=True).values, want)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_the_exact_derivative_through_qr(kind):
    layer = ttnn.Recurrent(kind, 2, 3).double()
    x = torch.randn(4, 2, 2, dtype=F64, requires_grad=True)
    params = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    names = [n for n, _ in layer.named_parameters()]
    for name in names:
        layer._parameters.pop(name)

    def f(x, *ps):
        for name, p in zip(names, ps, strict=True):
            setattr(layer, name, p)
        return cures.flossing(layer, x, 2)

    assert torch.autograd.gradcheck(f, (x, *params), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("make, k", [(lambda: nn.RNN(2, 12), 4), (lambda: nn.GRU(2, 8), 2)])
def test_drives_the_chosen_exponents_to_zero(make, k):
    """And only those: the rest stay where they fade (Engelken 2023)."""
    layer = make()
    x = torch.randn(16, 2, 2)
    with torch.no_grad():
        before = cures.lyapunov_exponents(layer, x, 8)[0]
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for n in range(60):
        optimizer.param_groups[0]["lr"] = 0.05 if n < 40 else 0.01
        optimizer.zero_grad()
        cures.flossing(layer, x, k, every=2).backward()
        optimizer.step()
    with torch.no_grad():
        after = cures.lyapunov_exponents(layer, x, 8)[0]
    assert before[k - 1] < -0.3
    assert after[:k].abs().max() < 0.02
    assert after[7] < -0.05


def test_a_target_of_ones_own():
    layer = nn.RNN(2, 6).double()
    x = torch.randn(20, 2, 2, dtype=F64)
    (found,) = cures.lyapunov_exponents(layer, x, 2)
    torch.testing.assert_close(
        cures.flossing(layer, x, 2, target=[-0.1, -0.2]), ((found - found.new_tensor([-0.1, -0.2])) ** 2).sum()
    )
    with pytest.raises(ConfigError, match="one exponent, or 2 of them"):
        cures.flossing(layer, x, 2, target=[0.0, 0.0, 0.0])


def test_refusals():
    layer, x = nn.RNN(2, 3), torch.randn(5, 1, 2)
    for act, error, message in (
        (lambda: cures.flossing(layer, x, 4), ConfigError, r"1\.\.3"),
        (lambda: cures.flossing(layer, x, 1, warmup=5), ConfigError, "less than the 5 steps"),
        (lambda: cures.flossing(layer, x, 1, every=0), ConfigError, "every must be"),
        (lambda: cures.flossing(layer, "x", 1), ShapeError, "not packed; came str"),
    ):
        with pytest.raises(error, match=message):
            act()
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
    with pytest.raises(FlowError, match="only the first 0 of 1 directions survive"):
        cures.flossing(layer, x, 1)
