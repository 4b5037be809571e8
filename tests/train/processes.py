"""Training in two processes, for tests: jobs that both do, small runs of each kind, what a run left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

import throughtime
from throughtime.train import ForecastConfig, LabelConfig, LMConfig, NotesConfig, RunConfig, StepRecord, TaskConfig
from throughtime.train.checkpoint import step_name
from throughtime.train.kinds import to_plain
from throughtime.train.runlog import read_log

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
