"""The clip advisor: spikes are told from ordinary steps, shares counted, and the time steps behind a spike named."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import throughtime
from throughtime import cures
from throughtime.errors import ConfigError, FlowError

ORDINARY = [float(v) for v in np.exp(np.random.RandomState(0).normal(0, 0.25, 200))]


def test_spikes_are_found_and_the_threshold_stands_just_below_them():
    norms = list(ORDINARY)
    norms[17], norms[120] = 80.0, 300.0
    advice = cures.advise_clip(norms)
    assert advice.spikes == (120, 17)
    assert advice.threshold == max(v for n, v in enumerate(norms) if n not in (17, 120))
    assert advice.history.clipped(advice.threshold) == 2 / 200
    assert f"clip by global norm at {advice.threshold:.3g}" in str(advice)
    q25, q75 = np.quantile(norms, [0.25, 0.75])
    assert advice.fence == pytest.approx(q75 * (q75 / q25) ** 3)  # Tukey's far-out fence, by logarithms


def test_quantiles_and_shares_are_those_of_the_history():
    norms = [float(n) for n in range(1, 101)]
    advice = cures.advise_clip(norms, thresholds=(50.0, 5.0))
    for q, value in advice.quantiles:
        assert value == pytest.approx(np.quantile(norms, q))
    (low, share_low, kept_low), (high, share_high, kept_high) = advice.shares
    assert (low, share_low, high, share_high) == (5.0, 0.95, 50.0, 0.5)
    assert kept_low == pytest.approx(np.mean([5 / n for n in range(6, 101)]))
    assert kept_high == pytest.approx(np.mean([50 / n for n in range(51, 101)]))


@pytest.mark.parametrize("norms", [ORDINARY, [3.0] * 40, [0.0] * 30 + [1.0] * 30])
def test_nothing_to_clip_is_said(norms):
    advice = cures.advise_clip(norms)
    assert not advice.spikes and advice.threshold == max(norms)
    assert "nothing to clip" in str(advice)


def test_broken_steps_are_counted_apart():
    advice = cures.advise_clip([*ORDINARY, math.nan, math.inf])
    assert advice.history.broken == (200, 201) and not advice.spikes
    assert "NaN or infinite at 2 of them, first at step 200: no threshold helps" in str(advice)
    hopeless = cures.advise_clip([math.nan, math.inf])
    assert hopeless.threshold is None and "Advice" not in str(hopeless)


def test_it_takes_the_record_of_a_clipper():
    clip, p = cures.ClipNorm(1.0), nn.Parameter(torch.zeros(1))
    for norm in (1.0, 2.0, 3.0):
        p.grad = torch.tensor([norm])
        clip([p])
    assert cures.advise_clip(clip.record.norms).history.norms == (1.0, 2.0, 3.0)


def test_the_time_steps_of_a_spike_are_named():
    """A large input at step 6 and a loss that counts step 9 a thousand times: both steps are named first."""
    model = nn.RNN(2, 4)
    x = 0.01 * torch.randn(12, 3, 2)
    x[6] = 5.0
    weight = torch.ones(12, 1, 1)
    weight[9] = 1000.0
    with throughtime.capture(model) as captured:
        (weight * model(x)[0] ** 2).sum().backward()
    norms = [*ORDINARY[:50], 500.0]
    advice = cures.advise_clip(norms, captured={50: captured}, top=2)
    (spike,) = advice.made_by
    assert spike.training_step == 50
    assert spike.loss_steps[0] == 9 and spike.loss_shares[0] > 0.9
    shares = captured.recurrences[0].shares(norms=False).parameters["weight_hh"].by_past_step
    largest = shares.contribution.abs().argmax()
    assert spike.steps[0] == int(shares.at[largest])
    assert spike.shares[0] == pytest.approx(float(shares.contribution[largest]))
    assert spike.steps[0] in (7, 8, 9)  # what step 6 wrote is what U multiplies at step 7
    assert "training step 50" in str(advice) and "from the losses at 9" in str(advice)


def test_a_recurrence_that_the_loss_does_not_see_made_no_spike():
    used, idle = nn.RNN(2, 3), nn.RNN(2, 3)
    x = torch.randn(5, 2, 2)
    model = nn.ModuleList([used, idle])
    with throughtime.capture(model) as captured:
        y = used(x)[0]
        idle(x)
        y.sum().backward()
    assert len(cures.advise_clip([1.0], captured={0: captured}).made_by) == 1


def test_saved_and_read_again(tmp_path):
    advice = cures.advise_clip([*ORDINARY, 100.0])
    assert cures.ClipAdvice.load(advice.save(tmp_path / "advice")) == advice


def test_refusals():
    with pytest.raises(FlowError, match="no gradient norms"):
        cures.advise_clip([])
    with pytest.raises(ConfigError, match=r"captured has step 3; the history has steps 0\.\.1"):
        cures.advise_clip([1.0, 2.0], captured={3: throughtime.capture(nn.RNN(1, 1))})
