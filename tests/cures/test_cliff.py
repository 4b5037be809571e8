"""The cliff picture: the loss along a line of weights, against its closed form."""

import math

import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime.cures import Cliff, cliff
from throughtime.errors import ConfigError, ThroughtimeError


def test_a_parabola_along_the_update():
    model = nn.Linear(1, 1, bias=False).double()
    before, after = [torch.tensor([[1.0]])], [torch.tensor([[5.0]])]
    with torch.no_grad():
        model.weight.fill_(7.0)
    found = cliff(model, lambda: (model.weight - 3).square().sum(), before, after, beyond=1.0, points=21)
    torch.testing.assert_close(found.loss, (1 + 4 * found.at - 3).square())
    assert found.at[0] == -0.5 and found.at[-1] == 2 and 0.0 in found.at and 1.0 in found.at
    assert (found.length, found.weight) == (4.0, 1.0)
    assert found.best == pytest.approx(0.5, abs=0.07) and model.weight.item() == 7.0
    assert "smallest at" in str(found) and "4 before, 4 after" in str(found)


def test_everything_is_as_it_was_also_after_an_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    x = torch.randn(8, 2)
    before = [p.detach() + 1 for p in model.parameters()]
    state, drawn = {n: v.clone() for n, v in model.state_dict().items()}, torch.get_rng_state()
    found = cliff(model, lambda: model(x).square().sum(), before, points=5)
    assert found.loss.isfinite().all()
    again = cliff(model, lambda: model(x).square().sum(), before, points=5)
    assert torch.equal(found.loss, again.loss)  # every point sees the same random numbers
    with pytest.raises(ZeroDivisionError):
        cliff(model, lambda: 1 / 0, before)
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_nan_and_infinity_are_kept_and_shown():
    model = nn.Linear(1, 1, bias=False)
    before, after = [torch.tensor([[0.0]])], [torch.tensor([[2.0]])]
    found = cliff(model, lambda: (1 - model.weight).log().sum(), before, after, beyond=0.0, points=5)
    assert found.loss.tolist()[:2] == [0.0, pytest.approx(math.log(0.5))]
    assert found.loss[2] == -math.inf and found.loss[3:].isnan().all()
    assert str(found).count("!") == 3
    assert "!!!" in str(Cliff(found.at, torch.full((5,), math.nan, dtype=torch.float64), 1.0, 1.0))


def test_saved_and_plotted(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    found = cliff(model, lambda: model.weight.square().sum(), [torch.zeros(1, 1)], [torch.ones(1, 1)])
    assert torch.equal(Cliff.load(found.save(tmp_path / "cliff")).loss, found.loss)
    try:
        import matplotlib
    except ImportError:
        with pytest.raises(ThroughtimeError, match="pip install matplotlib"):
            found.plot()
        return
    matplotlib.use("Agg")
    ax = found.plot()
    assert ax.get_ylabel() == "loss" and len(ax.lines) == 3


def test_refused():
    model = nn.Linear(1, 1, bias=False)
    with pytest.raises(ConfigError, match="one tensor for each"):
        cliff(model, lambda: 0.0, [torch.zeros(2)])
    with pytest.raises(ConfigError, match="`before` holds NaN"):
        cliff(model, lambda: 0.0, [torch.full((1, 1), math.nan)])
    with pytest.raises(ConfigError, match="points at least 3"):
        cliff(model, lambda: 0.0, [torch.zeros(1, 1)], points=2)


def test_from_the_guard():
    model = nn.Linear(1, 1, bias=False)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    guard = tt.Guard(model, opt)
    with pytest.raises(ConfigError, match="no good snapshot"):
        guard.cliff(lambda: 0.0)
    with guard.step() as step:
        step.backward(model(torch.ones(1, 1)).sum())
        opt.step()
    assert guard.cliff(lambda: model.weight.sum()).length == pytest.approx(0.1)
