"""Totals and shares of one recurrence: brute force, closed forms, estimates and their error bars, refusals."""

import pytest
import torch

from tests.engine.problems import ALL
from tests.flow.by_hand import check_shares, rows, unrolled
from tests.flow.runs import linear, ran
from throughtime import flow
from throughtime.errors import FlowError
from throughtime.flow import Entering
from throughtime.flow.parameter_parts import matrix_name

F64 = torch.float64


def close(a, b, what):
    torch.testing.assert_close(a, b.to(a), rtol=1e-9, atol=1e-12, msg=lambda m: f"{what}: {m}")


def by_brute_force(r, g):
    """Of one recurrence and the gradients that enter each of its states, [T, B, .]."""
    w = r.weights
    named = {"weight_ih": w.weight_ih, "weight_hh": w.weight_hh, "bias_ih": w.bias_ih, "bias_hh": w.bias_hh}
    named |= dict(zip(r.cell.units, w.units, strict=True))
    named |= {matrix_name(n): v for n, v in zip(r.cell.matrices, w.matrices, strict=True)}
    named = {n: v.detach().clone().requires_grad_() for n, v in named.items() if v is not None}
    first = None if r.states is None else [s[None] for s in r.states]
    x = r.x.flip(0) if r.reverse else r.x
    assert r.lengths is None
    kept, _, _ = unrolled(r.cell, [[named]], x, first)
    run = kept[0][0]
    if r.reverse:
        run.zs, run.states, run.weights = run.zs[::-1], run.states[::-1], run.weights[::-1]
    sources = [[(run.states[t][s], g[s][t]) for s in range(len(g))] for t in range(len(x))]
    return rows(kept, sources)[0][0]


def entering(r, seed=0):
    """Something at every state and step, nothing at step 1."""
    gen = torch.Generator().manual_seed(seed)
    g = [torch.randn(s.shape, generator=gen, dtype=F64) for s in r.sequences]
    for v in g:
        v[1] = 0
    return g


@pytest.mark.parametrize("name", ALL)
def test_every_cell_against_brute_force(name):
    r = ran(name, T=5, reverse=name.startswith("l"))
    g = entering(r)
    _, totals, parts = by_brute_force(r, g)
    ours = flow.totals(r, Entering(g))
    for i, key in (("z", "z"), *enumerate(r.cell.states)):
        close(ours[key], totals[i], f"total {key}")
    check_shares(flow.shares(r, Entering(g)), parts, -1 if r.reverse else 1, close)


def test_more_steps_than_one_block_of_the_norms():
    r = ran("lstm", T=37, B=2)
    _, _, parts = by_brute_force(r, g := entering(r))
    check_shares(flow.shares(r, Entering(g)), parts, 1, close)


def test_a_closed_form():
    # h' = a h with one unit: from the loss at the end the gradient of the bias at lag d is a^d.
    a, T = 0.5, 12
    r = linear(torch.tensor([[a]], dtype=F64), T=T, B=1)
    r = flow.Recurrence(r.cell, r.weights._replace(bias_ih=torch.zeros(1, dtype=F64)), r.x, r.states)
    g = torch.zeros(T, 1, 1, dtype=F64)
    g[-1] = 1
    share = flow.shares(r, g)["bias_ih"]
    decay = a ** torch.arange(T, dtype=F64)
    torch.testing.assert_close(share.by_lag.norm, decay)
    torch.testing.assert_close(share.by_lag.contribution, decay / decay.sum())
    assert share.by_loss_step.contribution.tolist() == pytest.approx([0.0] * (T - 1) + [1.0])
    torch.testing.assert_close(flow.totals(r, g)["h"][:, 0, 0], decay.flip(0))


def test_parts_can_point_the_other_way():
    r = linear(torch.tensor([[-0.5]], dtype=F64), T=4, B=1)
    r = flow.Recurrence(r.cell, r.weights._replace(bias_ih=torch.zeros(1, dtype=F64)), r.x, r.states)
    g = torch.zeros(4, 1, 1, dtype=F64)
    g[-1] = 1
    lag = flow.shares(r, g)["bias_ih"].by_lag
    want = torch.tensor([1, -0.5, 0.25, -0.125], dtype=F64)
    torch.testing.assert_close(lag.contribution, want / want.sum())


def test_without_norms_the_contributions_are_the_same():
    r = ran("gru", T=6)
    whole, plain = (flow.shares(r, entering(r)[0], norms=n) for n in (True, False))
    for name, p in plain.parameters.items():
        assert p.by_lag.norm is None and p.by_loss_step.norm is None
        assert torch.equal(p.by_lag.contribution, whole[name].by_lag.contribution)
        assert torch.equal(p.by_past_step.norm, whole[name].by_past_step.norm)


@pytest.mark.parametrize("how", ["anchors", "samples"])
def test_estimates_are_unbiased_and_their_errors_honest(how):
    r = ran("lstm", T=8, B=8)
    g = entering(r)[0]
    exact = flow.shares(r, g, norms=False)["weight_hh"]
    off, errors = [], []
    for seed in range(100):
        s = flow.shares(r, g, **{how: 4}, seed=seed)
        p = s["weight_hh"]
        off.append(p.by_lag.contribution - exact.by_lag.contribution)
        errors.append(p.by_lag.error)
        assert torch.equal(p.gradient, exact.gradient)
        assert torch.equal(p.by_past_step.contribution, exact.by_past_step.contribution)
        torch.testing.assert_close(p.by_lag_and_unit.sum(1), p.by_lag.contribution)
    assert s.estimated == ("4 of 7 loss steps" if how == "anchors" else "4 of 8 sequences")
    assert p.by_lag.norm is None and f"estimated from {s.estimated}" in str(s)
    off, errors = torch.stack(off)[:, :6], torch.stack(errors)[:, :6]
    spread = off.square().mean(0).sqrt()
    assert (off.mean(0).abs() < 4 * spread / 100**0.5).all()
    torch.testing.assert_close(errors.square().mean(0).sqrt(), spread, rtol=0.2, atol=0)


@pytest.mark.parametrize(("how", "n"), [("anchors", 7), ("samples", 5)])
def test_an_estimate_from_all_is_exact(how, n):
    r = ran("gru", T=8, B=5)
    g = entering(r)[0]
    exact, p = flow.shares(r, g)["weight_ih"], flow.shares(r, g, **{how: 100})["weight_ih"]
    torch.testing.assert_close(p.by_lag.contribution, exact.by_lag.contribution)
    assert (p.by_lag.error < 1e-12).all()
    torch.testing.assert_close(p.by_loss_step.contribution, exact.by_loss_step.contribution[p.by_loss_step.at])
    assert flow.shares(r, g, **{how: 100}).estimated.startswith(f"{n} of {n}")


def test_anchors_of_what_comes_from_above_and_of_ones_own_module():
    from tests.flow.test_capture_own import OwnCell

    layers, own = torch.nn.GRU(3, 4, 2, bidirectional=True).double(), OwnCell().double()
    x = torch.randn(6, 3, 3, dtype=F64)
    with flow.capture(layers) as a:
        layers(x)[0].square().sum().backward()
    with flow.capture(own) as b:
        state, loss = None, 0.0
        for t in range(6):
            y, state = own(x[t], state)
            loss = loss + y.square().sum()
        loss.backward()
    for captured in (a, b):
        exact, some, all_ = (captured.shares(0, anchors=n) for n in (None, 3, 6))
        for name, p in exact.parameters.items():
            torch.testing.assert_close(all_[name].by_lag.contribution, p.by_lag.contribution)
            t = some[name].by_loss_step.at
            torch.testing.assert_close(some[name].by_loss_step.contribution, p.by_loss_step.contribution[t])
            torch.testing.assert_close(some[name].pairs[t], p.pairs[t])
    # In a layer under a bidirectional one, a loss reaches later steps too.
    assert exact is not None and a.shares(0)["weight_ih"].by_lag.at.tolist() == list(range(-5, 6))
    with pytest.raises(FlowError, match="cannot be taken apart; use anchors"):
        b.shares(0, samples=2)


@pytest.mark.parametrize("lower", [0, 1])
def test_anchors_in_a_lower_layer_where_late_steps_hear_of_none_of_them(lower):
    stack, x = torch.nn.RNN(3, 4, 3).double(), torch.randn(12, 2, 3, dtype=F64)
    with flow.capture(stack) as captured:
        stack(x)[0].square().sum().backward()
    exact = captured.shares(lower, norms=False)["weight_hh"]
    for seed in range(5):  # 2 of 12 loss steps: the last one is hardly ever among them
        some = captured.shares(lower, anchors=2, seed=seed)["weight_hh"]
        torch.testing.assert_close(some.pairs[some.by_loss_step.at], exact.pairs[some.by_loss_step.at])


def test_prints_itself():
    r = ran("rnn", T=6)
    text = str(flow.shares(r, entering(r)[0]))
    assert text.startswith("Share of the gradient by lag (Simple (tanh), layer 0; exact)\n  weight_ih: norm")


def test_refusals():
    r = ran("gru", T=5, B=3)
    g = entering(r)[0]
    for message, call in {
        "must be shaped as the output, .*; came": lambda: flow.shares(r, g[1:]),
        "no gradient enters": lambda: flow.shares(r, 0 * g),
        "NaN or infinite": lambda: flow.totals(r, g / 0),
        "anchors or samples, not both": lambda: flow.shares(r, g, anchors=2, samples=2),
        "anchors must be a whole number of at least 2.*came 1": lambda: flow.shares(r, g, anchors=1),
        "samples must be a whole number.*came 2.5": lambda: flow.shares(r, g, samples=2.5),
        "only 1 sequences": lambda: flow.shares(ran("gru", B=1), entering(ran("gru", B=1))[0], samples=2),
        "no parameter 'weight'; these shares are of weight_ih": lambda: flow.shares(r, g)["weight"],
        r"has 1 state\(s\)": lambda: flow.totals(r, Entering([g, g])),
    }.items():
        with pytest.raises(FlowError, match=message):
            call()


def test_memory_is_asked_for_before_it_is_taken(monkeypatch):
    r = ran("lstm", T=8)
    monkeypatch.setattr("throughtime.flow.shares_norms.MEMORY", 1000)
    with pytest.raises(FlowError, match=r"norms of the parts would take .* leave them out with norms=False"):
        flow.shares(r, entering(r)[0])
    assert flow.shares(r, entering(r)[0], norms=False)["weight_ih"].by_lag.norm is None
