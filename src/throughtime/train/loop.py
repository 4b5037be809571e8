"""A run from its data to its last checkpoint: how it is begun, continued and loaded. The loop itself is in steps.py."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from throughtime.cures.guard_report import Incident
from throughtime.diagnosis.history import Record
from throughtime.errors import ConfigError
from throughtime.train import checkpoint as checkpoints
from throughtime.train.compiled import compile_forward
from throughtime.train.config import RunConfig
from throughtime.train.data.prepare import prepare
from throughtime.train.data.prepared import Prepared
from throughtime.train.distributed import Group
from throughtime.train.guarding import OnIncident
from throughtime.train.kinds import LMConfig
from throughtime.train.meeting import joined
from throughtime.train.model import SequenceModel, build
from throughtime.train.rundir import Run, new_run_path
from throughtime.train.runlog import StepRecord
from throughtime.train.session import Session, private_torch
from throughtime.train.steps import Callbacks, Loop, OnStart, OnStep, TrainingStopped

log = logging.getLogger("throughtime.train")
__all__ = ["TrainResult", "TrainingStopped", "load", "load_from", "resume", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to: its directory, a record of each step, its best validation, the unit of its losses.

    incidents: what the guard did since the run was begun or continued here.
    watched:   what was measured of the gradient through time, from the run's beginning on.
    """

    path: Path
    history: list[StepRecord]
    best_valid: float | None
    best_step: int
    unit: str
    incidents: list[Incident] = field(default_factory=list)
    watched: list[Record] = field(default_factory=list)


def train(
    config: RunConfig,
    run_dir: str | Path | None = None,
    *,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
    on_incident: OnIncident | None = None,
) -> TrainResult:
    """Train what `config` describes and keep all of the run in a new directory.

    Without `run_dir` that is ./runs/<data>-<cell>, with -2, -3, ... behind it where that is taken.
    `on_start` is called with the directory and the first step, `on_step` with the record of each step, `on_incident`
    with what the guard did about a bad one; without it that is a warning of the logger "throughtime.guard".
    Raises `ConfigError`, `DataError`, `CheckpointError` (it cannot write), `NonFiniteError` (bad
    numbers that the guard could not help), `TrainingStopped` (Ctrl-C or SIGTERM, after saving).
    """
    config = config.anchored()
    with joined() as group:
        place = group.from_first(lambda: Path(run_dir) if run_dir is not None else new_run_path(config))
        with group.together():
            if isinstance(config, LMConfig) and Path(config.text) in place.absolute().parents:
                raise ConfigError(
                    f"{place} lies in the folder that is learned from; choose another directory with --run"
                )
            data = prepare(config)
        with _prepared(group, config, data) as session:
            run = group.from_first(lambda: Run.create(place, config, data))
            try:
                session.save(run.checkpoints)
                group.settle(0)
            except BaseException:
                if group.first:
                    run.discard()
                raise
            return _go(run, data, session, None, Callbacks(on_start, on_step, on_incident))


def resume(
    run_dir: str | Path,
    *,
    checkpoint: str = "last",
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
    on_incident: OnIncident | None = None,
    **changes: Any,
) -> TrainResult:
    """Continue a run to the very numbers that it would have had uninterrupted.

    `checkpoint` is where to go on from: last, best, or a name such as step-000200.
    `changes` are options such as steps, lr or clip_norm (`RunConfig.may_change`). What the run did after that
    checkpoint is dropped from its log and its checkpoints. Raises as `train` does.
    """
    with joined() as group:
        run = group.from_first(lambda: Run.open(Path(run_dir)))
        with group.together():
            config = run.config.changed(**changes).anchored()
            data = prepare(config, run.schema)
            run.check_data(data.sha256)
        path = group.from_first(lambda: checkpoints.find(run.checkpoints, checkpoint))
        with _prepared(group, config, data) as session:
            saved = session.restore(path)
            if group.first and session.saved_by != group.size:
                log.warning("%s", _shared_anew(session.saved_by, group.size))
            with group.together():
                if session.step >= config.steps:
                    raise ConfigError(
                        f"{run.path} is at step {session.step}, and --steps is {config.steps}: there is nothing left "
                        f"to do; give more steps to go on, for example --steps {session.step + config.steps}"
                    )
                if group.first:
                    run.remove_leftovers()
                    checkpoints.remove_after(run.checkpoints, session.step)
                    run.change(config, session.step)
            return _go(run, data, session, saved, Callbacks(on_start, on_step, on_incident))


def load(run_dir: str | Path, checkpoint: str = "best") -> Any:
    """The trained model of a run, ready to use (eval mode, on the CPU), with its `schema` and `config`.

    A `LanguageModel`, with its `vocabulary`, where the run learned from text, else a `SequenceModel`.
    `checkpoint` is `best` (the last, where nothing was validated), `last`, or a name such as step-000200.
    Raises `CheckpointError`.
    """
    return load_from(Run.open(Path(run_dir)), checkpoint)


def load_from(run: Run, checkpoint: str) -> SequenceModel:
    """The model of a run that is open."""
    path = checkpoints.find(run.checkpoints, checkpoint)
    with private_torch(replace(run.config, device="cpu", threads=0)):
        model = build(run.config, run.schema)
    checkpoints.read_weights(path, model, run.config.digest())
    return model.eval()


@contextmanager
def _prepared(group: Group, config: RunConfig, data: Prepared) -> Iterator[Session]:
    """The moving parts of a run, with torch as the run wants it."""
    group.check_data(data.sha256)
    with group.together():
        group.check_batch(config.batch)
        device = group.device(config.device)
    with private_torch(config, device):
        with group.together():
            session = Session(config, data.schema, group)
        yield session


def _shared_anew(before: int, now: int) -> str:
    return (
        f"this run was saved by {before} process{'es' * (before > 1)} and goes on in {now}: its sequences are shared "
        "out anew, losses stay the same within rounding, and dropout draws other numbers"
    )


def _go(
    run: Run, data: Prepared, session: Session, saved: Mapping[str, Any] | None, callbacks: Callbacks
) -> TrainResult:
    group = session.group
    if session.config.compile:
        compile_forward(session.model)
    session.together = group.parallel(session.model)
    shared = replace(data, train=group.share(data.train), valid=data.valid and group.share(data.valid))
    loop = Loop(run, shared, session, saved, callbacks if group.first else Callbacks())
    loop.run_to_the_end()
    best, unit = session.best, data.schema.unit
    return TrainResult(
        run.path, loop.log.records, best.loss, best.step, unit, list(loop.guard.incidents), list(loop.watch.history)
    )
