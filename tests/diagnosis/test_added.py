"""What far inputs add to near ones: all in a delay, nothing in a sine; no answer where there is too little to say."""

import pytest
import torch

import throughtime as tt
from tests.diagnosis.nets import Net, mse
from throughtime.diagnosis import Horizons
from throughtime.diagnosis.added import added
from throughtime.diagnosis.asked import measure_data
from throughtime.diagnosis.sequences import Sequences
from throughtime.flow import Horizon
from throughtime.train.tasks import by_name


def sines(T=60, N=60):
    x = torch.sin((torch.arange(T + 1.0) + 60 * torch.rand(N, 1)) / 9)[..., None].double()
    return Sequences(x[:, :-1], x[:, 1:], "each")


def autoregressive(T=60, N=60, rho=0.97):
    x = torch.zeros(N, T + 1, 1, dtype=torch.float64)
    for t in range(1, T + 1):
        x[:, t] = rho * x[:, t - 1] + torch.randn(N, 1)
    return Sequences(x[:, :-1], x[:, 1:], "each")


def chain(T=60, N=60, stay=0.97):
    x = torch.randint(2, (N, T + 1))
    for t in range(1, T + 1):
        x[:, t] = torch.where(torch.rand(N) < stay, x[:, t - 1], 1 - x[:, t - 1])
    return Sequences(x[:, :-1], x[:, 1:], "each")


def delay(d, T=30, N=60):
    x = torch.randn(N, T + d, 1, dtype=torch.float64)
    return Sequences(x[:, d:], x[:, :T], "each")


@pytest.mark.parametrize("make", [sines, autoregressive, chain])
def test_what_a_series_with_a_memory_of_its_own_says_the_near_inputs_say(make):
    data = make()
    assert measure_data([data]).pairs.horizon().steps > 12, "pairs alone ask for much"
    assert added(data, 6, 25) < 0.01


def test_a_delay_adds_all():
    assert added(delay(12), 6, 12) > 0.6
    assert added(delay(12), 6, 11) == 0, "the input that matters lies farther back"
    assert added(delay(3), 6, 12) == 0, "the near inputs know it"


@pytest.mark.parametrize(("name", "lag", "least"), [("copy", 20, 0.9), ("adding", 40, 0.1), ("recall", 30, 0.5)])
def test_tasks(name, lag, least):
    task = by_name(name, lag)
    sample = task.sample(150, torch.Generator().manual_seed(0))
    x = sample.inputs.transpose(0, 1)
    if task.kind == "value":
        data = Sequences(x, sample.targets[-1], "label")
    else:
        data = Sequences(x.argmax(-1), sample.targets.masked_fill(~sample.scored, -100).T, "each")
    assert added(data, 8, task.lags[0] if name != "adding" else 30) > least


def test_chance_adds_nothing_and_little_data_says_so():
    for _ in range(6):
        noise = Sequences(torch.randn(50, 30, 1).double(), torch.randn(50, 30, 1).double(), "each")
        assert added(noise, 5, 10) == 0
    few = Sequences(torch.randn(30, 40, 1).double(), torch.randn(30, 1).double(), "label")
    assert added(few, 5, 30) is None, "30 labels cannot tell 1 % from chance"
    assert added(Sequences(few.x[:10], few.y[:10], "label"), 5, 30) is None
    assert added(noise, 20, 20) is None and added(noise, 5, 30) is None
    assert added(Sequences(noise.x, noise.y, "handed"), 5, 30) is None


def test_a_sine_is_no_reason_for_a_longer_memory():
    data = sines()
    x, y = (v.float().transpose(0, 1) for v in (data.x, data.y))
    d = tt.diagnose(Net(), (x, y), mse)
    assert d.case == "nearer" and d.healthy and d.horizons.added < 0.01, d
    assert d.horizons.gradient.steps < d.horizons.data.steps
    assert d.verdict.startswith("Nearer inputs say the same: ") and not d.worries


def test_the_case():
    short = {"data": Horizon(40, False), "gradient": Horizon(8, False)}
    assert Horizons(**short).case == "vanishes"
    assert Horizons(**short, added=0.5).case == "vanishes"
    assert Horizons(**short, added=0.001).case == "nearer"
    assert Horizons(data=Horizon(5, False), gradient=Horizon(8, False), added=0.001).case == "reaches"
    used = Horizons(**short, use=Horizon(60, False), added=0.001)
    assert used.case == "vanishes", "what the model uses from farther back counts more"


@pytest.mark.parametrize(("at", "steps"), [(3, 3), (15, 4), (10, 9)])
def test_a_label_read_from_both_ends(at, steps):
    class Both(torch.nn.Module):
        def __init__(self, last):
            super().__init__()
            self.rnn, self.last = torch.nn.GRU(1, 8, bidirectional=True), last
            self.out = torch.nn.Linear(16, 2)

        def forward(self, x):
            y, h = self.rnn(x)
            return self.out(y[-1] if self.last else torch.cat(list(h), 1))

    x = torch.randn(20, 80, 1)
    y = (x[at, :, 0] > 0).long()
    found = tt.diagnose(Both(False), (x, y), torch.nn.functional.cross_entropy)
    assert found.horizons.data.steps == steps and "from the nearer one" in str(found)
    wrong = tt.diagnose(Both(True), (x, y), torch.nn.functional.cross_entropy)
    assert wrong.horizons.data.steps == 19 - at and wrong.has("wrong-last-state")
