"""Kills at random instants, and a disk that fills: a few of those that benchmarks/ makes by the hundred."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import throughtime

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def told(script: str, *words: str) -> dict[str, Any]:
    """What one of the benchmarks found."""
    environment = {**os.environ, "PYTHONPATH": str(Path(throughtime.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / script), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["wrong"] == [] and found["runs ended"] >= 1
    return found


def test_kills_at_random_instants_leave_a_run_that_ends_as_if_nothing_had_been() -> None:
    assert told("kill.py", "--kills", "4", "--steps", "60", "--longest", "1.5")["kills"] == 4


@pytest.mark.slow
def test_kills_of_two_processes_together_or_of_one_of_them() -> None:
    found = told("kill.py", "--kills", "4", "--steps", "40", "--longest", "4", "--processes", "2", "--seed", "1")
    assert found["kills"] == 4 and sum(found["of them"].values()) == 4


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_fills_at_random_moments() -> None:
    assert told("disk.py", "--fills", "4", "--steps", "40", "--longest", "1.5")["fills"] == 4
