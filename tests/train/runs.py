"""Shared by tests of whole runs: a small one of each kind, and ways to stop it and to compare two."""

from __future__ import annotations

import math
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from throughtime.train import (
    ForecastConfig,
    LabelConfig,
    LMConfig,
    NotesConfig,
    RunConfig,
    StepRecord,
    TaskConfig,
    TrainResult,
)
from throughtime.train.checkpoint import step_name, steps_in
from throughtime.train.runlog import read_log

KINDS = ("text", "forecast", "label", "notes", "task")


class Stop(Exception):
    """Ends a run from its `on_step`, as a crash would: nothing is saved."""


def crash_at(step: int) -> Callable[[StepRecord], None]:
    def on_step(record: StepRecord) -> None:
        if record.step == step:
            raise Stop

    return on_step


def signal_at(step: int, number: signal.Signals = signal.SIGINT) -> Callable[[StepRecord], None]:
    def on_step(record: StepRecord) -> None:
        if record.step == step:
            os.kill(os.getpid(), number)

    return on_step


def numbers(result: TrainResult) -> list[StepRecord]:
    return [replace(record, seconds=0.0) for record in result.history]


def weights(run: Path) -> dict[str, torch.Tensor]:
    last = steps_in(run / "checkpoints")[-1]
    return safetensors.torch.load_file(run / "checkpoints" / step_name(last) / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    assert [replace(r, seconds=0.0) for r in read_log(one / "log.jsonl")] == [
        replace(r, seconds=0.0) for r in read_log(other / "log.jsonl")
    ]
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def described(kind: str, place: Path) -> RunConfig:
    """A small run of a kind, with dropout, carried states and all else that must come back exactly."""
    draw = random.Random(0)
    loop = {"hidden": 6, "steps": 20, "valid_every": 8, "checkpoint_every": 6, "dropout": 0.2, "threads": 1}
    if kind == "text":
        (place / "t.txt").write_text("".join(draw.choices(["the cat ", "sat on ", "a mat.\n"], k=90)))
        return LMConfig(str(place / "t.txt"), embedding=4, window=8, batch=4, accumulate=2, **loop)
    if kind == "forecast":
        rows = "".join(f"{math.sin(t / 3) + draw.random() / 5:.4f}\n" for t in range(120))
        (place / "s.csv").write_text("s\n" + rows)
        return ForecastConfig(str(place / "s.csv"), target="s", horizon=2, window=6, components=2, **loop)
    if kind == "label":
        names = "".join(f"{''.join(draw.choices('abc', k=2 + n % 7))},{n % 2}\n" for n in range(60))
        (place / "w.csv").write_text("w,k\n" + names)
        return LabelConfig(str(place / "w.csv"), label="k", characters="w", bidirectional=True, batch=7, **loop)
    if kind == "notes":
        lengths = [5 + n % 7 for n in range(24)]
        rolls = np.random.default_rng(0).integers(0, 2, (sum(lengths), 8))
        np.savez(place / "r.npz", train=rolls, train_len=lengths)
        return NotesConfig(str(place / "r.npz"), window=4, batch=4, **loop)
    return TaskConfig("adding", lag=6, batch=8, **loop)
