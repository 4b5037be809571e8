"""The use horizon of models that are known to use exactly so much of their past."""

import pytest
import torch
from torch import nn

from throughtime.diagnosis import step_losses, use_horizon
from throughtime.errors import FlowError
from throughtime.flow import Horizon


class Copy(nn.Module):
    """y_t = x_{t-d}, by hand; the first steps are 0."""

    def __init__(self, delay, batch_first=False):
        super().__init__()
        self.delay, self.time = delay, int(batch_first)

    def forward(self, x):
        y = x.roll(self.delay, self.time)
        early = torch.arange(x.shape[self.time]) < self.delay
        return y * ~(early[None, :, None] if self.time else early[:, None, None]), None


def noisy(y, seed=0):
    return y + 0.1 * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("delay", [0, 1, 6])
def test_copy_uses_its_delay(delay):
    x, model = torch.randn(24, 16, 2), Copy(delay)
    found = use_horizon(step_losses(model, noisy(model(x)[0]), nn.functional.mse_loss), x, range(12))
    assert found.horizon() == Horizon(delay, False)
    assert found.interval == (Horizon(delay, False), Horizon(delay, False))
    assert found.loss == pytest.approx(0.01, rel=0.2)
    assert found.rise[delay] == pytest.approx(2, rel=0.4)  # two independent standard normals differ by that squared
    assert set(found.rise[delay + 1 :]) == {0.0}


def test_copy_by_an_rnn_that_shifts():
    """U moves the state by one unit a step: the last unit shows the input of d steps ago."""
    d = 5
    net = nn.RNN(1, d + 1, nonlinearity="relu", bias=False)
    with torch.no_grad():
        net.weight_ih_l0.zero_()[0] = 1
        net.weight_hh_l0.copy_(torch.diag(torch.ones(d), -1))
    x = torch.rand(20, 12, 1)

    def losses(x):
        return (net(x)[0][..., -1] - x_wanted).square()

    x_wanted = noisy(x.roll(d, 0)[..., 0])
    assert use_horizon(losses, x, range(10)).horizon() == Horizon(d, False)


def test_batch_first_and_one_loss_a_sequence():
    x, model = torch.randn(16, 24, 1), Copy(4, batch_first=True)
    losses = step_losses(model, noisy(model(x)[0]), nn.functional.mse_loss)
    assert use_horizon(losses, x, range(9), batch_first=True).horizon() == Horizon(4, False)

    def last(x):
        return (x[:, -4, 0] - wanted).square()

    wanted = noisy(x[:, -4, 0])
    assert use_horizon(last, x, range(9), batch_first=True).horizon() == Horizon(3, False)


def test_model_without_use_of_its_past():
    x = torch.randn(20, 16, 1)
    assert use_horizon(lambda x: (x[..., 0] - 1).square(), x, range(8)).horizon().steps <= 0
    found = use_horizon(lambda x: x.new_ones(x.shape[:2]), x, range(8))
    assert found.horizon() == Horizon(-1, False)
    assert "no input is used" in str(found)


def test_loss_at_some_steps_only():
    """As in the copy task: the loss is 0 until the last steps, which are found."""
    x = torch.randn(30, 16, 1)

    def losses(x):
        out = x.new_zeros(30, 16)
        out[27:] = (x[17:20, :, 0] - wanted).square()  # 10 steps before
        return out

    wanted = noisy(x[17:20, :, 0])
    assert use_horizon(losses, x, [0, 5, 9, 10, 11, 15]).horizon() == Horizon(10, False)


def test_false_alarms_over_seeds():
    """A model whose output depends on its past without any use: noise, of which the loss rises as often as it falls."""
    alarms, wide = 0, 0
    for seed in range(60):
        gen = torch.Generator().manual_seed(seed)
        x, y = torch.randn(2, 20, 32, 1, generator=gen)

        def losses(x, y=y):
            # Sees x_{t-1} and adds to the loss what is as often above as below.
            return (x - y)[..., 0].square() + torch.sin(50 * x.roll(1, 0)[..., 0])

        found = use_horizon(losses, x, range(6), seed=seed, resamples=100)
        alarms += found.horizon().steps > 0
        wide += found.interval[1].steps > 0
    assert alarms <= 4
    assert wide <= 9


def test_what_is_used_less_than_a_thousandth_does_not_count():
    x = torch.randn(20, 16, 1)
    y = noisy(x + 1e-3 * x.roll(5, 0))
    losses = step_losses(lambda x: x + 1e-3 * x.roll(5, 0), y, nn.functional.mse_loss)
    assert use_horizon(losses, x, range(10)).horizon() == Horizon(0, False)


def test_classes():
    x = torch.randint(0, 5, (20, 16))

    def model(x):
        return 5 * nn.functional.one_hot(x.roll(3, 0), 5).float()

    assert use_horizon(step_losses(model, x.roll(3, 0)), x, range(8)).horizon() == Horizon(3, False)
    last = step_losses(lambda x: model(x)[-1], x[-4])
    assert use_horizon(last, x, range(8)).horizon() == Horizon(3, False)


def test_refusals():
    x, model = torch.randn(20, 16, 1), Copy(1)
    losses = step_losses(model, x, nn.functional.mse_loss)
    for message, call in {
        "at least 8": lambda: use_horizon(losses, x[:, :7], [1]),
        "no lag of 20": lambda: use_horizon(losses, x, [20]),
        "lags must be": lambda: use_horizon(losses, x, []),
        r"inputs must be a tensor": lambda: use_horizon(losses, x[:, 0, 0], [1]),
        "one loss a step": lambda: use_horizon(lambda x: x.mean(), x, [1]),
        "came out differently": lambda: use_horizon(lambda x: torch.rand(20, 16), x, [1]),
        "NaN": lambda: use_horizon(lambda x: x[..., 0] * torch.nan, x, [1]),
        "does not fit the targets": lambda: use_horizon(step_losses(model, x[:5]), x, [1]),
        "up to step 2 only": lambda: use_horizon(
            lambda x: x[..., 0].square() * (torch.arange(20) < 3)[:, None], x, range(9)
        ),
        "ends must": lambda: use_horizon(losses, x, [1], ends=0),
    }.items():
        with pytest.raises(FlowError, match=message):
            call()
