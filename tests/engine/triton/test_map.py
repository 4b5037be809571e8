"""The (t,k) map by Triton kernels against the torch backend: every cell, both schedules, sizes, rules, and range."""

import pytest
import torch

from throughtime.engine import torch_backend
from throughtime.engine.triton import map as kernels
from throughtime.engine.triton import schedule
from throughtime.engine.triton.map import prepare
from throughtime.errors import BackendError

from ..cpu.test_map import by_torch
from .problems import ALL, DEVICE, given

MODES = ["alone", "stepwise"]


def made_ready(p, dtype=torch.float64):
    """(the pass, ready for the kernels; the same for the torch backend)"""
    inputs = (p.x, p.W, p.U, p.b, p.units, p.matrices, p.states, p.lengths, p.reverse)
    sequences, _, z = torch_backend.forward(p.tape, *inputs, True)
    before = [torch_backend.previous(s, f, p.lengths, p.reverse) for s, f in zip(sequences, p.states, strict=True)]
    rest = (p.lengths, p.reverse, p.truncated)
    z_in, before_in, weights = z.to(dtype), [v.to(dtype) for v in before], [v.to(dtype) for v in (p.W, p.U)]
    units, matrices = ([v.to(dtype) for v in group] for group in (p.units, p.matrices))
    ready = prepare(p.tape, z_in, *weights, units, matrices, before_in, *rest, dtype)
    return ready, torch_backend.linearise(p.tape, z, p.U, p.units, p.matrices, p.states, sequences, *rest, totals=True)


def by(monkeypatch, mode):
    """From now on maps run by this schedule."""
    rule = schedule.choose_map

    def chosen(R, H, P, weights, size, device):
        monkeypatch.setattr(schedule, "ON_CHIP", 1 << 30 if mode == "alone" else -1)
        made = rule(R, H, P, weights, size, device)
        assert made.mode == mode
        return made

    monkeypatch.setattr(schedule, "on_chip", lambda device: schedule.ON_CHIP)
    monkeypatch.setattr(schedule, "choose_map", chosen)


def check(p, *, above=False, rows=None, dtype=torch.float64, rtol=1e-10, want_values=True):
    T = p.x.shape[0]
    rows = list(range(T)) if rows is None else rows
    direct = [v.double() for v in p.d_sequences]
    enters = [torch.randn(len(rows), T, *s.shape, dtype=torch.float64, device=DEVICE) for s in p.states]
    enters = enters if above else None
    ready, lin = made_ready(p, dtype)
    ours = ready.send_back(rows, direct, enters, want_dx=want_values, want_values=want_values)
    theirs = by_torch(p, lin, rows, direct, enters)
    sizes = torch.stack([v.flatten(2).norm(dim=2) for v in theirs])
    scale = 1e-3 * rtol * max(1.0, float(sizes.max()))  # what cancels has no digits of its own

    def close(a, b, what):
        torch.testing.assert_close(a, b, rtol=rtol, atol=scale, msg=lambda m: f"{what}: {m}")

    close(ours.sizes, sizes, "sizes")
    if want_values:
        for n, (a, b) in enumerate(zip(ours.values, theirs, strict=True)):
            close(a, b, f"value {n}")
        close(ours.dx, theirs[0][..., : p.W.shape[0]] @ p.W, "dx")
    return ours


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALL)
def test_every_cell(name, mode, monkeypatch):
    by(monkeypatch, mode)
    check(given(name, 3, 3, 7, 17), above=mode == "alone")
    check(given(name, 4, 5, 3, 5, lengths=True, reverse=True), above=mode == "stepwise")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["lstm", "lstm-projected", "users-own"])
def test_float32(name, mode, monkeypatch):
    by(monkeypatch, mode)
    ours = check(given(name, 5, 3, 9, 33, lengths=True), dtype=torch.float32, rtol=3e-5)
    assert ours.sizes.dtype == torch.float64


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["lstm-1997", "additive-memory-feedback"])
def test_the_truncated_rule(name, mode, monkeypatch):
    by(monkeypatch, mode)
    check(given(name, 4, 2, 3, 5, truncated=True, lengths=True))


@pytest.mark.parametrize("mode", MODES)
def test_rows_in_any_order_many_tiles_and_parts(mode, monkeypatch):
    by(monkeypatch, mode)
    p = given("gru", 7, 5, 2, 9, lengths=True)
    whole = check(p)  # 35 rows: three tiles
    few = made_ready(p)[0].send_back([5, 0, 6, 2], p.d_sequences)
    torch.testing.assert_close(few.sizes, whole.sizes[:, [5, 0, 6, 2]], rtol=1e-12, atol=1e-15)
    monkeypatch.setattr(kernels, "BUDGET", 1)  # a row at a time
    check(p, rows=[5, 0, 6, 2], above=True)


@pytest.mark.parametrize("mode", MODES)
def test_each_sequence_by_itself(mode, monkeypatch):
    by(monkeypatch, mode)
    p = given("lstm", 4, 3, 2, 5, lengths=True, reverse=True)
    ready, _ = made_ready(p)
    whole, each = (ready.send_back([3, 1], p.d_sequences, want_values=True, each=each) for each in (False, True))
    wanted = torch.stack([v.norm(dim=3).permute(2, 0, 1) for v in whole.values])
    torch.testing.assert_close(each.sizes, wanted, rtol=1e-12, atol=1e-15)


def test_no_rows_and_no_sequences():
    p = given("lstm", 4, 2, 2, 3)
    ready, _ = made_ready(p)
    assert ready.send_back([], p.d_sequences).sizes.shape == (3, 0, 4)
    assert (ready.send_back([1, 2], None).sizes == 0).all()
    ready, _ = made_ready(given("lstm", 4, 0, 2, 3))
    empty = ready.send_back([1], [torch.zeros(4, 0, 3, device=DEVICE), None])
    assert empty.sizes.shape == (3, 1, 4) and (empty.sizes == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_nan_stays_in_its_row(mode, monkeypatch):
    by(monkeypatch, mode)
    p = given("gru", 6, 2, 2, 5)
    g = torch.ones(6, 2, 5, dtype=torch.float64, device=DEVICE)
    g[3, 1, 2] = float("nan")
    sizes = made_ready(p)[0].send_back(list(range(6)), [g]).sizes
    assert sizes[:, 3, :4].isnan().all()
    assert not sizes[:, [0, 1, 2, 4, 5]].isnan().any()


@pytest.mark.parametrize("mode", MODES)
def test_padding_may_hold_anything(mode, monkeypatch):
    by(monkeypatch, mode)
    p = given("lstm", 4, 3, 2, 5, lengths=True, reverse=True)
    wanted = made_ready(p)[0].send_back(range(4), p.d_sequences, want_values=True)
    beyond = (torch.arange(4, device=DEVICE)[:, None] >= p.lengths)[..., None]
    assert beyond.any()
    ready, _ = made_ready(p)
    ready.kept.masked_fill_(beyond, float("nan"))
    g = [d.masked_fill(beyond, float("nan")) for d in p.d_sequences]
    found = ready.send_back(range(4), g, want_values=True)
    assert torch.equal(found.sizes, wanted.sizes)
    assert all(torch.equal(a, b) for a, b in zip(found.values, wanted.values, strict=True))


def test_what_the_kernels_cannot_take_is_told():
    p = given("lstm", 4, 2, 2, 3)
    before = [torch.zeros(4, *s.shape, dtype=torch.float64, device=DEVICE) for s in p.states]
    z = torch.zeros(4, 2, 12, dtype=torch.float64, device=DEVICE)
    for W, dtype, message in ((p.W.half(), torch.float64, "float16"), (p.W, torch.float16, "float64 or float32")):
        with pytest.raises(BackendError, match=message):
            prepare(p.tape, z, W, p.U, p.units, p.matrices, before, None, False, False, dtype)


def test_the_rule_holds_the_weights_where_they_fit():
    assert schedule.choose_map(1000, 64, 64, 4, 4, DEVICE).mode == "alone"
    large = schedule.choose_map(1000, 512, 512, 4, 8, DEVICE)
    assert (large.mode, large.H) == ("stepwise", 512) and large.rows * large.H <= schedule.TILE
