"""The profile over lags from a few anchors: exact where it is whole, right within its errors where it is not."""

import math

import pytest
import torch
from torch import nn

from throughtime import flow
from throughtime.errors import FlowError
from throughtime.flow import LagProfile, lag_profile

T, B, D, H = 48, 6, 3, 8


def captured(module, loss, x=None, steps=T):
    x = torch.randn(steps, B, D) if x is None else x
    with flow.capture(module) as found:
        loss(module(x)[0]).backward()
    return found


def weighted(y):
    return (y * torch.randn_like(y)).sum()


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "stack", "reverse", "cell"])
def test_all_loss_steps_and_sequences_give_the_exact_profile(kind):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(D, H)

        def forward(self, x):
            state, out = None, []
            for v in x:
                state = self.cell(v, state)
                out.append(state[0])
            return torch.stack(out), state

    module = {
        "LSTM": lambda: nn.LSTM(D, H),
        "GRU": lambda: nn.GRU(D, H),
        "stack": lambda: nn.LSTM(D, H, 3),
        "reverse": lambda: nn.GRU(D, H, 2, bidirectional=True),
        "cell": Loop,
    }[kind]()
    found = captured(module, weighted, steps=12)
    for n, one in enumerate(found.recurrences):
        want = found.flow(n)
        got = lag_profile(one, anchors=12, samples=None, dtype=torch.float64)
        assert got.estimated is None and got.anchors == tuple(range(12)) and got.samples == got.batch == B
        assert (got.cell, got.layer, got.reverse) == (want.cell, want.layer, want.reverse)
        for of in want.maps:
            torch.testing.assert_close(got.profile(of), want.profile(of), rtol=1e-9, atol=1e-12)
            assert (got.errors[of] == 0).all()
            assert got.horizon(of) == want.horizon(of) and got.half_life(of) == pytest.approx(want.half_life(of))
        near = lag_profile(one, anchors=12, samples=None)
        torch.testing.assert_close(near.profile(), got.profile(), rtol=1e-4, atol=1e-7)
        assert not torch.equal(near.profile(), got.profile()), "float32 is the default"


@pytest.mark.parametrize(("samples", "least"), [(None, 0.9), (3, 0.8)])
def test_the_errors_tell_how_far_off_it_is(samples, least):
    """Within two standard errors in most draws; and on the mean of the draws, so that it is nearly unbiased."""
    found = captured(nn.GRU(D, H), weighted)
    exact = found.flow().profile("z")
    near, total = [], torch.zeros(12, dtype=torch.float64)
    draws = 60
    for seed in range(draws):
        got = lag_profile(found.recurrences[0], anchors=12, samples=samples, seed=seed)
        assert len(got.anchors) == 12
        off = (got.profile()[1:12] - exact[1:12]).abs()
        near.append(off <= 2 * got.errors["z"][1:12])
        total += got.profile()[:12]
    share = torch.stack(near).double().mean()
    assert least < share < 0.995, f"{share:.3f} of the true values lie within two errors"
    torch.testing.assert_close(total / draws, exact[:12], rtol=0.08, atol=0)


def test_the_error_falls_with_more_anchors():
    found = captured(nn.GRU(D, H), weighted).recurrences[0]
    few, many = (
        torch.stack([lag_profile(found, anchors=n, samples=None, seed=s).errors["z"][1:9] for s in range(8)]).mean(0)
        for n in (6, 36)
    )
    assert (many < few / 2).all()


def test_it_says_from_what_it_is_estimated(tmp_path):
    got = lag_profile(captured(nn.GRU(D, H), weighted).recurrences[0], anchors=6, samples=2)
    assert got.estimated == "6 of 48 loss steps and 2 of 6 sequences"
    assert "estimated from 6 of 48 loss steps and 2 of 6 sequences" in str(got)
    assert max(got.anchors) >= T - T // 3, "the last stretch has its anchors: those look back farthest"
    assert math.isnan(got.errors["z"][-1]), "one anchor alone has no error"
    low, high = got.interval()
    assert low.steps <= got.horizon().steps <= high.steps and low.steps < high.steps
    again = LagProfile.load(got.save(tmp_path / "profile"))
    assert str(again) == str(got) and torch.equal(again.profile("h"), got.profile("h"))
    assert "<svg" in got._repr_html_() and "<script" not in got._repr_html_()


def test_the_same_seed_draws_the_same():
    one = captured(nn.GRU(D, H), weighted).recurrences[0]
    a, b, c = (lag_profile(one, anchors=6, samples=2, seed=s) for s in (1, 1, 2))
    assert a.anchors == b.anchors != c.anchors
    assert torch.equal(a.profile(), b.profile()) and not torch.equal(a.profile()[:9], c.profile()[:9])


def test_one_loss_at_the_end_is_followed_exactly():
    found = captured(nn.LSTM(D, H), lambda y: y[-1].square().sum())
    got = lag_profile(found.recurrences[0], samples=None)
    assert got.estimated is None and got.anchors == (T - 1,)
    torch.testing.assert_close(got.profile("c"), found.flow().profile("c"), rtol=1e-4, atol=1e-9)


def test_a_module_of_ones_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = Step()

        def forward(self, x):
            h, out = torch.zeros(B, H), []
            for v in x:
                h = self.step(v, h)
                out.append(h)
            return torch.stack(out), h

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.W, self.U = nn.Linear(D, H), nn.Linear(H, H)

        def forward(self, x, h):
            return torch.tanh(self.W(x) + self.U(h))

    found = captured(Own(), weighted, steps=16)
    want = found.flow()
    got = lag_profile(found.recurrences[0], anchors=16)
    torch.testing.assert_close(got.profile(), want.profile(), rtol=1e-9, atol=1e-12)
    some = lag_profile(found.recurrences[0], anchors=6)
    assert some.estimated == "6 of 16 loss steps" and len(some.anchors) == 6


def test_sequences_without_a_loss():
    def only_the_first(y):
        return y[:, 0].square().sum()

    one = captured(nn.LSTM(D, H), only_the_first).recurrences[0]
    told = set()
    for seed in range(6):
        try:
            lag_profile(one, samples=2, seed=seed)
        except FlowError as error:
            told.add(str(error))
    assert told == {"LSTM, call 0: no gradient enters the 2 sequences that were drawn"}


@pytest.mark.parametrize("options", [{"anchors": 1}, {"samples": 1}, {"anchors": True}, {"samples": 2.0}], ids=str)
def test_sizes_without_an_error_bar_are_refused(options):
    one = captured(nn.GRU(D, H), weighted).recurrences[0]
    with pytest.raises(FlowError, match="at least 2, for one alone has no error bar"):
        lag_profile(one, **options)


@pytest.mark.parametrize(("batch", "want"), [(2, 2), (3, 2), (4, 2), (7, 3), (8, 4), (30, 4)])
def test_few_sequences_are_half_of_a_small_batch_and_four_of_a_large_one(batch, want):
    found = captured(nn.GRU(D, H), weighted, torch.randn(12, batch, D)).recurrences[0]
    got = lag_profile(found)
    assert (got.samples, got.batch) == (want, batch)
    assert str(got) == str(lag_profile(found, samples=want)) == str(lag_profile(found, samples="few"))
    with pytest.raises(FlowError, match="samples must be a whole number of at least 2"):
        lag_profile(found, samples="many")


def test_it_says_what_it_misses_of_a_small_batch():
    """Half of four sequences are followed: the errors must hold what the other half would have told."""
    near = []
    for seed in range(4):
        torch.manual_seed(seed)
        found = captured(nn.GRU(D, H), weighted, torch.randn(T, 4, D))
        exact = found.flow().profile("z")[1:12]
        for draw in range(12):
            got = lag_profile(found.recurrences[0], seed=draw)
            near.append((got.profile()[1:12] - exact).abs() <= 2 * got.errors["z"][1:12])
    share = torch.stack(near).double().mean()
    assert 0.8 < share < 0.995, f"{share:.3f} of the true values lie within two errors"
