"""Which passes can be scanned, and that a scan is what the walk would have been."""

import pytest
import torch

from throughtime import cells
from throughtime.engine import torch_backend
from throughtime.engine.rules import with_rule
from throughtime.engine.trace import trace
from throughtime.engine.triton import call, schedule
from throughtime.engine.triton.scannable import TERMS, Carried, scannable

from .problems import ALL, assert_close, backend, given


def passes(step, states=("h",), units=("w",)):
    """What can be scanned of a cell's forward and backward pass, and the cell."""
    own = type("Own", (cells.Cell,), {
        "gates": ("a", "b"), "input_only": ("a", "b"), "states": states, "units": units,
        "step": lambda self, z, s, w: step(z, s, w),
    })  # fmt: skip
    parts = call.parts(trace(own()))
    return scannable(parts.forward, "s"), scannable(parts.backward, "d"), own


SCANNED = {
    "sum": (lambda z, s, w: s.h + torch.tanh(z.a), True),
    "difference": (lambda z, s, w: z.a - s.h, False),
    "leak": (lambda z, s, w: w.w * s.h + z.a, False),
    "gate": (lambda z, s, w: (1 - torch.sigmoid(z.b)) * s.h + torch.sigmoid(z.b) * z.a, False),
    "twice": (lambda z, s, w: (s.h + z.b) * z.a - s.h / (2 + torch.cos(z.b)), False),
    "chosen": (lambda z, s, w: torch.where(z.a > 0, s.h * z.b, z.b), False),
}


@pytest.mark.parametrize("name", SCANNED)
def test_what_is_carried_on_linearly_is_scanned(name, monkeypatch):
    step, added = SCANNED[name]
    forward, back, own = passes(step)
    assert forward == (Carried(0, added),) and back is not None
    modes, rule = [], schedule.choose
    monkeypatch.setattr(schedule, "choose", lambda *a: modes.append(rule(*a)) or modes[-1])
    monkeypatch.setitem(ALL, "own", own)
    p = given("own", 10, 2, 3, 5, lengths=True)
    assert_close(p.results(backend), p.results(torch_backend))
    assert [s.mode for s in modes] == ["scan", "scan"]


@pytest.mark.parametrize(
    "step",
    [
        lambda z, s, w: torch.tanh(s.h) + z.a,
        lambda z, s, w: s.h * torch.sigmoid(w.w * s.h + z.a),
        lambda z, s, w: s.h * s.h + z.a,
        lambda z, s, w: torch.where(s.h > 0, s.h, z.a),
        lambda z, s, w: 1 / (3 + s.h) + z.a,
        lambda z, s, w: s.h - s.h.mean(-1, keepdim=True) + z.a,
    ],
)
def test_what_is_not_linear_walks(step):
    assert passes(step)[0] is None


def test_states_that_feed_each_other_walk():
    assert passes(lambda z, s, w: (s.h + s.c, s.c + z.a), ("h", "c"))[0] is None
    forward = passes(lambda z, s, w: (torch.tanh(s.c + z.a), s.c + z.a), ("h", "c"))[0]
    assert forward == (Carried(1, True),)


def test_the_training_rule_is_what_makes_an_lstm_linear(monkeypatch):
    rule = schedule.choose
    for name, added in (("lstm-1997", True), ("lstm", False), ("lstm-peephole", False)):
        tape = with_rule(trace(ALL[name]()), None, True)
        assert scannable(call.parts(tape).backward, "d") == (Carried(1, added),)
        scans = []
        monkeypatch.setattr(schedule, "choose", lambda *a, scans=scans: scans.append(a[6]) or rule(*a))
        given(name, 2, 1, 1, 2).results(backend)
        given(name, 2, 1, 1, 2, truncated=True).results(backend)
        assert scans == [False, False, False, True]


def test_a_nan_does_not_reach_what_was_before_it(monkeypatch):
    monkeypatch.setitem(ALL, "own", passes(SCANNED["gate"][0])[2])
    p = given("own", 20, 2, 3, 5)
    p.x[11, 0] = float("nan")
    ours, theirs = p.results(backend), p.results(torch_backend)
    h = ours["sequence h"]
    assert h[:11].isfinite().all() and h[11:, 0].isnan().all() and h[:, 1].isfinite().all()
    assert torch.equal(ours["gradient of x"].isnan(), theirs["gradient of x"].isnan())


def test_every_term_names_operands_that_there_are():
    from throughtime.engine.optimise import arity

    assert all(0 <= k < arity(name)[0] for name, terms in TERMS.items() for term in terms for k in term)
