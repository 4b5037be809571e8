"""Time constants, growth and fullness of memories against closed forms."""

import math

import pytest
import torch

from tests.engine.problems import F64
from tests.flow.runs import of_module, ran
from tests.flow.test_gates import Lerp, biased_lstm
from throughtime import cells, nn
from throughtime.errors import FlowError
from throughtime.flow.memory import memory_statistics


def test_time_constant_of_a_fixed_forget_gate():
    found = memory_statistics(biased_lstm(0.0, [5.0, 1.0, 0.0], 0.0))
    f = torch.tensor([5.0, 1.0, 0.0], dtype=F64).sigmoid()
    torch.testing.assert_close(found.tau, -1 / f.log())
    torch.testing.assert_close(found.half_life, math.log(0.5) / f.log())
    assert found.tau[0].item() == pytest.approx(148.9, abs=0.05)
    assert found.half_life[2].item() == pytest.approx(1.0)  # half is left after one step


def test_the_mean_is_that_of_the_logarithms():
    """What is left after all steps, prod f, is exp(-T / tau) of each unit, exactly; the mean of f does not give it."""
    r = ran("lstm", T=30, B=1, H=4, scale=1.5)
    found = memory_statistics(r)
    f = r.net_inputs["f"].sigmoid()[:, 0]
    torch.testing.assert_close((-30 / found.tau).exp(), f.prod(0))
    assert ((-1 / f.mean(0).log()) > 1.02 * found.tau).all()


def test_nothing_forgotten_and_all_forgotten():
    r = ran("additive-memory", T=10)
    found = memory_statistics(r)
    assert found.state == "c" and found.tau.isinf().all() and found.half_life.isinf().all()
    shut = memory_statistics(biased_lstm(0.0, -800.0, 0.0))  # sigmoid(-800) is 0 in float64
    assert (shut.tau == 0).all()


def test_gru_and_its_other_spelling():
    assert memory_statistics(ran("gru")).state == "h"
    r = of_module(nn.Recurrent(Lerp(), 2, 3), torch.randn(20, 2, 2))
    u = r.net_inputs["u"].sigmoid()
    torch.testing.assert_close(memory_statistics(r).tau, -1 / (1 - u).log().mean((0, 1)))
    assert memory_statistics(r).full is None


def additive(x):
    module = nn.Recurrent(cells.AdditiveMemory("identity"), 1, 1, bias=False).double()
    with torch.no_grad():
        module.weight_ih_l0.fill_(1.0)
    return of_module(module, x)


def test_memory_without_bound_grows_and_fills():
    found = memory_statistics(additive(torch.ones(40, 1, 1)))
    torch.testing.assert_close(found.size, torch.arange(1, 41, dtype=F64))
    assert found.growth == pytest.approx(1.0, abs=1e-9)
    assert found.full[:3].tolist() == [0, 1, 1]  # tanh(1) = 0.76, tanh(2) = 0.964
    assert "still growing, as t^1.00" in str(
        found
    ) and "full (|tanh(c)| > 0.95): 0% of the units at first, 100%" in str(found)


def test_a_random_walk_grows_as_the_root_of_time():
    """4000 walks: mean |c| is known to 1 % at each step, and p to a few hundredths."""
    found = memory_statistics(additive(torch.randn(64, 4000, 1)))
    assert found.growth == pytest.approx(0.5, abs=0.05)
    assert found.size[-1].item() == pytest.approx(math.sqrt(2 * 64 / math.pi), rel=0.05)


def test_an_lstm_levels_off():
    found = memory_statistics(ran("lstm", T=60, B=8))
    assert abs(found.growth) < 0.25 and "levelled off" in str(found)


def test_padding_and_direction():
    r = ran("lstm", T=6, B=2, lengths=[6, 2], reverse=True)
    found = memory_statistics(r)
    c = r.sequences[1].abs()
    want = torch.stack([c[t, : 2 if t < 2 else 1].mean() for t in range(5, -1, -1)])  # as it ran, from the end
    torch.testing.assert_close(found.size, want)
    f = r.net_inputs["f"].sigmoid().log()
    torch.testing.assert_close(found.log_factor, torch.cat([f[:, 0], f[:2, 1]]).mean(0))


def test_steps_that_no_sequence_has():
    r = ran("gru", T=6, B=2, lengths=[4, 2])
    found = memory_statistics(r)
    assert found.size.isnan().tolist() == [False] * 4 + [True] * 2
    assert math.isnan(found.growth) and "too little to say" in str(found)


def test_refusals():
    with pytest.raises(FlowError, match=r"Simple \(tanh\) has no memory"):
        memory_statistics(ran("rnn"))
    with pytest.raises(FlowError, match="'h' is not a memory of LSTM; it has c"):
        memory_statistics(ran("lstm"), "h")
