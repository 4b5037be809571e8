"""Two processes that train together end as one: signals, full disks, lost processes, bad numbers, wrong words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.train.processes import ends, start

import throughtime
from throughtime.train.runlog import read_log

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

SIGNALLED = """
import os, signal, sys
from throughtime.cli import main
from throughtime.train import steps
real, place = steps.gradients, int(os.environ["RANK"])

def gradients(session, source):
    if session.step == 4 and place == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return real(session, source)

steps.gradients = gradients
sys.exit(main(sys.argv[1:]))
"""

FULL = """
import errno, os, sys
from throughtime import files
from throughtime.cli import main
real = os.rename

def rename(source, target):
    if target.name == "step-000010":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(source, target)

files.os.rename = rename
sys.exit(main(sys.argv[1:]))
"""

LOST = """
import os, sys
from throughtime.cli import main
from throughtime.train import steps
real, place = steps.gradients, int(os.environ["RANK"])

def gradients(session, source):
    if session.step == 4 and place == 1:
        os._exit(9)
    return real(session, source)

steps.gradients = gradients
sys.exit(main(sys.argv[1:]))
"""

BROKEN = """
import math, os, sys
from throughtime.cli import main
from throughtime.train import updates
real, place, calls = updates.total_loss, int(os.environ["RANK"]), [0]

def total_loss(*given):
    calls[0] += 1
    loss = real(*given)
    return loss * math.nan if calls[0] == 7 and place == 1 else loss

updates.total_loss = total_loss
sys.exit(main(sys.argv[1:]))
"""


def command(place: Path, program: str, *words: str, **environment: str) -> list[tuple[int, str, str]]:
    """A small `throughtime train` in two processes, with something going wrong in it."""
    (place / "t.txt").write_text("the cat sat on a mat.\n" * 40)
    given = ["train", str(place / "t.txt"), "--run", str(place / "run"), "--hidden", "8", "--window", "8"]
    more = ["--batch", "4", "--steps", "20", "--checkpoint-every", "5", "--valid-every", "10", "--threads", "1"]
    return ends(start(["-c", program, *given, *more, *words], **environment))


def saved_until(place: Path) -> int:
    return read_log(place / "run" / "log.jsonl")[-1].step


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_stops_all_and_one_of_them_says_so(tmp_path: Path) -> None:
    (status, _, told), (other, printed, complaints) = command(tmp_path, SIGNALLED)
    assert (status, other) == (143, 143) and (printed, complaints) == ("", "")
    again = f"torchrun --nproc-per-node 2 -m throughtime train --resume {tmp_path / 'run'}"
    assert told == f"throughtime: stopped at step 5 and saved; continue with: {again}\n"
    assert saved_until(tmp_path) == 5 and (tmp_path / "run" / "checkpoints" / "step-000005").is_dir()


@pytest.mark.slow
def test_a_full_disk_ends_all_processes_with_one_line(tmp_path: Path) -> None:
    (status, _, told), (other, printed, complaints) = command(tmp_path, FULL)
    assert (status, other) == (1, 1) and (printed, complaints) == ("", "")
    assert told.startswith("throughtime: error: cannot write ") and told.count("\n") == 1
    assert "step-000010: No space left on device" in told
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["step-000000", "step-000005"]


@pytest.mark.slow
def test_a_process_that_is_lost_ends_the_others_with_one_line(tmp_path: Path) -> None:
    (status, _, told), (other, *_) = command(tmp_path, LOST)
    assert (status, other) == (1, 9) and told.count("\n") == 1
    assert told.startswith("throughtime: error: another process of this training ended, and so do all")
    assert saved_until(tmp_path) == 4


@pytest.mark.slow
def test_bad_numbers_of_one_process_are_left_out_by_all(tmp_path: Path) -> None:
    (status, printed, told), (other, silent, complaints) = command(tmp_path, BROKEN)
    assert (status, other) == (0, 0), told + complaints
    assert (told, silent, complaints) == ("", "", "")
    lines = [line for line in printed.splitlines() if line.startswith("guard: ")]
    assert len(lines) == 2 and "at step 7" in lines[0] and lines[0].endswith("that update is left out")
    assert saved_until(tmp_path) == 20 and (tmp_path / "run" / "guard.jsonl").read_text().count("\n") == 2


@pytest.mark.slow
def test_what_cannot_be_used_is_said_once(tmp_path: Path) -> None:
    for words, says in (
        (["--batch", "1"], "a batch of 1 cannot be shared by 2 processes"),
        (["--cell", "lsmt"], "there is no cell 'lsmt'"),
        (["--hidden", "two"], "invalid choice"),
    ):
        (status, _, told), (other, printed, complaints) = command(tmp_path, FULL, *words)
        assert (status, other) == (2, 2) and (printed, complaints) == ("", "")
        assert says in told or "hidden" in words[0]
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_starts_a_run_and_one_process_prints(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the cat sat on a mat.\n" * 40)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "throughtime"]
    words = ["train", "t.txt", "--run", "run", "--hidden", "8", "--window", "8", "--batch", "3", "--steps", "6"]
    environment = {
        **os.environ, "PYTHONPATH": str(Path(throughtime.__file__).parents[1]), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *torchrun, *words, "--threads", "1"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "run run" and sum("step 6/6" in line for line in lines) == 1
    assert lines[-1] == "see what it writes: throughtime sample run"
    assert len(read_log(tmp_path / "run" / "log.jsonl")) == 6
