"""Truncated BPTT equals the gradient unrolled by hand, with any state, and carries the state over the sequence."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from throughtime import cures
from throughtime import nn as ttnn
from throughtime.errors import ConfigError, ShapeError

F64 = torch.float64


def unrolled(model, x, losses, back, state):
    """By hand, one call a step: the gradient of the losses at steps `losses` through the steps from `back` on."""
    with torch.no_grad():
        for t in range(back):
            _, state = model(x[t : t + 1], state)
    total = 0
    for t in range(back, losses.stop):
        y, state = model(x[t : t + 1], state)
        if t >= losses.start:
            total = total + (y**2).sum()
    return torch.autograd.grad(total, list(model.parameters()))


@pytest.mark.parametrize("make", [lambda: nn.LSTM(2, 4, 2), lambda: ttnn.GRU(2, 4), lambda: nn.RNN(2, 4)])
@pytest.mark.parametrize("k1, k2", [(5, None), (3, 3), (2, 6), (1, 4), (4, 12), (100, None)])
def test_equals_the_hand_unrolled_gradient(make, k1, k2):
    model = make().double()
    x = torch.randn(17, 3, 2, dtype=F64)
    seen = []
    for window in cures.truncated_bptt(model, x, k1, k2):
        loss = (window.output**2).sum()
        got = torch.autograd.grad(loss, list(model.parameters()))
        back = max(0, window.steps.start - (k2 or k1) + k1)
        for a, b in zip(got, unrolled(model, x, window.steps, back, None), strict=True):
            torch.testing.assert_close(a, b)
        seen += range(17)[window.steps]
    assert seen == list(range(17))  # every step is scored once
    torch.testing.assert_close(window.state, model(x)[1])


@pytest.mark.parametrize("k2", [4, 12])
def test_with_updates_between_the_windows(k2):
    """The rule by hand: run again from the kept state with the weights of now; keep the states that this gives."""
    torch.manual_seed(1)
    model, other = nn.LSTM(2, 4).double(), nn.LSTM(2, 4).double()
    other.load_state_dict(model.state_dict())
    x = torch.randn(24, 2, 2, dtype=F64)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, other)]
    for window in cures.truncated_bptt(model, x, 4, k2):
        optimizers[0].zero_grad()
        (window.output**2).mean().backward()
        optimizers[0].step()
    zero = (torch.zeros(1, 2, 4, dtype=F64),) * 2
    kept = {0: zero}
    for end in range(4, 25, 4):
        begin = max(0, end - k2)
        state = kept[begin]
        for at in range(begin, end, 4):
            kept[at] = tuple(s.detach() for s in state)
            y, state = other(x[at : at + 4], state)
        kept[end] = tuple(s.detach() for s in state)
        optimizers[1].zero_grad()
        (y**2).mean().backward()
        optimizers[1].step()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@dataclass
class Memory:
    h: Tensor
    seen: dict[str, list[Tensor]]
    steps: int = 0


class Own(nn.Module):
    """A model with a state of its own making."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(2, 3)

    def forward(self, inputs, state):
        if state is None:
            state = Memory(torch.zeros(2, 3), {"last": [torch.zeros(2, 3)]})
        h, ys = state.h, []
        for x_t, m_t in zip(inputs["x"].unbind(1), inputs["m"].unbind(1), strict=True):
            h = self.cell(x_t, h) * m_t[:, None] + state.seen["last"][0]
            ys.append(h)
        return torch.stack(ys, 1), Memory(h, {"last": [0.1 * h]}, state.steps + len(ys))


def test_any_structure_of_states_and_inputs():
    model = Own()
    inputs = {"x": torch.randn(2, 10, 2), "m": torch.ones(2, 10)}
    for window in cures.truncated_bptt(model, inputs, 4, time=1):
        assert window.output.requires_grad and not window.state.h.requires_grad
        assert not window.state.seen["last"][0].requires_grad
        window.output.sum().backward()  # a graph that were not cut would run into the one before, which is freed
    assert window.state.steps == 10 and window.steps == slice(8, 10)


def test_goes_on_from_a_state():
    model, x = nn.GRU(2, 3), torch.randn(12, 1, 2)
    whole = [w.output for w in cures.truncated_bptt(model, x, 3)]
    first = list(cures.truncated_bptt(model, x[:6], 3))
    second = list(cures.truncated_bptt(model, x[6:], 3, state=first[-1].state))
    torch.testing.assert_close(torch.cat(whole), torch.cat([w.output for w in first + second]))


def test_windows_and_cut_for_loops_of_ones_own():
    x = torch.arange(10.0).view(10, 1, 1)
    parts = list(cures.windows({"x": x, "y": x[..., 0]}, 4))
    assert [s for s, _ in parts] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert torch.equal(torch.cat([p["x"] for _, p in parts]), x)
    h = torch.ones(2, requires_grad=True) * 2
    state = (h, {"c": [h * 3]}, None, 7)
    done = cures.cut(state)
    assert not done[0].requires_grad and not done[1]["c"][0].requires_grad and done[2:] == (None, 7)
    assert done[0].data_ptr() == h.data_ptr()
    assert cures.cut(None) is None


def test_restart_of_the_sequences_that_ended():
    state = (torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    ended = torch.tensor([False, True, False])
    h, c = cures.restart(state, ended)
    assert not h[:, 1].any() and not c[:, 1].any()
    assert torch.equal(h[:, [0, 2]], state[0][:, [0, 2]])
    begin = (torch.ones(2, 1, 4), torch.full((2, 1, 4), 2.0))
    assert (cures.restart(state, ended, start=begin)[1][:, 1] == 2).all()
    assert not cures.restart(torch.randn(3, 4), ended, batch=0)[1].any()
    with pytest.raises(ShapeError, match="ended must be bool"):
        cures.restart(state, torch.tensor([True]))
    with pytest.raises(ShapeError, match="start has 1 tensors"):
        cures.restart(state, ended, start=begin[0])


def test_refusals():
    model, x = nn.GRU(2, 3), torch.randn(6, 1, 2)
    packed = nn.utils.rnn.pack_sequence([x[:, 0]])
    for act, error, message in (
        (lambda: cures.truncated_bptt(model, x, 0), ConfigError, "k1 must be"),
        (lambda: cures.truncated_bptt(model, x, 4, 6), ConfigError, "k2 must be a multiple of k1"),
        (lambda: cures.truncated_bptt(model, packed, 4), ShapeError, "packed"),
        (lambda: cures.truncated_bptt(model, (x, x[1:]), 4), ShapeError, r"different numbers of steps: \[5, 6\]"),
        (lambda: cures.truncated_bptt(model, nn.Linear(2, 2)(x), 4), ConfigError, "an embedding"),
        (lambda: next(cures.truncated_bptt(lambda v, s: v, x, 4)), ConfigError, r"must return \(output, state\)"),
    ):
        with pytest.raises(error, match=message):
            act()
