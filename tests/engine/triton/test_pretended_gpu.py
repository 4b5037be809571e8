"""The way from a pass to its launches on a GPU that is only pretended: torch follows sizes, dtypes and devices without
numbers, and raises where tensors of two devices meet or a number is read; on the CPU nobody would see either."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from throughtime.engine import triton as backend
from throughtime.engine.triton import call, kernel, schedule, support
from throughtime.engine.triton.map import prepare

from ..cpu.problems import Problem, problem
from ..problems import ALL
from .pretended import GPU, pretended
from .problems import WHY, in_low

pytest.importorskip("triton", reason=WHY)
LENGTHS = {"lengths": True, "reverse": True}


class Noted(NamedTuple):
    """A launch that was asked for."""

    name: str
    grid: tuple[int, int]
    arguments: dict[str, Any]
    how: kernel.How


@pytest.fixture
def launched(monkeypatch):
    """Kernels are noted and not run; what they are given must be there, and stand on the GPU."""
    found: list[Noted] = []

    def note(text, grid, arguments, constants, how):
        missing = [p for p in text.params if p not in arguments]
        elsewhere = [p for p in text.params if isinstance(v := arguments[p], Tensor) and v.device != GPU]
        assert not missing and not elsewhere, f"{text.name}: not given {missing}, not on the GPU {elsewhere}"
        found.append(Noted(text.name, grid, dict(arguments), how))

    monkeypatch.setattr(kernel, "launch", note)
    monkeypatch.setattr(kernel, "spilt", lambda *a: 0)
    monkeypatch.setattr(support, "_hardware", lambda: None)
    monkeypatch.setattr(schedule, "programs_at_once", lambda device: 132)
    monkeypatch.setattr(schedule, "on_chip", lambda device: schedule.ON_CHIP)
    call._SETTLED.clear()
    with pretended():
        yield found
    call._SETTLED.clear()


def there(p: Problem) -> Problem:
    """The problem with all its tensors on the GPU."""
    many = ("units", "matrices", "states", "d_sequences", "d_finals")
    moved: dict[str, Any] = {name: [v.to(GPU) for v in getattr(p, name)] for name in many}
    moved |= {name: getattr(p, name).to(GPU) for name in ("x", "W", "U", "b")}
    return replace(p, **moved, lengths=None if p.lengths is None else p.lengths.to(GPU))


def test_the_pretence_sees_two_devices(launched):
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device=GPU) + torch.ones(3)


@pytest.mark.parametrize("H", [20, 300], ids=["one program", "several"])
@pytest.mark.parametrize("name", ALL)
def test_a_pass(name, H, launched):
    for options in ({}, LENGTHS, {"truncated": True}):
        p = there(problem(name, 3, 4, 5, H, **options))
        results = p.results(backend)
        assert all(v.device == GPU for v in results.values())
        for of in ("x", "W", "U", "b"):
            assert results[f"gradient of {of}"].shape == getattr(p, of).shape
    assert [n.name.removeprefix("scan_") for n in launched] == ["forward", "backward"] * 3


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("H", [20, 768])
def test_a_pass_in_16_bits(low, H, launched):
    p = there(in_low(problem("lstm", 3, 4, 5, H, lengths=True, dtype=torch.float32), low))
    results = p.results(backend)
    # Net inputs come from a product that only a GPU has.
    assert launched[0].arguments["x"].dtype == torch.float32 and results["gradient of x"].dtype == low


def test_programs_that_meet_are_launched_all_at_once(launched):
    there(problem("lstm", 3, 200, 5, 768, dtype=torch.float32)).results(backend)
    assert all(n.how.launch_cooperative_grid and n.grid[0] * n.grid[1] <= 132 for n in launched)
    assert {n.how.maxnreg for n in launched} == {schedule.MOST_REGISTERS}


@pytest.mark.parametrize("mode", ["alone", "stepwise"])
@pytest.mark.parametrize("name", ALL)
def test_a_map(name, mode, launched, monkeypatch):
    if mode == "stepwise":
        monkeypatch.setattr(schedule, "on_chip", lambda device: 0)
    p = there(problem(name, 4, 3, 5, 20, **LENGTHS))
    z = torch.zeros(4, 3, p.b.shape[0], dtype=torch.float64, device=GPU)
    before = [torch.zeros_like(d) for d in p.d_sequences]
    for dtype in (torch.float64, torch.float32):
        ready = prepare(p.tape, z, p.W, p.U, p.units, p.matrices, before, p.lengths, True, False, dtype)
        assert ready.kept.device == GPU and ready.kept.dtype == dtype
        found = ready.send_back([1, 3], p.d_sequences, want_dx=True, want_values=True)
        assert found.sizes.device == found.dx.device == GPU and found.dx.shape == (2, 4, 3, 5)
        assert ready.send_back([2], p.d_sequences, each=True).sizes.shape[:2] == (1 + len(p.states), 3)
    assert launched


# --- what a thread has no registers for ---


def rows_of(noted: Noted, B: int) -> int:
    return B // noted.grid[0]


@pytest.mark.parametrize("spilt, rows", [({32: 4000, 16: 8}, 16), ({32: 100, 16: 0}, 32), ({32: 200, 16: 300}, 32)])
def test_a_schedule_that_spills_gives_way(spilt, rows, launched, monkeypatch):
    asked = []

    def report(text, arguments, constants, how):
        assert all(p in arguments for p in text.params) and how.maxnreg
        asked.append(constants["BM"])
        return spilt[constants["BM"]]

    monkeypatch.setattr(kernel, "spilt", report)
    p = there(problem("gru", 2, 128, 5, 512, dtype=torch.float32))
    p.results(backend)
    first = [32] if spilt[32] <= schedule.SPILT else [32, 16]
    assert asked == first * 2  # forward and backward
    assert {n.arguments["arrivals"].shape[0] for n in launched} == {128 // rows * 32}
    assert len(launched) == 2 * (2 if rows == 16 else 1)  # 16 rows a program: two launches for all sequences
    p.results(backend)
    assert asked == first * 2, "it is asked once"


def test_with_least_rows():
    s = schedule._choose(128, 512, 512, 3, 4, True, False, 132, schedule.ON_CHIP, True)
    fewer = schedule.with_least_rows(s, 128, torch.device("cpu"))  # which is taken for 16 programs
    assert (s.rows, fewer.rows, fewer.batch, fewer.parts) == (32, 16, 1, 1) and fewer.tiles == s.tiles
    assert schedule.with_least_rows(fewer, 128, torch.device("cpu")) is None
    assert schedule.with_least_rows(replace(s, held=False), 128, torch.device("cpu")) is None
