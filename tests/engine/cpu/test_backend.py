"""The CPU kernels against the torch backend: every cell, rule, length and direction, and every size around a tile."""

import pytest
import torch

from throughtime import cells
from throughtime.engine import cpu, torch_backend
from throughtime.engine.cpu import library
from throughtime.engine.cpu.plan import kind_of, plan
from throughtime.engine.trace import trace
from throughtime.errors import BackendError

from ..problems import ALL
from .problems import assert_close, assert_same_as_torch, problem

# T, B, D, H: one of everything, one more or less than a vector, a panel, a chunk; several row tiles; a batch of one.
AWKWARD = [(1, 1, 1, 1), (5, 9, 7, 17), (4, 17, 33, 65), (9, 1, 5, 40), (70, 5, 3, 31)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ALL)
def test_every_cell(name, threads):
    torch.set_num_threads(threads)
    for k, sizes in enumerate(AWKWARD):
        for lengths in (False, True):
            assert_same_as_torch(problem(name, *sizes, lengths=lengths, reverse=k % 2 == lengths, only_h=k == 1))


@pytest.mark.parametrize("name", ALL)
def test_every_rule(name):
    for lengths in (False, True):
        assert_same_as_torch(problem(name, 6, 5, 3, 18, lengths=lengths, clip=0.02))
        assert_same_as_torch(problem(name, 6, 5, 3, 18, lengths=lengths, reverse=True, truncated=True))


@pytest.mark.parametrize("name", ALL)
def test_inference_gives_the_same_and_keeps_nothing(name):
    p = problem(name, 6, 5, 3, 18, lengths=True)
    tensors = (p.x, p.W, p.U, p.b, p.units, p.matrices, p.states, p.lengths, False)
    sequences, finals, saved = cpu.forward(p.tape, *tensors, False)
    assert saved.numel() == 0
    wanted = torch_backend.forward(p.tape, *tensors, False)
    torch.testing.assert_close(sequences + finals, wanted[0] + wanted[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_what_is_kept_is_written_to_the_end(name):
    p = problem(name, 6, 5, 3, 18, lengths=True)  # memory is full of NaN until it is written
    tensors = (p.x, p.W, p.U, p.b, p.units, p.matrices, p.states, p.lengths, False)
    assert cpu.forward(p.tape, *tensors, True)[2].isfinite().all()


def test_every_size_below_two_tiles(isa):
    # Columns of a panel, rows of a tile, length of a sum: each passes every count up to twice the largest there is.
    for n in range(1, 67):
        torch.set_num_threads(1 + n % 2)
        assert_same_as_torch(problem("gru", 2, 1 + n % 26, 1 + n * 7 % 67, n))


def test_every_row_count_of_a_chunk(isa):
    for T in range(1, 8):
        for B in (1, 3, 64, 130):
            assert_same_as_torch(problem("rnn", T, B, 2, 3, lengths=T > 1))


@pytest.mark.parametrize("name", ["lstm", "users-own"])
def test_float32(isa, name):
    for sizes in [(7, 5, 9, 33), (5, 13, 17, 130), (40, 1, 16, 64)]:
        single = problem(name, *sizes, lengths=True, dtype=torch.float32)
        # One part in 2^24 an operation, over a few hundred operations in a row.
        assert_same_as_torch(single, tolerance=1e-5)


def test_unaligned_data():
    p = problem("lstm-peephole", 4, 5, 6, 18)
    wanted = p.results(torch_backend)

    def shifted(v):
        room = torch.empty(v.numel() + 1, dtype=v.dtype)
        out = room[1:].view(v.shape)
        return out.copy_(v)

    p.x, p.W, p.U, p.b = map(shifted, (p.x, p.W, p.U, p.b))
    p.units, p.states, p.d_sequences = ([shifted(v) for v in vs] for vs in (p.units, p.states, p.d_sequences))
    assert_close(p.results(), wanted)


def test_strided_arguments():
    p = problem("gru", 4, 5, 6, 18)
    wanted = p.results(torch_backend)
    p.x, p.W, p.U = (v.mT.contiguous().mT for v in (p.x, p.W, p.U))
    p.states = [s.mT.contiguous().mT for s in p.states]
    p.d_sequences = [d.transpose(0, 1).contiguous().transpose(0, 1) for d in p.d_sequences]
    p.d_finals = [d.mT.contiguous().mT for d in p.d_finals]
    assert_close(p.results(), wanted)


def test_a_gradient_that_is_the_same_everywhere():
    p = problem("lstm", 6, 5, 3, 18, lengths=True)
    p.d_sequences = [torch.full((), 0.7, dtype=torch.float64).expand(d.shape) for d in p.d_sequences]
    assert_same_as_torch(p)


def test_no_sequences_at_all():
    p = problem("lstm", 3, 0, 4, 5)
    ours = p.results()
    assert ours["sequence h"].shape == (3, 0, 5)
    assert not ours["gradient of W"].any() and ours["gradient of W"].shape == p.W.shape


def test_padding_may_hold_anything():
    p = problem("lstm", 6, 5, 3, 18, lengths=True)
    wanted = p.results(torch_backend)
    beyond = torch.arange(6)[:, None] >= p.lengths
    p.x = p.x.masked_fill(beyond[..., None], float("nan"))
    ours = p.results()
    ours["gradient of x"] = ours["gradient of x"].masked_fill(beyond[..., None], 0)
    assert_close(ours, wanted)


def test_the_same_call_gives_the_same_bits():
    for threads in (1, 2):
        torch.set_num_threads(threads)
        p = problem("lstm-peephole", 20, 9, 12, 40, lengths=True, dtype=torch.float32)
        first, second = p.results(), p.results()
        assert all(torch.equal(first[n], second[n]) for n in first)


def test_nan_and_infinity_pass_through(isa):
    p = problem("lstm", 4, 3, 5, 18, dtype=torch.float32)
    p.x[1, 0, 2], p.x[1, 1, 3] = float("nan"), float("inf")
    ours, theirs = (p.results(backend) for backend in (cpu, torch_backend))
    for name in ("sequence h", "sequence c"):
        assert torch.equal(ours[name].isnan(), theirs[name].isnan())
        assert ours[name][1:, 0].isnan().all() and ours[name][:, 2].isfinite().all()


@pytest.mark.parametrize("name", ["lstm", "gru", "gru-reset-before", "lstm-projected", "users-own"])
def test_bfloat16_products(isa, name):
    # The same rounded weights in float32 are the truth; a product of bf16 numbers rounds h, and dz, to 8 bits.
    p = problem(name, 5, 9, 7, 33, lengths=True, dtype=torch.float32)
    p.x, p.W, p.U, p.matrices = p.x.bfloat16(), p.W.bfloat16(), p.U.bfloat16(), [m.bfloat16() for m in p.matrices]
    ours = p.results()
    assert ours["gradient of W"].dtype == torch.bfloat16 and ours["sequence h"].dtype == torch.float32
    p.x, p.W, p.U, p.matrices = p.x.float(), p.W.float(), p.U.float(), [m.float() for m in p.matrices]
    assert_close({n: v.float() for n, v in ours.items()}, p.results(torch_backend), tolerance=2e-2)


def test_denormals_are_flushed_inside_and_restored_after():
    tiny = torch.tensor([1e-39], dtype=torch.float32)
    p = problem("rnn", 3, 4, 3, 18, dtype=torch.float32)
    p.results()
    assert (tiny * 0.5).item() != 0


def test_what_the_kernels_cannot_do_is_said():
    p = problem("lstm", 3, 4, 3, 8)
    p.x, p.W = p.x.half(), p.W.half()
    with pytest.raises(BackendError, match=r"bfloat16 beside float32; came .*float16.*backend=\"torch\""):
        p.results()


def test_a_backward_pass_without_what_was_kept_is_refused():
    p = problem("lstm", 3, 4, 3, 8)
    tensors = (p.x, p.W, p.U, p.b, p.units, p.matrices, p.states, p.lengths)
    sequences, _, saved = cpu.forward(p.tape, *tensors, False, False)
    with pytest.raises(BackendError, match=r"needs what the forward pass kept, \[3, 4, \d+\].*came \[0\]"):
        cpu.backward(p.tape, *tensors, sequences, saved, p.d_sequences, p.d_finals, False, False, True)


def test_a_step_that_is_too_long_is_refused():
    class Long(cells.Cell):
        gates = ("a",)

        def step(self, z, s, w):
            v = z.a
            for k in range(200):
                v = torch.cos(v * s.h + k)
            return v

    tape = trace(Long())
    x, W, U, b = torch.ones(2, 2, 3), torch.ones(4, 3), torch.ones(4, 4), torch.ones(4)
    with pytest.raises(BackendError, match="too long"):
        cpu.forward(tape, x, W, U, b, [], [], [torch.zeros(2, 4)], None, False, True)


def test_one_openmp_runtime():
    library.load()
    with open("/proc/self/maps") as maps:
        found = {line.split()[-1] for line in maps if "libgomp" in line}
    assert len(found) == 1, found


def test_torch_chooses_the_number_of_threads():
    p = problem("lstm", 3, 16, 4, 8)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made = plan(p.tape, 48, 16, kind_of(p.tape, 4, p.W, p.b, [], p.states), None)
        assert made.threads == threads
