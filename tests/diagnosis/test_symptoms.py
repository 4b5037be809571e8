"""Each symptom is told where it was planted, and nowhere else."""

import pytest
import torch

import throughtime as tt
from tests.diagnosis.nets import Net, mse, planted
from throughtime.diagnosis.finding import Where
from throughtime.diagnosis.measured import Measured
from throughtime.diagnosis.symptoms import growth, of_recurrence
from throughtime.flow.figure import block_row, blocks

H = 16


def diagnosed(net, x=None):
    x = torch.randn(20, 32, 1) if x is None else x
    return tt.diagnose(net, (x, torch.roll(x, 3, 0)), mse)


@pytest.mark.parametrize(
    ("gate", "bias", "code"),
    [("i", -12.0, "gate-shut"), ("f", -12.0, "gate-shut"), ("o", 12.0, "gate-stuck-open"), ("o", -12.0, "gate-shut")],
)
def test_gates_that_do_not_act(gate, bias, code):
    net = Net("LSTM", H=H)
    k = "ifgo".index(gate)
    with torch.no_grad():
        net.rnn.bias_ih_l0[k * H : (k + 1) * H] = bias
    d = diagnosed(net)
    found = next(f for f in d.findings if f.code == code)
    assert f"gate {gate} " in found.what and "16 of 16" in found.what and found.do and found.number == 1
    assert not diagnosed(Net("LSTM", H=H)).has(code)


def test_a_forget_gate_that_is_open_is_no_fault():
    net = Net("LSTM", H=H)
    with torch.no_grad():
        net.rnn.bias_ih_l0[H : 2 * H] = 12.0
    assert not diagnosed(net).has("gate-stuck-open")


def test_gates_that_only_switch():
    net = Net("GRU", H=H)
    with torch.no_grad():
        net.rnn.weight_ih_l0[:H] = 4e4  # the reset gate sees the sign of its input and nothing else
    found = next(f for f in diagnosed(net).findings if f.code == "gate-saturated")
    assert "gate r is at 0 or 1 for" in found.what


def test_dead_and_saturated_units():
    net = Net("RNN", H=H, nonlinearity="relu")
    with torch.no_grad():
        net.rnn.bias_ih_l0[: H - 4] = -50.0
    found = next(f for f in diagnosed(net).findings if f.code == "dead-units")
    assert "12 of 16 units are dead" in found.what
    net = Net("RNN", H=H)
    with torch.no_grad():
        net.rnn.weight_ih_l0.mul_(1e4)
    assert diagnosed(net).has("units-saturated") or diagnosed(net).has("dead-units")
    assert not {"dead-units", "units-saturated"} & {f.code for f in diagnosed(Net("RNN", H=H)).findings}


def test_a_memory_that_is_full():
    net = Net("LSTM", H=H)
    with torch.no_grad():
        for gate, value in (("i", 9.0), ("f", 9.0), ("g", 9.0)):
            k = "ifgo".index(gate)
            net.rnn.bias_ih_l0[k * H : (k + 1) * H] = value
    found = next(f for f in diagnosed(net).findings if f.code == "memory-full")
    assert "100% of the memories c are full" in found.what
    assert not diagnosed(Net("LSTM", H=H)).has("memory-full")


def test_what_grows_is_told_from_a_small_lag_0():
    lags = torch.arange(40, dtype=torch.float64)
    assert growth(1.1**lags) == pytest.approx(1.1**34.5)
    assert growth(0.9**lags) is None and growth(torch.ones(40)) is None
    late = torch.full((40,), 50.0).index_fill(0, torch.tensor(0), 1.0)
    assert growth(late) is None, "large, but it does not grow"
    assert growth(2.0 ** lags[:3]) is None, "too few lags to say"


def test_an_overflow_is_an_error():
    (finding,) = of_recurrence(Measured(Where("rnn"), "RNN", 9, 2, 3, overflow=True))
    assert finding.severity == "error" and finding.code == "explodes" and finding.number == float("inf")


def test_expansion_is_a_note():
    d = diagnosed(planted(1.15))
    assert d.has("expands") and not d.has("contracts")


def test_blocks():
    profile = torch.tensor([1.0, 1e-3, 1e-7])
    assert blocks(profile) == "lag 0 |█▅ | 2"
    assert block_row([1.0], 3, 9) == "█  ", "an axis longer than what was measured"
    assert block_row([0.0, 0.0, 1.0, 0.0], 2, 4) == " █", "the largest of a stretch"
    assert block_row([50.0, float("nan")], 2, 2) == "█ "
