"""prescribe() for a run of the trainer: remedies tried on its model, its text and its optimiser."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from throughtime.cures.prescribe import HELD, prescribe
from throughtime.cures.prescribe_result import Prescription
from throughtime.diagnosis import diagnose
from throughtime.train import checkpoint as checkpoints
from throughtime.train.asking import asked
from throughtime.train.data import Streams
from throughtime.train.session import Session, private_torch
from throughtime.train.textrun import open_text_run

WINDOWS = 6  # that the gradient is followed through


def prescribe_run(
    run_dir: str | Path,
    *,
    checkpoint: str | None = None,
    text: str | Path | None = None,
    steps: int = 200,
    seeds: int = 5,
    executor: Executor | None = None,
) -> Prescription:
    """`throughtime.prescribe` for a run of the language-model trainer, from its start or from one of its checkpoints.

    The trials read windows of the training text, each from a state of zeros, and are measured on the text kept for
    validation, in nats a symbol. They clip as the run does.

    checkpoint: where they begin: `best`, `last`, or a name such as step-000200; None: new weights, from the run's seed.
    text: where the text is now, if it was moved.     steps, seeds, executor: as `prescribe` takes them.
    Raises `CheckpointError`, `DataError`, and what `prescribe` raises.
    """
    run, config, found = open_text_run(run_dir, text)
    with private_torch(config):
        session = Session(config, run.schema)
        if checkpoint is not None:
            session.restore(checkpoints.find(run.checkpoints, checkpoint))
        clip = config.clip_norm or None
        train = _windows(found.train, steps)
        held = None if found.valid is None else _windows(found.valid, HELD)
        diagnosis = diagnose(
            session.model, train[:WINDOWS], _loss, data=asked(found.train), optimiser=session.optimiser, clip=clip,
            batch_axis=1,
        )  # fmt: skip
        return prescribe(
            session.model, train, _loss, session.optimiser, diagnosis=diagnosis, held_out=held, clip=clip, steps=steps,
            seeds=seeds, executor=executor,
        )  # fmt: skip


def _windows(streams: Streams, most: int) -> list[tuple[Tensor, Tensor]]:
    return [streams.window(n) for n in range(min(most, len(streams)))]


def _loss(out: tuple[Tensor, Any], targets: Tensor) -> Tensor:
    return functional.cross_entropy(out[0].flatten(0, 1), targets.flatten())
