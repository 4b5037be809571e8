"""capture() on loops: over torch's cells, over layers given one step at a time.

What enters the loop is known by taps: copies of the states for all uses but the next step, whose gradients are read.
The loop itself is then unrolled by hand and differentiated by brute force."""

import pytest
import torch
from torch import nn

from tests.flow.by_hand import check, rows, unrolled
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


class Masked(nn.Module):
    """A cell whose state is set to 0 where a sequence has ended, before the step."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(D, H)

    def forward(self, x, state, mask):
        h, c = self.cell(x, tuple(s * mask for s in state))
        return h, (h, c)


def test_a_cell_with_a_masked_state_is_a_part_of_the_step_around_it():
    model, x, mask = Masked().to(F64), torch.randn(T, B, D, dtype=F64), torch.ones(B, 1, dtype=F64)
    mask[0] = 0.5
    with flow.capture(model) as captured:
        state, loss = tuple(torch.zeros(2, B, H, dtype=F64)), 0.0
        for t in range(T):
            y, state = model(x[t], state, mask)
            loss = loss + y.square().sum()
        loss.backward()
    assert [(r.name, len(r.calls)) for r in captured.recurrences] == [("Masked", T)]
    assert not captured.notes and not captured.changed
    torch.testing.assert_close(captured.shares()["cell.weight_hh"].gradient, model.cell.weight_hh.grad)


def test_a_state_masked_between_the_steps_is_told():
    model, x, mask = nn.LSTMCell(D, H), torch.randn(T, B, D), torch.ones(B, 1)
    with flow.capture(model) as captured:
        state, loss = tuple(torch.zeros(2, B, H)), 0.0
        for t in range(T):
            state = model(x[t], tuple(s * mask for s in state))
            loss = loss + state[0].square().sum()
        loss.backward()
    assert captured.changed == {"LSTMCell"} and len(captured.recurrences) == T
    assert len(captured.notes) == 1 and "was computed from the one that call 0 returned" in captured.notes[0]
