"""Omega: 0 where the error keeps its length, its definition by explicit Jacobians, its derivative, its ways in."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime
from throughtime import cures, flow
from throughtime import nn as ttnn
from throughtime.errors import ConfigError, FlowError
from throughtime.flow.measure import recurrences

F64 = torch.float64


def loss_of(y):
    """A loss at every step, not symmetric in the units."""
    weights = torch.linspace(0.5, 2.0, y.shape[-1], dtype=y.dtype)
    return ((y * weights).tanh() ** 2).sum() + y[-1].sum()


def by_definition(layer, x, loss=loss_of):
    """sum_t (||e_t J_t|| / ||e_t|| - 1)^2, mean over the batch: J_t in full, e_t by the recursion, sample by sample."""
    ((r,),) = recurrences(layer, x)
    y = layer(x)[0].detach().requires_grad_()
    g = torch.autograd.grad(loss(y), y)[0]
    J = flow.state_jacobian(r).steps
    T, B, N, _ = J.shape
    H = g.shape[-1]
    total = 0.0
    for b in range(B):
        e = torch.zeros(N, dtype=F64)
        for t in reversed(range(T)):
            e = e.clone()
            e[:H] += g[t, b]
            back = e @ J[t, b]
            total += (back.norm() / e.norm() - 1) ** 2
            e = back
    return total / B


def test_zero_for_an_orthogonal_linear_network():
    layer = ttnn.Recurrent("rnn-identity", 3, 6, 2).double()
    cures.orthogonal_(layer)
    x = torch.randn(40, 3, 3, dtype=F64)
    assert cures.omega(layer, x, loss_of).item() < 1e-20
    cures.orthogonal_(layer, gain=1.1)
    # ||e U|| / ||e|| = 1.1 at every step of both layers.
    assert cures.omega(layer, x, loss_of).item() == pytest.approx(2 * 40 * 0.1**2)


@pytest.mark.parametrize("kind", ["rnn", "rnn-logistic", "preactivation", "lstm", "gru", "lstm-peephole", "lstm-1997"])
def test_is_its_definition(kind):
    layer = ttnn.Recurrent(kind, 3, 5).double()
    x = torch.randn(14, 3, 3, dtype=F64)
    want = by_definition(layer, x)
    torch.testing.assert_close(cures.omega(layer, x, loss_of), want, rtol=1e-10, atol=0)
    torch.testing.assert_close(cures.omega(layer, x, loss_of, exact=False), want, rtol=1e-10, atol=0)
    with throughtime.capture(layer) as captured:
        loss_of(layer(x)[0]).backward()
    torch.testing.assert_close(cures.omega_captured(captured, layer), want, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.RNN(2, 3, nonlinearity="tanh"),
        lambda: nn.LSTM(2, 3, 2, bidirectional=True, batch_first=True),
        lambda: ttnn.Recurrent("gru", 2, 3, 2, skip=True),
        lambda: ttnn.Recurrent("additive-memory-feedback", 2, 3, 2),
        lambda: nn.LSTM(2, 4, proj_size=2),
    ],
)
def test_the_exact_derivative(make):
    """By weights, input and initial state, against finite differences."""
    layer = make().double()
    x = torch.randn(3, 4, 2, dtype=F64, requires_grad=True)
    _, state = layer(x)
    states = [torch.randn_like(s) for s in ((state,) if isinstance(state, torch.Tensor) else state)]
    names = [n for n, _ in layer.named_parameters()]
    params = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    first = [s.requires_grad_() for s in states]

    def f(x, *given):
        ps, ss = given[: len(params)], given[len(params) :]
        for name, p in zip(names, ps, strict=True):
            delattr(layer, name)
            setattr(layer, name, p)
        return cures.omega(layer, x, loss_of, ss[0] if len(ss) == 1 else tuple(ss))

    for name in names:  # plain tensors in the parameters' places, so that they can be differentiated
        layer._parameters.pop(name)
        setattr(layer, name, None)
    assert torch.autograd.gradcheck(f, (x, *params, *first), atol=1e-6, fast_mode=True)


def test_the_papers_derivative_holds_errors_and_states_constant():
    """exact=False by hand for a simple network: Omega(U) with e_t and h_t as numbers (Pascanu 2013)."""
    layer = nn.RNN(3, 5).double()
    x = torch.randn(12, 2, 3, dtype=F64)
    cures.omega(layer, x, loss_of, exact=False).backward()
    ttnn.convert(layer)
    g = torch.autograd.grad(loss_of(y := layer(x)[0].detach().requires_grad_()), y)[0]
    U = layer.weight_hh_l0.detach().clone().requires_grad_()
    h = torch.cat([torch.zeros(1, 2, 5, dtype=F64), layer(x)[0].detach()])
    e, total = torch.zeros(2, 5, dtype=F64), 0
    for t in reversed(range(12)):
        e = (e + g[t]).detach()
        z = x[t] @ layer.weight_ih_l0.T.detach() + h[t] @ U.T + (layer.bias_ih_l0 + layer.bias_hh_l0).detach()
        back = (e * (1 - z.tanh() ** 2)) @ U
        total = total + ((back.norm(dim=-1) / e.norm(dim=-1) - 1) ** 2).mean()
        e = back
    torch.testing.assert_close(layer.weight_hh_l0.grad, torch.autograd.grad(total, U)[0])
    assert layer.weight_ih_l0.grad is not None  # the net inputs hold W too


def test_descending_it_keeps_the_error_alive():
    """torch's default nn.RNN loses the error; a few steps down Omega alone, and it comes through."""
    layer = nn.RNN(4, 16)
    x = torch.randn(30, 8, 4)

    def reach():
        return throughtime.gradient_flow(ttnn.convert(layer), x, lambda y: y[-1].sum()).profile("h")[29].item()

    before = reach()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        cures.omega(layer, x, lambda y: y[-1].sum()).backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
    assert before < 1e-5
    assert reach() > 1e3 * before


def test_captured_in_a_model_with_a_loop_and_packed_sequences():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.cell = nn.GRU(3, 5, 2, dropout=0.5, bidirectional=True), nn.LSTMCell(10, 4)

        def forward(self, x, lengths):
            y, _ = pad_packed_sequence(self.rnn(pack_padded_sequence(x, lengths))[0])
            state = None
            for y_t in y:
                state = self.cell(y_t, state)
            return state[0]

    model = Two()
    with throughtime.capture(model) as captured:
        model(torch.randn(9, 3, 3), torch.tensor([9, 7, 2])).sum().backward()
    each = [cures.omega_captured([c], model) for c in captured.recurrences]
    whole = cures.omega_captured(captured, model)
    assert len(each) == 5
    torch.testing.assert_close(whole, sum(each))
    grads = torch.autograd.grad(whole, [model.rnn.weight_hh_l0_reverse, model.cell.weight_hh])
    assert all(g.isfinite().all() and g.any() for g in grads)
    # The loop, by the layer that computes the same.
    layer = ttnn.LSTM(10, 4)
    layer.load_state_dict({f"{k}_l0": v for k, v in model.cell.state_dict().items()})
    loop = captured.recurrences[-1]
    want = by_definition(layer.double(), loop.recurrence.x.double(), lambda y: y[-1].sum())
    torch.testing.assert_close(each[-1], want, rtol=1e-6, atol=0)


def test_steps_without_an_error_have_no_length_to_keep():
    """A loss at step 3 of 10: steps 4 to 9 send nothing back. And tiny errors of float32 are no zeros."""
    layer = nn.RNN(2, 4)
    x = torch.randn(10, 2, 2)
    early = cures.omega(layer, x, lambda y: y[3].sum())
    torch.testing.assert_close(early, cures.omega(layer, x[:4], lambda y: y[3].sum()))
    torch.testing.assert_close(cures.omega(layer, x, lambda y: 1e-30 * y[3].sum()), early)
    assert cures.omega(layer, x, lambda y: 1e-30 * y[3].sum(), floor=1e-10) == 0


def test_refusals():
    layer = nn.LSTM(2, 3, 2, dropout=0.5)
    x = torch.randn(5, 1, 2)
    for act, error, message in (
        (lambda: cures.omega(layer, x, loss_of), ConfigError, "dropout draws anew"),
        (lambda: cures.omega(nn.Linear(2, 3), x, loss_of), ConfigError, "expected one recurrent layer"),
        (lambda: cures.omega(layer.eval(), x, lambda y: torch.ones(())), FlowError, "depends on the y"),
        (lambda: cures.omega(layer, x, lambda y: y.sum() * torch.nan), FlowError, "NaN or infinite"),
        (lambda: cures.omega(layer, x, torch.ones(5, 1, 2)), FlowError, r"shaped as y, \[5, 1, 3\]"),
        (lambda: cures.omega(layer, x, loss_of, floor=-1), ConfigError, "floor"),
        (lambda: cures.omega_captured([], layer), FlowError, "no recurrence"),
    ):
        with pytest.raises(error, match=message):
            act()
