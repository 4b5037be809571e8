"""Each finding speaks for its own remedies, and a model of which nothing was found for none."""

import math
import os
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime import cures
from throughtime import nn as ttnn
from throughtime.cures.prescribe_choice import Chosen, choose
from throughtime.cures.prescribe_result import Outcome
from throughtime.cures.prescribe_trial import Trial
from throughtime.diagnosis import Horizons
from throughtime.errors import ThroughtimeError
from throughtime.flow import Horizon

BY_NORM = (1.0, 1.5, 2.0)


def nothing(losses=(1.0, 0.9, 0.8), norms=BY_NORM, end=0.7, broken=None):
    trial = Trial("nothing", 0, 1.0, math.inf if broken is not None else end, losses=losses, norms=norms, broken=broken)
    return Outcome(cures.Candidate(()), (trial, replace(trial, seed=1), replace(trial, seed=2)))


def diagnosed(model, x=None, **options):
    x = torch.randn(12, 16, 3) if x is None else x
    return tt.diagnose(model, x, lambda out: out[0].square().mean(), **options)


def remedies(model, diagnosis, outcome=None):
    return [c.remedies for c in choose(model, diagnosis, outcome or nothing()).candidates]


def with_horizons(diagnosis, gradient, data, case):
    h = Horizons(Horizon(*data), Horizon(*gradient))
    return replace(diagnosis, horizons=h, case=case, findings=())


def test_for_a_sound_model_nothing_is_chosen():
    model = nn.LSTM(3, 8)
    cures.chrono_(model, 12)
    diagnosis = with_horizons(diagnosed(model), (11, True), (5, False), "healthy")
    assert choose(model, diagnosis, nothing()) == Chosen((), ())


@pytest.mark.parametrize("case", ["no dependency", "no memory"])
def test_a_gradient_that_vanishes_where_nothing_is_to_be_remembered_is_left_alone(case):
    model = nn.RNN(3, 8)
    lag = -1 if case == "no dependency" else 0
    assert remedies(model, with_horizons(diagnosed(model), (3, False), (lag, False), case)) == []


def test_a_gated_network_that_falls_short_gets_biases_for_the_lag():
    model = nn.ModuleDict({"rnn": nn.GRU(3, 8)})
    diagnosis = diagnosed(model["rnn"])
    found = remedies(model, with_horizons(diagnosis, (3, False), (40, False), "vanishes"))
    assert found == [(cures.GateBias(3.7, at="rnn"),), (cures.Chrono(41, "rnn"),)]  # ln 40 = 3.69


def test_a_gradient_that_explodes():
    model = nn.RNN(3, 8, nonlinearity="relu")
    with torch.no_grad():
        model.weight_hh_l0.copy_(3 * torch.eye(8))
    diagnosis = diagnosed(model)
    assert diagnosis.case == "explodes"
    found = choose(model, diagnosis, nothing()).candidates
    assert [c.remedies for c in found] == [(cures.Clip(1.5),), (cures.SpectralRadius(1.0),), (cures.Orthogonal(),)]
    assert "spectral radius 3.00" in found[1].reason and "grows to" in found[0].reason


def test_a_gate_that_lets_nothing_in():
    model = nn.LSTM(3, 8)
    cures.chrono_(model, 12)
    with torch.no_grad():
        model.bias_ih_l0[:8] = -30.0
    found = remedies(model, diagnosed(model))
    assert (cures.GateBias(0.0, "i"),) in found


def test_steps_that_are_too_short():
    model = nn.LSTM(3, 8)
    cures.chrono_(model, 12)
    diagnosis = with_horizons(d := diagnosed(model, optimiser=1e-12), (11, True), (5, False), "faulty")
    found = choose(model, replace(diagnosis, findings=d.findings), nothing()).candidates
    (faster,) = [c for c in found if isinstance(c.remedies[0], cures.LearningRate)]
    assert faster.remedies[0].factor == 1e3 and "of their size only" in faster.reason


def test_steps_that_are_too_long_are_shortened_in_stages():
    model = nn.LSTM(3, 8)
    cures.chrono_(model, 12)
    found = choose(model, diagnosed(model, optimiser=1e4), nothing()).candidates
    factors = [c.remedies[0].factor for c in found if isinstance(c.remedies[0], cures.LearningRate)]
    assert factors[0] == 0.1 and factors == sorted(factors, reverse=True) and len(factors) >= 3


@pytest.mark.parametrize(
    "outcome, reason",
    [
        (nothing(losses=(1.0, 0.9, math.nan), norms=(1.0, 1.2, math.nan), broken=2), "training broke in 3 of 3 runs"),
        (nothing(losses=(1.0, 50.0, 0.5)), "the loss leapt to 50 times its start"),
        (nothing(end=1.4), "the loss ended higher than it began in 3 of 3 runs"),
    ],
)
def test_training_that_does_not_hold(outcome, reason):
    model = nn.LSTM(3, 8)
    cures.chrono_(model, 12)
    diagnosis = with_horizons(diagnosed(model), (11, True), (5, False), "healthy")
    found = choose(model, diagnosis, outcome).candidates
    assert [type(c.remedies[0]) for c in found] == [cures.LearningRate, cures.Clip]
    assert all(reason in c.reason for c in found)


def test_the_clip_threshold_is_the_advisors_by_the_steps_before_the_harm():
    ordinary = tuple(1.0 + 0.01 * n for n in range(30))
    outcome = nothing(losses=(1.0,) * 31 + (90.0, 80.0), norms=(*ordinary, 40.0, 1e6, 1e6))
    model = nn.LSTM(3, 8)
    cures.chrono_(model, 12)
    diagnosis = with_horizons(diagnosed(model), (11, True), (5, False), "healthy")
    (clip,) = [c for c in choose(model, diagnosis, outcome).candidates if isinstance(c.remedies[0], cures.Clip)]
    assert clip.remedies[0].max_norm == 1.3  # the largest that does not stand out, 1.29; the 1e6 came after the harm
    assert "3 gradient norms stand out above 1.29" in clip.reason


def test_units_that_are_saturated():
    model = nn.RNN(3, 8)
    with torch.no_grad():
        model.weight_hh_l0.mul_(80)
        model.weight_ih_l0.mul_(80)
    found = remedies(model, diagnosed(model))
    assert (cures.SpectralRadius(1.0),) in found and (cures.Orthogonal(),) in found


def test_a_memory_that_is_full_gets_a_gate_to_forget_with():
    model = ttnn.LSTM1997(3, 8)
    with torch.no_grad():
        model.bias_ih_l0.fill_(4.0)
    diagnosis = diagnosed(model)
    assert diagnosis.has("memory-full")
    assert (cures.SwapCell("lstm"),) in remedies(model, diagnosis)


def test_what_no_remedy_can_cure_is_advice():
    model = nn.LSTM(3, 8)
    diagnosis = with_horizons(diagnosed(model), (11, True), (30, False), "window")
    chosen = choose(model, diagnosis, nothing())
    assert chosen.candidates == () and "windows of more than 30 steps" in chosen.advice[0]
    axis = diagnosed(nn.LSTM(3, 8, batch_first=True), torch.randn(16, 12, 3), batch_axis=1)
    chosen = choose(model, axis, nothing())
    assert any("batch_first" in a for a in chosen.advice)


@dataclass(frozen=True)
class Dies(cures.Remedy):
    """A remedy of the user's own, in which the process ends."""

    @property
    def name(self):
        return "dies"

    def apply(self, to):
        os._exit(3)


def test_a_process_that_dies_is_said():
    model = nn.GRU(2, 3)
    with pytest.raises(ThroughtimeError, match="ended of itself"):
        tt.prescribe(
            model, torch.randn(6, 4, 2), lambda out: out[0].square().mean(), 0.1, steps=2, seeds=3,
            candidates=[cures.Candidate((Dies(),))],
        )  # fmt: skip
