"""capture() on layers, against the same stack unrolled by hand and differentiated by brute force, in float64."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn as torchs
from torch.nn.utils.rnn import pack_padded_sequence

from tests.flow.by_hand import check, rows, sources_of, unrolled, weights_of
from throughtime import cells, flow, nn
from throughtime.flow.capture_calls import cell_of

F64 = torch.float64
T, B, D, H = 5, 3, 3, 4


def head(y, finals):
    """A loss that every output and every final state enters with weights of its own."""
    w = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)
    return (y.sin() * w).sum() + sum((i + 1) * (f * f.detach().cos()).sum() for i, f in enumerate(finals))


LAYERS = {
    "RNN": lambda: torchs.RNN(D, H),
    "RNN relu, two layers": lambda: torchs.RNN(D, H, 2, nonlinearity="relu"),
    "RNN without bias, two directions": lambda: torchs.RNN(D, H, bias=False, bidirectional=True),
    "LSTM, three layers, dropout": lambda: torchs.LSTM(D, H, 3, dropout=0.4),
    "LSTM, two layers, two directions, dropout": lambda: torchs.LSTM(D, H, 2, bidirectional=True, dropout=0.4),
    "LSTM, projected, two layers, batch first": lambda: torchs.LSTM(D, H, 2, proj_size=2, batch_first=True),
    "LSTM, projected, two layers, two directions": lambda: torchs.LSTM(D, H, 2, proj_size=2, bidirectional=True),
    "GRU, two layers, dropout, batch first": lambda: torchs.GRU(D, H, 2, dropout=0.3, batch_first=True),
    "GRU, two directions, two layers": lambda: torchs.GRU(D, H, 2, bidirectional=True),
    "GRU, eval, dropout": lambda: torchs.GRU(D, H, 2, dropout=0.3).eval(),
    "ours: LSTM, two layers, dropout": lambda: nn.LSTM(D, H, 2, dropout=0.3),
    "ours: peepholes, skip, two directions, dropout": lambda: nn.Recurrent(
        cells.PeepholeLSTM(), D, H, 2, skip=True, bidirectional=True, dropout=0.3
    ),
    "ours: GRU with the reset before, two layers": lambda: nn.GRUResetBefore(D, H, 2),
    "ours: additive state, a map of x, two layers": lambda: nn.AdditiveState(D, H, 2),
    "ours: LSTM projected": lambda: nn.Recurrent(cells.ProjectedLSTM(), D, H, 2, proj_size=2),
}


def run_both(module, state=None, lengths=None, batched=True):
    """Runs the module under capture, and by hand with the same random numbers; (captured, brute force, kept)."""
    x = torch.randn(T, B if batched else 1, D, dtype=F64)
    first = getattr(module, "batch_first", False)
    given = x if batched else x[:, 0]
    given = given.transpose(0, 1) if first and batched else given
    if lengths is not None:
        given = pack_padded_sequence(given, lengths, batch_first=first, enforce_sorted=False)
    random = torch.get_rng_state()
    with flow.capture(module) as captured:
        y, finals = module(given, state)
        finals = [finals] if isinstance(finals, torch.Tensor) else list(finals)
        packed = lengths is not None
        head(y.data if packed else y.transpose(0, 1) if first and batched else y, finals).backward()
    # The same by hand. A packed batch runs in the order of its lengths.
    order = given.sorted_indices if packed else torch.arange(x.shape[1])
    back = given.unsorted_indices if packed else order
    long = None if not packed else lengths[order]
    cell, layers = cell_of(module), weights_of(module)
    masks = None
    if module.training and module.dropout > 0:
        after = torch.get_rng_state()
        torch.set_rng_state(random)
        width = sum(w["weight_hh"].shape[1] for w in layers[0])
        ones = torch.ones(T, x.shape[1], width, dtype=F64)
        if packed:
            mask = lambda: unpack(F.dropout(pack_padded_sequence(ones, long).data, module.dropout), long)  # noqa: E731
        else:
            mask = lambda: F.dropout(ones, module.dropout)  # noqa: E731
        masks = [None, *(mask() for _ in layers[1:])]
        assert torch.equal(torch.get_rng_state(), after)
    given_state = None if state is None else [s if batched else s[:, None] for s in as_list(state)]
    given_state = None if given_state is None else [s[:, order] for s in given_state]
    skip = getattr(module, "skip", False)
    kept, y2, finals2 = unrolled(cell, layers, x[:, order], given_state, long, masks, skip)
    flat = pack_padded_sequence(y2, long).data if packed else y2 if batched else y2[:, 0]
    out_finals = [f[:, back] if batched else f[:, 0] for f in finals2]
    torch.testing.assert_close(flat, y.data if packed else y.transpose(0, 1) if first and batched else y)
    g, *g_finals = torch.autograd.grad(head(flat, out_finals), [y2, *finals2], retain_graph=True)
    dirs = 2 if module.bidirectional else 1
    found = rows(kept, sources_of(y2, finals2, g, g_finals, long, dirs))
    return captured, found


def as_list(state):
    return [state] if isinstance(state, torch.Tensor) else list(state)


def unpack(data, lengths):
    full = pack_padded_sequence(torch.ones(T, len(lengths), data.shape[1]), lengths)
    return torch.nn.utils.rnn.pad_packed_sequence(full._replace(data=data))[0]


def compare(module, captured, found):
    assert not captured._recorder.failures and not captured.notes
    assert len(captured.recurrences) == sum(len(d) for d in found)
    for r in captured.recurrences:
        check(r, found[r.layer][int(r.reverse)], cell_of(module).states)
        end = f"_l{r.layer}{'_reverse' if r.reverse else ''}"
        for name, share in r.shares().parameters.items():
            torch.testing.assert_close(share.gradient, getattr(module, name + end).grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(name):
    module = LAYERS[name]().to(F64)
    compare(module, *run_both(module))


@pytest.mark.parametrize(
    "name",
    [
        "LSTM, two layers, two directions, dropout",
        "GRU, two layers, dropout, batch first",
        "ours: peepholes, skip, two directions, dropout",
        "RNN without bias, two directions",
    ],
)
def test_packed_sequences_of_different_lengths(name):
    module = LAYERS[name]().to(F64)
    compare(module, *run_both(module, lengths=torch.tensor([3, 5, 1])))


@pytest.mark.parametrize("batched", [True, False])
def test_initial_states_and_no_batch(batched):
    module = torchs.LSTM(D, H, 2, dropout=0.4).to(F64)
    shape = (2, B, H) if batched else (2, H)
    state = tuple(torch.randn(shape, dtype=F64) for _ in "hc")
    captured, found = run_both(module, state, batched=batched)
    compare(module, captured, found)
    assert all(r.carried is None for r in captured.recurrences)


def test_packed_with_initial_states():
    module = torchs.LSTM(D, H, bidirectional=True).to(F64)
    state = tuple(torch.randn(2, B, H, dtype=F64) for _ in "hc")
    compare(module, *run_both(module, state, torch.tensor([2, 5, 4])))


def test_one_step_one_sequence_one_unit():
    module, x = torchs.GRU(1, 1).to(F64), torch.randn(1, 1, 1, dtype=F64)
    with flow.capture(module) as captured:
        module(x)[0].sum().backward()
    f = captured.flow()
    assert f.steps == 1 and f.horizon() == (0, True)
    shares = captured.shares()
    torch.testing.assert_close(shares["weight_ih"].gradient, module.weight_ih_l0.grad)
    assert shares["weight_ih"].by_lag.contribution.tolist() == pytest.approx([1.0])
    assert shares["weight_hh"].gradient.abs().sum() == 0
    assert shares["weight_hh"].by_lag.contribution.isnan().all()  # a share of nothing


def test_the_gradient_that_entered():
    module, x = torchs.LSTM(D, H, 2).to(F64), torch.randn(T, B, D, dtype=F64)
    with flow.capture(module) as captured:
        y, (h, c) = module(x)
        y.retain_grad(), h.retain_grad(), c.retain_grad()
        head(y, [h, c]).backward()
    low, high = captured.recurrences
    assert torch.equal(high.gradient, y.grad)
    for k, r in enumerate((low, high)):
        assert torch.equal(r.final["h"], h.grad[k]) and torch.equal(r.final["c"], c.grad[k])
    # What entered the lower layer came from the upper one only: dL/dx of a module that is the upper one alone.
    upper = torchs.LSTM(H, H).to(F64)
    for n, v in upper.named_parameters():
        v.data = getattr(module, n.replace("l0", "l1")).data
    below = low.recurrence.output.clone().requires_grad_()
    y2, (h2, c2) = upper(below)
    torch.autograd.backward([y2, h2, c2], [y.grad, h.grad[1:], c.grad[1:]])
    torch.testing.assert_close(low.gradient, below.grad, rtol=1e-9, atol=1e-13)


def test_agrees_with_gradient_flow():
    module, x = nn.GRU(D, H, 2), torch.randn(T, B, D)
    with flow.capture(module) as captured:
        module(x)[0][-1].sum().backward()
    for k in (0, 1):
        want = flow.gradient_flow(module, x, lambda y: y[-1].sum(), layer=k)
        for of in want.maps:
            torch.testing.assert_close(captured.flow(k).maps[of], want.maps[of], rtol=1e-6, atol=1e-9)


def test_two_backward_passes_add_up():
    module, x = torchs.GRU(D, H).to(F64), torch.randn(T, B, D, dtype=F64)
    with flow.capture(module) as captured:
        y = module(x)[0]
        y[1].sum().backward(retain_graph=True)
        (2 * y[-1].square().sum()).backward()
    for name, share in captured.shares().parameters.items():
        torch.testing.assert_close(share.gradient, getattr(module, f"{name}_l0").grad)


def test_weights_are_those_of_the_run():
    module, x = torchs.RNN(D, H), torch.randn(T, B, D)
    with flow.capture(module) as captured:
        module(x)[0].square().mean().backward()
        torch.optim.SGD(module.parameters(), 10.0).step()
        x.zero_()
    torch.testing.assert_close(
        captured.shares()["weight_hh"].gradient.float(), module.weight_hh_l0.grad, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["torch", "ours"])
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_weights_while_they_are_trained(how, kind, cached):
    # A layer computes its weight at each call, and reading a spectral norm's moves it on: neither may be seen.
    losses = []
    for watched in (False, True):
        torch.manual_seed(0)
        module = (torchs if kind == "torch" else nn).GRU(D, H).to(F64)
        getattr(torch.nn.utils.parametrizations, how)(module, "weight_hh_l0")
        optimiser, x = torch.optim.SGD(module.parameters(), 0.5), torch.randn(T, B, D, dtype=F64)
        losses.append([])
        for _ in range(3):
            optimiser.zero_grad()
            with (
                torch.nn.utils.parametrize.cached() if cached else nullcontext(),
                flow.capture(module) if watched else nullcontext() as captured,
            ):
                loss = module(x)[0].square().mean()
                loss.backward()
            losses[-1].append(loss.item())
            if watched:
                want, got = module.bias_hh_l0.grad, captured.shares()["bias_hh"].gradient
                torch.testing.assert_close(got, want)
            optimiser.step()
    assert losses[0] == losses[1]


def test_hooks_of_a_users_own_on_a_layer_are_outside_of_it():
    # One changes what the layer is given, one what it gives: captured is the layer as it ran in between.
    module, x = torchs.LSTM(D, H).to(F64), torch.randn(T, B, D, dtype=F64)
    module.register_forward_pre_hook(lambda m, given: (given[0] + 1,))
    module.register_forward_hook(lambda m, given, out: (out[0] * 3, out[1]))
    with flow.capture(module) as captured:
        module(x)[0].sin().sum().backward()
    torch.testing.assert_close(captured.shares()["weight_hh"].gradient, module.weight_hh_l0.grad)
    plain = nn.LSTM(D, H).to(F64)
    plain.load_state_dict(module.state_dict())
    want = flow.gradient_flow(plain, x + 1, lambda y: (3 * y).sin().sum())
    torch.testing.assert_close(captured.flow().maps, want.maps)


def test_parametrised_weights():
    # torch's own weight_norm: the layer runs with weights that are computed at each call.
    module = torchs.GRU(D, H).to(F64)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    x = torch.randn(T, B, D, dtype=F64)
    with flow.capture(module) as captured:
        y = module(x)[0]
        y.square().sum().backward()
    plain = torchs.GRU(D, H).to(F64)
    for n, v in plain.named_parameters():
        v.data = getattr(module, n).data
    with flow.capture(plain) as want:
        plain(x)[0].square().sum().backward()
    torch.testing.assert_close(captured.flow().maps["h"], want.flow().maps["h"])
