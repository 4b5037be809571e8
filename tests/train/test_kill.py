"""kill -9 at random instants: a few of those that benchmarks/kill.py makes by the hundred."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import throughtime

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill.py"


def test_kills_at_random_instants_leave_a_run_that_ends_as_if_nothing_had_been() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(throughtime.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    words = ["--kills", "4", "--steps", "60", "--longest", "1.5"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] == 4 and told["runs ended"] >= 1 and told["wrong"] == []
