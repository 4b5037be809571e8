"""Mistakes of use: each planted and found in a recording, and the right way beside it without a finding."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime.nn as ttnn
from throughtime.diagnosis import audit_clip, audit_recording, audit_run, describe, record
from throughtime.errors import FlowError

LENGTHS = torch.tensor([9, 4, 7, 9, 2, 6])


class Model(nn.Module):
    """A recurrent layer and a read-out; `read` says what of the layer's output is read."""

    def __init__(self, read="all", kind=nn.LSTM, batch_first=True, pack=None, bidirectional=False, **options):
        super().__init__()
        self.rnn = kind(4, 8, batch_first=batch_first, bidirectional=bidirectional, **options)
        self.read, self.pack = read, pack
        self.out = nn.Linear(8 * (1 + (bidirectional and read != "h_n[-1]")), 3)

    def forward(self, x):
        if self.pack is not None:
            x = pack_padded_sequence(x, self.pack, batch_first=True, enforce_sorted=False)
        y, state = self.rnn(x)
        h = state[0] if isinstance(state, tuple) else state
        if self.pack is not None:
            y = pad_packed_sequence(y, batch_first=True)[0]
        v = {
            "all": lambda: y,
            "mean": lambda: y.mean(1),
            "last": lambda: y[:, -1],
            "h_n": lambda: torch.cat(list(h[-2:]), -1) if self.rnn.bidirectional else h[-1],
            "h_n[-1]": lambda: h[-1],
            "own last": lambda: y[torch.arange(len(y)), LENGTHS - 1],
        }[self.read]()
        return self.out(v)


def square(y):
    return y.square().mean()


def masked(y):
    keep = torch.arange(9) < LENGTHS[:, None]
    return y[keep].square().mean()


def codes(findings):
    return {f.code for f in findings if f.severity != "note"}


@pytest.fixture
def x():
    return torch.randn(6, 9, 4)


@pytest.fixture
def padded(x):
    return x * (torch.arange(9) < LENGTHS[:, None])[..., None]


HEALTHY = {
    "a label a step": {"read": "all"},
    "mean": {"read": "mean"},
    "last": {"read": "last"},
    "last state": {"read": "h_n"},
    "both directions": {"read": "h_n", "bidirectional": True},
    "both directions, a label a step": {"read": "all", "bidirectional": True},
    "two layers, dropout": {"read": "h_n", "bidirectional": True, "num_layers": 2, "dropout": 0.3},
    "GRU": {"read": "last", "kind": nn.GRU},
    "ours": {"read": "h_n", "kind": ttnn.PeepholeLSTM, "bidirectional": True},
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("batch_axis", [0, None])
def test_healthy_models(name, batch_axis):
    for seed in range(5):
        torch.manual_seed(seed)
        findings = audit_run(Model(**HEALTHY[name]), torch.randn(6, 9, 4), square, batch_axis=batch_axis)
        assert not codes(findings), describe(findings)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, ttnn.LSTM, ttnn.LSTM1997])
def test_wrong_last_state_of_a_bidirectional_layer(x, kind):
    findings = audit_run(Model("last", kind, bidirectional=True), x, square, batch_axis=0)
    assert codes(findings) == {"wrong-last-state"}
    assert findings[0].number == 8
    assert findings[0].where.reverse
    own = audit_run(Model("own last", kind, bidirectional=True), x, square, lengths=LENGTHS)
    assert codes(own) == {"wrong-last-state", "reverse-starts-in-padding"}


def test_half_of_a_bidirectional_layer(x):
    found = audit_run(Model("h_n[-1]", bidirectional=True), x, square)
    assert codes(found) == {"no-gradient"}
    assert not found[0].where.reverse


def test_wrong_axis(x):
    found = audit_run(Model("last", batch_first=False), x, square, batch_axis=0)
    assert found[0].code == "wrong-axis"
    assert found[0].severity == "error"
    guessed = audit_run(Model("last", batch_first=False), x, square)
    assert [(f.code, f.severity) for f in guessed] == [("wrong-axis", "warning")]
    assert "likely" in guessed[0].means
    # The right way round, time first throughout.
    assert not codes(audit_run(Model("all", batch_first=False), x, square, batch_axis=1))
    assert not codes(audit_run(Model("all", batch_first=False), x, square))


def test_a_layer_that_has_no_past(x):
    class OneStep(Model):
        def forward(self, x):
            return super().forward(x[:, :1])

    assert "no-past" in codes(audit_run(OneStep("last"), x, square))


def test_padding_that_enters_the_loss(x, padded):
    for lengths in (LENGTHS, None):
        found = audit_run(Model("all"), padded, square, lengths=lengths)
        assert codes(found) == {"padding-in-loss"}
        share = 1 - LENGTHS.sum().item() / 54
        assert found[0].number == pytest.approx(share, abs=0.2)
        assert ("guessed" in found[0].what) == (lengths is None)
        assert not codes(audit_run(Model("all"), padded, masked, lengths=lengths))
        assert not codes(audit_run(Model("own last"), padded, square, lengths=lengths))
        assert codes(audit_run(Model("last"), padded, square, lengths=lengths)) == {"padding-in-loss"}
    packed = Model("all", pack=LENGTHS)
    assert codes(audit_run(packed, x, square, lengths=LENGTHS)) == {"padding-in-loss"}
    assert not codes(audit_run(packed, x, masked, lengths=LENGTHS))


def test_last_state_behind_the_padding(x, padded):
    assert codes(audit_run(Model("h_n"), padded, square, lengths=LENGTHS)) == {"state-after-padding"}
    assert not codes(audit_run(Model("h_n", pack=LENGTHS), x, square, lengths=LENGTHS))
    both = Model("all", bidirectional=True)
    assert codes(audit_run(both, padded, masked, lengths=LENGTHS)) == {"reverse-starts-in-padding"}
    assert not codes(audit_run(Model("all", bidirectional=True, pack=LENGTHS), x, masked, lengths=LENGTHS))


def test_what_only_looks_like_padding():
    """Symbols of which some repeat at the end; blanks that end all sequences alike, as in the copy task."""
    for seed in range(30):
        gen = torch.Generator().manual_seed(seed)
        bits = torch.randint(0, 2, (6, 9, 1), generator=gen).float().expand(6, 9, 4)
        assert not codes(audit_run(Model("all"), bits, square))
    blank = torch.randn(6, 9, 4)
    blank[:, 5:] = 0
    assert not codes(audit_run(Model("all"), blank, square))


class Stateful(nn.Module):
    def __init__(self, cut):
        super().__init__()
        self.rnn, self.cut, self.state = nn.LSTM(4, 8), cut, None

    def forward(self, x):
        if self.state is not None and self.cut:
            self.state = tuple(s.detach() for s in self.state)
        y, self.state = self.rnn(x, self.state)
        return y


def train(model, steps=4, length=5, retain=False):
    with record(model) as recording:
        for _ in range(steps):
            model(torch.randn(length, 3, 4)).square().mean().backward(retain_graph=retain)
    return recording


def test_state_that_is_never_cut():
    found = audit_recording(train(Stateful(False), retain=True))
    assert codes(found) == {"state-never-cut"}
    assert found[0].number == 3
    with pytest.raises(RuntimeError, match="second time"):  # the user's own error passes through
        train(Stateful(False))
    assert not codes(audit_recording(train(Stateful(True))))


def test_state_that_is_cut_at_every_step():
    assert codes(audit_recording(train(Stateful(True), length=1))) == {"state-cut-every-step"}


class Loop(nn.Module):
    """A loop over nn.LSTMCell, as in torch's own example."""

    def __init__(self, cut):
        super().__init__()
        self.cell, self.cut = nn.LSTMCell(4, 8), cut

    def forward(self, x):
        h, out = None, []
        for v in x:
            h = self.cell(v, h)
            out.append(h[0])
            if self.cut:
                h = tuple(s.detach() for s in h)
        return torch.stack(out)


def test_cells_in_a_loop(x):
    assert not codes(audit_run(Loop(False), x, square))
    assert codes(audit_run(Loop(True), x, square)) == {"state-cut-every-step"}


def test_decoder_that_is_called_again_and_again():
    """The state goes from call to call within one loss: that is right."""

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 4)

        def forward(self, x):
            y, h = self.rnn(x)
            out = [y]
            for _ in range(5):
                y, h = self.rnn(y[-1:], h)
                out.append(y)
            return torch.cat(out)

    assert not codes(audit_run(Decoder(), torch.randn(6, 3, 4), square, batch_axis=1))


def test_loss_that_does_not_reach_the_model(x):
    assert codes(audit_run(Model(), x, lambda y: y.detach().square().mean())) == {"loss-without-model"}
    assert codes(audit_run(Model(), x, lambda y: y.mean() * torch.nan)) == {"not-finite"}
    first = audit_run(Model(), x, lambda y: y[:, 0].square().mean())
    assert [(f.code, f.where.parameter) for f in first] == [("no-gradient", "weight_hh_l0")]


CLIPS = {
    "far above": ([0.5, 1.0, 2.0] * 10, 100.0, True),
    "far below": ([5.0, 9.0, 20.0] * 10, 0.1, True),
    "outliers": ([1.0] * 50 + [30.0], 5.0, False),
    "near": ([0.5, 1.0, 2.0] * 10, 1.0, False),
    "just never": ([0.5, 1.0, 2.0] * 10, 5.0, False),
    "broken": ([float("nan")] * 3, 1.0, True),
}


@pytest.mark.parametrize("name", CLIPS)
def test_clip_threshold(name):
    norms, threshold, wrong = CLIPS[name]
    assert bool(codes(audit_clip(norms, threshold))) == wrong


def test_nothing_is_changed(x):
    """Gradients, buffers, random numbers, modes and hooks are as they were, and so is every number of the model."""

    class Norm(Model):
        def __init__(self):
            super().__init__("mean", num_layers=2, dropout=0.5)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(super().forward(x))

    model = Norm()
    square(model(x)).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    buffers, state = [b.clone() for b in model.buffers()], torch.get_rng_state()
    model.rnn.eval()
    audit_run(model, x, square, batch_axis=0)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(b, old) for b, old in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.rnn.training
    assert not model.rnn._forward_hooks
    plain = model.eval()(x)
    with record(model) as recording:
        watched = model(x)
    assert torch.equal(plain, watched)
    assert "1 calls of 9 steps" in str(recording)


def test_refusals(x):
    with pytest.raises(FlowError, match="one number"):
        audit_run(Model(), x, lambda y: y)
    with pytest.raises(FlowError, match="no recurrent layer"):
        audit_run(nn.Linear(4, 4), x, square)
    with pytest.raises(FlowError, match="lengths must be 6 whole numbers"):
        audit_run(Model(), x, square, lengths=[1, 2])
    with pytest.raises(FlowError, match="check batch_first"):
        audit_run(Model(batch_first=False), x, square, lengths=LENGTHS)
    model = Model()
    with pytest.raises(ZeroDivisionError), record(model):
        raise ZeroDivisionError
    assert not model.rnn._forward_hooks
