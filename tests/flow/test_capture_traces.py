"""capture() leaves no trace: outputs, gradients, random numbers and hooks are the same with it, bit for bit."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.flow.test_capture_loops import EncoderDecoder, Loop
from tests.flow.test_capture_own import OwnCell, Tutorial
from throughtime import flow
from throughtime import nn as ours
from throughtime.errors import FlowError

T, B, D, H = 6, 3, 3, 4


def over(layer, x):
    y, state = layer(x)
    return y.sin().sum() + sum(s.square().sum() for s in (state if isinstance(state, tuple) else (state,)))


def stepwise(module, x):
    state, total = torch.zeros(B, H), 0.0
    for t in range(T):
        y, state = module(x[t], state)
        total = total + y.square().sum() + state.sum()
    return total


def own(module, x):
    state, total = None, 0.0
    for t in range(T):
        y, state = module(x[t], state)
        total = total + y.square().sum()
    return total


class Mixed(nn.Module):
    """A transformer's layer, whose fast path hooks would switch off, beside recurrent layers and a hooked one."""

    def __init__(self):
        super().__init__()
        self.mix = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.1)
        self.rnn = nn.LSTM(4, H, 2, dropout=0.2, batch_first=True)
        self.rnn.register_full_backward_hook(lambda m, gi, go: None)

    def forward(self, x):
        return self.rnn(self.mix(x))


MODELS = {
    "LSTM": (lambda: nn.LSTM(D, H, 2, dropout=0.3, bidirectional=True), over),
    "GRU": (lambda: nn.GRU(D, H, 2, dropout=0.3), over),
    "RNN": (lambda: nn.RNN(D, H), over),
    "ours": (lambda: ours.Recurrent("lstm-peephole", D, H, 2, dropout=0.3, skip=True), over),
    "RNNCell": (lambda: Loop(nn.RNNCell), over),
    "LSTMCell": (lambda: Loop(nn.LSTMCell), over),
    "GRUCell": (lambda: Loop(nn.GRUCell), over),
    "encoder-decoder": (EncoderDecoder, lambda m, x: m(x, x, False).square().sum()),
    "own": (OwnCell, own),
    "tutorial": (Tutorial, stepwise),
    "mixed": (Mixed, lambda m, x: over(m, torch.cat([x, x[..., :1]], -1))),
}


def hooks(model):
    kinds = [
        *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks"),
        *("_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
    ]
    return [(name, kind, list(getattr(m, kind))) for name, m in model.named_modules() for kind in kinds]


@pytest.mark.parametrize("name", MODELS)
def test_not_one_bit_is_changed(name):
    build, loss = MODELS[name]
    model = build()
    other, x = copy.deepcopy(model), torch.randn(T, B, D)
    x2 = x.clone().requires_grad_()
    x = x.requires_grad_()
    before, random = hooks(model), torch.get_rng_state()
    a = loss(model, x)
    a.backward()
    after = torch.get_rng_state()
    torch.set_rng_state(random)
    with flow.capture(other) as captured:
        b = loss(other, x2)
        b.backward()
    assert torch.equal(torch.get_rng_state(), after)
    assert captured.flows() and not captured._recorder.failures
    captured.shares(0)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(a, b) and torch.equal(x.grad, x2.grad)
    for (n, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) and torch.equal(p.grad, q.grad), n
    assert hooks(other) == before
    assert [m.training for m in model.modules()] == [m.training for m in other.modules()]
    # And once more, without: nothing is left on the graph either.
    other.zero_grad(), setattr(x2, "grad", None)
    torch.set_rng_state(random)
    loss(other, x2).backward()
    assert torch.equal(x.grad, x2.grad)


def test_hooks_come_off_when_the_users_code_fails():
    model = nn.GRU(D, H)
    before = hooks(model)
    with pytest.raises(ZeroDivisionError, match="the user's own"), flow.capture(model) as captured:
        model(torch.randn(T, B, D))
        raise ZeroDivisionError("the user's own")
    assert hooks(model) == before
    with pytest.raises(FlowError, match="ended in an error"):
        captured.flow()
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal"), flow.capture(model):
        model(torch.randn(T, B, D + 1))
    assert hooks(model) == before


def test_an_error_of_the_model_itself_is_not_swallowed_and_the_next_call_counts():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(D, H)

        def forward(self, x):
            y = self.rnn(x)[0]
            if len(x) < 3:
                raise LookupError("too short")
            return y

    model = Picky()
    with flow.capture(model) as captured:
        with pytest.raises(LookupError, match="too short"):
            model(torch.randn(2, B, D))
        model(torch.randn(T, B, D)).sum().backward()
    assert [r.calls for r in captured.recurrences] == [(0,), (1,)]
    assert captured.flow(1).steps == T


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    model, x = nn.GRU(D, H).double(), torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    with flow.capture(model) as captured:
        checkpoint(lambda v: model(v)[0].sin().exp(), x, use_reentrant=reentrant).square().sum().backward()
    assert len(captured.recurrences) == 1
    torch.testing.assert_close(captured.shares()["weight_hh"].gradient, model.weight_hh_l0.grad)


# --- what cannot be measured ---------------------------------------------------------------------------------------


def backward(model, x):
    with flow.capture(model) as captured:
        y = model(x)
        (y[0] if isinstance(y, tuple) else y).sum().backward()
    return captured


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.linear = nn.GRU(D, H), nn.Linear(D, 1)

    def forward(self, x):
        self.rnn(x)
        return self.linear(x)


def nan_at(t):
    x = torch.randn(T, B, D)
    x[t] = float("nan")
    return x


def test_no_recurrence():
    captured = backward(nn.Linear(D, H), torch.randn(T, B, D))
    assert captured.recurrences == []
    with pytest.raises(FlowError, match=r"no recurrence was seen.*once it is a module that takes the state"):
        captured.flow()
    with pytest.raises(FlowError, match="no recurrence was seen"):
        captured.flows()


def test_no_backward():
    with flow.capture(nn.GRU(D, H)) as captured:
        pass
    with pytest.raises(FlowError, match="no recurrence was seen"):
        captured.flow()
    model = nn.GRU(D, H)
    with flow.capture(model) as captured:
        loss = model(torch.randn(T, B, D))[0].sum()
    with pytest.raises(FlowError, match=r"call loss.backward\(\) inside the with block"):
        captured.flow()
    loss.backward()  # the model goes on as ever
    assert model.weight_hh_l0.grad is not None


def test_a_module_with_arguments_that_cannot_be_read_does_not_stop_the_rest():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(D, H)

        def forward(self, x, ring):
            return self.rnn(x)[0]

    ring = []
    ring.append(ring)
    model = Strange()
    with flow.capture(model) as captured:
        model(torch.randn(T, B, D), ring).sum().backward()
    assert captured.flow().steps == T
    assert captured.notes[0].startswith("Strange: RecursionError")


def test_asked_too_early():
    with flow.capture(nn.GRU(D, H)) as captured, pytest.raises(FlowError, match="still open"):
        captured.flow()
    assert str(captured) == "Captured 0 recurrence(s)"


def test_no_graph():
    model = nn.GRU(D, H)
    with flow.capture(model) as captured, torch.no_grad():
        model(torch.randn(T, B, D))
    with pytest.raises(FlowError, match=r"ran without a graph, under torch.no_grad"):
        captured.flow()


def test_a_loss_that_does_not_depend_on_the_layer():
    captured = backward(Unused(), torch.randn(T, B, D))
    with pytest.raises(FlowError, match="rnn, call 0: no gradient entered it: the loss does not depend"):
        captured.flow()


@pytest.mark.parametrize("t", [0, 4])
def test_nan_in_the_input(t):
    captured = backward(nn.GRU(D, H), nan_at(t))
    with pytest.raises(FlowError, match=f"GRU, call 0: its input is NaN or infinite, first at step {t}"):
        captured.flow()


def test_nan_in_the_weights_the_state_and_the_gradient():
    model = nn.RNN(D, H, nonlinearity="relu")
    with torch.no_grad():
        model.weight_hh_l0.fill_(1e200 if model.weight_hh_l0.dtype == torch.float64 else 1e30)
        model.bias_hh_l0.fill_(1.0)
    captured = backward(model.double(), 1e300 * torch.ones(T, B, D, dtype=torch.float64))
    with pytest.raises(FlowError, match="RNN, call 0: the state h is NaN or infinite from step"):
        captured.flow()
    with torch.no_grad():
        model.weight_hh_l0[0, 0] = float("nan")
    with pytest.raises(FlowError, match="RNN, call 0: weight_hh of layer 0 holds NaN"):
        backward(model, torch.ones(T, B, D, dtype=torch.float64)).flow()
    model = nn.GRU(D, H)
    with flow.capture(model) as captured:
        y = model(torch.randn(T, B, D))[0]
        (y[2] * float("nan")).sum().backward()
    with pytest.raises(FlowError, match="the gradient that enters it is NaN or infinite, first at step 2"):
        captured.flow()
    net = Tutorial()
    with flow.capture(net) as captured:
        stepwise(net, nan_at(3)).backward()
    with pytest.raises(FlowError, match="Tutorial, calls 0 to 5: its state h is NaN or infinite, first at step 3"):
        captured.flow()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_models_that_hooks_cannot_look_into():
    model = nn.GRU(D, H)
    for wrapped, message in (
        (torch.compile(model, backend="eager"), "compiled by torch.compile.*_orig_mod"),
        (torch.jit.trace(nn.Linear(2, 2), torch.randn(1, 2)), "TorchScript"),
        (nn.DataParallel(model), "capture model.module"),
    ):
        with pytest.raises(FlowError, match=message), flow.capture(wrapped):
            pass
    with pytest.raises(FlowError, match=r"expected a torch.nn.Module; came function"), flow.capture(lambda x: x):
        pass


def test_a_module_that_keeps_its_own_random_numbers_is_told():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.w = torch.Generator().manual_seed(0), nn.Parameter(torch.eye(H))

        def forward(self, h):
            return torch.tanh(h @ self.w + torch.randn(B, H, generator=self.own))

    net, h = Noisy(), torch.zeros(B, H)
    with flow.capture(net) as captured:
        for _ in range(T):
            h = net(h)
        h.sum().backward()
    with pytest.raises(FlowError, match="run again, the module gives another state h"):
        captured.flow()


def test_an_output_that_a_wrapper_changes_is_told():
    model = nn.GRU(D, H)
    was = model.forward
    model.forward = lambda x: (was(x)[0] * 3, was(x)[1])
    with pytest.raises(FlowError, match="a hook or a wrapper"):
        backward(model, torch.randn(T, B, D)).flow()


def test_an_argument_changed_in_place_is_told():
    net, x, h = Tutorial(), torch.randn(T, B, D), torch.zeros(B, H)
    with flow.capture(net) as captured:
        for t in range(T):
            y, h = net(x[t], h)
        y.sum().backward()
        x.zero_()
    with pytest.raises(FlowError, match="changed in place afterwards; pass a copy"):
        captured.flow()


def test_an_index_that_is_not_there():
    captured = backward(nn.GRU(D, H), torch.randn(T, B, D))
    with pytest.raises(FlowError, match="no recurrence 1; 1 were captured"):
        captured.flow(1)


def test_prints_itself():
    captured = backward(nn.GRU(D, H, 1, bidirectional=True), torch.randn(T, B, D))
    assert str(captured) == "Captured 2 recurrence(s)\n  GRU: layer 0, call 0\n  GRU: layer 0, reverse, call 0"


def test_a_torch_layer_with_a_forward_of_its_own_is_told():
    class Mine(nn.GRU):
        def forward(self, x, hx=None):
            return super().forward(2 * x, hx)

    captured = backward(Mine(D, H), torch.randn(T, B, D))
    with pytest.raises(FlowError, match=r"no recurrence was seen.*a forward of its own"):
        captured.flow()
