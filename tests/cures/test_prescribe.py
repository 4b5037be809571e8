"""prescribe on three planted illnesses, on a healthy model, and on what cannot be tried."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import throughtime as tt
from throughtime import cures
from throughtime.errors import ConfigError, FlowError
from throughtime.train.tasks import DelayedRecall


class Last(nn.Module):
    """A label from the last step."""

    def __init__(self, rnn, classes=2):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size, classes)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


def recall(lag, batches=40, batch=32):
    task, drawn = DelayedRecall(lag), torch.Generator().manual_seed(1)
    samples = [task.sample(batch, drawn) for _ in range(batches)]
    return [(s.inputs, s.targets[-1]) for s in samples]


def prescribe(model, data, optimiser, **options):
    with ThreadPoolExecutor(1) as here:
        return tt.prescribe(model, data, nn.CrossEntropyLoss(), optimiser, **{"seeds": 3, "executor": here, **options})


def by_name(p, name):
    return next(o for o in p.outcomes if o.candidate.name == name)


def trained_as_told(model, data, make, p, steps):
    """The user does what is said: pastes the code, trains; the loss on the batches held out."""
    names = {"model": model, "optimizer": make(model)}
    exec(p.code, names)
    optimizer = make(model) if any(r.renews for r in p.winner.remedies) else names["optimizer"]
    torch.manual_seed(5)
    for n in range(steps):
        x, y = data[n % (len(data) - 8)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if "clip" in names:
            names["clip"](model)
        optimizer.step()
    with torch.no_grad():
        return sum(nn.functional.cross_entropy(model(x), y).item() for x, y in data[-8:]) / 8


def test_a_simple_network_on_a_long_lag():
    model, data = Last(nn.RNN(6, 24)), recall(30)

    def adam(m):
        return torch.optim.Adam(m.parameters(), lr=0.003)

    p = prescribe(model, data, adam(model), steps=100)
    assert p.diagnosis.case == "vanishes"
    names = [o.candidate.name for o in p.outcomes]
    assert names == ["orthogonal U", "gru cell + chrono to 31 steps", "lstm cell + chrono to 31 steps"]
    assert all("the data ask for 30 steps" in o.candidate.reason for o in p.outcomes)
    assert p.nothing.end > 0.6 and p.nothing.horizon(0)[0].steps < 15  # as good as ln 2: a guess
    best = next(o for o in p.outcomes if o.candidate == p.winner)
    assert best.helps and best.end < 0.2 and best.against_interval[1] < 1
    assert best.horizon(0)[0].steps == 30 and best.horizon(0)[0].at_least
    assert p.verdict.startswith(f"Change this: {p.winner.name}. The loss falls from")
    assert p.code in "\n".join(line.removeprefix("    ") for line in str(p).splitlines())
    assert trained_as_told(model, data, adam, p, 100) < 0.2


def test_a_forget_gate_closed_by_its_bias():
    model, data = Last(nn.LSTM(6, 24)), recall(20)
    with torch.no_grad():
        for name in ("bias_ih_l0", "bias_hh_l0"):
            getattr(model.rnn, name)[24:48] = -5.0

    def adam(m):
        return torch.optim.Adam(m.parameters(), lr=0.01)

    p = prescribe(model, data, adam(model), steps=80)
    assert {o.candidate.name for o in p.outcomes} == {
        "bias of the keeping gate 1", "bias of the keeping gate 3", "chrono to 21 steps"
    }  # fmt: skip
    assert "gate f is shut in 24 of 24 units" in p.outcomes[0].candidate.reason
    assert p.nothing.end > 0.6
    assert isinstance(p.winner.remedies[0], cures.GateBias | cures.Chrono)
    assert trained_as_told(model, data, adam, p, 80) < 0.2


def test_a_learning_rate_that_explodes():
    model, data = Last(nn.LSTM(6, 16)), recall(6)
    cures.chrono_(model, 7)

    def adam(m):
        return torch.optim.Adam(m.parameters(), lr=0.5)

    p = prescribe(model, data, adam(model), steps=60)
    assert not all(t.held for t in p.nothing.trials) and p.nothing.stability.startswith("leaps, x ")
    assert isinstance(p.winner.remedies[0], cures.LearningRate)
    assert "the loss leapt to" in p.winner.reason
    best = by_name(p, p.winner.name)
    assert best.stability == "sound" and best.end < 0.3 < p.nothing.end
    assert trained_as_told(model, data, adam, p, 60) < 0.3


def test_a_healthy_model_is_left_as_it_is():
    model, data = Last(nn.LSTM(6, 16)), recall(6)
    cures.chrono_(model, 7)
    p = prescribe(model, data, torch.optim.Adam(model.parameters(), lr=0.003), steps=30)
    assert p.verdict.startswith("Change nothing. Healthy: the gradient reaches")
    assert p.winner is None and p.code == "" and not p.outcomes and p.diagnosis.healthy
    assert "The change:" not in str(p)


def test_training_that_breaks_is_cured_by_a_smaller_step():
    """A ReLU network whose training overflows: every loss and gradient is NaN without a change."""
    torch.manual_seed(2)
    model, data = Last(nn.RNN(6, 16, nonlinearity="relu")), recall(6)
    cures.identity_(model)
    p = prescribe(model, data, 1e4, steps=30)
    assert p.nothing.broken == 3 and "broke in 3 of 3" in str(p)
    assert any(isinstance(o.candidate.remedies[0], cures.Clip) for o in p.outcomes)
    assert any(isinstance(o.candidate.remedies[0], cures.LearningRate) for o in p.outcomes)
    assert "training breaks in 3 of 3 runs" in p.verdict
    best = by_name(p, p.winner.name)
    assert best.broken == 0 and best.end < best.start and isinstance(p.winner.remedies[0], cures.LearningRate)


def test_candidates_of_the_users_own_that_do_not_help():
    model, data = Last(nn.LSTM(6, 8)), recall(4, batches=10, batch=8)
    mine = [cures.Candidate((cures.LearningRate(1e-6),), "to see"), cures.Candidate((cures.SwapCell("nonsense"),))]
    p = prescribe(model, data, 0.01, steps=5, candidates=mine)
    assert p.winner is None and p.verdict.startswith("Change nothing for now: none of 2 candidates did better")
    assert "could not be run: nonsense cell:" in str(p)
    assert "learning rate x 1e-06: to see" in str(p)


def test_a_loop_over_a_cell_gets_what_fits_it():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.RNNCell(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            h = None
            for x_t in x:
                h = self.cell(x_t, h)
            return self.head(h)

    p = prescribe(Loop(), recall(20, batches=12), 0.01, steps=2)
    assert [type(o.candidate.remedies[0]) for o in p.outcomes] == [cures.Orthogonal, cures.OmegaPenalty]
    assert not any(o.failed for o in p.outcomes)


def test_one_batch_and_a_loss_of_the_output():
    model = nn.GRU(3, 4)
    x = torch.randn(12, 6, 3)
    with ThreadPoolExecutor(1) as here:
        p = tt.prescribe(model, x, lambda out: out[0].square().mean(), 0.1, steps=3, seeds=3, executor=here)
    assert "with one batch only" in str(p)
    assert p.nothing.end < p.nothing.start


def test_weights_that_are_broken_cannot_be_tried():
    model = Last(nn.RNN(6, 8))
    with torch.no_grad():
        model.rnn.weight_hh_l0[0, 0] = torch.nan
    p = prescribe(model, recall(4, 6, 8), 0.1, steps=2)
    assert p.nothing is None and not p.outcomes and p.verdict.startswith("Nothing can be tried from here. Broken:")


def test_saved_drawn_and_read_again(tmp_path):
    model = Last(nn.RNN(6, 8))
    mine = [cures.Candidate((cures.Orthogonal("rnn"), cures.LearningRate(0.5)), "<b>")]
    p = prescribe(model, recall(4, 6, 8), 0.1, steps=3, candidates=mine)
    again = tt.Prescription.load(p.save(tmp_path / "p"))
    assert str(again) == str(p) and again.outcomes == p.outcomes
    text = p._repr_html_()
    assert "orthogonal U + learning rate x 0.5" in text and "<script" not in text
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is an extra")
    assert len(p.plot().lines) == 2
    pyplot.close("all")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps, of each trial"),
        ({"seeds": 2}, "seeds must be 3 or more"),
        ({"seeds": [1, 1, 2]}, "different whole numbers"),
        ({"clip": 0.0}, "clip, the norm"),
        ({"executor": 3}, r"submit\(\)"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        prescribe(Last(nn.RNN(6, 8)), recall(4, 4, 8), 0.1, **options)
    with pytest.raises(FlowError, match="no batch"):
        prescribe(Last(nn.RNN(6, 8)), [], 0.1)
