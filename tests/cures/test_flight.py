"""The flight recorder: the place and the cause of the first bad number, against places that are known beforehand."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime as tt
from throughtime.cures import Guard, flight

T, B, D, H = 11, 3, 2, 4


def first_record(model, data, loss=None, lr=0.01, optimizer=None, prepare=None, steps=3, **options):
    """The record of the first bad step of a short run; `data(i)` gives the model's arguments."""
    opt = optimizer or torch.optim.SGD(model.parameters(), lr)
    guard = Guard(model, opt, every=1, **options)
    for i in range(steps):
        args = data(i)
        if prepare is not None:
            prepare(i)
        with guard.step() as step:
            opt.zero_grad()
            out = model(*args)
            step.backward(loss(out, i) if loss else (out[0] if isinstance(out, tuple) else out).square().mean())
            opt.step()
        if not step.ok:
            assert len(guard.incidents) == 1
            return step.incident.record
    raise AssertionError("nothing was told")


def sequences(i):
    return (torch.randn(T, B, D),)


# --- overflow in the forward pass -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.RNN(1, 2, nonlinearity="relu"), tt.nn.RNN(1, 2, nonlinearity="relu")])
def test_overflow_of_a_relu_network_at_the_step_that_can_be_worked_out(layer):
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        layer.weight_ih_l0[0, 0] = 1.0
        layer.weight_hh_l0[0, 0] = 1e4  # h_t = 1e4^(t - 3): 1e36 at t = 12, 1e40 at 13
        layer.weight_hh_l0[1, 0] = -1.0
    x = torch.zeros(20, B, 1)
    x[3, 1] = 1.0
    record = first_record(layer, lambda i: (x,))
    assert (record.cause, record.direction, record.layer, record.reverse) == (flight.OVERFLOW, "forward", 0, False)
    assert (record.t, record.gate, record.part, record.sample) == (13, "h", "net input h", 1)
    assert record.value == pytest.approx(1e40, rel=1e-4)


def test_overflow_of_an_lstm_names_gate_layer_and_direction():
    layer = nn.LSTM(D, H, 2, bidirectional=True)
    with torch.no_grad():
        bias = layer.bias_ih_l0_reverse.view(4, H)
        bias[0], bias[2], bias[3] = 30.0, 30.0, 30.0  # h = tanh(1) after one step, near 1 later
        layer.weight_hh_l0_reverse[H + 1] = -3e38
        layer.weight_ih_l0_reverse[H + 1] = 3e38
    x = torch.zeros(T, B, D)
    x[6, 1] = 1e3
    # -4 * 3e38 * tanh(1) closes the forget gate, infinite as it is; infinity of the input against it makes NaN later.
    record = first_record(layer, lambda i: (x,))
    assert (record.cause, record.layer, record.reverse, record.t) == (flight.OVERFLOW, 0, True, T - 2)
    assert (record.gate, record.sample, record.value) == ("f", None, pytest.approx(-12e38 * math.tanh(1), rel=1e-3))


def test_overflow_in_a_users_own_loop_names_the_line_and_the_step():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.u = nn.Parameter(torch.tensor([1.0]))

        def forward(self, x):
            h = torch.zeros(x.shape[1], 1)
            for step in x:
                h = torch.exp(h * self.u) + step  # h: 0, 1, e, 15, 3.8e6, then infinity
            return h

    record = first_record(Own(), lambda i: (torch.zeros(9, B, 1),))
    assert (record.cause, record.module, record.t) == (flight.OVERFLOW, "Own", 4)
    assert "torch.exp(h * self.u)" in record.line and "run 4 of 9" in record.line and "test_flight.py" in record.line


def test_overflow_in_the_code_between_modules():
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(D, H), nn.LSTM(H, H)

        def forward(self, x):
            return self.b(self.a(x) / torch.zeros(()))[0]

    record = first_record(Between(), sequences)
    assert (record.cause, record.module) == (flight.OVERFLOW, "Between")
    assert "given to b" in record.notes[0] and "torch.zeros(())" in record.line


# --- the input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["h", "c"])
def test_a_bad_initial_state(name):
    layer = nn.LSTM(D, H, 2)

    def data(i):
        state = [torch.zeros(2, B, H), torch.zeros(2, B, H)]
        if i == 1:
            state["hc".index(name)][1, 2, 0] = math.nan
        return torch.randn(T, B, D), tuple(state)

    record = first_record(layer, data)
    assert (record.cause, record.part, record.sample) == (flight.INPUT, f"initial state {name}", 2)
    assert record.iteration == 1


@pytest.mark.parametrize("enforce", [False, True])
def test_the_sample_of_a_packed_batch_is_numbered_as_the_user_does(enforce):
    lengths = torch.tensor([9, 5, 2] if enforce else [2, 9, 5])

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(D, H)

        def forward(self, x):
            return pad_packed_sequence(self.gru(pack_padded_sequence(x, lengths, enforce_sorted=enforce))[0])[0]

    for b in range(B):
        x = torch.randn(9, B, D)
        x[1, b, 0] = math.inf
        record = first_record(Packed(), lambda i, x=x: (x,))
        assert (record.cause, record.module, record.t, record.sample) == (flight.INPUT, "gru", 1, b)


def test_input_through_an_embedding_of_bad_numbers_and_unbatched():
    layer = nn.GRU(D, H)
    x = torch.randn(T, D)
    x[7, 1] = math.nan
    record = first_record(layer, lambda i: (x,))
    assert (record.cause, record.t, record.sample) == (flight.INPUT, 7, 0)


def test_batch_first_with_layers_before_the_recurrence():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.lstm = nn.Linear(D, H), nn.LSTM(H, H, batch_first=True)

        def forward(self, x):
            return self.lstm(torch.relu(self.into(x)))[0]

    x = torch.randn(B, T, D)
    x[2, 6, 1] = math.inf
    record = first_record(Deep(), lambda i: (x,))
    assert (record.cause, record.module, record.t, record.sample) == (flight.INPUT, "into", 6, 2)


# --- gradients --------------------------------------------------------------------------------------------------------


class Loop(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state, out = None, []
        for step in x:
            state = self.cell(step, state)
            out.append(state)
        return torch.stack(out)


def growing(u, kind):
    """A tanh network at rest with U = u I: the gradient is multiplied by u at every step back, and nothing else."""
    model = nn.RNN(1, 2) if kind == "layer" else tt.nn.RNN(1, 2) if kind == "ours" else Loop(nn.RNNCell(1, 2))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(u * torch.eye(2)) if "weight_hh" in name else p.zero_()
    return model


@pytest.mark.parametrize("kind", ["layer", "ours", "loop"])
def test_an_exploded_gradient_at_the_step_that_can_be_worked_out(kind):
    steps = 40  # dL/dh_k = 10^(39 - k), beyond 3.4e38 first at k = 0 (1e39)

    def loss(out, i):
        y = out[0] if isinstance(out, tuple) else out
        return y[-1, 1].sum()  # of sample 1

    model = growing(10.0, kind)
    x = torch.zeros(steps, B, 1)
    x.requires_grad_()
    record = first_record(model, lambda i: (x,), loss)
    assert (record.cause, record.direction, record.t) == (flight.EXPLODED, "backward", 0)
    assert record.sample == 1
    assert record.module == {"layer": "RNN", "ours": "RNN", "loop": "cell"}[kind]
    if kind != "loop":
        assert (record.layer, record.value) == (0, pytest.approx(1e39, rel=1e-4))


@pytest.mark.parametrize("kind", ["layer", "ours", "loop"])
def test_a_gradient_that_exploded_but_stayed_finite(kind):
    model = growing(0.5, kind)
    weight = next(p for n, p in model.named_parameters() if "weight_hh" in n)

    def grow(i):
        if i == 12:
            with torch.no_grad():
                weight.copy_(3.0 * torch.eye(2))

    def loss(out, i):
        return (out[0] if isinstance(out, tuple) else out)[-1, 2].sum()

    record = first_record(model, lambda i: (torch.zeros(30, B, 1),), loss, lr=0.0, prepare=grow, steps=13)
    assert (record.cause, record.iteration, record.t) == (flight.EXPLODED, 12, 0)
    assert "grew 6.86e+13 times" in record.notes[0]  # 3^29


def test_a_derivative_that_does_not_exist():
    class Norm(nn.Module):
        def forward(self, y):
            return y.square().sum(-1).sqrt()  # infinite derivative at 0, times 0

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.norm = nn.LSTM(D, H), Norm()

        def forward(self, x):
            y = self.lstm(x)[0]
            keep = torch.ones(T, B, 1)
            keep[5, 2] = 0
            return self.norm(y * keep)

    record = first_record(Net(), sequences)
    assert (record.cause, record.module, record.direction) == (flight.GRADIENT, "norm", "backward")


def test_a_hook_between_two_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.armed = nn.LSTM(D, H), nn.GRU(H, H), False

        def forward(self, x):
            y = self.a(x)[0]
            if self.armed:
                y.register_hook(lambda g: torch.where(torch.arange(T)[:, None, None] == 4, math.nan, g))
            return self.b(y)[0]

    model = Net()

    def arm(i):
        model.armed = i == 1

    record = first_record(model, sequences, prepare=arm)
    assert (record.cause, record.module, record.part, record.t) == (flight.GRADIENT, "a", "output", 4)
    assert record.sample is None  # all of them


def test_a_gradient_changed_after_the_backward_pass():
    model = nn.LSTM(D, H)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    guard = Guard(model, opt)
    with guard.step() as step:
        step.backward(model(torch.randn(T, B, D))[0].square().mean())
        model.bias_hh_l0.grad[3] = math.inf
        opt.step()
    record = step.incident.record
    assert (record.cause, record.part, record.value) == (flight.GRADIENT, "bias_hh_l0", math.inf)
    assert "after that pass" in record.notes[0]


# --- the loss, weights, updates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_loss_at_a_step(batch_first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(D, H, batch_first=batch_first), nn.Linear(H, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    def loss(out, i):
        p = out.sigmoid()
        p = p.transpose(0, 1) if batch_first else p
        mask = torch.ones(T, B, 2)
        mask[8, 1] = 0
        return -(p * mask).log().mean()

    record = first_record(Net(), lambda i: (torch.randn(B, T, D) if batch_first else torch.randn(T, B, D),), loss)
    assert (record.cause, record.t, record.sample) == (flight.LOSS, 8, 1)


def test_a_loss_that_alone_is_bad():
    record = first_record(nn.GRU(D, H), sequences, lambda out, i: out[0].mean() + (math.nan if i else 0.0))
    assert record.cause == flight.LOSS and record.t is None and math.isnan(record.value)
    assert "is finite" in record.notes[0]


def test_an_infinite_loss_came_before_the_gradient_that_explodes_after_it():
    model = nn.Sequential(nn.Linear(D, H), nn.Linear(H, 1))
    with torch.no_grad():
        model[1].weight.fill_(1e25)  # the loss is 1e50, its gradient 1e25, and 1e50 at the first layer
    record = first_record(model, lambda i: (torch.ones(B, D),))
    assert record.cause == flight.LOSS and record.value == math.inf


def test_huge_outputs_are_told_with_the_loss():
    model = nn.Linear(D, 1)
    with torch.no_grad():
        model.weight.fill_(1e30)
    record = first_record(model, lambda i: (torch.ones(B, D),))
    assert record.cause == flight.LOSS and "as large as 2e+30" in " ".join(record.notes)


@pytest.mark.parametrize("lr", [math.inf, 3e38])
def test_an_update_that_made_bad_weights(lr):
    record = first_record(nn.GRU(D, H), sequences, lambda out, i: 1e3 * out[0].square().mean(), lr=lr)
    assert record.cause == flight.UPDATE and record.module == "GRU" and "learning rate" in record.notes[-1]


def test_a_weight_written_to_after_the_update_is_no_update():
    model = nn.GRU(D, H)
    opt = torch.optim.Adam(model.parameters())
    guard = Guard(model, opt)
    with guard.step() as step:
        step.backward(model(torch.randn(T, B, D))[0].square().mean())
        opt.step()
        with torch.no_grad():
            model.weight_hh_l0[2 * H + 1, 0] = math.nan
    assert (step.incident.action, step.incident.back_to) == ("back", 0)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    record = step.incident.record
    assert (record.cause, record.part, record.gate) == (flight.PARAMETER, "weight_hh_l0", "n")
