"""diagnose() where there is little or nothing to measure: one clear word for each way, and what it refuses."""

import threading

import pytest
import torch
from torch import nn

import throughtime as tt
from tests.diagnosis.nets import Net, mse
from throughtime.errors import FlowError


def delayed(T=30, N=48, d=9, D=1):
    """Inputs [T, N, D] and as targets the inputs d steps before."""
    x = torch.randn(T, N, D)
    return x, torch.roll(x, d, 0)


def test_no_recurrence():
    with pytest.raises(FlowError, match="no recurrence was seen"):
        tt.diagnose(nn.Linear(3, 3), torch.randn(5, 3), lambda o: o.sum())


def test_a_loss_that_does_not_depend():
    class Cut(Net):
        def forward(self, x):
            return self.out(self.rnn(x)[0].detach())

    x, y = delayed()
    d = tt.diagnose(Cut(), (x, y), mse)
    assert d.case == "unreached" and "No gradient arrives" in d.verdict and d.has("no-gradient")
    with pytest.raises(FlowError, match="does not depend on the model's parameters"):
        tt.diagnose(Net(), x, lambda o: o.detach().sum())
    with pytest.raises(FlowError, match="frozen"):
        tt.diagnose(Net().requires_grad_(False), x, lambda o: o.sum())


@pytest.mark.parametrize("where", ["input", "target", "weight"])
@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_nan_inside(where, kind):
    x, y = delayed()
    net = Net(kind)
    if where == "weight":
        net.rnn.weight_hh_l0.data[0, 0] = torch.nan
    else:
        (x if where == "input" else y)[4, 0, 0] = torch.nan
    d = tt.diagnose(net, (x, y), mse)
    assert d.case == "broken" and d.verdict.startswith("Broken: ") and "NaN" in d.verdict
    assert d.findings[0].code == "not-finite" and d.findings[0].severity == "error"


def test_one_step():
    x, y = delayed()
    for kind in ("RNN", "LSTM", "GRU"):
        d = tt.diagnose(Net(kind), (x[:1], y[:1]), mse)
        assert d.case == "no past" and "There is no past" in d.verdict and not d.healthy


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_one_sequence_and_one_unit(kind):
    x, y = delayed(T=24)
    one = tt.diagnose(Net(kind), (x[:, :1], y[:, :1]), mse)
    assert one.case == "unknown" and "too few" in " ".join(one.notes)
    thin = tt.diagnose(Net(kind, H=1), (x, y), mse)
    assert thin.measured[0].units == 1 and thin.case in ("vanishes", "healthy", "unclear"), thin
    alone = tt.diagnose(Net(kind), (x[:, 0], y[:, 0]), mse)  # no batch at all
    assert alone.measured[0].batch == 1 and alone.measured[0].steps == 24


def test_one_long_sequence():
    x, y = delayed(T=400, N=1, d=6)
    d = tt.diagnose(Net(), (x, y), mse)
    assert d.horizons.data.steps == 6 and "put end to end" in str(d)


def test_an_empty_batch():
    x, y = delayed()
    with pytest.raises(FlowError, match="batch is empty"):
        tt.diagnose(Net(), (x[:, :0], y[:, :0]), mse)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": None}, "torch.nn.Module"),
        ({"loss": None}, "the loss must be a function"),
        ({"loss": lambda o, y: o - y}, "one number"),
        ({"inputs": 3}, "expected a batch"),
        ({"inputs": []}, "no batch"),
        ({"inputs": [torch.randn(5, 2, 1)]}, "pair"),
        ({"inputs": torch.randn(5, 2, 1)}, "no targets"),
        ({"data": 3}, "data must be"),
        ({"lengths": [3.5]}, "lengths must be"),
        ({"lengths": [-1, 2]}, "lengths must be"),
        ({"batches": 0}, "batches must be"),
        ({"batches": 1.5}, "batches must be"),
        ({"batches": "a"}, "batches must be"),
        ({"window": 0}, "window must be"),
        ({"window": "a"}, "window must be"),
        ({"clip": -1.0}, "clip must be"),
        ({"clip": "1"}, "clip must be"),
        ({"optimiser": "adam"}, "optimiser must be"),
        ({"lengths": "x"}, "lengths must be"),
        ({"batch_axis": "a"}, "batch_axis must be"),
        ({"batch_axis": 5}, "batch_axis 5 is no axis"),
        ({"model": Net().to("meta")}, "meta device"),
    ],
)
def test_what_cannot_be_used_is_said(given, message):
    x, y = delayed()
    usual = {"model": Net(), "inputs": (x, y), "loss": mse}
    with pytest.raises(FlowError, match=message):
        tt.diagnose(**{**usual, **given})


def test_a_layer_that_cannot_be_run_again_says_why_in_the_verdict():
    x, y = delayed()
    net = Net()
    was = net.rnn.forward
    net.rnn.forward = lambda x: (2 * was(x)[0], was(x)[1])
    d = tt.diagnose(net, (x, y), mse)
    assert d.case == "unknown" and "a hook or a wrapper" in d.verdict
    assert "rnn, layer 0: not measured" in str(d)


def test_several_threads_take_turns_on_one_model():
    x, y = delayed()
    net, told = Net(), []
    threads = [threading.Thread(target=lambda: told.append(str(tt.diagnose(net, (x, y), mse)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 3 and set(told) == {str(tt.diagnose(net, (x, y), mse))}
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.filterwarnings("ignore")  # torch: jit is deprecated, and what was traced may not hold
@pytest.mark.parametrize("whole", [True, False])
def test_scripted_models_are_refused_before_anything_runs(whole):
    x, y = delayed()
    net = Net()
    if whole:
        net = torch.jit.trace(net, x)
    else:
        net.rnn = torch.jit.trace(net.rnn, x)
    with pytest.raises(FlowError, match="TorchScript"):
        tt.diagnose(net, (x, y), mse)


@pytest.mark.parametrize("uses", [True, False])
def test_a_model_that_uses_the_last_value_alone_loses_nothing_in_a_series_that_asks_for_no_more(uses):
    # An AR(1): targets depend on inputs far back, and the newest one says it all. One unit reads it; the gradient goes
    # back through another one, whose input weight is as good as nothing.
    generator, rho = torch.Generator().manual_seed(0), 0.9
    noise, x = torch.randn(31, 200, 1, generator=generator), []
    for v in noise:
        x.append(v * (1 - rho**2) ** 0.5 + rho * x[-1] if x else v)
    x = torch.stack(x)
    net = Net("RNN", 1, 2, 1)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.rnn.weight_ih_l0.copy_(torch.tensor([[0.1], [1e-30]]))
        net.rnn.weight_hh_l0.copy_(torch.tensor([[1e-6, 0.0], [0.0, 1.0]]))
        net.out.weight.copy_(torch.tensor([[10 * rho if uses else 0.0, 0.2]]))
    d = tt.diagnose(net, (x[:-1], x[1:]), mse, use=True)
    assert d.horizons.data.steps > 3 and d.horizons.gradient == (29, True)
    if uses:
        assert d.horizons.use.steps == 0 and d.case == "nearer" and d.healthy, d
        assert "adds nothing to what nearer inputs say: nothing is lost" in d.verdict
    else:
        assert d.horizons.use.steps < 0 and not d.healthy, d


def test_a_state_that_is_masked_between_the_steps_was_not_followed():
    # As every actor of reinforcement learning does where an episode has ended; there is a past, and it was not seen.
    class Actor(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = nn.LSTMCell(1, 8), nn.Linear(8, 1)

        def forward(self, x):
            state, seen = (torch.zeros(x.shape[1], 8),) * 2, []
            for v in x:
                state = self.cell(v, tuple(s * torch.ones(x.shape[1], 1) for s in state))
                seen.append(self.out(state[0]))
            return torch.stack(seen)

    d = tt.diagnose(Actor(), delayed(), mse)
    assert d.case == "unknown"
    assert d.verdict.startswith("Not followed through time: the state of cell, layer 0 was changed between its steps")
    assert "8 units, 1 step)" in str(d)


def test_two_steps_are_one_step_back():
    x, y = torch.randn(2, 8, 1), torch.randn(2, 8, 1)
    d = tt.diagnose(Net(), (x, y), mse)
    assert d.case == "healthy" and "as far back as it was followed, 1 step." in d.verdict
    assert d.horizons.data is None


def test_lengths_of_nothing_are_said():
    x, y = delayed()
    lengths = torch.full((48,), 30)
    lengths[3] = 0
    assert "the shortest sequence has 0 steps" in str(tt.diagnose(Net(), (x, y), mse, lengths=lengths))
