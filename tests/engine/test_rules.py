"""The two training rules against loops written by hand, where autograd's own hooks and detach do the work."""

import pytest
import torch
from torch import sigmoid, tanh

from tests.engine.problems import ALL, assert_same, gradients, problem
from throughtime.engine import trace
from throughtime.engine.rules import net_input, with_rule


def by_hand(p, clip=None, truncated=False):
    """The cells once more, a line at a time, with the rule applied where the papers say: at the net inputs."""

    def net(v):
        if clip is not None and v.requires_grad:
            v.register_hook(lambda g: None if g is None else g.clamp(-clip, clip))
        return v

    def cut(v):
        return v.detach() if truncated else v

    W, U = p.weights["weight_ih"], p.weights["weight_hh"]
    bi, bh = p.weights["bias_ih"], p.weights["bias_hh"]
    state, history = list(p.states), []
    for x in p.x:
        h = state[0]
        zx, zh = x @ W.T + bi, cut(h) @ U.T + bh
        kind = type(p.cell).__name__
        if kind == "Simple":
            state = [tanh(net(zx + zh))]
        elif kind == "GRU":
            H = h.shape[1]
            r, u = (sigmoid(net(v)) for v in (zx + zh)[:, : 2 * H].split(H, -1))
            n = tanh(net(zx[:, 2 * H :] + r * zh[:, 2 * H :]))
            state = [(1 - u) * n + u * h]
        elif kind == "GRUResetBefore":
            H = h.shape[1]
            zh = cut(h) @ U[: 2 * H].T + bh[: 2 * H]
            r, u = (sigmoid(net(v)) for v in (zx[:, : 2 * H] + zh).split(H, -1))
            inner = cut(r * h) @ U[2 * H :].T
            n = tanh(net(zx[:, 2 * H :] + bh[2 * H :] + inner))
            state = [(1 - u) * n + u * h]
        elif kind == "PreActivation":
            state = [net(zx + bh + cut(tanh(h)) @ U.T)]
        elif kind == "AdditiveMemoryFeedback":
            c = state[1] + tanh(net(zx + zh))
            state = [tanh(c), c]
        else:
            c = state[1]
            if kind == "LSTM1997":
                i, g, o = (net(v) for v in (zx + zh).chunk(3, -1))
                c = c + sigmoid(i) * tanh(g)
                state = [sigmoid(o) * tanh(c), c]
            elif kind == "LSTM":
                i, f, g, o = (net(v) for v in (zx + zh).chunk(4, -1))
                c = sigmoid(f) * c + sigmoid(i) * tanh(g)
                state = [sigmoid(o) * tanh(c), c]
            else:
                pi, pf, po = p.units
                i, f, g, o = (zx + zh).chunk(4, -1)
                i, f = net(i + pi * cut(c)), net(f + pf * cut(c))
                c = sigmoid(f) * c + sigmoid(i) * tanh(net(g))
                state = [sigmoid(net(o + po * cut(c))) * tanh(c), c]
        history.append(state)
    return [torch.stack(s) for s in zip(*history, strict=True)], state


NAMES = [
    "rnn", "preactivation", "additive-memory-feedback", "lstm-1997", "lstm", "lstm-peephole", "gru", "gru-reset-before",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", [{"clip": 0.2}, {"truncated": True}, {"clip": 0.1, "truncated": True}, {}], ids=str)
def test_rule_equals_the_loop_by_hand(name, rule):
    p = problem(name, T=6)
    ours, theirs = p.unroll(**rule), by_hand(p, **rule)
    for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert_same(gradients(p, ours), gradients(p, theirs))


@pytest.mark.parametrize("name", NAMES)
def test_rules_change_the_gradient_and_not_the_values(name):
    p = problem(name, T=6)
    plain = p.unroll()
    free = gradients(p, plain)["x"]
    for rule in ({"clip": 0.05}, {"truncated": True}):
        out = p.unroll(**rule)
        assert all(torch.equal(a, b) for a, b in zip(out[0], plain[0], strict=True))
        assert not torch.allclose(gradients(p, out)["x"], free)


def test_a_wide_clip_changes_nothing():
    p = problem("lstm")
    assert_same(gradients(p, p.unroll(clip=1e6)), gradients(p, p.unroll()))


def test_carousel_is_all_that_is_left_of_the_truncated_lstm_of_1997():
    # dc_t/dc_k = 1 for every lag, so the gradient that reaches c_0 from a loss on c_T alone is 1 exactly.
    p = problem("lstm-1997", T=40)
    _, (_, c) = p.unroll(truncated=True)
    grad = torch.autograd.grad(c.sum(), p.states[1])[0]
    assert torch.equal(grad, torch.ones_like(grad))


def test_truncated_backward_of_1997_is_a_reverse_cumulative_sum():
    p = problem("lstm-1997", T=12)
    (h, c), _ = p.unroll(truncated=True)
    weight = torch.randn_like(h)
    d_h0, d_c0 = torch.autograd.grad((weight * h).sum(), p.states, materialize_grads=True)
    z = (torch.cat([p.states[0][None], h[:-1]]) @ p.weights["weight_hh"].T) + p.x @ p.weights["weight_ih"].T
    o = sigmoid((z + p.weights["bias_ih"] + p.weights["bias_hh"]).chunk(3, -1)[2])
    torch.testing.assert_close(d_c0, (weight * o * (1 - tanh(c) ** 2)).sum(0))
    assert torch.equal(d_h0, torch.zeros_like(d_h0))


@pytest.mark.parametrize("name", ["lstm-peephole", "gru-reset-before", "preactivation"])
def test_second_derivative_of_the_truncated_gradient(name):
    p = problem(name, T=4)
    seconds = []
    for outputs in (p.unroll(truncated=True), by_hand(p, truncated=True)):
        first = gradients(p, outputs, create_graph=True)
        seconds.append(gradients(p, [list(first.values())]))
    assert_same(*seconds, atol=1e-9)


@pytest.mark.parametrize("name", ["lstm-peephole", "gru-reset-before", "preactivation"])
def test_second_derivative_under_clipping(name):
    # A loss linear in the outputs, so that all of the second derivative passes the recurrence once.
    p = problem(name, T=4)
    seconds = []
    for (h, *_), _ in (p.unroll(clip=0.2), by_hand(p, clip=0.2)):
        weight = torch.linspace(-1, 1, h.numel(), dtype=h.dtype).view_as(h)
        named = p.leaves()
        grads = torch.autograd.grad((h * weight).sum(), list(named.values()), create_graph=True)
        seconds.append(gradients(p, [grads]))
    assert_same(*seconds, atol=1e-9)


def test_second_derivative_with_a_clip_that_never_acts():
    p = problem("lstm", T=4)
    seconds = []
    for rule in ({"clip": 1e6}, {}):
        first = gradients(p, p.unroll(**rule), create_graph=True)
        seconds.append(gradients(p, [list(first.values())]))
    assert_same(*seconds, atol=1e-9)


def test_every_net_input_is_clipped_where_the_whole_of_it_stands():
    tape = trace(ALL["lstm-peephole"]())
    roots = [net_input(tape, tape.number("z", g)) for g in ("i", "f", "g", "o")]
    n = len(tape.inputs)
    assert [tape.ops[r - n].name if r >= n else "z" for r in roots] == ["add", "add", "z", "add"]
    assert sum(op.name == "clip_grad" for op in with_rule(tape, clip=10.0).ops) == 4
