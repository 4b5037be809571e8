"""capture() on loops: over torch's cells, over layers given one step at a time, over modules of one's own.

What enters the loop is known by taps: copies of the states for all uses but the next step, whose gradients are read.
The loop itself is then unrolled by hand and differentiated by brute force."""

import pytest
import torch
from torch import nn

from tests.flow.by_hand import check, check_shares, rows, unrolled
from throughtime import flow
from throughtime.flow.capture_calls import cell_of

F64 = torch.float64
T, B, D, H = 5, 3, 3, 4


class Taps:
    """Copies of tensors, for the uses outside the recurrence."""

    def __init__(self, on):
        self.on, self.all = on, []

    def __call__(self, v):
        if not self.on:
            return v
        v = v.clone()
        v.retain_grad()
        self.all.append(v)
        return v

    def grads(self):
        return [torch.zeros_like(v) if v.grad is None else v.grad for v in self.all]


class Loop(nn.Module):
    """One cell over time; its h is read out at every step, and c at some."""

    def __init__(self, cell, every=1):
        super().__init__()
        self.cell, self.read, self.every = cell(D, H), nn.Linear(H, 2), every

    def forward(self, x, state=None, tap=Taps(False)):  # noqa: B008
        out = []
        for t in range(len(x)):
            state = self.cell(x[t], state)
            h = state[0] if isinstance(state, tuple) else state
            if t % self.every == 0:
                out.append(self.read(tap(h)).tanh())
            if isinstance(state, tuple) and t == 2:
                out.append(tap(state[1])[..., :2])
        return torch.stack(out), state


def by_brute_force(cell, x, g, first=None):
    """g: for each state [T, B, .]."""
    w = {n: v.detach().double().requires_grad_() for n, v in cell.named_parameters()}
    kept, _, _ = unrolled(cell_of(cell), [[w]], x, first)
    states = kept[0][0].states
    sources = [list(zip(states[t], [v[t] for v in g], strict=True)) for t in range(len(x))]
    return rows(kept, sources)[0][0]


def run_loop(net, x, state=None):
    """(captured, what entered each state) of the loop, and the gradients with capture equal those without."""
    taps = Taps(True)
    net(x, state, taps)[0].square().sum().backward()
    n = 2 if isinstance(net.cell, nn.LSTMCell) else 1
    g, grads = [torch.zeros(T, B, H, dtype=x.dtype) for _ in range(n)], iter(taps.grads())
    for t in range(T):
        if t % net.every == 0:
            g[0][t] = next(grads)
        if n == 2 and t == 2:
            g[1][t] = next(grads)
    net.zero_grad()
    with flow.capture(net) as captured:
        net(x, state)[0].square().sum().backward()
    assert not captured._recorder.failures and not captured.notes
    return captured, g


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_loops_over_cells(cell, start, every):
    net, x = Loop(cell, every).to(F64), torch.randn(T, B, D, dtype=F64)
    first = [torch.randn(B, H, dtype=F64) for _ in range(2 if cell is nn.LSTMCell else 1)] if start else None
    state = None if first is None else tuple(first) if len(first) > 1 else first[0]
    captured, g = run_loop(net, x, state)
    (r,) = captured.recurrences
    assert (r.name, r.calls, r.carried) == ("cell", tuple(range(T)), None)
    torch.testing.assert_close(r.gradient, g[0], rtol=1e-12, atol=1e-14)
    assert torch.equal(r.gradient == 0, g[0] == 0)  # where nothing entered there is nothing, not a rounding error
    stacked = None if first is None else [s[None] for s in first]
    check(r, by_brute_force(net.cell, x, g, stacked), cell_of(net.cell).states)
    for name, share in r.shares().parameters.items():
        torch.testing.assert_close(share.gradient, getattr(net.cell, name).grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_small_gradients_beside_exploding_ones_in_float32(cell):
    # What is left of a subtraction would be rounding errors; the nodes outside tell it exactly.
    net = Loop(cell)
    with torch.no_grad():
        net.cell.weight_hh.mul_(8)
    captured, g = run_loop(net, torch.randn(T, B, D))
    torch.testing.assert_close(captured.recurrences[0].gradient, g[0].double(), rtol=1e-6, atol=0)


class Stacked(nn.Module):
    """Two cells one over the other, as in torch's example of time-series prediction, fed with its own output."""

    def __init__(self):
        super().__init__()
        self.low, self.high, self.read = nn.LSTMCell(1, H), nn.LSTMCell(H, H), nn.Linear(H, 1)

    def forward(self, x, future):
        low = high = tuple(torch.zeros(B, H, dtype=F64) for _ in "hc")
        out = []
        for t in range(len(x) + future):
            low = self.low(x[t] if t < len(x) else out[-1], low)
            high = self.high(low[0], high)
            out.append(self.read(high[0]))
        return torch.stack(out)


def test_cells_over_cells_and_the_output_fed_back():
    net, x = Stacked().to(F64), torch.randn(4, B, 1, dtype=F64)
    with flow.capture(net) as captured:
        net(x, 3).square().sum().backward()
    low, high = captured.recurrences
    assert (low.name, high.name) == ("low", "high") and low.calls == high.calls == tuple(range(7))
    for r, cell in ((low, net.low), (high, net.high)):
        # The gradient that comes by way of the input fed back entered from outside: all add up.
        g = [r.entering.direct[0], torch.zeros(7, B, H, dtype=F64)]
        check(r, by_brute_force(cell, r.recurrence.x, g), ("h", "c"))
        for name, share in r.shares().parameters.items():
            torch.testing.assert_close(share.gradient, getattr(cell, name).grad, rtol=1e-9, atol=1e-12)


def test_chains_that_run_side_by_side():
    cell, x = nn.GRUCell(D, H).to(F64), torch.randn(2, T, B, D, dtype=F64)
    h = [torch.zeros(B, H, dtype=F64), None]
    with flow.capture(cell) as captured:
        for t in range(T):
            h = [cell(x[i, t], h[i]) for i in (0, 1)]
        (h[0].sum() + 2 * h[1].square().sum()).backward()
    assert [r.calls for r in captured.recurrences] == [(0, 2, 4, 6, 8), (1, 3, 5, 7, 9)]
    total = [sum(r.shares()[n].gradient for r in captured.recurrences) for n in ("weight_ih", "weight_hh")]
    torch.testing.assert_close(total, [cell.weight_ih.grad, cell.weight_hh.grad])


@pytest.mark.parametrize("cut", ["detach", "clone", "data"])
def test_windows_cut_by_detach(cut):
    net, x = Loop(nn.LSTMCell).to(F64), torch.randn(2 * T, B, D, dtype=F64)
    cuts = {"detach": lambda s: s.detach(), "clone": lambda s: s.detach().clone(), "data": lambda s: s.data}
    with flow.capture(net) as captured:
        y, state = net(x[:T])
        y.square().sum().backward()
        net(x[T:], tuple(cuts[cut](s) for s in state))[0].square().sum().backward()
    one, two = captured.recurrences
    assert (one.carried, two.carried, two.source) == (None, "detached", f"cell, call {T - 1}")
    assert one.calls == tuple(range(T)) and two.calls == tuple(range(T, 2 * T))
    torch.testing.assert_close(two.recurrence.states[0], state[0].detach())
    total = one.shares()["weight_hh"].gradient + two.shares()["weight_hh"].gradient
    torch.testing.assert_close(total, net.cell.weight_hh.grad)


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_layer_given_one_step_at_a_time_is_one_recurrence(kind):
    # As decoders do. The same layer given all steps at once is the reference.
    layer, x = kind(D, H, 2).to(F64), torch.randn(T, B, D, dtype=F64)

    def loss(ys, state):
        h = state if kind is not nn.LSTM else state[1]
        return ys.square().sum() + h.sum()

    with flow.capture(layer) as captured:
        state, ys = None, []
        for t in range(T):
            y, state = layer(x[t : t + 1], state)
            ys.append(y)
        loss(torch.cat(ys), state).backward()
    with flow.capture(layer) as want:
        loss(*layer(x)).backward()
    assert [r.calls for r in captured.recurrences] == [tuple(range(T))] * 2
    for i in (0, 1):
        for name, m in want.flow(i).maps.items():
            torch.testing.assert_close(captured.flow(i).maps[name], m, rtol=1e-9, atol=1e-13)
        for name, v in want.totals(i).items():
            torch.testing.assert_close(captured.totals(i)[name], v, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(
            captured.shares(i)["weight_hh"].gradient, want.shares(i)["weight_hh"].gradient, rtol=1e-9, atol=1e-13
        )


def test_dropout_in_a_layer_given_one_step_at_a_time():
    layer, x = nn.GRU(D, H, 2, dropout=0.5).to(F64), torch.randn(T, B, D, dtype=F64)
    with flow.capture(layer) as captured:
        state, total = None, 0.0
        for t in range(T):
            y, state = layer(x[t : t + 1], state)
            total = total + y.square().sum()
        total.backward()
    for r in captured.recurrences:
        for name, share in r.shares().parameters.items():
            torch.testing.assert_close(share.gradient, getattr(layer, f"{name}_l{r.layer}").grad, rtol=1e-9, atol=1e-12)


class EncoderDecoder(nn.Module):
    """The last state of one GRU starts another, which is fed the right symbols or its own output."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.GRU(D, H, 1, bidirectional=False), nn.GRU(D, H)
        self.read = nn.Linear(H, D)

    def forward(self, x, target, forcing):
        _, h = self.encoder(x)
        now, out = torch.zeros(1, B, D, dtype=x.dtype), []
        for t in range(len(target)):
            y, h = self.decoder(now, h)
            out.append(self.read(y))
            now = target[t : t + 1] if forcing else out[-1]
        return torch.cat(out)


@pytest.mark.parametrize("forcing", [True, False])
def test_encoder_and_decoder(forcing):
    net, x, target = EncoderDecoder().to(F64), *torch.randn(2, T, B, D, dtype=F64)
    with flow.capture(net) as captured:
        net(x, target, forcing).square().sum().backward()
    encoder, decoder = captured.recurrences
    assert (encoder.name, encoder.calls) == ("encoder", (0,))
    assert (decoder.name, decoder.calls) == ("decoder", tuple(range(T)))
    assert (decoder.carried, decoder.source) == ("attached", "encoder, call 0")
    for r, layer in ((encoder, net.encoder), (decoder, net.decoder)):
        for name, share in r.shares().parameters.items():
            torch.testing.assert_close(share.gradient, getattr(layer, f"{name}_l0").grad, rtol=1e-9, atol=1e-12)
    maps = encoder.flow().maps
    assert (maps["h"][:-1] == 0).all() and (maps["h"][-1] > 0).all()  # all of it entered at the last state
    total = encoder.totals()["h"]
    h = encoder.recurrence.output.detach()
    again = nn.GRU(D, H).to(F64)
    again.load_state_dict(net.encoder.state_dict())
    start = h[1:2].clone().requires_grad_()
    (want,) = torch.autograd.grad(again(x[2:], start)[1], start, encoder.final["h"][None])
    torch.testing.assert_close(total[1], want[0], rtol=1e-9, atol=1e-13)


def test_a_layer_called_twice_and_weights_shared_by_two():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.other = nn.RNN(H, H), nn.RNN(H, H)
            self.other.weight_hh_l0 = self.rnn.weight_hh_l0

        def forward(self, x):
            return self.other(self.rnn(self.rnn(x)[0])[0])[0]

    net = Net().to(F64)
    with flow.capture(net) as captured:
        net(torch.randn(T, B, H, dtype=F64)).square().sum().backward()
    assert [(r.name, r.calls) for r in captured.recurrences] == [("rnn", (0,)), ("rnn", (1,)), ("other", (0,))]
    first, second, third = (r.shares() for r in captured.recurrences)
    for n in ("weight_ih", "bias_ih"):
        torch.testing.assert_close(first[n].gradient + second[n].gradient, getattr(net.rnn, f"{n}_l0").grad)
        torch.testing.assert_close(third[n].gradient, getattr(net.other, f"{n}_l0").grad)
    whole = sum(s["weight_hh"].gradient for s in (first, second, third))
    torch.testing.assert_close(whole, net.rnn.weight_hh_l0.grad)


def test_a_bidirectional_state_carried_in_the_graph():
    # Two calls that cannot be one recurrence: what the second sends back entered the first's last state.
    layer, x = nn.LSTM(D, H, bidirectional=True).to(F64), torch.randn(T, B, D, dtype=F64)
    with flow.capture(layer) as captured:
        state = layer(x)[1]
        layer(x.flip(0), state)[0].square().sum().backward()
    assert [(r.calls, r.reverse, r.carried) for r in captured.recurrences] == [
        ((0,), False, None), ((0,), True, None), ((1,), False, "attached"), ((1,), True, "attached"),
    ]  # fmt: skip
    for reverse, end in ((False, ""), (True, "_reverse")):
        both = [r.shares() for r in captured.recurrences if r.reverse == reverse]
        for n in ("weight_ih", "weight_hh", "bias_hh"):
            whole = sum(s[n].gradient for s in both)
            torch.testing.assert_close(whole, getattr(layer, f"{n}_l0{end}").grad, rtol=1e-9, atol=1e-12)


# --- modules of one's own ---------------------------------------------------------------------------------------------


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
