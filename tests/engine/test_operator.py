"""What torch asks of an operator: opcheck, compile without a graph break, export, autocast, devices without data."""

import pytest
import torch

from tests.engine.problems import assert_same, gradients, loss_of, problem
from throughtime import cells
from throughtime.engine import unroll
from throughtime.engine.operator import backward_op, unroll_op
from throughtime.engine.trace import program
from throughtime.errors import ShapeError


@pytest.mark.parametrize(
    "name, backend, memory, shown",
    [
        ("lstm-peephole", "torch", "fast", 2),
        ("gru-reset-before", "cpu", "fast", 1),
        ("additive-memory", "cpu", "low", 1),
        ("lstm-peephole", "torch", "low", 2),
    ],
)
def test_opcheck(name, backend, memory, shown):
    p = problem(name, T=3, B=2, D=2, H=3, lengths=[3, 1])
    b = torch.randn(len(p.cell.columns) * 3, dtype=torch.float64, requires_grad=True)
    W = p.weights["weight_ih"]
    hh = p.weights.get("weight_hh", W.new_zeros(0, 3))
    U, inside = (hh[:6].detach().requires_grad_(), [hh[6:].detach().requires_grad_()]) if p.cell.inside else (hh, [])
    states = [s.requires_grad_() for s in p.states]
    weights = (p.x, W, U, b, p.units, inside, states, p.lengths)
    args = (program(p.cell), *weights, False, 0.5, False, backend, memory, shown)
    torch.library.opcheck(unroll_op, args)
    with torch.no_grad():
        out = unroll_op(*args)
    S = len(states)
    ds = [torch.randn_like(v).requires_grad_() for v in out[: 2 * S]]
    back = (
        *args[:9],
        [] if memory == "low" else out[:S],
        out[-1],
        ds[:S],
        ds[S:],
        False,
        0.5,
        False,
        backend,
        memory,
        True,
    )
    torch.library.opcheck(backward_op, back)


@pytest.mark.parametrize("name", ["rnn", "lstm-peephole", "gru-reset-before"])
def test_compiles_without_a_graph_break(name):
    p = problem(name)
    p.cell = cells.by_name(name)  # not traced before: the compiler must manage that too

    def run(x):
        p.x = x
        return loss_of(p.unroll(clip=0.5))

    x = p.x
    want = torch.autograd.grad(run(x), [x, p.weights["weight_hh"]])
    p.cell = cells.by_name(name)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x), [x, p.weights["weight_hh"]])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_exports():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cells.LSTM()
            self.W, self.U = torch.nn.Parameter(torch.randn(20, 3)), torch.nn.Parameter(torch.randn(20, 5))

        def forward(self, x):
            return unroll(self.cell, x, self.W, self.U)[0][0]

    net, x = Net(), torch.randn(4, 2, 3)
    exported = torch.export.export(net, (x,))
    torch.testing.assert_close(exported.module()(x), net(x))


def test_autocast_rounds_the_products_and_keeps_the_states():
    p = problem("lstm", T=20, D=8, H=8)
    for v in [p.x, *p.weights.values(), *p.states]:
        v.data = v.data.float()
    full = p.unroll()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = p.unroll()
    loss_of(low).backward()
    for a, b in zip(low[0], full[0], strict=True):
        assert a.dtype == torch.float32
        error = (a - b).abs().max()
        assert 0 < error < 0.05  # bf16 has 8 bits: rounded, and not more than rounded
    assert all(v.grad.dtype == torch.float32 for v in p.leaves().values())
    assert_same(
        {k: v.grad / 10 for k, v in p.leaves().items()}, {k: v / 10 for k, v in gradients(p, full).items()}, atol=0.2
    )


def test_autocast_inside_does_not_touch_the_step():
    # With a state of its own dtype the element-wise part is exact: an additive state adds up in float32.
    cell = cells.AdditiveState("identity")
    x = torch.ones(3000, 1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (h,), _ = unroll(cell, x, torch.ones(1, 1))
    assert h[-1].item() == 3000  # bf16 would stand still at 256


def test_bfloat16_throughout():
    x, W, U = (torch.randn(*s).bfloat16() for s in ((4, 2, 3), (12, 3), (12, 3)))
    (h,), _ = unroll(cells.GRU(), x[..., :3], W[:9], U[:9])
    assert h.dtype == torch.bfloat16 and h.isfinite().all()


def test_on_the_meta_device_shapes_come_out():
    x, W, U = (torch.empty(*s, device="meta") for s in ((7, 2, 3), (20, 3), (20, 5)))
    (h, c), (hn, cn) = unroll(cells.LSTM(), x, W, U)
    assert h.shape == c.shape == (7, 2, 5) and hn.shape == cn.shape == (2, 5)


def test_devices_that_do_not_match_are_named():
    with pytest.raises(ShapeError, match="x is on meta, the weights are on cpu"):
        unroll(cells.Simple(), torch.empty(2, 1, 3, device="meta"), torch.ones(4, 3), torch.ones(4, 4))


def test_same_call_same_bits():
    p = problem("gru", T=20, H=16)
    assert all(torch.equal(a, b) for a, b in zip(p.unroll()[0], p.unroll()[0], strict=True))
    assert_same(gradients(p, p.unroll()), gradients(p, p.unroll()), atol=0)
