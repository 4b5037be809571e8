"""diagnose() names what was planted, in models of every kind, and leaves the model as it was."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime as tt
from tests.diagnosis.nets import EncoderDecoder, Net, OwnLoop, long_memory, mse, per_symbol, planted
from throughtime.train.tasks import by_name


def delayed(T=30, N=48, d=9, D=1):
    """Inputs [T, N, D] and as targets the inputs d steps before."""
    x = torch.randn(T, N, D)
    return x, torch.roll(x, d, 0)


def on_task(model, name, lag, N=96, seed=0):
    task = by_name(name, lag)
    sample = task.sample(N, torch.Generator().manual_seed(seed))
    if task.kind == "value":
        return tt.diagnose(model(task), (sample.inputs, sample.targets[-1:].T), lambda o, y: mse(o[-1], y))
    targets = sample.targets.masked_fill(~sample.scored, -100)
    return tt.diagnose(model(task), (sample.inputs, targets), per_symbol)


@pytest.mark.parametrize(("name", "lag"), [("copy", 20), ("adding", 40), ("temporal-order", 40), ("recall", 30)])
def test_vanishing_is_named_for_a_default_rnn_and_not_for_an_lstm_with_a_long_memory(name, lag):
    def plain(task):
        return Net("RNN", task.inputs, 32, task.outputs)

    def cured(task):
        T = task.sample(1).inputs.shape[0]
        return long_memory(Net("LSTM", task.inputs, 32, task.outputs), 2 * T)

    sick, well = on_task(plain, name, lag), on_task(cured, name, lag)
    assert sick.case == "vanishes", sick
    assert "Wrong weights, not missing dependency" in sick.verdict and "contractive" in sick.verdict
    assert sick.findings[0].code == "horizons: vanishes" and sick.findings[0].do
    assert not sick.healthy
    assert well.case == "healthy" and well.healthy, well


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_shuffled_symbols_ask_for_nothing(kind):
    class Reader(Net):
        def forward(self, x):
            return self.out(self.rnn(nn.functional.one_hot(x, 5).float())[0])

    x = torch.randint(5, (40, 20), generator=torch.Generator().manual_seed(1))
    d = tt.diagnose(Reader(kind, 5, 8, 5), (x[:-1], x[1:]), per_symbol)
    assert d.case == "no dependency" and d.horizons.data.steps == -1
    assert "nothing to remember" in d.verdict and d.healthy


@pytest.mark.parametrize("d", [0, 1, 5, 12])
def test_the_data_horizon_is_the_delay(d):
    x, y = delayed(T=20, d=d)
    y[:d] = torch.randn(d, *y.shape[1:])
    found = tt.diagnose(Net(), (x, y), mse)
    assert found.horizons.data.steps == d
    symbols = torch.randint(6, (20, 48))
    late = torch.roll(symbols, d, 0)
    late[:d] = torch.randint(6, (d, 48))

    class Reader(Net):
        def forward(self, x):
            return self.out(self.rnn(nn.functional.one_hot(x, 6).float())[0])

    assert tt.diagnose(Reader("GRU", 6, 8, 6), (symbols, late), per_symbol).horizons.data.steps == d


def test_a_contractive_network_is_called_so():
    d = tt.diagnose(planted(0.5), delayed(), mse)
    assert d.case == "vanishes" and "contractive, a change of its state shrinks by a factor of 0.5 a step" in d.verdict
    assert d.has("contracts") and d.horizons.gradient.steps == 6  # 0.5^6 > 1 % > 0.5^7


def test_a_planted_explosion_is_named():
    d = tt.diagnose(planted(1.5), delayed(T=50), mse)
    assert d.case == "explodes" and d.findings[0].code == "explodes"
    assert d.findings[0].number > 10 and "clip" in d.findings[0].do


def test_a_gradient_beyond_float64_explodes():
    x, y = delayed(T=40)
    net = Net(H=8)
    net.rnn.nonlinearity, net.rnn.mode = "relu", "RNN_RELU"
    with torch.no_grad():
        net.rnn.weight_hh_l0.copy_(1e9 * torch.eye(8))
        net.rnn.weight_ih_l0.fill_(1e-30)
        net.rnn.bias_ih_l0.fill_(1e-30)
        net.rnn.bias_hh_l0.fill_(0)
        net.double()
    d = tt.diagnose(net, (x.double().abs() * 1e-200, y.double()), lambda o, y: (1e-300 * o).sum())
    assert d.case in ("explodes", "broken"), d


def test_a_healthy_model_is_called_healthy():
    d = tt.diagnose(planted(1.0), delayed(), mse)
    assert d.case == "healthy" and d.healthy and not d.worries, d
    assert d.verdict.startswith("Healthy: the gradient reaches at least 29 steps, and the data ask for 9 steps")


def test_a_window_shorter_than_the_data():
    x, y = delayed(T=20, d=3)
    long = torch.randn(30, 60, 1)
    d = tt.diagnose(planted(1.0), (x, y), mse, data=(long, torch.roll(long, 40, 1)))
    assert d.case == "window" and "training looks back 19 steps only" in d.verdict


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"num_layers": 2, "dropout": 0.2}),
        ("GRU", {"num_layers": 2, "bidirectional": True}),
        ("RNN", {"bidirectional": True}),
        ("LSTM", {"proj_size": 4}),
    ],
)
def test_layers_and_directions(kind, options):
    net = Net(kind, H=12, **options)
    if options.get("proj_size"):
        net.out = nn.Linear(4, 1)
    x, y = delayed(T=40, d=20)
    d = tt.diagnose(net, (x, y), mse)
    dirs = 2 if options.get("bidirectional") else 1
    assert len(d.measured) == options.get("num_layers", 1) * dirs
    assert all(m.profile is not None for m in d.measured)
    assert d.horizons.data.steps == 20 and d.case == "vanishes", d


def test_an_encoder_and_a_decoder():
    source = torch.randint(1, 8, (16, 64))
    target = source.flip(0)
    shifted = torch.cat([torch.zeros(1, 64, dtype=torch.long), target[:-1]])
    d = tt.diagnose(EncoderDecoder(), [((source, shifted), target)], per_symbol)
    assert [m.where.module for m in d.measured] == ["encoder", "decoder"]
    assert d.horizons.data.steps == 15, "the first symbol lies 15 steps before the end of the encoder"
    assert d.case == "vanishes" and "encoder hands its last state on" in str(d)
    unrelated = torch.randint(1, 8, (16, 64))
    assert tt.diagnose(EncoderDecoder(), [((source, shifted), unrelated)], per_symbol).case == "no dependency"


def test_a_step_of_the_users_own():
    x, y = delayed()
    d = tt.diagnose(OwnLoop(), (x.transpose(0, 1), y.transpose(0, 1)), mse)
    assert d.case == "vanishes" and d.measured[0].where.module == "step"
    assert not d.has("no-recurrence")


def test_batches_give_an_interval():
    batches = [delayed(T=25, N=8, d=4) for _ in range(6)]
    d = tt.diagnose(Net(), batches, mse)
    assert d.measured[0].interval is not None and d.horizons.data.steps == 4
    assert d.horizons.gradient_interval == d.measured[0].interval


def test_the_next_step_and_the_use_of_the_past():
    x, y = delayed(T=12, d=2)
    net = Net()
    d = tt.diagnose(net, (x, y), mse, optimiser=torch.optim.SGD(net.parameters(), lr=1e-9), use=True)
    assert d.has("stalled") and d.updates is not None and d.use is not None
    d = tt.diagnose(net, (x, y), mse, optimiser=1e6)
    assert d.has("update-too-long") and d.case == "faulty"


def test_nothing_of_the_users_is_changed():
    class Counting(Net):
        def __init__(self):
            super().__init__("LSTM", num_layers=2, dropout=0.5)
            self.norm = nn.BatchNorm1d(1)
            self.calls, self.state = 0, None

        def forward(self, x):
            self.calls += 1
            y, self.state = self.rnn(self.norm(x.flatten(0, 1)).view_as(x))
            return self.out(y)

    net = Counting()
    x, y = delayed(T=10)
    net(x).sum().backward()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    grads = {k: p.grad.clone() for k, p in net.named_parameters()}
    state, random = net.state, torch.get_rng_state()
    tt.diagnose(net, (x, y), mse, optimiser=torch.optim.Adam(net.parameters()), use=True)
    assert torch.equal(torch.get_rng_state(), random) and net.training
    assert net.calls == 1 and net.state is state
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(p.grad, grads[k]) for k, p in net.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_padding_that_enters_the_loss():
    x, y = delayed()
    lengths = torch.randint(12, 31, (48,))
    d = tt.diagnose(planted(1.0), (x, y), mse, lengths=lengths)
    assert d.case == "faulty" and d.has("padding-in-loss")


def test_packed_sequences():
    class Packed(Net):
        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            return self.out(pad_packed_sequence(self.rnn(packed)[0], total_length=len(x))[0])

    x, y = delayed()
    lengths = torch.randint(20, 31, (48,))
    there = (torch.arange(30)[:, None] < lengths)[..., None]
    d = tt.diagnose(Packed(), (x, lengths), lambda o: ((o - y) * there).square().mean())
    assert d.measured[0].profile is not None and not d.has("padding-in-loss")
    assert "give data=(inputs, targets)" in str(d)
    with pytest.raises(RuntimeError, match="greater than 0"):  # torch's own word for a length of 0 is not swallowed
        tt.diagnose(Packed(), (x, lengths * 0), lambda o: o.mean())
