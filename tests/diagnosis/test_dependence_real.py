"""The data horizon of real numbers, and of sequences with a label: known delays, closed forms, false alarms counted."""

import math

import pytest
import torch

from throughtime.diagnosis import dependence
from throughtime.diagnosis.kernel import WIDTH, features, normal_scores
from throughtime.errors import DataError
from throughtime.flow import Horizon

RELATIONS = {
    "linear": lambda x: -3 * x + 1,
    "squared": torch.square,
    "sine": lambda x: torch.sin(2 * x),
    "sign": torch.sign,
}


def ar1(phi, T, seed):
    """x_t = phi x_{t-1} + noise, stationary."""
    noise = torch.randn(T + 200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    x, out = 0.0, []
    for e in noise:
        x = phi * x + e
        out.append(x)
    return torch.tensor(out[200:])


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("delay", [0, 5])
def test_delayed_function(relation, delay):
    x = torch.randn(600)
    found = dependence(x, RELATIONS[relation](x).roll(delay), range(10))
    assert found.horizon() == Horizon(delay, False)
    assert found.interval[0] == Horizon(delay, False)


def test_delayed_copy_over_seeds():
    right = sharp = 0
    for seed in range(15):
        x = torch.randn(400, generator=torch.Generator().manual_seed(seed))
        found = dependence(x, x.roll(4) ** 2, range(0, 10, 2), shuffles=30, seed=seed)
        right += found.horizon() == Horizon(4, False)
        sharp += found.interval == (Horizon(4, False), Horizon(4, False))
    assert right >= 14
    assert sharp >= 11


def test_several_dimensions():
    """One of three inputs, through its square, into one of two targets."""
    x = torch.randn(800, 3)
    y = torch.stack([x[:, 1].square().roll(3), torch.randn(800)], 1)
    assert dependence(x, y, range(8)).horizon() == Horizon(3, False)


def closed_form(r, width):
    """||Cov||^2 of the Gaussian kernel's features, normalised, for two standard normals of correlation r.

    E k k = det(I + S/w^2)^(-1/2), S the covariance of the differences of two pairs, or of two that share one point.
    """

    def det(a, b):
        return ((1 + a / width**2) ** 2 - (b / width**2) ** 2) ** -0.5

    def size(r):
        return det(2, 2 * r) - 2 * det(2, r) + 1 / (1 + 2 / width**2)

    return size(r) / size(1)


@pytest.mark.parametrize("r", [0.3, 0.7, 0.95])
def test_gaussian_pairs_meet_the_closed_form(r):
    gen = torch.Generator().manual_seed(3)
    x, e = torch.randn(2, 8000, generator=gen, dtype=torch.float64)
    y = r * x + math.sqrt(1 - r * r) * e
    found = dependence(x, y, [0], resamples=0)
    assert found.size[0] == pytest.approx(closed_form(r, WIDTH), rel=0.1)
    assert found.unit == "of 1"


def test_features_are_the_kernel():
    v = torch.randn(300, 1, dtype=torch.float64)
    z = normal_scores(v[:, 0])
    phi = features(v, 0)
    near = (z[:, None] - z).abs() < 2.5
    want = torch.exp(-((z[:, None] - z) ** 2) / (2 * WIDTH**2))
    torch.testing.assert_close((phi @ phi.T)[near], want[near], rtol=0, atol=2e-5)


def test_increasing_maps_change_nothing_and_outliers_do_not_rule():
    x = torch.randn(500, dtype=torch.float64)
    y = x.roll(2) + torch.randn(500)
    plain = dependence(x, y, range(5), resamples=0)
    assert dependence(x.exp(), y**3, range(5), resamples=0) == plain
    x[7] = 1e12
    assert dependence(x, y, range(5), resamples=0).horizon() == plain.horizon()


@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_false_alarms_of_independent_series(phi):
    """1 % is stated, over all lags; with memory in both series too. More than 3 in 40: p < 0.001."""
    alarms = sum(
        dependence(
            ar1(phi, 400, 2 * seed), ar1(phi, 400, 2 * seed + 1), range(0, 12, 2), shuffles=30, seed=seed, resamples=0
        ).horizon().steps
        >= 0
        for seed in range(40)
    )  # fmt: skip
    assert alarms <= 3


def test_a_shuffled_baseline_is_fooled_by_memory():
    alarms = 0
    for seed in range(10):
        x, y = ar1(0.95, 400, 2 * seed), ar1(0.95, 400, 2 * seed + 1)
        found = dependence(x, y, range(0, 12, 2), shuffles=30, seed=seed, resamples=0, baseline="shuffle")
        alarms += found.horizon().steps >= 0
    assert alarms >= 6


def test_shuffled_series_holds_nothing():
    x = ar1(0.9, 600, 1)
    mixed = x[torch.randperm(600)]
    assert dependence(mixed[:-1], mixed[1:], range(10)).horizon() == Horizon(-1, False)


def test_what_a_nearer_input_says_is_counted_again():
    """AR(1): the last step is all there is to know, and yet earlier ones are dependent, as the docstring warns."""
    x = ar1(0.9, 2000, 5)
    assert dependence(x[:-1], x[1:], range(10), resamples=0).horizon().steps > 4


def test_periodic_series_is_said_to_be_beyond_one_series():
    x = torch.sin(torch.arange(1000) * 0.2)
    found = dependence(x[:-1], x[1:], range(10), resamples=0)
    assert "periodic" in found.notes[0]
    assert "periodic" in str(found)
    assert not dependence(torch.randn(500), torch.randn(500), [0], resamples=0).notes


@pytest.mark.slow
def test_the_interval_covers():
    """y_t = sum of the last inputs with falling weights. At 3 steps back the mean dependence over many such series is
    1.5 times the threshold, at 4 it is 0.7 times: the interval of each series is to hold 3 (94 of 100 did)."""
    weights = 0.7 ** torch.arange(16)

    def series(T, seed):
        x = torch.randn(T + 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return x[16:], sum(w * x[16 - d : 16 - d + T] for d, w in enumerate(weights))

    found = [dependence(*series(400, seed), range(12), shuffles=30, seed=seed, resamples=60) for seed in range(12)]
    assert sum(f.interval[0].steps <= 3 <= f.interval[1].steps for f in found) >= 10
    assert sum(f.interval[1].steps > 7 for f in found) <= 4


def sequences(N, T, D=2, seed=0):
    return torch.randn(N, T, D, generator=torch.Generator().manual_seed(seed))


def test_label_at_the_end():
    """The label is a class, by one input 6 steps before the last: lag 6, and no other."""
    x = sequences(300, 12)
    y = (x[:, 5, 0] > 0).long()
    assert dependence(x, y, range(12)).horizon() == Horizon(6, False)
    value = x[:, 5, 1].square()
    assert dependence(x, value, range(12)).horizon() == Horizon(6, False)
    symbols = torch.randint(0, 90, (400, 8))  # more than have features of their own
    assert dependence(symbols, symbols[:, 3].float(), range(8)).horizon() == Horizon(4, False)


def test_target_at_each_step_of_sequences():
    x = sequences(60, 30, 1)
    y = x.roll(4, 1) ** 2
    assert dependence(x, y, range(8)).horizon() == Horizon(4, False)
    symbols = torch.randint(0, 3, (60, 30))
    assert dependence(symbols, symbols.roll(2, 1), range(6)).horizon() == Horizon(2, False)


def test_sequences_of_sines_are_told():
    """What one sine cannot tell, many of different phase can."""
    phase = torch.rand(60, 1, 1) * 6.28
    x = torch.sin(torch.arange(40)[:, None] * 0.2 + phase)
    assert dependence(x[:, :-1], x[:, 1:], range(6), resamples=0).horizon() == Horizon(5, True)


@pytest.mark.slow
def test_false_alarms_of_labels():
    alarms = sum(
        dependence(sequences(80, 10, 1, seed), torch.arange(80) % 3, range(10), shuffles=30, seed=seed, resamples=0)
        .horizon()
        .steps
        >= 0
        for seed in range(50)
    )
    assert alarms <= 3


def test_an_input_that_is_constant_at_some_steps():
    x = sequences(100, 8, 1)
    x[:, 4:] = 0  # blanks at the end, as in the copy task
    assert dependence(x, x[:, 2, 0], range(8)).horizon() == Horizon(5, False)


def test_adding_task():
    """The sum of two marked numbers: any one lag matters in one of 10 sequences, and all of them do."""
    N, T = 6000, 20
    value, mark = torch.rand(N, T), torch.zeros(N, T)
    mark[torch.arange(N), torch.randint(0, T // 2, (N,))] = 1
    mark[torch.arange(N), torch.randint(T // 2, T, (N,))] = 1
    found = dependence(torch.stack([value, mark], -1), (value * mark).sum(1), [0, 10, 19], resamples=0)
    assert found.horizon() == Horizon(19, True)
    assert min(found.size) > found.threshold


def test_symbols_to_reals():
    x = torch.randint(0, 5, (800,))
    assert dependence(x, (x.roll(3) % 2).float(), range(6)).horizon() == Horizon(3, False)


REFUSED = {
    "NaN": (torch.full((200,), math.nan), torch.randn(200), [0]),
    "inputs are the same at every step": (torch.ones(200), torch.randn(200), [0]),
    "targets are the same": (torch.randn(200), torch.ones(200), [0]),
    "one length": (torch.randn(200), torch.randn(199), [0]),
    "too few": (torch.randn(120), torch.randn(120), [30]),
    "too few to shift": (torch.randn(200), torch.randn(200), [60]),
    "come to one series|inputs of one series": (torch.randn(200), torch.zeros(200, 2).long(), [0]),
    "need 30 targets": (torch.randn(30, 9, 1), torch.randn(29), [0]),
    "at least 20 sequences": (torch.randn(9, 30, 1), torch.randn(9), [0]),
    "have no lag of 9": (torch.randn(30, 9, 1), torch.randn(30), [9]),
    r"Give \[N, T, 1\]": (torch.randn(30, 9, 1), torch.randn(30, 9), [0]),
    "9 and 8 steps": (torch.randn(30, 9, 1), torch.randn(30, 8, 1), [0]),
    "came torch.float32": (torch.randn(3, 3, 3, 3), torch.randn(3), [0]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    with pytest.raises(DataError, match=message):
        dependence(*REFUSED[message])


def test_other_refusals():
    x = torch.randn(300)
    with pytest.raises(DataError, match="baseline"):
        dependence(x, x, [0], baseline="other")
    with pytest.raises(DataError, match="20 shuffles"):
        dependence(x, x, [0], shuffles=10)
    with pytest.raises(DataError, match="for one series"):
        dependence(torch.randn(30, 9, 1), torch.randn(30), [0], baseline="shift")
    with pytest.raises(DataError, match="has no bits"):
        _ = dependence(x, x, [0], resamples=0).bits
