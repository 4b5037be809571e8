"""Gradients sent back through one recurrence against brute-force autograd: every cell, direction and length."""

from dataclasses import replace

import pytest
import torch

from tests.engine.problems import ALL, F64
from tests.flow.by_hand import one_direction
from tests.flow.runs import linear, ran
from throughtime.errors import FlowError
from throughtime.flow.entering import Entering
from throughtime.flow.sent import prepared, send

WAYS = {
    "forward": {},
    "reverse": {"reverse": True},
    "lengths": {"lengths": [5, 1, 3]},
    "lengths, reverse": {"lengths": [2, 5, 4], "reverse": True},
}


def entering_all(r, above=False):
    """A gradient at every state and step, what stands in the padding too."""
    direct = [torch.randn_like(s) for s in r.sequences]
    T = r.x.shape[0]
    return Entering(direct, [torch.randn(T, *s.shape, dtype=F64) for s in r.sequences] if above else None)


def by_autograd(r, entering):
    """sizes [T, T] and values [T, T, B, .] by name, and dx [T, T, B, D]; one backward pass for each loss step."""
    names = {"weight_ih": r.weights.weight_ih, "bias_ih": r.weights.bias_ih, "bias_hh": r.weights.bias_hh}
    if r.weights.weight_hh is not None:
        names["weight_hh"] = r.weights.weight_hh
    names |= dict(zip(r.cell.units, r.weights.units, strict=True))
    matrices = ["weight_" + n[2:] if n.startswith("W_") else n for n in r.cell.matrices]
    names |= dict(zip(matrices, r.weights.matrices, strict=True))
    T, B, _ = r.x.shape
    lengths = torch.full((B,), T) if r.lengths is None else r.lengths
    x = r.x.detach().requires_grad_()
    kept, _ = one_direction(r.cell, {n: v for n, v in names.items() if v is not None}, x, r.states, lengths, r.reverse)
    keep = (torch.arange(T)[:, None] < lengths)[..., None]
    C, S = len(kept.zs[0]), len(r.cell.states)
    wanted = [x, *(v for k in range(T) for v in (*kept.zs[k], *kept.states[k]))]
    found = {name: [] for name in ("z", *r.cell.states)}
    dx = []
    for t in range(T):
        ends, grads = [], []
        for s in range(S):
            for k in range(T):
                g = torch.zeros_like(kept.states[k][s])
                if entering.direct[s] is not None and k == t:
                    g = g + entering.direct[s][t]
                if entering.above is not None and entering.above[s] is not None:
                    g = g + entering.above[s][t, k]
                ends.append(kept.states[k][s])
                grads.append(torch.where(keep[k], g, 0.0))
        row = torch.autograd.grad(ends, wanted, grads, retain_graph=True, materialize_grads=True)
        dx.append(row[0])
        each = [row[1 + k * (C + S) : 1 + (k + 1) * (C + S)] for k in range(T)]
        found["z"].append(torch.stack([torch.cat(v[:C], -1) for v in each]))
        for s, name in enumerate(r.cell.states):
            found[name].append(torch.stack([v[C + s] for v in each]))
    values = {name: torch.stack(v) for name, v in found.items()}
    return {name: v.flatten(2).norm(dim=2) for name, v in values.items()}, values, torch.stack(dx)


def assert_same(sent, sizes, values, dx, rtol=1e-9, atol=1e-13):
    pairs = [(f"sizes of {n}", sent.sizes[n], sizes[n]) for n in sizes]
    pairs += [(f"values of {n}", sent.values[n], values[n]) for n in values]
    for what, ours, theirs in [*pairs, ("dx", sent.dx, dx)]:
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, msg=lambda m, w=what: f"{w}: {m}")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("above", [False, True], ids=["direct", "from above"])
def test_equals_autograd(name, above):
    for way, options in WAYS.items():
        if above and "lengths" not in options:
            continue
        r = ran(name, **options)
        assert prepared(r) is not None, "the kernels are what is tested here"
        entering = entering_all(r, above)
        sent = send(r, entering, want_dx=True, want_values=True)
        try:
            assert_same(sent, *by_autograd(r, entering))
        except AssertionError as error:
            raise AssertionError(f"{way}: {error}") from None


@pytest.mark.parametrize("name", ["lstm", "gru", "users-own"])
def test_without_the_kernels_it_is_the_same(name, monkeypatch):
    r = ran(name, lengths=[2, 5, 4], reverse=True)
    entering = entering_all(r, above=True)
    ours = send(r, entering, want_dx=True, want_values=True)
    monkeypatch.setenv("THROUGHTIME_BACKEND", "torch")
    assert prepared(r) is None
    theirs = send(r, entering, want_dx=True, want_values=True)
    assert_same(ours, theirs.sizes, theirs.values, theirs.dx)
    single = send(replace(r, dtype=torch.float32), entering, want_dx=True, want_values=True)
    assert_same(single, theirs.sizes, theirs.values, theirs.dx)  # in float64 there, for its range


@pytest.mark.parametrize("by_kernels", [True, False])
@pytest.mark.parametrize("above", [False, True], ids=["direct", "from above"])
def test_each_sequence_by_itself(above, by_kernels, monkeypatch):
    if not by_kernels:
        monkeypatch.setenv("THROUGHTIME_BACKEND", "torch")
    r = ran("lstm-projected", lengths=[5, 1, 3])
    entering = entering_all(r, above)
    options = {"want_dx": True, "want_values": True}
    whole, each = send(r, entering, **options), send(r, entering, by_sample=True, **options)
    sizes = {name: v.flatten(3).norm(dim=3).permute(2, 0, 1) for name, v in whole.values.items()}
    assert_same(each, sizes, whole.values, whole.dx)


@pytest.mark.parametrize("name", ["lstm-1997", "lstm", "additive-memory-feedback"])
def test_the_truncated_rule(name, monkeypatch):
    r = ran(name, truncated=True)
    entering = entering_all(r)
    ours = send(r, entering, want_dx=True, want_values=True)
    monkeypatch.setenv("THROUGHTIME_BACKEND", "torch")
    theirs = send(r, entering, want_dx=True, want_values=True)
    assert_same(ours, theirs.sizes, theirs.values, theirs.dx)


def test_some_rows_are_those_of_the_whole():
    r = ran("lstm", T=9, lengths=[9, 4, 7])
    for whole in (entering_all(r), entering_all(r, above=True)):
        rows = [7, 0, 3]
        sent = send(r, whole, want_dx=True, want_values=True)
        some = send(r, whole.at(rows), want_dx=True, want_values=True)
        assert some.rows == rows
        assert_same(
            some,
            {n: v[rows] for n, v in sent.sizes.items()},
            {n: v[rows] for n, v in sent.values.items()},
            sent.dx[rows],
            rtol=1e-12,
        )


def test_all_losses_together_are_their_sum():
    r = ran("gru", T=9, reverse=True)
    whole = entering_all(r, above=True)
    apart, together = (send(r, e, want_dx=True, want_values=True) for e in (whole, whole.sum()))
    assert together.rows == [0]
    for name, value in together.values.items():
        torch.testing.assert_close(value[0], apart.values[name].sum(0), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(together.sizes[name][0], value[0].flatten(1).norm(dim=1))
    torch.testing.assert_close(together.dx[0], apart.dx.sum(0), rtol=1e-12, atol=1e-13)


def test_float32_is_near_and_has_the_range_of_float64():
    r = ran("lstm", T=200, H=20, scale=0.2)
    entering = entering_all(r)
    exact, single = send(r, entering), send(replace(r, dtype=torch.float32), entering)
    for name, want in exact.sizes.items():
        there = want > 0
        error = ((single.sizes[name] - want).abs() / want)[there]
        assert error.max() < 1e-5
        assert single.sizes[name].dtype == F64
        assert not torch.equal(single.sizes[name], want)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("r", [0.05, 20.0], ids=["vanishes", "explodes"])
def test_a_gradient_may_go_as_far_as_float64_reaches(dtype, r):
    # h' = r h: dL_t/dh_k = r^(t-k), exactly; 20^230 is 1.7e299, 0.05^230 its reciprocal.
    T = 231
    recurrence = linear(torch.eye(3, dtype=F64) * r, T=T, B=1)
    g = torch.zeros(T, 1, 3, dtype=F64)
    g[-1, 0, 0] = 1
    sizes = send(replace(recurrence, dtype=dtype), Entering([g])).sizes["h"][-1]
    want = torch.tensor([r ** (T - 1 - k) for k in range(T)], dtype=F64)
    torch.testing.assert_close(sizes, want, rtol=1e-10 if dtype == F64 else 1e-4, atol=0)


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_any_size_may_enter(size):
    r = ran("gru", T=6, scale=0.3)
    entering = entering_all(r)
    want = send(r, entering).sizes["h"] * size
    for dtype in (F64, torch.float32):
        sent = send(replace(r, dtype=dtype), Entering([v * size for v in entering.direct])).sizes["h"]
        torch.testing.assert_close(sent, want, rtol=1e-5, atol=0)


def test_a_small_loss_joins_a_large_gradient():
    # Row 0 brings 1e-280 at step 3 and 1e+200 at step 1; neither drowns before it must.
    r = linear(torch.eye(2, dtype=F64), T=5, B=1)
    above = torch.zeros(1, 5, 1, 2, dtype=F64)
    above[0, 3, 0, 0], above[0, 1, 0, 1] = 1e-280, 1e200
    for dtype in (F64, torch.float32):
        sent = send(replace(r, dtype=dtype), Entering([None], [above], (0,)), want_values=True)
        torch.testing.assert_close(sent.sizes["h"][0, 2:4], torch.full((2,), 1e-280, dtype=F64), rtol=1e-6, atol=0)
        torch.testing.assert_close(sent.sizes["h"][0, :2], torch.full((2,), 1e200, dtype=F64), rtol=1e-6, atol=0)


def test_what_cannot_be_sent_is_told():
    r = ran("lstm")
    with pytest.raises(FlowError, match=r"has 2 state\(s\).*came 1"):
        send(r, Entering([r.output]))
    with pytest.raises(FlowError, match=r"float64 or float32; came torch\.float16"):
        send(replace(r, dtype=torch.float16), Entering([r.output, None]))
