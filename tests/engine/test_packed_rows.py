"""Packed rows through the kernels as they come, against the padded batch with its lengths: values and derivatives."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

from throughtime import cells, nn
from throughtime.engine.cpu.packed_batch import PackedRows
from throughtime.engine.rows import unroll_rows
from throughtime.errors import ShapeError
from throughtime.nn import stack

LENGTHS = [4, 9, 1, 9, 6]


def packed(D, dtype=torch.float64):
    return pack_sequence([torch.randn(n, D, dtype=dtype) for n in LENGTHS], enforce_sorted=False)


def both_ways(layer, data, some, monkeypatch, **state):
    """The output's rows and the last states by packed rows, and by the padded batch."""
    given = some._replace(data=data)
    taken = []
    monkeypatch.setattr(stack, "unroll_rows", lambda *a, **k: taken.append(1) or unroll_rows(*a, **k))
    by_rows = layer(given, **state)
    assert taken, "the packed rows were padded"
    monkeypatch.undo()
    monkeypatch.setattr("throughtime.nn.layer.takes_rows", lambda *_: False)
    padded = layer(given, **state)
    monkeypatch.undo()

    def flat(out):
        y, last = out
        return [y.data, *(last if isinstance(last, tuple) else (last,))]

    return flat(by_rows), flat(padded)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", cells.NAMES)
def test_every_cell(name, threads, monkeypatch):
    monkeypatch.setattr("throughtime.engine.cpu.plan.SMALL", 0)
    torch.set_num_threads(threads)
    layer = nn.Recurrent(cells.by_name(name), 3, 5, num_layers=2, bidirectional=threads == 2).double()
    some = packed(3)
    data = some.data.requires_grad_()
    ours, theirs = both_ways(layer, data, some, monkeypatch)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    weights = [torch.randn_like(v) for v in ours]
    leaves = [data, *layer.parameters()]
    gradients = [
        torch.autograd.grad(sum((v * w).sum() for v, w in zip(out, weights, strict=True)), leaves, allow_unused=True)
        for out in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_initial_states_rules_and_skip_connections(monkeypatch):
    layer = nn.Recurrent(cells.LSTM(), 3, 4, num_layers=2, skip=True).double()
    layer.clip, layer.truncated = 0.05, True
    some = packed(3)
    first = tuple(torch.randn(2, len(LENGTHS), 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    ours, theirs = both_ways(layer, some.data, some, monkeypatch, state=first)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    gradients = [
        torch.autograd.grad(out[0].sum() + out[2].sum(), [*first, *layer.parameters()]) for out in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_a_loss_of_the_last_state_alone(monkeypatch):
    layer, some = nn.GRU(3, 4).double(), packed(3)
    ours, theirs = both_ways(layer, some.data, some, monkeypatch)
    gradients = [torch.autograd.grad(out[1].square().sum(), list(layer.parameters())) for out in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRU(), cells.AdditiveState()])
def test_gradients_of_first_and_second_order(cell):
    layer = nn.Recurrent(cell, 2, 3).double()
    lengths = torch.tensor([4, 2, 1])
    some = pack_padded_sequence(torch.randn(4, 3, 2, dtype=torch.float64), lengths)

    def run(data, weight):
        def output(inner):
            return torch.func.functional_call(layer, {"weight_ih_l0": weight}, (inner,))[0].data

        return output(some._replace(data=data))

    args = (some.data.requires_grad_(), layer.weight_ih_l0.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(run, args)
    assert torch.autograd.gradgradcheck(run, args)


def test_inference_and_autocast(monkeypatch):
    layer, some = nn.LSTM(6, 8), packed(6, torch.float32)
    with torch.no_grad():
        ours, theirs = both_ways(layer, some.data, some, monkeypatch)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = both_ways(layer, some.data, some, monkeypatch)
    assert ours[0].dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_dropout_draws_what_torch_draws():
    ours, theirs = nn.LSTM(3, 4, num_layers=2, dropout=0.5), torch.nn.LSTM(3, 4, num_layers=2, dropout=0.5)
    theirs.load_state_dict(ours.state_dict())
    some = packed(3, torch.float32)
    out = []
    for layer in (ours, theirs):
        torch.manual_seed(1)
        out.append(pad_packed_sequence(layer(some)[0])[0])
    torch.testing.assert_close(*out, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_said():
    W = torch.randn(3, 2)
    with pytest.raises(ShapeError, match="at least 1 and never more than before; came \\[1, 2\\]"):
        PackedRows((1, 2))
    with pytest.raises(ShapeError, match=r"x must be \[3, D\], a row for each step of batch_sizes; came \(4, 2\)"):
        unroll_rows(cells.Simple(), torch.randn(4, 2), torch.tensor([2, 1]), W, torch.randn(3, 3), None, None)
