"""Two processes that train together: the losses of one, exact resuming, other numbers of processes, errors as one."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import throughtime
from throughtime.errors import CheckpointError
from throughtime.train import (
    ForecastConfig,
    LabelConfig,
    LMConfig,
    NotesConfig,
    RunConfig,
    StepRecord,
    TaskConfig,
    resume,
    train,
)
from throughtime.train.checkpoint import read_resume, step_name
from throughtime.train.kinds import to_plain
from throughtime.train.runlog import read_log

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

JOBS = """
import json, sys
from pathlib import Path
from throughtime.errors import ProcessError, ThroughtimeError
from throughtime.train import resume, train
from throughtime.train.kinds import from_plain
from throughtime.train.meeting import joined

class Stop(Exception):
    pass

def crash(record):
    if record.step == 13:
        raise Stop

place, told = Path(sys.argv[1]), []
with joined() as group:
    for how, name, config in json.loads((place / "jobs.json").read_text()):
        try:
            if how == "resume":
                resume(place / name)
            else:
                train(from_plain(config), place / name, on_step=crash if how == "crash" else None)
        except (Stop, ThroughtimeError) as error:
            told.append([name, type(error).__name__, str(error)])
(place / f"told-{group.rank}").write_text(json.dumps(told))
"""


class Stop(Exception):
    """Ends a run from its `on_step`, as a crash would."""


def crash(record: StepRecord) -> None:
    if record.step == 13:
        raise Stop


def start(words: Sequence[str], processes: int = 2, **environment: str) -> list[subprocess.Popen[str]]:
    """The same command in several processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    everywhere = {
        **os.environ, "PYTHONPATH": str(Path(throughtime.__file__).parents[1]), "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), **environment,
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, *words], env={**everywhere, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip


def ends(running: list[subprocess.Popen[str]], seconds: float = 240) -> list[tuple[int, str, str]]:
    """Status, output and complaints of each; none may hang."""
    try:
        outputs = [process.communicate(timeout=seconds) for process in running]
        return [(process.returncode, *output) for process, output in zip(running, outputs, strict=True)]
    finally:
        for process in running:
            process.kill()


def together(place: Path, jobs: Sequence[tuple[str, str, RunConfig]]) -> list[Any]:
    """Train, crash or resume in two processes; gives what each was told by errors."""
    plain = [(how, name, to_plain(config) if config else None) for how, name, config in jobs]
    (place / "jobs.json").write_text(json.dumps(plain))
    for status, _, complaints in ends(start(["-c", JOBS, str(place)])):
        assert status == 0, complaints
    return [json.loads((place / f"told-{rank}").read_text()) for rank in range(2)]


def configs(place: Path) -> dict[str, RunConfig]:
    """A small run of each kind; batches of 5 and 3 are shared unevenly."""
    (place / "t.txt").write_text("the cat sat on a mat.\n" * 40)
    generator, t = np.random.default_rng(0), np.arange(120)
    waves = "".join(f"{a:.4f},{b:.4f}\n" for a, b in zip(np.sin(t / 3), np.cos(t / 3), strict=True))
    (place / "waves.csv").write_text("s,c\n" + waves)
    words = [("ab" * n if n % 2 else "ba" * n)[: n + 1] for n in range(1, 25)]
    (place / "words.csv").write_text("w,k\n" + "".join(f"{w},{w[0]}\n" for w in words))
    steps = [(n, generator.random(), n % 2) for n in range(16) for _ in range(2 + n % 5)]
    (place / "steps.csv").write_text("who,x,k\n" + "".join(f"{n},{x + k:.3f},k{k}\n" for n, x, k in steps))
    lengths = [3 + n % 5 for n in range(12)]
    rolls = np.tile(np.eye(8, dtype=np.uint8), (9, 1))[: sum(lengths)]
    np.savez(place / "rolls.npz", train=rolls, train_len=lengths)
    small: dict[str, Any] = {
        "hidden": 8, "steps": 24, "valid_every": 8, "checkpoint_every": 8, "lr": 0.02, "threads": 1,
    }  # fmt: skip
    return {
        "text": LMConfig(str(place / "t.txt"), embedding=6, window=8, batch=5, accumulate=2, **small),
        "sequence": LabelConfig(str(place / "steps.csv"), label="k", sequence="who", window=3, batch=5, **small),
        "forecast": ForecastConfig(
            str(place / "waves.csv"), target="s", horizon=3, components=2, window=7, batch=2, **small
        ),
        "characters": LabelConfig(
            str(place / "words.csv"), label="k", characters="w", bidirectional=True, batch=5, **small
        ),
        "notes": NotesConfig(str(place / "rolls.npz"), batch=3, window=2, valid_fraction=0.2, **small),
        "reber": TaskConfig("reber", lag=8, batch=4, embedding=5, cell="gru", valid_windows=3, **small),
        "copy": TaskConfig("copy", lag=3, batch=3, window=6, **{**small, "valid_windows": 3}),
    }


def curve(run: Path) -> list[float]:
    return [value for r in read_log(run / "log.jsonl") for value in (r.loss, r.grad_norm, r.valid or 0.0)]


def weights(run: Path, step: int = 24) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "checkpoints" / step_name(step) / "model.safetensors")


FAST = ["text", "sequence"]
SLOW = ["forecast", "characters", "notes", "reber", "copy"]


@pytest.mark.parametrize("kinds", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["fast", "slow"])
def test_two_processes_give_the_numbers_of_one_and_resume_exactly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kinds: list[str]
) -> None:
    jobs: list[Any] = []
    for name, config in configs(tmp_path).items():
        if name in kinds:
            dropped = replace(config, dropout=0.3, layers=2)
            with pytest.raises(Stop):
                train(config, tmp_path / f"{name}-up", on_step=crash)
            jobs += [
                ("train", f"{name}-two", config),
                ("crash", f"{name}-down", config),
                ("resume", f"{name}-up", None),
                ("train", f"{name}-whole", dropped),
                ("crash", f"{name}-parts", dropped),
                ("resume", f"{name}-parts", None),
            ]
    first, second = together(tmp_path, jobs)
    for name in kinds:
        config = configs(tmp_path)[name]
        train(config, tmp_path / f"{name}-one")
        # Sums in another order: float32 rounding, which 24 steps of Adam make larger.
        one = pytest.approx(curve(tmp_path / f"{name}-one"), rel=2e-3, abs=2e-4)
        assert curve(tmp_path / f"{name}-two") == one
        assert curve(tmp_path / f"{name}-two")[:3] == pytest.approx(curve(tmp_path / f"{name}-one")[:3], rel=1e-5)
        caplog.clear()
        assert len(resume(tmp_path / f"{name}-down").history) == 24
        assert [r.getMessage() for r in caplog.records if r.name == "throughtime.train"] == [
            "this run was saved by 2 processes and goes on in 1: its sequences are shared out anew, losses stay the "
            "same within rounding, and dropout draws other numbers"
        ]
        assert curve(tmp_path / f"{name}-down") == one and curve(tmp_path / f"{name}-up") == one
        whole, parts = tmp_path / f"{name}-whole", tmp_path / f"{name}-parts"
        assert curve(whole) == curve(parts)
        assert all(torch.equal(v, weights(parts)[k]) for k, v in weights(whole).items())
        assert not list(parts.rglob(".tmp-*"))
        saved = read_resume(whole / "checkpoints" / step_name(24), replace(config, dropout=0.3, layers=2).digest())
        assert len(saved["others"]) == 1 and not torch.equal(saved["rng"], saved["others"][0]["rng"])
    crashed = [name for how, name, _ in jobs if how == "crash"]
    assert [name for name, *_ in first] == [name for name, *_ in second] == crashed
    assert all(kind == "Stop" for _, kind, _ in first)
    assert all(told[1:] == ["ProcessError", "Stop: "] for told in second)


@pytest.mark.parametrize("others", [5, ["x"], [{}], [{"rng": torch.zeros(3), "cuda_rng": None}]])
def test_what_others_left_in_a_checkpoint_is_no_danger_to_one_process(tmp_path: Path, others: Any) -> None:
    config = configs(tmp_path)["text"]
    train(replace(config, steps=8), tmp_path / "run")
    place = tmp_path / "run" / "checkpoints" / step_name(8)
    saved = read_resume(place, config.digest())
    torch.save({**saved, "others": others}, place / "resume.pt")
    meta = json.loads((place / "meta.json").read_text())
    meta["sha256"]["resume.pt"] = hashlib.sha256((place / "resume.pt").read_bytes()).hexdigest()
    (place / "meta.json").write_text(json.dumps(meta))
    if isinstance(others, list):  # another process' part, which this one does not need
        assert len(resume(tmp_path / "run", steps=9).history) == 9
    else:
        with pytest.raises(CheckpointError, match=r"does not fit the run: resume.pt: TypeError"):
            resume(tmp_path / "run", steps=9)


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
