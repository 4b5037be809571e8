"""Many gradients through one pass by the CPU kernels, against the torch backend: sizes, blocks, threads, dtypes."""

import pytest
import torch

from throughtime.engine import torch_backend
from throughtime.engine.cpu import map as kernels
from throughtime.engine.cpu.map import prepare
from throughtime.errors import BackendError

from ..problems import ALL
from .problems import problem


def made_ready(p, dtype=torch.float64):
    """(the pass, ready for the kernels; the same for the torch backend)"""
    inputs = (p.x, p.W, p.U, p.b, p.units, p.matrices, p.states, p.lengths, p.reverse)
    sequences, _, z = torch_backend.forward(p.tape, *inputs, True)
    before = [torch_backend.previous(s, f, p.lengths, p.reverse) for s, f in zip(sequences, p.states, strict=True)]
    rest = (p.lengths, p.reverse, p.truncated)
    ready = prepare(p.tape, z, p.W, p.U, p.units, p.matrices, before, *rest, dtype)
    return ready, torch_backend.linearise(p.tape, z, p.U, p.units, p.matrices, p.states, sequences, *rest, totals=True)


def by_torch(p, lin, rows, direct, above):
    """[dz, ds of each state], each [rows, T, B, .], all rows side by side."""
    T, B = p.x.shape[:2]
    keep = torch.ones(T, B, 1, dtype=bool) if p.lengths is None else (torch.arange(T)[:, None] < p.lengths)[..., None]
    totals = [o.values[0] for o in lin.tape.outputs if o.kind == "total"]
    found = [[None] * T for _ in range(1 + len(totals))]

    def inject(t, ds):
        out = []
        for s, d in enumerate(ds):
            g = torch.zeros_like(d)
            if direct[s] is not None and t in rows:
                g[rows.index(t)] += direct[s][t]
            if above is not None and above[s] is not None:
                g += above[s][:, t]
            out.append(d + torch.where(keep[t], g, 0.0))
        return out

    start = [s.new_zeros(len(rows), *s.shape) for s in p.states]
    for k, dz, _, values in torch_backend.backward_steps(lin, start, inject):
        found[0][k] = dz
        for s, v in enumerate(totals):
            value = values[v].expand(len(rows), B, values[v].shape[-1])
            found[1 + s][k] = torch.where(keep[k], value, 0.0)
    return [torch.stack(v, 1) for v in found]


def check(p, *, above=False, rows=None, dtype=torch.float64, rtol=1e-10, want_values=True):
    T = p.x.shape[0]
    rows = list(range(T)) if rows is None else rows
    direct = [v.double() for v in p.d_sequences]
    given = [torch.randn(len(rows), T, *s.shape, dtype=torch.float64) for s in p.states] if above else None
    ready, lin = made_ready(p, dtype)
    ours = ready.send_back(rows, direct, given, want_dx=want_values, want_values=want_values)
    theirs = by_torch(p, lin, rows, direct, given)
    sizes = torch.stack([v.flatten(2).norm(dim=2) for v in theirs])
    scale = 1e-3 * rtol * max(1.0, float(sizes.max()))  # what cancels has no digits of its own

    def close(a, b, what):
        torch.testing.assert_close(a, b, rtol=rtol, atol=scale, msg=lambda m: f"{what}: {m}")

    close(ours.sizes, sizes, "sizes")
    if want_values:
        for n, (a, b) in enumerate(zip(ours.values, theirs, strict=True)):
            close(a, b, f"value {n}")
        close(ours.dx, theirs[0][..., : p.W.shape[0]] @ p.W, "dx")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ALL)
def test_every_cell(name, threads):
    torch.set_num_threads(threads)
    check(problem(name, 5, 3, 7, 17))
    check(problem(name, 6, 5, 3, 18, lengths=True, reverse=threads == 1), above=True)


def test_sizes_around_a_vector_and_a_panel(isa):
    for n in (1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 48, 65):
        name = ("lstm", "gru", "rnn")[n % 3]
        check(problem(name, 4, 2, 1 + n * 7 % 67, n), want_values=n % 2 == 0)


@pytest.mark.parametrize("name", ["lstm", "gru", "lstm-projected", "users-own"])
def test_float32(isa, name):
    for sizes in [(7, 5, 9, 33), (12, 1, 16, 64)]:
        check(problem(name, *sizes, lengths=True), dtype=torch.float32, rtol=3e-5)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_blocks_of_rows_and_parts_of_the_batch(monkeypatch, name):
    for block in (1, 3, 8):
        monkeypatch.setattr(kernels, "BLOCK", block)
        for threads, T, B in ((1, 9, 2), (2, 19, 1), (2, 7, 6)):
            torch.set_num_threads(threads)
            check(problem(name, T, B, 3, 12, lengths=B > 1, reverse=block == 3), want_values=block == 8)


def test_many_rows_fold_the_weights_and_few_do_not():
    # From about 5 rows on the products of the gates of a GRU are one.
    for T in (1, 2, 4, 8, 40):
        check(problem("gru", T, 1, 2, 9))


def test_rows_in_any_order_are_given_back_in_it():
    check(problem("lstm", 8, 3, 2, 9, lengths=True), rows=[5, 0, 7, 2])
    check(problem("lstm", 8, 3, 2, 9, lengths=True, reverse=True), rows=[5, 0, 7, 2], above=True)


def test_no_rows_and_no_sequences():
    p = problem("lstm", 4, 2, 2, 3)
    ready, _ = made_ready(p)
    assert ready.send_back([], p.d_sequences).sizes.shape == (3, 0, 4)
    ready, _ = made_ready(problem("lstm", 4, 0, 2, 3))
    assert (ready.send_back([1], [torch.zeros(4, 0, 3), None]).sizes == 0).all()


def test_a_nan_stays_in_its_row():
    p = problem("gru", 6, 2, 2, 5)
    ready, _ = made_ready(p)
    g = torch.ones(6, 2, 5, dtype=torch.float64)
    g[3, 1, 2] = float("nan")
    sizes = ready.send_back(list(range(6)), [g]).sizes
    broken = sizes.isnan()
    assert broken[:, 3, :4].all()
    assert not broken[:, [0, 1, 2, 4, 5]].any()


def test_what_the_kernels_cannot_take_is_told():
    p = problem("lstm", 4, 2, 2, 3)
    before = [torch.zeros(4, *s.shape, dtype=torch.float64) for s in p.states]
    z = torch.zeros(4, 2, 12, dtype=torch.float64)
    for W, dtype, message in ((p.W.half(), torch.float64, "float16"), (p.W, torch.float16, "float64 or float32")):
        with pytest.raises(BackendError, match=message):
            prepare(p.tape, z, W, p.U, p.units, p.matrices, before, None, False, False, dtype)
