"""RNN, LSTM and GRU as modules: errors, copies, dtypes, autocast, compile, export, all states."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime.nn as tn
from throughtime.errors import BackendError, ConfigError

NAMES = ("RNN", "LSTM", "GRU")


def both(name, *args, **kwargs):
    torch.manual_seed(0)
    a = getattr(tn, name)(*args, **kwargs)
    torch.manual_seed(0)
    return a, getattr(nn, name)(*args, **kwargs)


def first(hx):
    return hx if isinstance(hx, torch.Tensor) else hx[0]


def state(name, *shape, dtype=torch.float32):
    s = torch.zeros(shape, dtype=dtype)
    return (s, s) if name == "LSTM" else s


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "args",
    [
        ((5, 3), "2D or 3D", lambda n: (torch.zeros(1, 5, 2, 3),)),
        ((5, 3), "1-D", lambda n: (torch.zeros(3),)),
        ((5, 3), "wrong size", lambda n: (torch.zeros(5, 2, 4),)),
        ((5, 3), "wrong size packed", lambda n: (pack_padded_sequence(torch.zeros(5, 2, 4), [5, 3]),)),
        ((5, 3), "no steps", lambda n: (torch.zeros(0, 2, 3),)),
        ((5, 3), "no steps, no batch", lambda n: (torch.zeros(0, 3),)),
        ((5, 3), "dtype", lambda n: (torch.zeros(5, 2, 3, dtype=torch.float64),)),
        ((5, 3), "device", lambda n: (torch.zeros(5, 2, 3, device="meta"),)),
        ((5, 3), "hx 2-D", lambda n: (torch.zeros(5, 2, 3), state(n, 1, 4))),
        ((5, 3), "hx 3-D", lambda n: (torch.zeros(5, 3), state(n, 1, 1, 4))),
        ((5, 3), "hx batch", lambda n: (torch.zeros(5, 2, 3), state(n, 1, 1, 4))),
        ((5, 3), "hx size", lambda n: (torch.zeros(5, 2, 3), state(n, 1, 2, 3))),
    ],
    ids=lambda a: a[1],
)
def test_torchs_errors(name, args):
    """The same exception with the same text (packed LSTM: torch's own is of the product, deep inside)."""
    a, b = both(name, 3, 4)
    given = args[2](name)
    with pytest.raises(Exception) as theirs:
        b(*given)
    with pytest.raises(type(theirs.value)) as ours:
        a(*given)
    if not (name == "LSTM" and args[1] == "wrong size packed"):
        assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("name", NAMES)
def test_states_of_another_dtype(name):
    a, b = both(name, 3, 4)
    given = torch.zeros(5, 2, 3), state(name, 1, 2, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        b(*given)
    with pytest.raises(RuntimeError, match=r"same dtype, but got torch\.float32 and torch\.float64"):
        a(*given)


def test_packed_batch_and_states_of_another_size():
    x = pack_padded_sequence(torch.zeros(5, 2, 3), [3, 5], enforce_sorted=False)
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 2, 4\), got \[1, 3, 4\]"):
        tn.GRU(3, 4)(x, torch.zeros(1, 3, 4))


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_proj_size_is_the_lstms(name):
    for module in (tn, nn):
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
            getattr(module, name)(3, 4, proj_size=2)
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
        tn.GRU(3, 4, 1, True, False, 0.0, False, 2)


def test_constructor_as_torchs():
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
        tn.RNN(3, 4, nonlinearity="sin")
    with pytest.raises(ValueError, match="proj_size has to be smaller"):
        tn.LSTM(3, 4, proj_size=4)
    with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
        tn.LSTM(3, 4, dropout=0.5)
    a, b = both("RNN", 3, 4, 2, "relu", False, True, 0.1, True)
    assert (a.nonlinearity, a.mode, a.bias, a.batch_first, a.dropout, a.bidirectional) == (
        b.nonlinearity, b.mode, b.bias, b.batch_first, b.dropout, b.bidirectional
    )  # fmt: skip


def test_rules_are_checked():
    for clip in (0, -1.0, float("inf"), float("nan"), True):
        with pytest.raises(ConfigError, match="clip must be a positive number"):
            tn.LSTM(3, 4, clip=clip)
    with pytest.raises(ConfigError, match="truncated must be True or False"):
        tn.LSTM(3, 4, truncated=1)
    with pytest.raises(BackendError, match="unknown backend 'cuda'"):
        tn.LSTM(3, 4, backend="cuda")


@pytest.mark.parametrize("name", NAMES)
def test_repr(name):
    for kwargs in ({}, {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5, "bidirectional": True}):
        a, b = both(name, 3, 4, **kwargs)
        assert repr(a) == repr(b)
    assert repr(tn.LSTM(3, 4, proj_size=2, clip=1.0)) == "LSTM(3, 4, proj_size=2, clip=1.0)"


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles(name):
    a = getattr(tn, name)(3, 4, 2, clip=1.0, truncated=True)
    x = torch.randn(5, 2, 3)
    buffer = io.BytesIO()
    torch.save(a, buffer)
    buffer.seek(0)
    for b in (copy.deepcopy(a), pickle.loads(pickle.dumps(a)), torch.load(buffer, weights_only=False)):
        assert (b.clip, b.truncated, b.backend) == (1.0, True, "auto")
        assert b(x)[0].equal(a(x)[0])
        assert b.weight_ih_l0 is not a.weight_ih_l0
        with torch.no_grad():
            b.weight_ih_l0.add_(1)
        assert not b(x)[0].equal(a(x)[0])


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_and_replaced_parameters(name):
    a, b = both(name, 3, 4, 2)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        x = torch.randn(5, 2, 3, dtype=dtype)
        ya, yb = a.to(dtype)(x), b.to(dtype)(x)
        assert ya[0].dtype == first(ya[1]).dtype == dtype
        tol = 1e-10 if dtype is torch.float64 else 0.02  # a few units in the last place of bfloat16
        torch.testing.assert_close(ya[0], yb[0], rtol=0, atol=tol)
    a = a.double()
    zeros = {n: torch.zeros_like(p) for n, p in a.named_parameters()}
    assert not torch.func.functional_call(a, zeros, (x.double(),))[0].any()
    a.weight_ih_l0 = nn.Parameter(torch.zeros(a.weight_ih_l0.shape, dtype=torch.float64))
    same = a(x.double())[0]
    assert a(torch.zeros(5, 2, 3, dtype=torch.float64))[0].equal(same)
    a.flatten_parameters()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name, dtype):
    a, _ = both(name, 3, 8, 2, bidirectional=True)
    x = torch.randn(6, 2, 3, requires_grad=True)
    full = a(x)
    with torch.autocast("cpu", dtype):
        y, h = a(x)
        given = a(x.to(dtype), tuple(s.to(dtype) for s in h) if isinstance(h, tuple) else h.to(dtype))
        packed = a(pack_padded_sequence(x, [6, 4]))
    assert y.dtype == given[0].dtype == packed[0].data.dtype == dtype
    # The last states keep the parameters' dtype: they carry a sum over time.
    assert first(h).dtype == first(given[1]).dtype == first(packed[1]).dtype == torch.float32
    torch.testing.assert_close(y.float(), full[0], rtol=0, atol=0.02)
    y.float().square().sum().backward()
    assert x.grad.dtype == a.weight_hh_l0.grad.dtype == torch.float32
    exact = torch.autograd.grad(full[0].square().sum(), a.weight_hh_l0)[0]
    torch.testing.assert_close(a.weight_hh_l0.grad, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_leaves_float64(name):
    a, b = both(name, 3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        ya, yb = a(x)[0], b(x)[0]
    torch.testing.assert_close(ya, yb, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_a_break(name):
    a, _ = both(name, 3, 4, 2, bidirectional=True, batch_first=True, dropout=0.5)
    a.eval()
    x = torch.randn(2, 5, 3)
    torch._dynamo.reset()
    compiled = torch.compile(a, backend="aot_eager", fullgraph=True)
    for given in ((x,), (x, state(name, 4, 2, 4))):
        y, h = compiled(*given)
        grads = torch.autograd.grad(y.square().sum() + first(h).sum(), list(a.parameters()))
        z, k = a(*given)
        torch.testing.assert_close(y, z)
        torch.testing.assert_close(grads, torch.autograd.grad(z.square().sum() + first(k).sum(), list(a.parameters())))


@pytest.mark.parametrize("name", NAMES)
def test_exports(name):
    a, _ = both(name, 3, 4, 2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    exported = torch.export.export(a, (x,)).module()
    torch.testing.assert_close(exported(x), a(x))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_on_meta(name):
    y, h = getattr(tn, name)(3, 4, 2, device="meta")(torch.zeros(5, 2, 3, device="meta"))
    assert y.shape == (5, 2, 4) and first(h).shape == (2, 2, 4)


@pytest.mark.parametrize("name", NAMES)
def test_double_backward(name):
    torch.manual_seed(0)
    a = getattr(tn, name)(2, 2, 2, bidirectional=True, dtype=torch.float64)
    names = [n for n, _ in a.named_parameters()]
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def call(x, *params):
        return torch.func.functional_call(a, dict(zip(names, params, strict=True)), (x,))[0]

    params = tuple(p.detach().requires_grad_(k < 3) for k, p in enumerate(a.parameters()))
    assert torch.autograd.gradgradcheck(call, (x, *params))


def test_double_backward_of_a_packed_batch():
    torch.manual_seed(0)
    a = tn.LSTM(2, 2, 2, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def call(x):
        return a(pack_padded_sequence(x, [2, 3], enforce_sorted=False))[0].data

    assert torch.autograd.gradgradcheck(call, (x,))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("two", [False, True])
def test_states_at_every_step(batch_first, two):
    torch.manual_seed(0)
    a = tn.LSTM(3, 5, 2, batch_first=batch_first, bidirectional=two, proj_size=2)
    x = torch.randn(*((4, 6) if batch_first else (6, 4)), 3)
    y, (h, c) = a(x)
    states = a.states(x)
    assert list(states) == ["h", "c"]
    steps = {n: s.transpose(1, 2) if batch_first else s for n, s in states.items()}
    assert steps["c"].shape == ((4 if two else 2), 6, 4, 5)
    last = steps["h"][-2:] if two else steps["h"][-1:]
    shown = torch.cat(list(last), -1)
    assert (shown.transpose(0, 1) if batch_first else shown).equal(y)
    for n, final in (("h", h), ("c", c)):
        for k in range(len(final)):  # a reverse direction ends at step 0
            assert steps[n][k, 0 if two and k % 2 else -1].equal(final[k])


def test_states_of_packed_and_unbatched_input():
    torch.manual_seed(0)
    a = tn.GRU(3, 4, 2)
    x = torch.randn(6, 3, 3)
    packed = pack_padded_sequence(x, [2, 6, 4], enforce_sorted=False)
    h = a.states(packed)["h"]
    assert h.shape == (2, 6, 3, 4)
    assert h[-1].equal(pad_packed_sequence(a(packed)[0])[0])
    assert not h[:, 2:, 0].any() and h[:, :2, 0].all()
    torch.testing.assert_close(a.states(x[:, 1])["h"], h[:, :, 1])


def test_states_can_be_differentiated():
    a = tn.LSTM(3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    a.states(x)["c"][0, -1].sum().backward()
    direct = torch.autograd.grad(a(x)[1][1].sum(), x)[0]
    torch.testing.assert_close(x.grad, direct, rtol=0, atol=1e-12)


def test_training_rules_change_gradients_only():
    torch.manual_seed(0)
    a = tn.LSTM(3, 4)
    x = torch.randn(8, 2, 3)

    def outcome():
        a.zero_grad()
        y = a(x)[0]
        (100 * y[-1].sum()).backward()
        return y.detach(), a.weight_hh_l0.grad.clone()

    y, full = outcome()
    for rule in ({"clip": 0.01}, {"truncated": True}):
        a.clip, a.truncated = rule.get("clip"), rule.get("truncated", False)
        z, other = outcome()
        assert z.equal(y) and not torch.allclose(other, full)
    a.clip, a.truncated, a.backend = None, False, "reference"
    z, other = outcome()
    torch.testing.assert_close((z, other), (y, full))
    a.clip = 1.0
    with pytest.raises(BackendError, match="the training rules clip and truncated"):
        a(x)


def test_an_optimiser_learns():
    torch.manual_seed(0)
    a, head = tn.GRU(1, 8), nn.Linear(8, 1)
    opt = torch.optim.Adam([*a.parameters(), *head.parameters()], lr=0.02)
    x = torch.rand(6, 32, 1)
    losses = []
    for _ in range(60):
        loss = (head(a(x)[0][-1]) - x.mean(0)).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


def test_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tn.LSTM(3, 4, 2, dropout=0.5)(torch.zeros(5, 2, 3))
