"""Products of bfloat16 numbers on every instruction set, at every size below two tiles."""

from __future__ import annotations

import pytest
import torch

from throughtime.engine import torch_backend

from .problems import assert_close, problem


def assert_near_float32(p) -> None:
    """The same rounded weights in float32 are the truth; a product of bf16 numbers rounds h, and dz, to 8 bits."""
    p.x, p.W, p.U, p.matrices = p.x.bfloat16(), p.W.bfloat16(), p.U.bfloat16(), [m.bfloat16() for m in p.matrices]
    ours = p.results()
    p.x, p.W, p.U, p.matrices = p.x.float(), p.W.float(), p.U.float(), [m.float() for m in p.matrices]
    assert_close({n: v.float() for n, v in ours.items()}, p.results(torch_backend), tolerance=2e-2)


def test_every_size_below_two_tiles(isa):
    # Rows of a tile, words of a sum, columns of a panel: each passes every count up to twice the largest there is.
    for n in range(1, 67):
        torch.set_num_threads(1 + n % 2)
        assert_near_float32(problem("gru", 2, 1 + n * 3 % 66, 1 + n * 7 % 67, n, dtype=torch.float32))


@pytest.mark.parametrize("name", ["lstm", "rnn", "lstm-projected"])
def test_lengths_directions_and_few_rows(isa, name):
    for k, sizes in enumerate([(5, 3, 40, 70), (4, 37, 65, 31), (70, 1, 20, 33), (9, 5, 3, 17)]):
        assert_near_float32(problem(name, *sizes, lengths=True, reverse=k % 2 == 1, dtype=torch.float32))


def test_the_same_call_gives_the_same_bits(isa):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        p = problem("lstm", 7, 21, 12, 40, lengths=True, dtype=torch.float32)
        p.x, p.W, p.U = p.x.bfloat16(), p.W.bfloat16(), p.U.bfloat16()
        first, second = p.results(), p.results()
        assert all(torch.equal(first[n], second[n]) for n in first)


def test_what_is_not_a_number_stays_in_its_row(isa):
    # A tile takes rows and words beyond the sum's: they must be zeros, not what stands there.
    p = problem("lstm", 3, 19, 5, 18, dtype=torch.float32)
    p.x, p.W, p.U = p.x.bfloat16(), p.W.bfloat16(), p.U.bfloat16()
    p.x[1, 7, 2] = float("nan")
    h = p.results()["sequence h"]
    assert h[1:, 7].isnan().all()
    others = torch.arange(19) != 7
    assert h[:, others].isfinite().all() and h[0].isfinite().all()
