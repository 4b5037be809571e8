"""The Triton kernels against the torch backend: every cell, rule, length and direction, by the schedule of the rule."""

import pytest
import torch

from throughtime import cells, nn
from throughtime.engine import torch_backend
from throughtime.engine.backends import choose as choose_backend
from throughtime.engine.triton import kernel, schedule, support
from throughtime.errors import BackendError

from ..problems import ALL
from .problems import DEVICE, assert_close, assert_same_as_torch, backend, given, in_low

# T, B, D, H: one of everything; off every power of two. The interpreter takes a tenth of a millisecond an operation.
AWKWARD = [(1, 1, 1, 1), (3, 9, 7, 17)]
SUMMED = ["additive-state", "additive-memory"]
ALONE = [*SUMMED, "leaky"]  # no unit of theirs sees another


class Leaky(cells.Cell):
    """A recurrence that is diagonal: what is kept is said by a weight of the unit, and by a gate that sees x alone."""

    gates = ("k", "a")
    units = ("leak",)
    input_only = ("k", "a")

    def step(self, z, s, w):
        keep = torch.sigmoid(w.leak) * torch.sigmoid(z.k)
        return keep * s.h + (1 - keep) * torch.tanh(z.a)


@pytest.mark.parametrize("name", ALL)
def test_every_cell(name):
    for sizes in AWKWARD:
        assert_same_as_torch(given(name, *sizes, reverse=True, only_h=True))
        assert_same_as_torch(given(name, *sizes, lengths=True))


@pytest.mark.parametrize("name", ALL)
def test_every_rule(name):
    assert_same_as_torch(given(name, 3, 3, 3, 18, lengths=True, reverse=True, clip=0.02))
    assert_same_as_torch(given(name, 3, 3, 3, 18, lengths=True, reverse=True, truncated=True))


@pytest.mark.parametrize("name", ["gru", "users-own", "lstm-projected"])
def test_more_than_one_tile_of_rows(name):
    assert_same_as_torch(given(name, 2, 17, 5, 40, lengths=True))


@pytest.mark.parametrize("name", [*SUMMED, "leaky", "lstm-1997", "lstm-peephole", "gru"])
def test_more_than_one_chunk_of_time(name, monkeypatch):
    monkeypatch.setitem(ALL, "leaky", Leaky)
    modes, rule = [], schedule.choose
    monkeypatch.setattr(schedule, "choose", lambda *a: modes.append(rule(*a)) or modes[-1])
    truncated = name not in ALONE
    assert_same_as_torch(given(name, 19, 1, 3, 17, truncated=truncated))
    assert_same_as_torch(given(name, 18, 3, 3, 5, lengths=True, reverse=True, truncated=truncated, clip=0.1))
    assert [s.mode for s in modes] == (["scan", "scan"] if name in ALONE else ["alone", "scan"]) * 2


@pytest.mark.parametrize("name", ["lstm", "gru-reset-before", "additive-memory", "users-own"])
def test_inference_gives_the_same_and_keeps_nothing(name):
    p = given(name, 3, 3, 3, 18, lengths=True)
    tensors = (p.x, p.W, p.U, p.b, p.units, p.matrices, p.states, p.lengths, False)
    sequences, finals, saved = backend.forward(p.tape, *tensors, False)
    assert saved.numel() == 0
    wanted = torch_backend.forward(p.tape, *tensors, False)
    torch.testing.assert_close([*sequences, *finals], [*wanted[0], *wanted[1]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_what_is_kept_is_written_to_the_end(name):
    p = given(name, 2, 3, 3, 18, lengths=True)  # memory is full of NaN until it is written
    tensors = (p.x, p.W, p.U, p.b, p.units, p.matrices, p.states, p.lengths, False)
    kept = backend.forward(p.tape, *tensors, True)[2]
    P = p.states[0].shape[1]
    assert kept.shape == (2, 3, backend.saved_width(p.tape, 18, P, [tuple(m.shape) for m in p.matrices]))
    assert kept.isfinite().all()


@pytest.mark.parametrize("name", ["lstm", "users-own", "additive-memory"])
def test_sequences_of_no_steps(name):
    # A part of a walk may find a sequence already over: nothing of it happens, its states stand still.
    for reverse in (False, True):
        p = given(name, 4, 3, 3, 8, lengths=True, reverse=reverse)
        p.lengths = torch.tensor([0, 4, 2], device=DEVICE)
        ours, theirs = p.results(backend), p.results(torch_backend)
        assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["lstm", "users-own", "additive-memory"])
def test_float32(name):
    for sizes in [(4, 5, 9, 33), (12, 1, 16, 64)]:
        # One part in 2^24 an operation, over a few hundred operations in a row.
        assert_same_as_torch(given(name, *sizes, lengths=True, dtype=torch.float32), tolerance=1e-5)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["lstm", "gru-reset-before", "lstm-projected", "users-own"])
def test_short_products_beside_float32(name, low):
    # The same rounded weights in float32 are the truth; a product rounds h, and dz, to 8 or 11 bits.
    p = in_low(given(name, 4, 3, 7, 33, lengths=True, dtype=torch.float32), low)
    ours = p.results(backend)
    assert ours["gradient of W"].dtype == low and ours["sequence h"].dtype == torch.float32
    truth = in_low(p, torch.float32).results(torch_backend)
    tolerance = 2e-2 if low == torch.bfloat16 else 3e-3
    assert_close({n: v.float() for n, v in ours.items()}, truth, tolerance)
    assert max(float((ours[n].float() - truth[n]).abs().max()) for n in truth) > 1e-6  # it is rounded


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_short_throughout_carries_the_memory_in_float32(low):
    p = given("lstm", 20, 3, 4, 8, dtype=low)
    truth = given("lstm", 20, 3, 4, 8, dtype=torch.float32)
    for name in ("x", "W", "U", "b"):
        setattr(truth, name, getattr(p, name).float())
    for name in ("states", "d_sequences", "d_finals"):
        setattr(truth, name, [v.float() for v in getattr(p, name)])
    ours = {n: v.float() for n, v in p.results(backend).items()}
    assert_close(ours, truth.results(torch_backend), 4e-2 if low == torch.bfloat16 else 6e-3)


def test_an_additive_state_in_bfloat16_adds_up():
    tape = given("additive-state", 1, 1, 1, 1).tape
    ones = torch.ones(1000, 1, 1, device=DEVICE, dtype=torch.bfloat16)
    W, b = torch.ones(1, 1, device=DEVICE, dtype=torch.bfloat16), torch.zeros(1, device=DEVICE)
    U, first = W.new_zeros(0, 1), [torch.zeros(1, 1, device=DEVICE)]
    (h,), _, _ = backend.forward(tape, ones, W, U, b, [], [], first, None, False, False)
    assert h[-1].item() == 1000  # bf16 would stand still at 256


def test_strided_arguments():
    p = given("gru", 4, 5, 6, 18)
    wanted = p.results(torch_backend)
    p.x, p.W, p.U = (v.mT.contiguous().mT for v in (p.x, p.W, p.U))
    p.states = [s.mT.contiguous().mT for s in p.states]
    p.d_sequences = [d.transpose(0, 1).contiguous().transpose(0, 1) for d in p.d_sequences]
    p.d_finals = [d.mT.contiguous().mT for d in p.d_finals]
    assert_close(p.results(backend), wanted)


@pytest.mark.parametrize("name", ["lstm", "additive-memory"])
def test_a_gradient_that_is_the_same_everywhere(name):
    p = given(name, 4, 5, 3, 18, lengths=True)
    p.d_sequences = [torch.full((), 0.7, dtype=torch.float64, device=DEVICE).expand(d.shape) for d in p.d_sequences]
    assert_same_as_torch(p)


def test_no_sequences_at_all():
    p = given("lstm", 3, 0, 4, 5)
    ours = p.results(backend)
    assert ours["sequence h"].shape == (3, 0, 5)
    assert not ours["gradient of W"].any() and ours["gradient of W"].shape == p.W.shape


@pytest.mark.parametrize("name", ["lstm", "additive-memory"])
def test_padding_may_hold_anything(name):
    p = given(name, 4, 5, 3, 18, lengths=True)
    wanted = p.results(torch_backend)
    beyond = torch.arange(4, device=DEVICE)[:, None] >= p.lengths
    p.x = p.x.masked_fill(beyond[..., None], float("nan"))
    ours = p.results(backend)
    ours["gradient of x"] = ours["gradient of x"].masked_fill(beyond[..., None], 0)
    assert_close(ours, wanted)


def test_nan_and_infinity_pass_through():
    p = given("lstm", 4, 3, 5, 18, dtype=torch.float32)
    p.x[1, 0, 2], p.x[1, 1, 3] = float("nan"), float("inf")
    ours, theirs = p.results(backend), p.results(torch_backend)
    for name in ("sequence h", "sequence c"):
        assert torch.equal(ours[name].isnan(), theirs[name].isnan())
        assert ours[name][1:, 0].isnan().all() and ours[name][:, 2].isfinite().all()


def test_units_beyond_the_last_do_not_leak(monkeypatch):
    class Logarithm(cells.Cell):
        gates = ("a",)

        def step(self, z, s, w):  # of a unit that is not there, whose state is 0: -inf, and a derivative of 0 / 0
            h = torch.tanh(z.a) + 2 + 0.1 * torch.log(s.h * s.h)
            return h - 0.1 * h.mean(-1, keepdim=True)

    monkeypatch.setitem(ALL, "logarithm", Logarithm)
    for lengths in (False, True):
        p = given("logarithm", 4, 3, 3, 5, lengths=lengths)
        wanted = p.results(torch_backend)
        assert all(v.isfinite().all() for v in wanted.values())
        assert_close(p.results(backend), wanted)


def test_the_same_call_gives_the_same_bits():
    p = given("lstm-peephole", 3, 5, 12, 40, lengths=True, dtype=torch.float32)
    first, second = p.results(backend), p.results(backend)
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_kernels_are_made_once_for_each_text():
    p = given("gru", 3, 2, 3, 8)
    p.results(backend)
    before = kernel._function.cache_info().misses
    p.results(backend)
    given("gru", 5, 4, 2, 12).results(backend)  # other sizes, the same text
    assert kernel._function.cache_info().misses == before


def test_what_the_kernels_cannot_do_is_said(monkeypatch):
    p = in_low(given("lstm", 3, 4, 3, 8), torch.float16)
    with pytest.raises(BackendError, match=r"multiply in the states' dtype.*float16 beside torch.float64.*\"torch\""):
        p.results(backend)
    p = given("lstm", 3, 4, 3, 8)
    p.W = p.W.float()
    with pytest.raises(BackendError, match=r"in one dtype; came torch\.float32, torch\.float64"):
        p.results(backend)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "tensors are on cpu" in support.why_not("cpu", torch.float32, torch.float32)
    monkeypatch.setattr(kernel, "installed", lambda: False)
    assert "not installed" in support.why_not("cuda", torch.float32, torch.float32)


def test_they_run_where_they_are_asked_for(monkeypatch):
    assert choose_backend("auto", "cpu", torch.float32, torch.float32)[0] == "cpu"
    assert choose_backend("auto", "cuda", torch.complex64, torch.complex64)[0] == "reference"
    monkeypatch.setattr(support, "_hardware", lambda: None)
    backend, why = choose_backend("auto", "cuda", torch.float32, torch.float32)
    assert backend == "torch" and "timed on no GPU yet" in why
    assert choose_backend("triton", "cuda", torch.float32, torch.float32) == ("triton", "it was asked for")
    monkeypatch.setenv("THROUGHTIME_BACKEND", "triton")
    assert choose_backend("auto", "cuda", torch.float32, torch.float32)[0] == "triton"


def test_spent_memory_names_the_way_out(monkeypatch):
    def nothing_left(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(kernel, "launch", nothing_left)
    with pytest.raises(BackendError, match=r'no memory left for 3 steps of 4 sequences .*2 GiB.*backend="cpu"'):
        given("lstm", 3, 4, 3, 8).results(backend)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_net_inputs_are_not_rounded_to_16_bits(low, monkeypatch):
    found, run = [], kernel.launch

    def note(text, grid, arguments, *rest, **how):
        found.append(arguments.get("x"))
        run(text, grid, arguments, *rest, **how)

    monkeypatch.setattr(kernel, "launch", note)
    p = in_low(given("lstm", 2, 3, 7, 8, dtype=torch.float32), low)
    sequences, _, _ = backend.forward(
        p.tape, p.x, p.W, p.U, p.b, p.units, p.matrices, p.states, p.lengths, False, False
    )
    assert found[0].dtype == sequences[0].dtype == torch.float32
    torch.testing.assert_close(found[0], p.x.float() @ p.W.float().mT)


def test_the_results_in_bfloat16_are_as_near_as_torch_s_own():
    # The truth is float64 with the same rounded weights; torch's LSTM adds its net inputs up in float32 too.
    ours = nn.LSTM(24, 24, backend="triton", dtype=torch.bfloat16, device=DEVICE)
    theirs, truth = (torch.nn.LSTM(24, 24, dtype=d) for d in (torch.bfloat16, torch.float64))
    for layer in (theirs, truth):
        layer.load_state_dict({n: v.cpu() for n, v in ours.state_dict().items()})
    x = torch.randn(8, 16, 24, dtype=torch.bfloat16)
    wanted = truth(x.double())[0].detach()
    errors = [float((y.detach().cpu().double() - wanted).abs().max()) for y in (ours(x.to(DEVICE))[0], theirs(x)[0])]
    assert errors[0] < 1.2 * errors[1]
