"""The data horizon where it is known: delayed copies, Markov chains with a closed form, shuffled text."""

import math

import pytest
import torch

from throughtime.diagnosis import dependence
from throughtime.errors import DataError
from throughtime.flow import Horizon


@pytest.mark.parametrize("delay", [0, 1, 7, 20])
def test_delayed_copy(delay):
    """y_t = x_{t-d}: all of x's entropy at lag d, none elsewhere, but for the stated chance of a false alarm."""
    right = 0
    for seed in range(8):
        x = torch.randint(0, 8, (3000,), generator=torch.Generator().manual_seed(seed))
        d = dependence(x, x.roll(delay), range(25), seed=seed)
        assert d.bits[delay] == pytest.approx(3, abs=0.02)
        right += d.horizon() == Horizon(delay, False)
    assert right >= 7


@pytest.mark.parametrize("m", [0.9, 0.6, -0.8])
def test_markov_chain_meets_the_closed_form(m):
    """Binary chain with second eigenvalue m: I(d) = 1 - H2((1 - m^d) / 2) bits."""
    gen = torch.Generator().manual_seed(1)
    flips = (torch.rand(300_000, generator=gen) < (1 - m) / 2).long()
    x = flips.cumsum(0) % 2
    d = dependence(x, x, range(1, 8), shuffles=10)
    for lag, bits in zip(d.lags, d.bits, strict=True):
        p = (1 - m**lag) / 2
        want = 1 + p * math.log2(p) + (1 - p) * math.log2(1 - p)
        assert bits == pytest.approx(want, abs=0.004)


def test_shuffled_text_holds_nothing():
    # 1 % is the stated chance of a false alarm over all lags: in 60 runs more than 4 are improbable (p < 0.001).
    text = torch.tensor(list(b"it was the best of times, it was the worst of times " * 40))
    alarms = 0
    for seed in range(60):
        mixed = text[torch.randperm(len(text), generator=torch.Generator().manual_seed(seed))]
        alarms += dependence(mixed[:-1], mixed[1:], range(0, 40, 4), shuffles=10, seed=seed).horizon().steps >= 0
    assert alarms <= 4


def test_text_depends_as_far_as_measured():
    text = torch.tensor(list(b"the cat sat on the mat and the dog sat on the log. " * 60))
    assert dependence(text[:-1], text[1:], range(20)).horizon() == Horizon(19, True)


def test_what_pairs_cannot_show():
    # A parity of two earlier bits: neither alone says anything, as the docstring warns.
    x = torch.randint(0, 2, (20000,))
    y = (x.roll(2) + x.roll(5)) % 2
    assert dependence(x, y, range(10)).horizon() == Horizon(-1, False)
    assert dependence(2 * x.roll(2) + x.roll(5), y, [0]).bits[0] == pytest.approx(1, abs=0.01)  # both together do


def test_unused_symbols_take_no_room():
    x = torch.randint(0, 3, (500,)) * 10**12
    assert dependence(x, x, [0]).bits[0] == pytest.approx(math.log2(3), abs=0.05)


REFUSED = {
    "one length": ([0, 1] * 100, [0, 1] * 99, [0]),
    "too few": ([0, 1] * 60, [0, 1] * 60, [50]),
    "lags must be": ([0, 1] * 100, [0, 1] * 100, []),
    "lags must be whole numbers >= 0": ([0, 1] * 100, [0, 1] * 100, [-1]),
    "inputs must be a sequence of whole": ([1j] * 200, [0] * 200, [0]),
    "targets must be": ([0] * 200, [-1] * 200, [0]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals(message):
    with pytest.raises(DataError, match=message):
        dependence(*REFUSED[message])


def test_interval_of_a_delayed_copy():
    """The copy is exact, so the interval is its delay; a decaying dependence has a wider one, round the horizon."""
    x = torch.randint(0, 4, (2000,))
    spans = [dependence(x, x.roll(6), range(12), seed=seed).interval for seed in range(5)]
    assert all(low == Horizon(6, False) for low, _ in spans)
    assert sum(high == Horizon(6, False) for _, high in spans) >= 3
    flips = (torch.rand(2000) < 0.1).long()
    chain = flips.cumsum(0) % 2
    found = dependence(chain, chain, range(1, 40))
    low, high = found.interval
    assert 2 < low.steps <= found.horizon().steps <= high.steps
    assert low.steps < high.steps
    assert dependence(chain, chain, [1], resamples=0).interval is None


def test_symbols_with_memory_need_the_shift_baseline():
    """Two independent Markov chains: shuffling takes their memory away and finds dependence that is not there."""
    alarms = {"shuffle": 0, "shift": 0}
    for seed in range(40):
        gen = torch.Generator().manual_seed(seed)
        x, y = ((torch.rand(600, generator=gen) < 0.05).long().cumsum(0) % 2 for _ in range(2))
        for baseline in alarms:
            found = dependence(x, y, range(0, 20, 4), shuffles=20, seed=seed, resamples=0, baseline=baseline)
            alarms[baseline] += found.horizon().steps >= 0
    assert alarms["shuffle"] >= 20
    assert alarms["shift"] <= 3


def test_prints_what_it_is():
    x = torch.randint(0, 4, (500,))
    text = str(dependence(x, x.roll(3), range(6)))
    assert "horizon 3 steps (95 %: 3" in text
    assert "bits" in text
    assert "no lag beyond chance" in str(dependence(x, torch.randint(0, 4, (500,)), [1, 2]))


def test_too_few_shuffles():
    with pytest.raises(DataError, match="5 shuffles"):
        dependence([0, 1] * 100, [0, 1] * 100, [0], shuffles=1)


def test_a_faint_relation_counts_only_if_it_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (60_000,), generator=generator)
    far = torch.roll(x, 9)
    y = torch.where(torch.rand(60_000, generator=generator) < 0.06, far, torch.roll(x, 2))
    faint, plain = dependence(x, y, range(14), fraction=0.01), dependence(x, y, range(14))
    assert plain.horizon().steps == 9 and plain.interval[0].steps >= 2
    assert faint.horizon().steps == 2 and faint.interval[0].steps == faint.interval[1].steps == 2
    assert faint.size == plain.size
    real = torch.randn(40, 80, 1, generator=generator)
    mixed = 0.15 * torch.roll(real, 9, 1) + torch.roll(real, 2, 1)
    assert dependence(real, mixed, range(14)).horizon().steps == 9
    assert dependence(real, mixed, range(14), fraction=0.05).horizon().steps == 2
    with pytest.raises(DataError, match="fraction"):
        dependence(x, y, range(3), fraction=1.5)
