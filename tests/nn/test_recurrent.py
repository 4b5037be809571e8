"""Recurrent: the stack for any cell, its states, skip connections, projections, layouts and errors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from throughtime import cells
from throughtime.errors import CellError, ConfigError, ShapeError
from throughtime.nn import Recurrent


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def by_hand(layer, x, suffix="l0", reverse=False):
    """One layer in one direction from zero states, by the cell's own step, gate by gate: y, last states."""
    cell, H = layer.cell, layer.hidden_size
    P = layer.proj_size or H
    get = lambda name: getattr(layer, f"{name}_{suffix}", None)  # noqa: E731
    rows = dict(zip(cell.gates, get("weight_ih").split(H), strict=True))
    bias = dict(zip(cell.gates, get("bias_ih").split(H), strict=True)) if layer.bias else {}
    R = cell.recurrent_gates
    rec = dict(zip(R, get("weight_hh").split(H), strict=True)) if R else {}
    rec_bias = dict(zip(R, get("bias_hh").split(H), strict=True)) if R and layer.bias else {}
    w = {n: get(n) for n in cell.units} | {n: get(f"weight_{n[2:]}") for n in cell.matrices}
    w |= {f"U_{g}": rec[g] for g in cell.inside}
    s = [x.new_zeros(x.shape[1], P if k == 0 else H) for k in range(len(cell.states))]
    ys = []
    space = type("Space", (), {})
    for x_t in reversed(x) if reverse else x:
        z = {}
        for g in cell.gates:
            from_x = cell.input(x_t) @ rows[g].T + bias.get(g, 0)
            from_h = s[0] @ rec[g].T + rec_bias.get(g, 0) if g in R and g not in cell.inside else 0
            if g in cell.apart:
                z[f"{g}_x"], z[f"{g}_h"] = from_x, from_h
            else:
                z[g] = from_x + from_h + (rec_bias.get(g, 0) if g in cell.inside else 0)
        args = []
        for values in (z, dict(zip(cell.states, s, strict=True)), w):
            args.append(space())
            vars(args[-1]).update(values)
        out = cell.step(*args)
        s = list(out) if isinstance(out, tuple) else [out]
        ys.append(s[0])
    return torch.stack(ys[::-1] if reverse else ys), s


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", cells.NAMES)
def test_every_cell_by_hand(name, bias):
    torch.manual_seed(0)
    layer = Recurrent(name, 3, 5, 2, bias=bias, bidirectional=True, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    y, state = layer(x)
    below, finals = x, []
    for k in range(2):
        outs = [by_hand(layer, below, f"l{k}{s}", r) for s, r in (("", False), ("_reverse", True))]
        below = torch.cat([o for o, _ in outs], -1)
        finals += [s for _, s in outs]
    want = [torch.stack(column) for column in zip(*finals, strict=True)]
    close(y, below)
    close(state if isinstance(state, tuple) else (state,), tuple(want))
    params = list(layer.parameters())
    g = torch.autograd.grad(y.square().sum(), params)
    close(g, torch.autograd.grad(below.square().sum(), params))


@pytest.mark.parametrize("cell", [cells.PeepholeLSTM(), cells.GRUResetBefore(), cells.ProjectedLSTM()], ids=repr)
def test_skip_connections_are_graves(cell):
    torch.manual_seed(0)
    proj = 3 if cell.matrices else 0
    layer = Recurrent(cell, 2, 4, 3, bidirectional=True, skip=True, proj_size=proj, dtype=torch.float64)
    P = proj or 4
    x = torch.randn(5, 2, 2, dtype=torch.float64)
    shown = []
    for k in range(3):
        below = torch.cat([x, *shown[-1:]], -1)
        assert getattr(layer, f"weight_ih_l{k}").shape[1] == below.shape[-1] == (2 if k == 0 else 2 + 2 * P)
        ways = (("", False), ("_reverse", True))
        shown.append(torch.cat([by_hand(layer, below, f"l{k}{s}", r)[0] for s, r in ways], -1))
    y, _ = layer(x)
    assert y.shape == (5, 2, 3 * 2 * P)
    close(y, torch.cat(shown, -1))


def test_dropout_with_skip_connections_leaves_input_and_output_alone():
    torch.manual_seed(0)
    layer = Recurrent("rnn", 2, 4, 2, dropout=1.0, skip=True, dtype=torch.float64)
    x = torch.randn(5, 2, 2, dtype=torch.float64)
    y, _ = layer(x)
    first = by_hand(layer, x)[0]
    close(y[..., :4], first)
    close(y[..., 4:], by_hand(layer, torch.cat([x, torch.zeros_like(first)], -1), "l1")[0])


@pytest.mark.parametrize("cell, other, extra", [
    ("rnn", nn.RNN, {}),
    ("rnn-relu", nn.RNN, {"nonlinearity": "relu"}),
    ("lstm", nn.LSTM, {}),
    (cells.ProjectedLSTM(), nn.LSTM, {"proj_size": 2}),
    ("gru", nn.GRU, {}),
])  # fmt: skip
def test_torchs_cells_are_torchs(cell, other, extra):
    torch.manual_seed(2)
    a = Recurrent(cell, 3, 4, 2, bidirectional=True, proj_size=extra.get("proj_size", 0), dtype=torch.float64)
    torch.manual_seed(2)
    b = other(3, 4, 2, bidirectional=True, dtype=torch.float64, **extra)
    assert [n for n, _ in a.named_parameters()] == [n for n, _ in b.named_parameters()]
    assert all(p.equal(q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    x = pack_padded_sequence(torch.randn(5, 3, 3, dtype=torch.float64), [2, 5, 4], enforce_sorted=False)
    (ya, ha), (yb, hb) = a(x), b(x)
    close(ya.data, yb.data)
    close(ha, hb)
    close(a(x, ha)[1], b(x, hb)[1])
    torch.manual_seed(4)
    a.dropout = b.dropout = 0.5
    ya = a(x)[0].data
    torch.manual_seed(4)
    close(ya, b(x)[0].data)


@pytest.mark.parametrize("name", cells.NAMES)
def test_parameters_and_initialisation(name):
    torch.manual_seed(0)
    layer, cell = Recurrent(name, 3, 16), cells.by_name(name)
    names = {n for n, _ in layer.named_parameters()}
    want = {"weight_ih_l0", "bias_ih_l0"} | {f"{u}_l0" for u in cell.units}
    want |= {"weight_hh_l0", "bias_hh_l0"} if cell.recurrent_gates else set()
    assert names == want
    for p in layer.parameters():
        assert p.abs().max() <= 0.25  # 1 / sqrt(16)
        assert p.abs().max() > 0.15


@pytest.mark.parametrize("layout", ["packed", "unbatched", "batch_first"])
@pytest.mark.parametrize("name", ["lstm-peephole", "gru-reset-before", "additive-memory"])
def test_layouts_say_the_same(name, layout):
    torch.manual_seed(0)
    layer = Recurrent(name, 3, 4, 2, bidirectional=True, skip=True)
    x = torch.randn(6, 3, 3)
    tup = lambda s: s if isinstance(s, tuple) else (s,)  # noqa: E731
    start = tup(layer(x)[1])
    give = lambda s: s if len(s) > 1 else s[0]  # noqa: E731
    if layout == "batch_first":
        want_y, want_s = layer(x, give(start))
        layer.batch_first = True
        y, s = layer(x.transpose(0, 1), give(start))
        close((y.transpose(0, 1), s), (want_y, want_s))
        return
    lengths = [2, 6, 4]
    if layout == "packed":
        packed, last = layer(pack_padded_sequence(x, lengths, enforce_sorted=False), give(start))
        y, n = pad_packed_sequence(packed)
        assert n.tolist() == lengths
    for b, T in enumerate(lengths):
        alone, final = layer(x[:T, b], give(tuple(s[:, b] for s in start)))
        assert alone.shape == (T, 16)
        if layout == "packed":
            close(y[:T, b], alone, 1e-6)
            close(tuple(s[:, b] for s in tup(last)), tup(final), 1e-6)
        else:
            both, many = layer(x[:T, b : b + 1], give(tuple(s[:, b : b + 1].contiguous() for s in start)))
            close(both[:, 0], alone, 1e-6)
            close(tuple(s[:, 0] for s in tup(many)), tup(final), 1e-6)


class Leaky(cells.Cell):
    """A user's own cell, with a per-unit rate and a matrix of its own."""

    gates = ("a",)
    states = ("h",)
    units = ("rate",)
    matrices = ("V",)

    def step(self, z, s, w):
        k = torch.sigmoid(w.rate)
        return (1 - k) * s.h + k * torch.tanh(z.a + nn.functional.linear(s.h, w.V))


def test_a_users_own_cell():
    torch.manual_seed(0)
    layer = Recurrent(Leaky(), 2, 3, 2, dtype=torch.float64)
    shapes = {n: tuple(p.shape) for n, p in layer.named_parameters() if n.endswith("l1")}
    assert shapes["rate_l1"] == (3,) and shapes["V_l1"] == (3, 3) and shapes["weight_ih_l1"] == (3, 3)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], (x,))
    slow = Recurrent(Leaky(), 2, 3, 2, dtype=torch.float64, backend="reference")
    slow.load_state_dict(layer.state_dict())
    close(slow(x)[0], layer(x)[0])


class Sorted(cells.Cell):
    """Not element-wise: it cannot be traced."""

    gates = ("a",)
    states = ("h",)

    def step(self, z, s, w):
        return torch.tanh(z.a).sort(-1).values


def test_a_cell_that_cannot_be_traced():
    with pytest.raises(CellError, match='choose backend="reference"'):
        Recurrent(Sorted(), 2, 3)
    layer = Recurrent(Sorted(), 2, 3, backend="reference")
    y = layer(torch.randn(4, 2, 2))[0]
    assert (y.diff(dim=-1) >= 0).all()
    y.sum().backward()
    assert layer.weight_hh_l0.grad.any()


def test_bad_cells_and_options():
    with pytest.raises(CellError, match=r"cell is the class LSTM; make one of it: LSTM\(\)"):
        Recurrent(cells.LSTM, 2, 3)
    with pytest.raises(CellError, match=r"must be a throughtime\.cells\.Cell or the name of one; came int"):
        Recurrent(3, 2, 3)
    with pytest.raises(CellError, match="unknown cell 'lstn'; it must be one of rnn, "):
        Recurrent("lstn", 2, 3)
    for options, text in (
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1; came 0"),
        ({"num_layers": 2.0}, r"num_layers must be a whole number of at least 1; came 2\.0"),
        ({"bias": 1}, "bias must be True or False; came 1"),
        ({"skip": None}, "skip must be True or False"),
        ({"dropout": 1.5}, r"dropout must be a number in \[0, 1\]"),
        ({"dropout": True}, r"dropout must be a number in \[0, 1\]"),
        ({"clip": -1.0}, "clip must be a positive number"),
        ({"proj_size": 2}, r"proj_size=2 is for a cell with a matrix W_hr, which LSTM\(\) has not"),
    ):
        with pytest.raises(ConfigError, match=text):
            Recurrent("lstm", 2, 3, **options)
    for bad in (0, -1, True, "4"):
        with pytest.raises(ConfigError, match="hidden_size must be a whole number"):
            Recurrent("lstm", 2, bad)
    with pytest.raises(ConfigError, match=r"it must be in 1\.\.2; came 0"):
        Recurrent(cells.ProjectedLSTM(), 2, 3)
    with pytest.warns(UserWarning, match="acts between layers, and there is one layer"):
        Recurrent("lstm", 2, 3, dropout=0.5)


class Clash(Leaky):
    """Names a per-unit weight as every layer's weights are named."""

    units = ("weight_ih", "rate")


def test_a_cells_names_must_not_clash():
    with pytest.raises(CellError, match="names a weight weight_ih, which every layer has"):
        Recurrent(Clash(), 2, 3)


@pytest.mark.parametrize("given, text", [
    ((torch.zeros(4, 2),), r"x must have D = input_size = 3 in its last place; came \[4, 2\]"),
    ((torch.zeros(1, 4, 2, 3),), r"x must be \[T, B, D\], or \[T, D\] without a batch; came \[1, 4, 2, 3\]"),
    ((torch.zeros(0, 2, 3),), r"x has no time steps"),
    ((torch.zeros(0, 3),), r"x has no time steps"),
    (([[1.0]],), r"x must be a Tensor \[T, B, D\] or a PackedSequence; came list"),
    ((torch.zeros(4, 2, 3, dtype=torch.float64),), "x is torch.float64, the weights are torch.float32"),
    ((torch.zeros(4, 2, 3, device="meta"),), "x is on meta, the weights are on cpu"),
    ((torch.zeros(4, 2, 3), torch.zeros(1, 2, 5)), r"the state of LSTM\(\) is a tuple of 2 Tensors \(h, c\); came 1"),
    ((torch.zeros(4, 2, 3), 7), r"is a tuple of 2 Tensors \(h, c\); came int"),
    ((torch.zeros(4, 2, 3), (torch.zeros(1, 2, 5), torch.zeros(1, 3, 5))), r"state c must be .* came \[1, 3, 5\]"),
    ((torch.zeros(4, 3), (torch.zeros(1, 1, 5),) * 2), r"state h must be \[layers \* dirs, H\] = \[1, 5\]"),
    ((torch.zeros(4, 2, 3), (torch.zeros(1, 2, 5).double(),) * 2), "state h is torch.float64, the weights"),
])  # fmt: skip
def test_bad_calls(given, text):
    layer = Recurrent("lstm", 3, 5)
    with pytest.raises(ShapeError, match=text):
        layer(*given)


def test_copies_pickles_and_repr():
    torch.manual_seed(0)
    layer = Recurrent(cells.PeepholeLSTM(), 3, 4, 2, skip=True, clip=2.0)
    x = torch.randn(5, 2, 3)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other(x)[0].equal(layer(x)[0])
        assert repr(other) == repr(layer) == "Recurrent(PeepholeLSTM(), 3, 4, num_layers=2, skip=True, clip=2.0)"
    assert not layer.double()(x.double())[0].equal(layer.double()(x.double() + 1)[0])


def test_compiles_and_exports():
    torch.manual_seed(0)
    layer = Recurrent("lstm-peephole", 3, 4, 2, bidirectional=True, skip=True)
    x = torch.randn(5, 2, 3)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    params = list(layer.parameters())
    y, _ = compiled(x)
    close(y, layer(x)[0], 1e-6)
    got = torch.autograd.grad(y.square().sum(), params)
    close(got, torch.autograd.grad(layer(x)[0].square().sum(), params), 1e-5)
    close(torch.export.export(layer, (x,)).module()(x)[0], y, 1e-6)


def test_autocast():
    torch.manual_seed(0)
    layer = Recurrent("gru-reset-before", 3, 8, 2, skip=True)
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y, h = layer(x)
        layer(x.bfloat16(), h.bfloat16())
    assert (y.dtype, h.dtype) == (torch.bfloat16, torch.float32)
    close(y.float(), layer(x)[0], 0.03)
    y.float().sum().backward()
    assert all(p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("name", ["preactivation", "lstm-1997", "additive-memory-feedback"])
def test_states_by_name(name):
    torch.manual_seed(0)
    layer = Recurrent(name, 3, 4, 2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    y, final = layer(x)
    states = layer.states(x)
    assert tuple(states) == tuple(layer.cell.states)
    for s, last in zip(states.values(), final if isinstance(final, tuple) else (final,), strict=True):
        assert s.shape == (4, 5, 2, 4)
        assert s[0, -1].equal(last[0]) and s[3, 0].equal(last[3])
    assert torch.cat(list(next(iter(states.values()))[-2:]), -1).equal(y)


def test_double_backward():
    torch.manual_seed(0)
    layer = Recurrent("lstm-peephole", 2, 2, 2, skip=True, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    p = layer.p_f_l0.detach().clone().requires_grad_()
    call = lambda x, p: torch.func.functional_call(layer, {"p_f_l0": p}, (x,))[0]  # noqa: E731
    assert torch.autograd.gradgradcheck(call, (x, p))
