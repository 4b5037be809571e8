"""The gradient by layer against autograd, with skip connections, dropout, two directions and an input map."""

import math

import pytest
import torch

from tests.engine.problems import F64
from throughtime import cells, nn
from throughtime.engine import unroll
from throughtime.errors import FlowError
from throughtime.flow.depth import depth_profile
from throughtime.flow.passed import run

T, B, D, H = 6, 2, 3, 4


def as_it_ran(module, x):
    return run(module.step_cell(), module.layer_weights(), x, skip=module.skip)


def by_autograd(module, x, g):
    """||dL/dy^(l)||: the layers run one after the other, each output kept and asked for its gradient."""
    outputs, below = [], x.clone().requires_grad_()
    source = below
    for k, directions in enumerate(module.layer_weights()):
        if k:
            below = torch.cat([source, outputs[-1]], -1) if module.skip else outputs[-1]
        parts = [
            unroll(module.step_cell(), below, w.weight_ih, w.weight_hh, w.bias_ih, w.bias_hh, reverse=bool(d))[0][0]
            for d, w in enumerate(directions)
        ]
        outputs.append(torch.cat(parts, -1) * 1)
    y = torch.cat(outputs, -1) if module.skip else outputs[-1]
    return [v.norm().item() for v in torch.autograd.grad(y, outputs, g)]


MODULES = {
    "RNN, three layers": lambda: nn.RNN(D, H, 3),
    "LSTM, two directions": lambda: nn.LSTM(D, H, 3, bidirectional=True),
    "GRU": lambda: nn.GRU(D, H, 2),
    "skip": lambda: nn.Recurrent("lstm", D, H, 3, skip=True),
    "skip, two directions": lambda: nn.Recurrent("gru", D, H, 2, skip=True, bidirectional=True),
    "input map": lambda: nn.Recurrent("additive-state", D, H, 3),
    "one layer": lambda: nn.LSTM(D, H),
}


@pytest.mark.parametrize("name", MODULES)
def test_what_enters_from_above_is_what_autograd_keeps(name):
    module = MODULES[name]().to(F64)
    x = torch.randn(T, B, D, dtype=F64)
    g = torch.randn_like(module(x)[0])
    found = depth_profile(as_it_ran(module, x), g)
    want = by_autograd(module, x, g)
    assert found.entering == pytest.approx(want, rel=1e-10)
    assert len(found.total) == len(want) and found.by_step.shape == (len(want), T)
    assert found.by_step.square().sum(1).sqrt().tolist() == pytest.approx(found.total)


def test_total_and_net_inputs_of_each_layer():
    """Two layers of a simple network, unrolled by hand, every h and z kept."""
    module = nn.RNN(D, H, 2).to(F64)
    x = torch.randn(T, B, D, dtype=F64)
    (w0,), (w1,) = module.layer_weights()
    now = [torch.zeros(B, H, dtype=F64) for _ in range(2)]
    hs, zs = [], []
    for t in range(T):
        below = x[t]
        for k, w in enumerate((w0, w1)):
            z = below @ w.weight_ih.T + w.bias_ih + now[k] @ w.weight_hh.T + w.bias_hh
            zs.append(z)
            below = now[k] = torch.tanh(z)
            hs.append(below)
    y = torch.stack(hs[1::2])
    g = torch.randn_like(y)
    grads = torch.autograd.grad(y, hs + zs, g)
    dh, dz = torch.stack(grads[: 2 * T]), torch.stack(grads[2 * T :])
    found = depth_profile(as_it_ran(module, x), g)
    assert found.total == pytest.approx([dh[0::2].norm().item(), dh[1::2].norm().item()], rel=1e-10)
    assert found.net == pytest.approx([dz[0::2].norm().item(), dz[1::2].norm().item()], rel=1e-10)
    torch.testing.assert_close(found.by_step[0], dh[0::2].flatten(1).norm(dim=1))


def test_dropout_is_followed_by_its_mask():
    module = nn.RNN(D, H, 2).to(F64)
    x = torch.randn(T, B, D, dtype=F64)
    mask = (torch.rand(T, B, H, dtype=F64) > 0.5).double() * 2
    g = torch.randn(T, B, H, dtype=F64)
    found = depth_profile(run(module.step_cell(), module.layer_weights(), x, masks=[None, mask]), g)
    (w0,), (w1,) = module.layer_weights()
    below = unroll(cells.Simple(), x, w0.weight_ih, w0.weight_hh, w0.bias_ih, w0.bias_hh)[0][0]
    y = unroll(cells.Simple(), below * mask, w1.weight_ih, w1.weight_hh, w1.bias_ih, w1.bias_hh)[0][0]
    assert found.entering[0] == pytest.approx(torch.autograd.grad(y, below, g)[0].norm().item(), rel=1e-10)


def test_padding_sends_nothing():
    module = nn.LSTM(D, H, 2).to(F64)
    x, g = torch.randn(T, B, D, dtype=F64), torch.randn(T, B, H, dtype=F64)
    cell, weights = module.step_cell(), module.layer_weights()
    found = depth_profile(run(cell, weights, x, lengths=torch.tensor([T, 2])), g)
    parts = [depth_profile(run(cell, weights, x[:n, b : b + 1]), g[:n, b : b + 1]) for b, n in enumerate((T, 2))]
    for n in range(2):
        for of in ("total", "entering", "net"):
            assert getattr(found, of)[n] == pytest.approx(math.hypot(*(getattr(p, of)[n] for p in parts)), rel=1e-10)


def test_what_enters_at_any_layer_and_state():
    """By superposition: what enters from outside below adds to what comes from above, and c's last gradient counts."""
    module = nn.LSTM(D, H, 2).to(F64)
    x = torch.randn(1, 1, D, dtype=F64)  # one step: the gradient of the bias is dL/dz itself
    stack = run(module.step_cell(), module.layer_weights(), x)
    outside = [[[torch.zeros(1, 1, H, dtype=F64) for _ in "hc"]] for _ in range(2)]
    outside[1][0][1] += 1.0  # dL/dc of the upper layer
    _, (_, c) = module(x)
    grads = torch.autograd.grad(c[1].sum(), [module.bias_ih_l0, module.bias_ih_l1])
    found = depth_profile(stack, outside)
    assert found.entering[1] == 0
    assert found.net == pytest.approx([v.norm().item() for v in grads], rel=1e-10)
    outside[0][0][0] += 1.0
    both = depth_profile(stack, outside)
    assert both.net[1] == found.net[1] and both.entering[0] != found.entering[0]


def test_one_step_of_a_linear_stack_is_the_product_of_its_input_weights():
    """The product over layers instead of time: with T = 1, ||dL/dh^(l)|| = ||(W_L ... W_{l+1})^T g||."""
    module = nn.Recurrent(cells.Simple("identity"), H, H, 12).to(F64)
    Q = [torch.linalg.qr(torch.randn(H, H, dtype=F64)).Q for _ in range(12)]
    with torch.no_grad():
        for k, q in enumerate(Q):
            getattr(module, f"weight_ih_l{k}").copy_(0.5 * q)
    found = depth_profile(as_it_ran(module, torch.randn(1, B, H, dtype=F64)), torch.ones(1, B, H, dtype=F64))
    want = [math.sqrt(B * H) * 0.5 ** (11 - k) for k in range(12)]
    assert found.total == pytest.approx(want, rel=1e-12)
    assert found.factor() == pytest.approx(0.5)
    assert "a factor of 0.5 a layer" in str(found) and "layer 11 (Simple (identity))" in str(found)


def test_refusals():
    module = nn.RNN(D, H, 2).to(F64)
    stack = as_it_ran(module, torch.randn(T, B, D, dtype=F64))
    g = torch.ones(T, B, H, dtype=F64)
    with pytest.raises(FlowError, match=r"must be \[6, 2, 4\], as the stack's output; came \[6, 2, 2\]"):
        depth_profile(stack, g[..., :2])
    with pytest.raises(FlowError, match="that enters from the loss is NaN or infinite"):
        depth_profile(stack, g * math.nan)
    with pytest.raises(FlowError, match="the state h is NaN or infinite from step 0 on"):
        depth_profile(as_it_ran(module, torch.full((T, B, D), math.nan, dtype=F64)), g)
    one = as_it_ran(nn.RNN(D, H).to(F64), torch.randn(T, B, D, dtype=F64))
    assert math.isnan(depth_profile(one, g).factor())
