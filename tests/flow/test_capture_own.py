"""capture() on modules of one's own that are called again with a state that they gave back."""

import pytest
import torch
from torch import nn

from tests.flow.by_hand import check_shares
from tests.flow.test_capture_loops import F64, B, D, H, T
from throughtime import flow


class OwnCell(nn.Module):
    """A cell of one's own with two states, dropout, and an output that depends on the new state."""

    def __init__(self):
        super().__init__()
        self.into, self.read, self.drop = nn.Linear(D + H, 2 * H), nn.Linear(H, 2), nn.Dropout(0.2)
        self.scale = nn.Parameter(torch.rand(H))

    def forward(self, x, state):
        if state is None:
            state = {"h": x.new_zeros(B, H), "m": x.new_zeros(B, H)}
        a, k = self.into(torch.cat([x, self.drop(state["h"])], -1)).chunk(2, -1)
        m = torch.sigmoid(k) * state["m"] + torch.tanh(a)
        h = torch.tanh(m * self.scale)
        return self.read(h), {"h": h, "m": m}


def own_by_hand(module, x, masks, g_out, g_state, first):
    """The parts of every parameter's gradient by loss step and past step, and the maps, of OwnCell."""
    state, outs, states, copies = first, [], [], []
    for t in range(T):
        w = {n: v.detach().clone().requires_grad_() for n, v in module.named_parameters()}
        copies.append(w)
        a, k = (torch.cat([x[t], state[0] * masks[t]], -1) @ w["into.weight"].T + w["into.bias"]).chunk(2, -1)
        m = torch.sigmoid(k) * state[1] + torch.tanh(a)
        state = (torch.tanh(m * w["scale"]), m)
        states.append(state)
        outs.append(state[0] @ w["read.weight"].T + w["read.bias"])
    wanted = [v for k in range(T) for v in (*states[k], *copies[k].values())]
    by_row = [
        torch.autograd.grad([outs[t], *states[t]], wanted, [g_out[t], *(g[t] for g in g_state)],
                            retain_graph=True, materialize_grads=True)
        for t in range(T)
    ]  # fmt: skip
    per, names = len(wanted) // T, list(copies[0])
    maps = [torch.stack([torch.stack([row[k * per + s].norm() for k in range(T)]) for row in by_row]) for s in (0, 1)]
    totals = [torch.stack([sum(row[k * per + s] for row in by_row) for k in range(T)]) for s in (0, 1)]
    parts = {
        n: torch.stack([torch.stack([row[k * per + 2 + i] for k in range(T)]) for row in by_row])
        for i, n in enumerate(names)
    }
    return outs, maps, totals, parts


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_module_of_ones_own(training, start):
    module, x = OwnCell().to(F64).train(training), torch.randn(T, B, D, dtype=F64)
    first = torch.randn(2, B, H, dtype=F64) if start else torch.zeros(2, B, H, dtype=F64)
    random = torch.get_rng_state()
    with flow.capture(module) as captured:
        state, loss = {"h": first[0], "m": first[1]} if start else None, 0.0
        for t in range(T):
            y, state = module(x[t], state)
            loss = loss + (t + 1) * y.square().sum() + (state["m"][..., 1].sin().sum() if t in (1, 4) else 0.0)
        loss.backward()
    (r,) = captured.recurrences
    assert not captured._recorder.failures and r.calls == tuple(range(T)) and r.recurrence.dtype == F64
    torch.set_rng_state(random)
    masks = [nn.functional.dropout(torch.ones(B, H, dtype=F64), 0.2, training) for _ in range(T)]
    zero = [torch.zeros(T, B, H, dtype=F64) for _ in "hm"]
    outs, *_ = own_by_hand(module, x, masks, torch.zeros(T, B, 2), zero, first)
    g_out = torch.stack([2 * (t + 1) * o.detach() for t, o in enumerate(outs)])
    for t in (1, 4):
        zero[1][t, :, 1] = r.recurrence.sequences[1][t, :, 1].cos()
    _, maps, totals, parts = own_by_hand(module, x, masks, g_out, zero, first)

    def close(a, b, what):
        torch.testing.assert_close(a, b.to(a), rtol=1e-9, atol=1e-12, msg=lambda m: f"{what}: {m}")

    for i, name in enumerate(("h", "h2")):
        close(r.flow().maps[name], maps[i], name)
        close(r.totals()[name], totals[i], name)
    close(r.entering.direct[1], zero[1], "entering")
    assert (r.entering.direct[0] == 0).all()
    shares = r.shares()
    check_shares(shares, parts, 1, close)
    for name, share in shares.parameters.items():
        close(share.gradient, module.get_parameter(name).grad, name)


class Tutorial(nn.Module):
    """The character network of torch's tutorial: output and next state from one concatenation."""

    def __init__(self):
        super().__init__()
        self.i2h, self.i2o = nn.Linear(D + H, H), nn.Linear(D + H, 2)

    def forward(self, x, hidden):
        combined = torch.cat((x, hidden), 1)
        hidden = self.i2h(combined)
        return torch.log_softmax(self.i2o(combined), 1), hidden


def test_the_tutorials_network_in_float32():
    net, x = Tutorial(), torch.randn(T, B, D)
    hidden = torch.zeros(B, H)
    with flow.capture(net) as captured:
        for t in range(T):
            y, hidden = net(x[t], hidden)
        nn.functional.nll_loss(y, torch.zeros(B, dtype=torch.long)).backward()
    (r,) = captured.recurrences
    maps = r.flow().maps["h"]
    assert (maps[:-1] == 0).all() and (maps[-1, :-1] > 0).all() and maps[-1, -1] == 0
    # Linear: dL/dh_{k} = U^T dL/dh_{k+1}.
    U = net.i2h.weight.detach()[:, D:].double()
    total = r.totals()["h"]
    torch.testing.assert_close(total[1], total[2] @ U, rtol=1e-9, atol=1e-14)
    for name, share in r.shares().parameters.items():
        torch.testing.assert_close(share.gradient.float(), net.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


def test_an_output_fed_back_without_its_graph_is_an_input():
    net, x = Tutorial().to(F64), torch.randn(B, D, dtype=F64)
    net.i2o = nn.Linear(D + H, D).to(F64)
    with flow.capture(net) as captured:
        hidden, loss = torch.zeros(B, H, dtype=F64), 0.0
        for _ in range(T):
            x, hidden = net(x.detach(), hidden)
            loss = loss + x.square().sum()
        loss.backward()
    (r,) = captured.recurrences
    assert r.calls == tuple(range(T)) and len(r.recurrence.links) == 1
    for name, share in r.shares().parameters.items():
        torch.testing.assert_close(share.gradient, net.get_parameter(name).grad, rtol=1e-9, atol=1e-12)


def test_an_output_fed_back_with_its_graph_is_a_state():
    net, x = Tutorial().to(F64), torch.randn(B, D, dtype=F64)
    net.i2o = nn.Linear(D + H, D).to(F64)
    with flow.capture(net) as captured:
        hidden, loss = torch.zeros(B, H, dtype=F64), 0.0
        for _ in range(T):
            x, hidden = net(x, hidden)
            loss = loss + x.square().sum()
        loss.backward()
    (r,) = captured.recurrences
    assert r.calls == tuple(range(T)) and r.recurrence.states == ("h", "h2")
    for name, share in r.shares().parameters.items():
        torch.testing.assert_close(share.gradient, net.get_parameter(name).grad, rtol=1e-9, atol=1e-12)


def test_the_wrapper_of_a_cell_is_not_counted_twice():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.read = nn.LSTMCell(D, H), nn.Linear(H, 2)

        def forward(self, x, state):
            h, c = self.cell(x, state)
            return self.read(h), (h, c)

    net, x = Wrapper().to(F64), torch.randn(T, B, D, dtype=F64)
    with flow.capture(net) as captured:
        state = tuple(torch.zeros(B, H, dtype=F64) for _ in "hc")
        for t in range(T):
            y, state = net(x[t], state)
        y.square().sum().backward()
    (r,) = captured.recurrences
    assert r.name == "cell" and r.calls == tuple(range(T))
    torch.testing.assert_close(r.shares()["weight_hh"].gradient, net.cell.weight_hh.grad, rtol=1e-9, atol=1e-12)


def test_a_state_that_is_changed_between_steps_is_told():
    cell, x = nn.GRUCell(D, H).to(F64), torch.randn(T, B, D, dtype=F64)
    with flow.capture(cell) as captured:
        h = torch.zeros(B, H, dtype=F64)
        for t in range(T):
            h = cell(x[t], h * 0.9)
        h.sum().backward()
    assert len(captured.recurrences) == T
    assert "computed from the one that call 0 returned (MulBackward0)" in captured.notes[0]
    whole = sum(r.shares()["weight_hh"].gradient for r in captured.recurrences)
    torch.testing.assert_close(whole, cell.weight_hh.grad)


def test_a_state_that_is_also_the_input_is_told():
    cell = nn.GRUCell(H, H).to(F64)
    with flow.capture(cell) as captured:
        h = cell(torch.randn(B, H, dtype=F64))
        h = cell(h, h)
        h.sum().backward()
    assert len(captured.recurrences) == 2 and "the state is also its input" in captured.notes[0]
    whole = sum(r.shares()["weight_ih"].gradient for r in captured.recurrences)
    torch.testing.assert_close(whole, cell.weight_ih.grad)
