"""Tests of stopping: Ctrl-C, SIGTERM, and a kill in the middle of a save."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from throughtime.train import LMConfig, StepRecord, TrainingStopped, resume, train, updates
from throughtime.train.checkpoint import steps_in
from throughtime.train.runlog import read_log
from throughtime.train.signals import StopSignals

Tiny = Callable[..., LMConfig]


def signal_at(step: int, number: signal.Signals) -> Callable[[StepRecord], None]:
    def on_step(record: StepRecord) -> None:
        if record.step == step:
            os.kill(os.getpid(), number)

    return on_step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 13, 20])
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(
    tiny: Tiny, tmp_path: Path, number: signal.Signals, step: int
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    whole = train(tiny(dropout=0.2), tmp_path / "whole")
    run = tmp_path / "run"
    with pytest.raises(TrainingStopped) as caught:
        train(tiny(dropout=0.2), run, on_step=signal_at(step, number))
    assert str(caught.value) == f"stopped at step {step} and saved; continue with: throughtime train --resume {run}"
    assert caught.value.received == number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert steps_in(run / "checkpoints")[-1] == read_log(run / "log.jsonl")[-1].step == step
    on = resume(run)
    assert [replace(r, seconds=0.0) for r in on.history] == [replace(r, seconds=0.0) for r in whole.history]
    assert on.best_valid == whole.best_valid


def test_a_signal_in_the_middle_of_a_step_lets_it_finish(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = updates.total_loss, [0]

    def total_loss(*given: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*given)

    monkeypatch.setattr(updates, "total_loss", total_loss)
    with pytest.raises(TrainingStopped, match="stopped at step 7 and saved"):
        train(tiny(), tmp_path / "run")
    assert steps_in(tmp_path / "run" / "checkpoints") == [0, 7]


def test_a_signal_before_the_first_step_stops_there(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="stopped at step 0 and saved"):
        train(tiny(), tmp_path / "run", on_start=lambda path, step: os.kill(os.getpid(), signal.SIGTERM))
    assert len(resume(tmp_path / "run").history) == 30


def test_a_signal_at_the_last_step_is_no_interruption(tiny: Tiny, tmp_path: Path) -> None:
    result = train(tiny(steps=5), tmp_path / "run", on_step=signal_at(5, signal.SIGINT))
    assert len(result.history) == 5


def test_a_second_ctrl_c_acts_at_once(tiny: Tiny, tmp_path: Path) -> None:
    def twice(record: StepRecord) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tiny(), tmp_path / "run", on_step=twice)
    assert not isinstance(caught.value, TrainingStopped)
    assert len(resume(tmp_path / "run").history) == 30


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.received is None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_train_without_handlers(tiny: Tiny, tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tiny(steps=3), tmp_path / "run")))
    thread.start()
    thread.join()
    assert len(results[0].history) == 3


def test_a_kill_in_the_middle_of_a_save_loses_nothing_but_the_last_steps(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(dropout=0.2, valid_fraction=0.0)
    program = f"""
import os
from throughtime import files
from throughtime.train import LMConfig, train
sync = os.fsync
def fsync(handle):
    sync(handle)
    if "step-000020" in os.readlink(f"/proc/self/fd/{{handle}}"):
        os.kill(os.getpid(), 9)
files.os.fsync = fsync
train({config!r}, {str(tmp_path / "run")!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    names = sorted(os.listdir(tmp_path / "run" / "checkpoints"))
    assert names == [".tmp-step-000020", "step-000000", "step-000010"]
    again = resume(tmp_path / "run")
    whole = train(config, tmp_path / "whole")
    assert [r.loss for r in again.history] == [r.loss for r in whole.history]
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["step-000020", "step-000030"]
