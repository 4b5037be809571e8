"""The kernels under test: every instruction set the machine has, small problems on all threads, memory full of NaN."""

import pytest
import torch

from throughtime.engine.cpu import library, plan

WIDEST = library.current()


@pytest.fixture(autouse=True)
def everything_on_threads(monkeypatch):
    monkeypatch.setattr(plan, "SMALL", 0)


@pytest.fixture(autouse=True)
def memory_full_of_nan():
    # torch then fills what it allocates: an element that nobody writes is seen.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=library.ISAS)
def isa(request):
    """The test runs once for each instruction set; those the machine lacks cannot be run on it."""
    if not library.runs(request.param):
        pytest.skip(f"this machine does not run {request.param}")
    library.choose(request.param)
    yield request.param
    library.choose(WIDEST)
