"""Random problems on the device under test, and schedules chosen by the test in place of the rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from throughtime.engine import torch_backend
from throughtime.engine import triton as backend
from throughtime.engine.triton import schedule

from ..cpu.problems import Problem, assert_close, problem
from ..problems import ALL

WHY = "Triton is not installed; pip install triton"
pytest.importorskip("triton", reason=WHY)

__all__ = ["ALL", "DEVICE", "assert_close", "assert_same_as_torch", "backend", "choose", "given", "in_low", "to_device"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def given(*args, **options) -> Problem:
    """A problem of the CPU kernels' tests, on the device under test."""
    p = problem(*args, **options)
    many = ("units", "matrices", "states", "d_sequences", "d_finals")
    moved = {name: getattr(p, name).to(DEVICE) for name in ("x", "W", "U", "b")}
    moved |= {name: [v.to(DEVICE) for v in getattr(p, name)] for name in many}
    return replace(p, **moved, lengths=None if p.lengths is None else p.lengths.to(DEVICE))


def to_device(p):
    """A problem as a user gives it, on the device under test."""

    def moved(v: torch.Tensor) -> torch.Tensor:
        return v.detach().to(DEVICE).requires_grad_(v.requires_grad)

    p.x, p.weights = moved(p.x), {n: moved(v) for n, v in p.weights.items()}
    p.units, p.matrices, p.states = ([moved(v) for v in values] for values in (p.units, p.matrices, p.states))
    p.lengths = None if p.lengths is None else p.lengths.to(DEVICE)
    return p


def in_low(p: Problem, dtype: torch.dtype) -> Problem:
    """The problem with its products in a short dtype."""
    return replace(
        p, x=p.x.to(dtype), W=p.W.to(dtype), U=p.U.to(dtype), matrices=[m.to(dtype) for m in p.matrices]
    )  # fmt: skip


def assert_same_as_torch(p: Problem, tolerance: float = 1e-11) -> None:
    assert_close(p.results(backend), p.results(torch_backend), tolerance)


def choose(monkeypatch, mode: str, tiles: int = 1, held: bool = True, split: int = 1) -> list[schedule.Schedule]:
    """From now on cells whose units exchange anything run by this schedule; those chosen are in the list."""
    rule, chosen = schedule.choose, []

    def chosen_by_the_test(B, H, P, weights, size, exchanges, scans, device):
        made = rule(B, H, P, weights, size, exchanges, False, device)
        if exchanges:
            made = schedule.shared_out(made, H, P, tiles, mode, held, split)
        chosen.append(made)
        return made

    monkeypatch.setattr(schedule, "choose", chosen_by_the_test)
    return chosen
