"""The gradient through time against autograd on a reference loop written by hand, in float64."""

import pytest
import torch

from throughtime import cells, flow, nn
from throughtime.engine.trace import step_of
from throughtime.errors import FlowError

F64 = torch.float64
T, B, D, H = 7, 2, 3, 4


def test_inference_mode_and_a_dtype_of_another_kind():
    module, x = nn.GRU(D, H), torch.randn(T, B, D)
    want = flow.gradient_flow(module, x, loss_of)
    with torch.inference_mode():
        got = flow.gradient_flow(module, x.clone(), loss_of)
    torch.testing.assert_close(got.maps, want.maps)
    for dtype in (torch.float16, "float32", None):
        with pytest.raises(FlowError, match=r"torch\.float64 or torch\.float32; came"):
            flow.gradient_flow(module, x, loss_of, dtype=dtype)


def loss_of(y):
    return (y.sin() * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)).sum()


def by_autograd(module, x, state=None):
    """Maps of every layer and direction: a loop over steps keeps every z and state, and autograd runs once per t."""
    cell, layers = module.step_cell(), module.layer_weights()
    kept, below, outputs, n = {}, x, [], 0
    for layer, directions in enumerate(layers):
        here = []
        for reverse, w in enumerate(directions):
            now = (
                [torch.zeros(B, H if i else w.weight_hh.shape[1], dtype=F64) for i, _ in enumerate(cell.states)]
                if state is None
                else [s[n] for s in state]
            )
            zs, states = [None] * T, [None] * T
            for t in reversed(range(T)) if reverse else range(T):
                zx, zh = below[t] @ w.weight_ih.T + w.bias_ih, now[0] @ w.weight_hh.T + w.bias_hh
                if cell.apart:  # the GRU: its candidate wants the two products apart
                    z = [*(zx + zh)[:, : 2 * H].split(H, -1), zx[:, 2 * H :], zh[:, 2 * H :]]
                else:
                    z = list((zx + zh).split(H, -1))
                z = [v.clone() for v in z]
                now = list(step_of(cell, [*z, *now, *w.units, *w.matrices]))
                zs[t], states[t] = z, now
            kept[layer, bool(reverse)] = zs, states
            here.append(torch.stack([s[0] for s in states]))
            n += 1
        outputs.append(torch.cat(here, -1))
        below = torch.cat([x, outputs[-1]], -1) if module.skip else outputs[-1]
    y = torch.cat(outputs, -1) if module.skip else outputs[-1]
    g = torch.autograd.grad(loss_of(y), y, retain_graph=True)[0]
    found = {}
    for key, (zs, states) in kept.items():
        maps = {name: torch.zeros(T, T, dtype=F64) for name in ("z", *cell.states)}
        for t in range(T):
            for k in range(T):
                wanted = [*zs[k], *states[k]]
                grads = torch.autograd.grad(y[t], wanted, g[t], retain_graph=True, materialize_grads=True)
                C = len(zs[k])
                maps["z"][t, k] = torch.stack(grads[:C]).norm()
                for name, grad in zip(cell.states, grads[C:], strict=True):
                    maps[name][t, k] = grad.norm()
        found[key] = maps
    return found


MODULES = {
    "RNN": lambda: nn.RNN(D, H),
    "RNN relu, two layers": lambda: nn.RNN(D, H, 2, nonlinearity="relu"),
    "LSTM": lambda: nn.LSTM(D, H),
    "LSTM, three layers": lambda: nn.LSTM(D, H, 3),
    "LSTM, two layers, two directions": lambda: nn.LSTM(D, H, 2, bidirectional=True),
    "LSTM, projected, two layers": lambda: nn.LSTM(D, H, 2, proj_size=2),
    "GRU, two layers": lambda: nn.GRU(D, H, 2),
    "peepholes, skip": lambda: nn.Recurrent(cells.PeepholeLSTM(), D, H, 3, skip=True),
    "peepholes, skip, two directions": lambda: nn.Recurrent(
        cells.PeepholeLSTM(), D, H, 2, skip=True, bidirectional=True
    ),
    "additive memory with feedback": lambda: nn.Recurrent("additive-memory-feedback", D, H, 2),
}


@pytest.mark.parametrize("name", MODULES)
def test_equals_autograd_over_the_loop(name):
    module = MODULES[name]().to(F64)
    x = torch.randn(T, B, D, dtype=F64)
    for (layer, reverse), maps in by_autograd(module, x).items():
        ours = flow.gradient_flow(module, x, loss_of, layer=layer, reverse=reverse)
        assert ours.maps.keys() == maps.keys()
        for of, want in maps.items():
            torch.testing.assert_close(ours.maps[of], want, rtol=1e-9, atol=1e-13, msg=lambda m, o=of: f"{o}: {m}")


def test_initial_state_counts():
    module = nn.LSTM(D, H).to(F64)
    x, state = torch.randn(T, B, D, dtype=F64), tuple(torch.randn(1, B, H, dtype=F64) for _ in "hc")
    ours = flow.gradient_flow(module, x, loss_of, state)
    torch.testing.assert_close(ours.maps["c"], by_autograd(module, x, state)[0, False]["c"], rtol=1e-9, atol=1e-13)
    assert not torch.allclose(ours.maps["c"], flow.gradient_flow(module, x, loss_of).maps["c"])


def test_parts_add_up_to_the_gradient_of_the_parameters():
    # Superposition, seen from outside: following each L_t alone and adding up gives the bias's whole gradient.
    module = nn.LSTM(D, H).to(F64)
    x = torch.randn(T, 1, D, dtype=F64)
    y = module(x)[0]
    whole = torch.autograd.grad(loss_of(y), module.bias_ih_l0)[0]
    leaf = y.detach().requires_grad_()
    g = torch.autograd.grad(loss_of(leaf), leaf)[0]
    parts = []
    for t in range(T):
        alone = torch.zeros_like(g)
        alone[t] = g[t]
        parts.append(torch.autograd.grad(module(x)[0], module.bias_ih_l0, alone)[0])
        row = flow.gradient_flow(module, x, alone).maps["z"]
        assert (row[torch.arange(T) != t] == 0).all()
        torch.testing.assert_close(row[t], flow.gradient_flow(module, x, g).maps["z"][t], rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(sum(parts), whole)


def test_layouts_agree():
    first = nn.GRU(D, H, batch_first=True)
    x = torch.randn(1, T, D)
    want = flow.gradient_flow(first, x, lambda y: y.square().sum())
    plain = nn.GRU(D, H)
    plain.load_state_dict(first.state_dict())
    for other in (x.transpose(0, 1), x[0]):
        got = flow.gradient_flow(plain, other, lambda y: y.square().sum())
        torch.testing.assert_close(got.maps["z"], want.maps["z"], rtol=1e-5, atol=1e-9)


def test_float32_modules_are_measured_in_float64():
    module = nn.RNN(D, H)
    with torch.no_grad():
        module.weight_hh_l0.mul_(0.02)
    got = flow.gradient_flow(module, torch.randn(60, B, D), lambda y: y[-1].sum())
    assert got.maps["z"].dtype == F64
    assert 0 < got.maps["z"][-1, 0] < 1e-45  # below the smallest number of float32
    assert module.weight_ih_l0.dtype == torch.float32


def test_truncated_rule_is_followed():
    module = nn.LSTM1997(D, H, truncated=True).to(F64)
    maps = flow.gradient_flow(module, torch.randn(T, B, D, dtype=F64), lambda y: y[-1].sum()).maps
    torch.testing.assert_close(maps["c"][-1], maps["c"][-1, -1].expand(T))  # the carousel keeps all of it
    assert (maps["h"][-1, :-1] == 0).all()


def test_the_trap_everybody_falls_into():
    # The gradient of the stacked output is not zero at one step only; the total one is there at all of them.
    module = torch.nn.LSTM(D, H)
    x = torch.randn(60, B, D)
    out, _ = module(x)
    out.retain_grad()
    out[-1].sum().backward()
    assert (out.grad.flatten(1).norm(dim=1) > 0).sum() == 1
    ours = flow.gradient_flow(nn.convert(module), x, lambda y: y[-1].sum())
    assert (ours.maps["h"][-1] > 0).all()


REFUSED = {
    "expected a layer of throughtime.nn": lambda m, x: (torch.nn.LSTM(D, H), x, loss_of),
    "as a tensor": lambda m, x: (m, torch.nn.utils.rnn.pack_sequence([x[:, 0]]), loss_of),
    r"call eval\(\)": lambda m, x: (nn.LSTM(D, H, 2, dropout=0.5), x, loss_of),
    "must be one number": lambda m, x: (m, x, lambda y: y),
    "must be one number.*float": lambda m, x: (m, x, lambda y: 1.0),
    "does not depend": lambda m, x: (m, x, lambda y: torch.zeros((), requires_grad=True)),
    "does not depend on the module": lambda m, x: (m, x, lambda y: y.detach().sum()),
    "NaN or infinite, first at step 5": lambda m, x: (m, x, lambda y: (y[5] * float("nan")).sum()),
    "x holds NaN": lambda m, x: (m, x * float("nan"), loss_of),
    "must be shaped as y": lambda m, x: (m, x, torch.ones(2)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_measured_is_told(message):
    module, x, loss = REFUSED[message](nn.LSTM(D, H), torch.randn(T, B, D))
    with pytest.raises(FlowError, match=message):
        flow.gradient_flow(module, x, loss)


def test_layers_and_directions_that_are_not_there():
    module, x = nn.LSTM(D, H, 2), torch.randn(T, B, D)
    with pytest.raises(FlowError, match="no layer 2"):
        flow.gradient_flow(module, x, loss_of, layer=2)
    with pytest.raises(FlowError, match="no reverse direction"):
        flow.gradient_flow(module, x, loss_of, reverse=True)
