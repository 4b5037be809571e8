"""The kernels on a GPU where there is one, else by Triton's interpreter; what torch allocates is full of NaN."""

import os

import pytest
import torch

from throughtime.engine import backends
from throughtime.engine.triton import schedule

# Some versions of torch refuse products on a GPU without it while only what gives the same numbers twice is allowed.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    # Read when a backend is asked for, not when Triton is imported: Triton itself stays as it is.
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        # A scan is interpreted number by number: small tiles, and all the more of them.
        monkeypatch.setattr(schedule, "STEPS", 8)
        monkeypatch.setattr(schedule, "UNITS", 16)
    remembered = (schedule._choose, backends._choose)
    for rule in remembered:
        rule.cache_clear()
    yield
    for rule in remembered:
        rule.cache_clear()


@pytest.fixture(autouse=True)
def memory_full_of_nan():
    # torch then fills what it allocates: an element that nobody writes is seen.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
