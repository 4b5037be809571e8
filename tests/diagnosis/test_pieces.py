"""One long series: cut into pieces that lie apart, far inputs add what they add to sequences, and nothing by chance."""

import pytest
import torch

import throughtime as tt
from tests.diagnosis.nets import Net, mse
from throughtime.diagnosis.added import added
from throughtime.diagnosis.asked import measure_data, measure_given
from throughtime.diagnosis.pieces import LEAST, PIECES, TARGETS, pieces
from throughtime.diagnosis.sequences import Sequences, Unseen


def chain(n=6000, A=5, stay=0.9):
    """The last symbol again, or any: far symbols tell of the next one by the near ones only."""
    new, anew = torch.randint(A, (n + 1,)), torch.rand(n + 1) > stay
    x = new[torch.where(anew, torch.arange(n + 1), 0).cummax(0).values]
    return x[:-1], x[1:]


def delayed(d, n=6000, A=5):
    x = torch.randint(A, (n + d,))
    return x[d:], x[:n]


def autoregressive(n=3000, rho=0.9):
    x = torch.zeros(n + 1, 1, dtype=torch.float64)
    for t in range(1, n + 1):
        x[t] = rho * x[t - 1] + torch.randn(1)
    return x[:-1], x[1:]


@pytest.mark.parametrize(("n", "far"), [(20_000, 10), (20_000, 200), (1300, 30), (1000, 17)])
def test_no_step_is_in_two_pieces(n, far):
    x = torch.arange(n)
    cut = pieces(x, x + 1, far)
    assert cut.form == "each" and torch.equal(cut.y, cut.x + 1)
    assert (cut.x.diff(dim=1) == 1).all() and cut.x.unique().numel() == cut.x.numel()
    N, length = cut.x.shape
    assert 20 <= N <= PIECES and far + LEAST <= length <= far + TARGETS
    assert cut.x[0, 0] == 0 and cut.x[-1, -1] == n - 1, "they are spread over the whole"


def test_too_short_a_series_gives_none():
    x = torch.arange(500)
    assert pieces(x, x, 10) is None and pieces(x[:5], x[:5], 1) is None


def test_what_nearer_inputs_say_as_well_adds_nothing():
    for x, y in (chain(), autoregressive()):
        assert added(pieces(x, y, 20), 6, 20) < 0.01


def test_a_delay_in_one_series_adds_all_at_its_lag():
    x, y = delayed(20)
    assert added(pieces(x, y, 20), 6, 20) > 0.9
    assert added(pieces(x, y, 19), 6, 19) < 0.01, "the input that matters lies farther back"
    x = torch.randn(3020, 1, dtype=torch.float64)
    assert added(pieces(x[20:], x[:3000], 20), 6, 20) > 0.5


def test_chance_is_held_against_whole_pieces():
    """Slow series that have nothing to do with each other look alike within a piece: exchanging single steps would
    take that for a dependency."""
    found = []
    for seed in range(8):
        torch.manual_seed(seed)
        (x, _), (y, _) = autoregressive(2000, 0.97), autoregressive(2000, 0.97)
        found.append(added(pieces(x, y, 12), 4, 12))
    assert sum(v is not None and v > 0 for v in found) <= 1, found


def test_second_order_is_near():
    """The next symbol is made of the last two, together: no sum over single ones says it."""
    x = [0, 1]
    noise = (torch.rand(6000) < 0.1).tolist()
    for t in range(2, 6000):
        x.append((x[-1] ^ x[-2]) ^ noise[t])
    v = torch.tensor(x)
    cut = pieces(v[:-1], v[1:], 12)
    assert added(cut, 4, 12) < 0.01 and added(cut, 0, 12) is not None


@pytest.mark.parametrize("given", ["series", "few sequences", "data"])
def test_a_network_that_contracts_is_no_fault_where_near_inputs_say_it(given):
    x, y = chain(6000)
    A = 5
    net = Net(D=A, K=A)
    with torch.no_grad():
        net.rnn.weight_hh_l0.mul_(0.3)
    hot = torch.eye(A)[x].view(4, -1, A).transpose(0, 1), y.view(4, -1).T
    short = tuple(v[:60] for v in hot)
    asked = measure_given(x, y) if given == "data" else measure_data([Sequences(x.view(4, -1), y.view(4, -1), "each")])
    assert asked.pairs.horizon().steps > 5 and asked.added(3, asked.pairs.horizon().steps) < 0.01
    loss = torch.nn.functional.cross_entropy
    d = tt.diagnose(net, short, lambda out, t: loss(out.flatten(0, 1), t.flatten()), data=(x, y))
    assert d.case == "nearer" and d.horizons.added < 0.01, d
    copied = delayed(20)
    d = tt.diagnose(net, short, lambda out, t: loss(out.flatten(0, 1), t.flatten()), data=copied)
    assert d.case == "vanishes" and d.horizons.added > 0.5, d


def test_real_numbers_in_one_series():
    x, y = autoregressive(1600)
    net = Net()
    with torch.no_grad():
        net.rnn.weight_hh_l0.mul_(0.3)
    windows = tuple(v[:600].view(10, 60, 1).transpose(0, 1).float() for v in (x, y))
    d = tt.diagnose(net, windows, mse, data=(x, y))
    assert d.case in ("nearer", "no memory") and d.healthy, d


def test_a_series_that_repeats_itself_is_not_said_to_hold_nothing():
    """Moved by any distance it looks as dependent as it is: nothing is beyond chance, and nothing is known."""
    x = torch.sin(6.283185307 * torch.arange(1501.0) / 20)[:, None].double()
    with pytest.raises(Unseen, match="the series is periodic"):
        measure_given(x[:-1], x[1:])
    d = tt.diagnose(Net(), tuple(v[:600].view(10, 60, 1).transpose(0, 1).float() for v in (x, x.roll(-1, 0))), mse,
                    data=(x[:-1], x[1:]))  # fmt: skip
    assert d.horizons.data is None and any("the series is periodic" in note for note in d.notes), d
