"""Profile, horizon and half-life against numbers worked out by hand."""

import math

import pytest
import torch

from throughtime import nn
from throughtime.errors import FlowError
from throughtime.flow import GradientFlow, Horizon, gradient_flow

F64 = torch.float64


def geometric(r, T=50):
    t = torch.arange(T, dtype=F64)
    lag = t[:, None] - t
    m = torch.where(lag >= 0, r ** lag.clamp(min=0), 0.0) * (1 + t[:, None])  # losses of different sizes
    return GradientFlow({"z": m}, "test")


@pytest.mark.parametrize("r", [0.1, 0.5, 0.9])
def test_geometric_decay(r):
    f = geometric(r)
    torch.testing.assert_close(f.profile(), r ** torch.arange(50, dtype=F64))
    assert f.half_life() == pytest.approx(math.log(0.5) / math.log(r), rel=1e-9)
    assert f.horizon() == Horizon(math.floor(math.log(0.01) / math.log(r) + 1e-9), False)


def test_growth_has_no_half_life_and_an_open_horizon():
    f = geometric(1.1)
    assert f.half_life() == math.inf
    assert f.horizon() == Horizon(49, True)
    assert str(f.horizon()) == "at least 49 steps"


def test_a_loss_at_one_step_only():
    m = torch.zeros(6, 6, dtype=F64)
    m[3] = torch.tensor([1.0, 2.0, 4.0, 8.0, 0.0, 0.0])
    f = GradientFlow({"h": m}, "test")
    torch.testing.assert_close(f.profile("h"), torch.tensor([1.0, 0.5, 0.25, 0.125], dtype=F64))
    assert f.half_life("h") == 1.0
    assert f.horizon("h", 0.2) == Horizon(2, False)


def test_gradient_that_ends_at_once():
    m = torch.eye(4, dtype=F64)
    f = GradientFlow({"z": m}, "test")
    assert f.half_life() == 0.0
    assert f.horizon() == Horizon(0, False)
    assert str(f.horizon()) == "0 steps"


def test_a_gap_does_not_end_the_horizon():
    m = torch.zeros(5, 5, dtype=F64)
    m[4] = torch.tensor([0.0, 0.5, 0.0, 0.0, 1.0])
    assert GradientFlow({"z": m}, "test").horizon() == Horizon(3, False)


def test_reverse_direction_looks_the_other_way():
    m = torch.zeros(4, 4, dtype=F64)
    m[0] = torch.tensor([1.0, 0.5, 0.25, 0.125])
    f = GradientFlow({"z": m}, "test", reverse=True)
    torch.testing.assert_close(f.profile(), torch.tensor([1.0, 0.5, 0.25, 0.125], dtype=F64))


def test_one_step():
    f = GradientFlow({"z": torch.ones(1, 1, dtype=F64)}, "test")
    assert f.horizon() == Horizon(0, True) and f.half_life() == math.inf
    assert "over 1 step (" in str(f)


def test_prints_itself():
    text = str(geometric(0.5))
    assert "horizon 6 steps (1 %), half-life 1.0 steps" in text
    assert "lags 0, 1, 2, 4, 8, 16, 32, 49" in text


def test_an_explosion_beyond_float64_is_told():
    layer = nn.Recurrent("rnn-identity", 2, 3, bias=False).double()
    with torch.no_grad():
        layer.weight_hh_l0.copy_(torch.eye(3) * 100)
    flow = gradient_flow(layer, torch.zeros(170, 1, 2, dtype=F64), lambda y: y.sum())
    with pytest.raises(FlowError, match=r"within 15[3-5] steps: it explodes"):
        flow.profile()


def test_one_loss_that_reaches_far_does_not_speak_for_all():
    m = torch.eye(100, dtype=F64)
    m[99, 50] = 0.9
    assert GradientFlow({"z": m}, "test").profile()[49] == pytest.approx(0.9 / 51)


def test_a_loss_that_does_not_reach_its_own_step():
    m = torch.diag(torch.ones(5, dtype=F64), -1) + 0.5 * torch.diag(torch.ones(4, dtype=F64), -2)
    f = GradientFlow({"state": m}, "test")
    torch.testing.assert_close(f.profile(), torch.tensor([0.0, 1.0, 0.5, 0.0, 0.0, 0.0], dtype=F64))
    assert f.half_life() == 2 and f.horizon() == Horizon(2, False)


def test_refusals():
    f = geometric(0.5)
    with pytest.raises(FlowError, match="'c' was not measured; this flow holds z"):
        f.profile("c")
    with pytest.raises(FlowError, match="fraction must lie in"):
        f.horizon(fraction=0)
    with pytest.raises(FlowError, match="nothing to follow"):
        GradientFlow({"z": torch.zeros(3, 3, dtype=F64)}, "test").profile()


def test_the_profile_begins_at_one_to_the_last_bit():
    for T in (3, 100, 128, 257):
        f = GradientFlow({"z": torch.rand(T, T, dtype=F64).tril()}, "test")  # sums that depend on their order
        assert f.profile()[0] == 1
        f.half_life()
