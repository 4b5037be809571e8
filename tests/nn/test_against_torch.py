"""RNN, LSTM and GRU against torch.nn's in float64: outputs, last states and every gradient."""

from __future__ import annotations

from itertools import cycle, product

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import throughtime.nn as tn

KINDS = {
    "tanh": (tn.RNN, nn.RNN, {"nonlinearity": "tanh"}),
    "relu": (tn.RNN, nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (tn.LSTM, nn.LSTM, {}),
    "lstm-proj": (tn.LSTM, nn.LSTM, {"proj_size": 2}),
    "gru": (tn.GRU, nn.GRU, {}),
}
LAYOUTS = ("batched", "unbatched", "packed", "packed-unsorted")
# Odd sizes, each with each of the others: T, B, H.
SIZES = list(product((1, 2, 6), (1, 2, 5), (1, 3, 7)))


def flat(out):
    """The tensors of a call's return, in order."""
    if isinstance(out, PackedSequence):
        return [out.data]
    return [out] if isinstance(out, torch.Tensor) else [v for part in out for v in flat(part)]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def pair(kind, *args, **options):
    ours, torchs, extra = KINDS[kind]
    torch.manual_seed(0)
    a = ours(*args, **options, **extra, dtype=torch.float64)
    b = torchs(*args, **options, **extra, dtype=torch.float64)
    b.load_state_dict(a.state_dict())
    return a, b


def inputs(layout, batch_first, T, B, D):
    x = torch.randn(T, B, D, dtype=torch.float64)
    if layout == "unbatched":
        return x[:, 0].contiguous()
    if layout == "batched":
        return x.transpose(0, 1).contiguous() if batch_first else x
    lengths = torch.randint(1, T + 1, (B,))
    lengths[B // 2] = T
    if layout == "packed":
        return pack_padded_sequence(x, lengths.sort(descending=True).values)
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def run(layer, x, hx):
    """Outputs and the gradients of a weighted sum of all of them, towards x, hx and the parameters."""
    data = (x.data if isinstance(x, PackedSequence) else x).detach().clone().requires_grad_()
    x = x._replace(data=data) if isinstance(x, PackedSequence) else data
    leaves = [data]
    if hx is not None:
        leaves += [s.detach().clone().requires_grad_() for s in flat(hx)]
        hx = leaves[1] if len(leaves) == 2 else tuple(leaves[1:])
    out = layer(x, hx)
    shown = flat(out)
    gen = torch.Generator().manual_seed(7)
    loss = sum((v * torch.randn(v.shape, generator=gen, dtype=v.dtype)).sum() for v in shown)
    return out, shown, torch.autograd.grad(loss, [*leaves, *layer.parameters()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients(kind, layout):
    torch.manual_seed(3)
    sizes = cycle(SIZES)
    for layers, two, bias, batch_first, given in product((1, 2, 3), *[(False, True)] * 4):
        if batch_first and layout != "batched" and given:
            continue  # batch_first says nothing about packed and unbatched input; once is enough
        T, B, H = next(sizes)
        H = max(H, 3) if kind == "lstm-proj" else H
        a, b = pair(kind, 2, H, layers, bias=bias, batch_first=batch_first, bidirectional=two)
        x = inputs(layout, batch_first, T, B, 2)
        hx = None
        if given:
            shape = (layers * (1 + two),) if layout == "unbatched" else (layers * (1 + two), B)
            P = 2 if kind == "lstm-proj" else H
            hx = torch.randn(*shape, P, dtype=torch.float64)
            if kind.startswith("lstm"):
                hx = (hx, torch.randn(*shape, H, dtype=torch.float64))
        (out_a, ya, ga), (out_b, yb, gb) = run(a, x, hx), run(b, x, hx)
        assert type(out_a[0]) is type(out_b[0]) and type(out_a[1]) is type(out_b[1])
        for u, v in zip([*ya, *ga], [*yb, *gb], strict=True):
            close(u, v)
        if isinstance(x, PackedSequence):
            assert out_a[0].batch_sizes.equal(out_b[0].batch_sizes)
            for u, v in zip(out_a[0][2:], out_b[0][2:], strict=True):
                assert (u is None and v is None) or u.equal(v)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_parameters(kind):
    ours, torchs, extra = KINDS[kind]
    torch.manual_seed(5)
    a = ours(3, 4, 2, bidirectional=True, **extra)
    torch.manual_seed(5)
    b = torchs(3, 4, 2, bidirectional=True, **extra)
    names_a, names_b = dict(a.named_parameters()), dict(b.named_parameters())
    assert list(names_a) == list(names_b)
    assert all(names_a[n].equal(names_b[n]) for n in names_a)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_both_ways(kind):
    a, b = pair(kind, 3, 4, 2, bidirectional=True)
    b.reset_parameters()
    a.load_state_dict(b.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    close(flat(a(x)), flat(b(x)))
    a.reset_parameters()
    b.load_state_dict(a.state_dict())
    close(flat(a(x)), flat(b(x)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_draws_torchs_numbers(kind, layout):
    a, b = pair(kind, 2, 4, 3, dropout=0.4, bidirectional=True)
    torch.manual_seed(11)
    x = inputs(layout, False, 6, 3, 2)
    torch.manual_seed(1)
    _, ya, ga = run(a, x, None)
    torch.manual_seed(1)
    _, yb, gb = run(b, x, None)
    for u, v in zip([*ya, *ga], [*yb, *gb], strict=True):
        close(u, v)
    torch.manual_seed(2)
    assert not flat(a(x))[0].equal(ya[0])  # other numbers, other outputs
    a.eval(), b.eval()
    close(flat(a(x)), flat(b(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch(kind):
    a, b = pair(kind, 3, 4, 2, bidirectional=True)
    x = torch.zeros(5, 0, 3, dtype=torch.float64)
    (_, ya, ga), (_, yb, gb) = run(a, x, None), run(b, x, None)
    close([*ya, *ga], [*yb, *gb])


@pytest.mark.parametrize("kind", ["tanh", "lstm", "gru"])
def test_complex_numbers(kind):
    ours, torchs, extra = KINDS[kind]
    torch.manual_seed(0)
    a = ours(2, 3, 2, **extra, dtype=torch.complex128)
    b = torchs(2, 3, 2, **extra, dtype=torch.complex128)
    b.load_state_dict(a.state_dict())
    x = 0.1 * torch.randn(4, 2, 2, dtype=torch.complex128)  # far from the poles of tanh
    ya, yb = flat(a(x)), flat(b(x))
    close(ya, yb)
    ga = torch.autograd.grad(ya[0].abs().square().sum(), list(a.parameters()))
    gb = torch.autograd.grad(yb[0].abs().square().sum(), list(b.parameters()))
    close(ga, gb)


def test_complex_weights_refuse_a_training_rule():
    layer = tn.LSTM(2, 3, dtype=torch.complex64, clip=1.0)
    with pytest.raises(RuntimeError, match=r"need the traced step.*complex64"):
        layer(torch.zeros(4, 2, 2, dtype=torch.complex64))
